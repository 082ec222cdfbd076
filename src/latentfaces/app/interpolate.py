"""The tab that interpolates."""

from typing import Any

import gradio as gr

from latentfaces.app.commands import Commands, Result, override
from latentfaces.app.controls import BUTTONS, Actions, FaceControls, Output, Values
from latentfaces.app.photo import upload


class Interpolate:
    """Tab that interpolates between two faces of seeds, or between two photos."""

    def __init__(self, commands: Commands, settings: FaceControls) -> None:
        self.commands, self.settings = commands, settings
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.count = gr.Slider(2, 48, 12, step=1, label="Length of the row")
                with gr.Tabs():
                    with gr.Tab("Seeds"):
                        with gr.Row():
                            self.seed = gr.Number(0, label="Left seed", precision=0, minimum=0, min_width=120)
                            self.number = gr.Number(0, label="Left face", precision=0, minimum=0, min_width=120)
                        with gr.Row():
                            self.to_seed = gr.Number(1, label="Right seed", precision=0, minimum=0, min_width=120)
                            self.to_number = gr.Number(0, label="Right face", precision=0, minimum=0, min_width=120)
                        gr.Markdown("Labels, guidance, sampler and EMA are those of the tab New faces.")
                        seeds = gr.Button("Interpolate", variant="primary")
                    with gr.Tab("Photos"):
                        self.left, self.right = upload("Left photo"), upload("Right photo")
                        photos = gr.Button("Interpolate", variant="primary")
                stop = gr.Button("Stop")
            with gr.Column(scale=2, min_width=320):
                self.animation = gr.Image(
                    label="Animation", interactive=False, height=320, buttons=BUTTONS, elem_classes="enlarged"
                )
                output = Output("Row", "small")
        outputs, actions = [self.animation, *output.components], Actions(commands)
        of_seeds = {self.seed, self.number, self.to_seed, self.to_number, self.count, *settings.inputs}
        of_photos = {self.left, self.right, self.count}
        actions.add(seeds, self.between_seeds, of_seeds, show, outputs, "interpolate")
        actions.add(photos, self.between_photos, of_photos, show, outputs, "interpolate_photos")
        actions.stop_with(stop)

    def between_seeds(self, values: Values) -> list[str]:
        """Return the command that interpolates between two new faces."""
        ends = {"seed": self.seed, "task.number": self.number}
        ends |= {"task.to_seed": self.to_seed, "task.to_number": self.to_number}
        command = [f"{key}={values[control]}" for key, control in ends.items()]
        return ["task=interpolate", f"num_images={int(values[self.count])}", *command, *self.settings.overrides(values)]

    def between_photos(self, values: Values) -> list[str]:
        """Return the command that interpolates between two photos."""
        left, right = (self.commands.keep(values[photo]) for photo in (self.left, self.right))
        ends = [override("image", left), override("task.to_image", right)]
        return ["task=interpolate", f"num_images={int(values[self.count])}", *ends]


def show(result: Result, values: Values) -> tuple[Any, ...]:
    """Return the animation and the row."""
    return result.files("animation.gif")[0], *Output.of(result, "0*.png")
