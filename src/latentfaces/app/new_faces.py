"""The tab with new faces."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from latentfaces.app.commands import Commands, Result, one_line, override
from latentfaces.app.controls import Actions, FaceControls, Output, Values
from latentfaces.run import Run


class NewFaces:
    """Tab that generates faces, and looks at one of them."""

    def __init__(self, run: Run, commands: Commands, choices: Mapping[str, Sequence[str]]) -> None:
        self.made = gr.State()
        """Result of the faces in the gallery."""
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                self.count = gr.Slider(1, 64, 16, step=1, label="Number of faces")
                self.settings = FaceControls(run, choices)
                make, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
            with gr.Column(scale=3, min_width=320):
                output = Output("New faces", "small")
                self.number = gr.Number(0, label="Chosen face (click one)", precision=0, minimum=0)
                with gr.Row():
                    near = gr.Button("Is it a copy?", visible="pack" in run.config)  # it needs the training images
                    vary = gr.Button("Variations")
                    self.to_interpolate = gr.Button("Start of an interpolation")
                more = Output("About the chosen face", "large")
        actions, chosen = Actions(commands), {self.made, self.number}
        outputs = [*output.components, self.made]
        actions.add(
            make, self.generate, {self.seed, self.count, *self.settings.inputs}, show_faces, outputs, "generate"
        )
        actions.add(near, self.neighbours, chosen, show_more, more.components, "neighbours")
        actions.add(vary, self.variations, chosen, show_more, more.components, "variations")
        actions.stop_with(stop)
        output.gallery.select(index_of, None, self.number, api_visibility="private")

    def generate(self, values: Values) -> list[str]:
        """Return the command for new faces."""
        count, settings = int(values[self.count]), self.settings.overrides(values)
        return ["task=generate", f"seed={values[self.seed]}", f"num_images={count}", *settings]

    def neighbours(self, values: Values) -> list[str]:
        """Return the command for the training images that are nearest to the chosen face."""
        made, number = self.face(values)
        _, seed, _, *settings = made.overrides
        return ["task=neighbours", seed, f"task.first={number}", "num_images=1", *settings]

    def variations(self, values: Values) -> list[str]:
        """Return the command for variations of the chosen face."""
        made, number = self.face(values)
        return ["task=variations", override("image", made.folder / f"{number:05d}.png"), "align=false", "num_images=8"]

    def start(self, values: Values) -> tuple[int, int, Any]:
        """Return seed and number of the chosen face, and the tab that is opened."""
        made, number = self.face(values)
        return int(made.overrides[1].removeprefix("seed=")), number, gr.Tabs(selected="interpolate")

    def face(self, values: Values) -> tuple[Result, int]:
        """Return the result with the faces, and the number of the chosen one.

        Raises:
            gr.Error: there is none.
        """
        made, number = values[self.made], values[self.number] or 0
        if made is None:
            raise one_line("There are no faces yet. Generate some first.")
        if not (made.folder / f"{number:05d}.png").exists():
            raise one_line(f"There is no face {number}. Choose one of the gallery.")
        return made, number


def show_faces(result: Result, values: Values) -> tuple[Any, ...]:
    """Return the gallery of faces, and the result."""
    return *Output.of(result, "0*.png"), result


def show_more(result: Result, values: Values) -> tuple[Any, ...]:
    """Return the gallery of images that are similar to the chosen face."""
    return Output.of(result, "distances.png", "grid.png")


def index_of(event: gr.SelectData) -> int:
    """Return the number of the image that was clicked."""
    index: int = event.index
    return index
