"""The page and its tabs."""

from collections.abc import Mapping, Sequence

import gradio as gr

from latentfaces.app.commands import PHOTOS, Commands
from latentfaces.app.interpolate import Interpolate
from latentfaces.app.new_faces import NewFaces
from latentfaces.app.photo import Photo
from latentfaces.app.runs import Runs
from latentfaces.model_folder import ModelFolder
from latentfaces.run import Run


def build_page(run: Run, commands: Commands, choices: Mapping[str, Sequence[str]]) -> gr.Blocks:
    """Build the page of a run or a model folder. `choices` has the names of samplers and kinds of guidance."""
    gr.set_static_paths([commands.folder / PHOTOS])  # `Commands` adds the folder of each result
    with gr.Blocks(title=f"latentfaces: {run.folder.name}") as page:
        gr.Markdown(f"## latentfaces: {run.folder.name}")
        with gr.Tabs() as tabs:
            with gr.Tab("New faces"):
                new = NewFaces(run, commands, choices)
            with gr.Tab("Photo"):
                Photo(run, commands)
            with gr.Tab("Interpolate", id="interpolate"):
                between = Interpolate(commands, new.settings)
            if not isinstance(run, ModelFolder):
                with gr.Tab("Runs"):
                    Runs(run.folder.resolve().parent.parent)
        new.to_interpolate.click(
            new.start, {new.made, new.number}, [between.seed, between.number, tabs], api_name="start_interpolation"
        )
        page.unload(commands.stop)
    return page
