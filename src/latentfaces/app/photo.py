"""The tab that edits a photo."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from latentfaces.app.commands import PHOTOS, Commands, Result, one_line, override
from latentfaces.app.controls import BUTTONS, Actions, LabelControls, Output, Values
from latentfaces.data.align import find_faces, has_detector
from latentfaces.data.crops import Square, numbered
from latentfaces.data.images import center_square, decode_photo, digest, open_image
from latentfaces.diffusion.directions import FeatureDirections
from latentfaces.run import DIRECTIONS, Run

LARGEST_SHOWN = 1024
"""Largest side, in pixels, of a photo that is shown to be painted on."""


def upload(label: str) -> gr.Image:
    """Return an input of a photo, whose value is the path of the unread file."""
    image = gr.Image(label=label, type="filepath", sources=["upload", "webcam"], height=280, buttons=BUTTONS)
    # gradio would open the file. Its error for a file that is no image names neither the file nor a fix.
    image.preprocess = lambda payload: payload.path if payload is not None else None  # type: ignore[method-assign]
    return image


class Photo:
    """Tab that edits the face in a photo."""

    def __init__(self, run: Run, commands: Commands) -> None:
        self.commands, self.resolution = commands, run.config["data"]["resolution"]
        path = run.folder / DIRECTIONS
        directions = FeatureDirections.load(path).names if path.exists() else []
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.photo = upload("Photo")
                self.boxes = gr.Image(label="Part that the model sees", interactive=False, height=220, buttons=BUTTONS)
                self.note = gr.Markdown()
                self.face = gr.Number(1, label="Face", precision=0, minimum=1, visible=False)
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    self.count = gr.Slider(1, 16, 4, step=1, label="Number of results")
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Tabs():
                    with gr.Tab("Edit"):
                        self.strength = gr.Slider(
                            0.05, 1, 0.5, step=0.05, label="Strength", info="1 keeps nothing of the photo"
                        )
                        edit = gr.Button("Edit", variant="primary")
                    with gr.Tab("Inpaint"):
                        self.mask = gr.ImageEditor(
                            label="Paint what to fill",
                            type="pil",
                            sources=(),
                            transforms=(),
                            layers=False,
                            brush=gr.Brush(colors=["#ff3030"], color_mode="fixed"),
                        )
                        inpaint = gr.Button("Fill", variant="primary")
                    with gr.Tab("Vary"):
                        self.amount = gr.Slider(0.05, 0.95, 0.4, step=0.05, label="Amount")
                        vary = gr.Button("Vary", variant="primary")
                    with gr.Tab("Reconstruct"):
                        reconstruct, invert = gr.Button("Reconstruct", variant="primary"), gr.Button("Invert")
                    with gr.Tab("Labels", visible=bool(run.config["model"].get("conditioning"))):
                        with gr.Row():
                            self.labels = LabelControls(run)
                        self.weight = gr.Slider(1, 5, 2, step=0.1, label="Guidance weight", info="1 is no guidance")
                        gr.Markdown("If something is painted in the tab Inpaint, only this part changes.")
                        relabel = gr.Button("Change", variant="primary")
                    with gr.Tab("Direction", visible=bool(directions)):
                        self.direction = gr.Dropdown(directions, label="Direction")
                        self.range = gr.Slider(0.5, 6, 3, step=0.5, label="Strength", info="in std of the samples")
                        slide = gr.Button("Slide", variant="primary")
                stop = gr.Button("Stop")
                self.slider = gr.ImageSlider(
                    label="Before and after", interactive=False, max_height=512, buttons=BUTTONS
                )
                self.output = Output("Results", "large")
        outputs = [self.slider, *self.output.components]
        shared = {self.photo, self.face}
        several = {*shared, self.count, self.seed}
        actions = Actions(commands)
        for button, overrides, inputs in (
            (edit, lambda v: self.on_photo("edit", v, f"task.strength={v[self.strength]}"), {*several, self.strength}),
            (inpaint, self.inpaint, {*several, self.mask}),
            (vary, lambda v: self.on_photo("variations", v, f"task.amount={v[self.amount]}"), {*several, self.amount}),
            (reconstruct, lambda v: self.on_photo("reconstruct", v), shared),
            (invert, lambda v: self.on_photo("invert", v), shared),
            (relabel, self.relabel, {*shared, self.mask, self.weight, *self.labels.inputs}),
            (slide, self.slide, {*shared, self.direction, self.range}),
        ):
            actions.add(button, overrides, inputs, self.show, outputs, button.value.lower())
        actions.stop_with(stop)
        self.photo.change(self.look, self.photo, [self.boxes, self.mask, self.note, self.face], api_name="look")

    def look(self, path: str | None) -> tuple[Any, ...]:
        """Return the photo with its faces in boxes, the photo to paint on, a note, and the number of the face."""
        if path is None:
            return None, None, "", gr.Number(1, visible=False)
        photo = decode_photo(self.commands.keep(path).read_bytes())
        faces = find_faces(photo) if has_detector() else []
        squares = [face.square for face in faces]
        note = f"{len(faces)} faces were found." if len(faces) > 1 else ""
        if not has_detector():
            note = "The central square is used. To find faces, run `pip install 'latentfaces[align]'`."
        elif not faces:
            note = "No face was found in the photo: its central square is used."
        shown = numbered(photo, squares or [Square.central(*photo.size)])
        photo.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
        shown.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
        return shown, photo, note, gr.Number(1, maximum=max(1, len(faces)), visible=len(faces) > 1)

    def on_photo(self, task: str, values: Values, *overrides: str) -> list[str]:
        """Return the command of a task on the photo."""
        command = [f"task={task}", override("image", self.commands.keep(values[self.photo])), *overrides]
        if self.seed in values:
            command += [f"seed={values[self.seed]}", f"num_images={int(values[self.count])}"]
        return [*command, f"task.face={values[self.face]}"] if (values[self.face] or 1) > 1 else command

    def inpaint(self, values: Values) -> list[str]:
        """Return the command that fills what is painted."""
        mask = self.painted(values)
        if not mask:
            raise one_line("Nothing is painted. Paint what is to be filled.")
        return self.on_photo("inpaint", values, *mask)

    def painted(self, values: Values) -> list[str]:
        """Return the override with the mask, if something is painted."""
        layers = (values[self.mask] or {}).get("layers") or []
        painted = np.any([np.asarray(layer.getchannel("A")) > 0 for layer in layers], axis=0)
        if not painted.any():
            return []
        path = self.commands.folder / PHOTOS / f"mask_{digest(painted.tobytes())[:12]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted).save(path)
        return [override("task.mask", path)]

    def relabel(self, values: Values) -> list[str]:
        """Return the command that generates the face again with other labels."""
        labels = self.labels.overrides(values)
        if not labels:
            raise one_line("No label is chosen. Choose one.")
        guidance = ["guidance=labels", f"guidance.weight={values[self.weight]}"]
        return self.on_photo("edit", values, *labels, *guidance, *self.painted(values))

    def slide(self, values: Values) -> list[str]:
        """Return the command that moves the face along a direction."""
        strength = values[self.range]
        direction = override("direction", values[self.direction])
        return self.on_photo("slide", values, direction, f"task.range=[-{strength},{strength}]")

    def show(self, result: Result, values: Values) -> tuple[Any, ...]:
        """Return the photo with the first result, where both show the same, and all results."""
        photo = Path(values[self.photo])
        compared: tuple[Any, str] | None = None
        whole, faces = result.files("whole_*.png"), result.files("0*.png")
        if whole:
            compared = decode_photo(photo.read_bytes()), whole[0]
        elif not result.files("animation.gif"):
            compared = center_square(open_image(photo), self.resolution).transpose(1, 2, 0), faces[0]
        return compared, *Output.of(result, "whole_*.png", "animation.gif", "grid.png", "0*.png")
