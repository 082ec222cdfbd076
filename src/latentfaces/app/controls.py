"""Controls that several tabs share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from latentfaces.app.commands import Commands, Result, override
from latentfaces.diffusion import Conditioning
from latentfaces.labels import Label
from latentfaces.run import Run, build

OWN = "run's own"
BUTTONS: Any = ["download", "fullscreen"]
"""Buttons of images: gradio's own also share an image on the internet."""
Values = Mapping[Any, Any]
"""Values of controls, by control."""


class LabelControls:
    """A control for each label of a run; none if it was trained without labels."""

    def __init__(self, run: Run) -> None:
        conditioning: Conditioning | None = build(run.config["model"].get("conditioning"))
        labels = conditioning.labels if conditioning is not None else []
        self.by_name = {label.name: self.control(label) for label in labels}
        self.inputs = {*self.by_name.values()}

    @staticmethod
    def control(label: Label) -> gr.Dropdown:
        """Return the control of a label."""
        choices = {"binary": [("no", "0"), ("yes", "1")], "category": [(c, c) for c in label.choices], "number": []}
        info = f"{label.low:g} to {label.high:g}" if label.kind == "number" else None
        return gr.Dropdown(
            [("any", ""), *choices[label.kind], ("unknown", "free")],
            label=label.name,
            value="",
            info=info,
            allow_custom_value=label.kind == "number",
            min_width=120,
        )

    def overrides(self, values: Values) -> list[str]:
        """Return the requested labels."""
        return [override(f"labels.{name}", values[c]) for name, c in self.by_name.items() if values[c]]


class FaceControls:
    """Controls of what new faces are made with: labels, guidance, sampler and average of the weights."""

    def __init__(self, run: Run, choices: Mapping[str, Sequence[str]]) -> None:
        network = run.config["model"]["denoiser"]["network"]
        fits = {"auto": run.has_guide, "internal": bool(network.get("auxiliary_depth"))}
        with gr.Row():
            self.labels = LabelControls(run)
        fits["labels"] = bool(self.labels.inputs)
        with gr.Accordion("Guidance and sampler", open=False):
            guidances = [name for name in choices["guidance"] if fits.get(name, True)]
            self.guidance = gr.Dropdown([OWN, *guidances], label="Guidance", value=OWN)
            self.weight = gr.Slider(1, 5, 1.5, step=0.1, label="Guidance weight", info="1 is no guidance")
            samplers = ["few", "tuned"] if run.is_fast else [name for name in choices["sampler"] if name != "few"]
            self.sampler = gr.Dropdown(samplers, label="Sampler", value="tuned")
            self.steps = gr.Slider(0, 100, 0, step=1, label="Steps", info="0: as usual for the sampler")
            self.ema = gr.Slider(
                0, 0.25, 0, step=0.01, label="EMA width", info="0: the run's own", visible=run.has_snapshots
            )
        self.inputs = {self.guidance, self.weight, self.sampler, self.steps, self.ema, *self.labels.inputs}

    def overrides(self, values: Values) -> list[str]:
        """Return the chosen settings."""
        chosen = self.labels.overrides(values)
        if values[self.guidance] != OWN:
            chosen.append(f"guidance={values[self.guidance]}")
            if values[self.guidance] != "none":
                chosen.append(f"guidance.weight={values[self.weight]}")
        if values[self.sampler] != "tuned":
            chosen.append(f"sampler={values[self.sampler]}")
        if values[self.steps]:
            chosen.append(f"sampler.num_steps={int(values[self.steps])}")
        if values[self.ema]:
            chosen.append(f"ema={values[self.ema]}")
        return chosen


class Output:
    """Images of a command, its files and the command itself.

    Args:
        label: title of the images.
        size: size of the images in the page, "small" or "large".
    """

    def __init__(self, label: str, size: str) -> None:
        self.gallery = gr.Gallery(
            label=label, show_label=False, object_fit="contain", height="auto", buttons=BUTTONS, elem_classes=size
        )
        self.command = gr.Textbox(label="Command", lines=1, interactive=False, buttons=["copy"])
        with gr.Accordion("Output and files", open=False):
            self.text = gr.Textbox(show_label=False, lines=1, interactive=False)
            self.files = gr.File(label="Files with metadata", file_count="multiple", interactive=False)
        self.components = [self.gallery, self.command, self.text, self.files]

    @staticmethod
    def of(result: Result, *patterns: str) -> tuple[Any, ...]:
        """Return the values of the components. The gallery shows the files that match the patterns."""
        return result.files(*patterns), result.command, result.text.strip(), result.files("*.png", "*.gif")


class Actions:
    """Buttons of a tab that run commands, and the button that stops them."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        self.events: list[Any] = []

    def add(
        self,
        button: gr.Button,
        overrides: Callable[[Values], list[str]],
        inputs: set[Any],
        show: Callable[[Result, Values], tuple[Any, ...]],
        outputs: list[Any],
        name: str,
    ) -> None:
        """Run a command on a click, one at a time for all browser tabs.

        Args:
            button: the button.
            overrides: function of the values of the inputs; returns the overrides of the command.
            inputs: controls.
            show: function of the result and the values of the inputs; returns the values of the outputs.
            outputs: components that show the result.
            name: name of the command for gradio's clients.
        """

        def run(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
            return show(self.commands(overrides(values), request, progress), values)

        self.events.append(
            button.click(
                run,
                inputs,
                outputs,
                api_name=name,
                concurrency_limit=1,
                concurrency_id="commands",
                show_progress_on=outputs[0],
            )
        )

    def stop_with(self, button: gr.Button) -> None:
        """Stop the tab's commands on a click."""
        button.click(self.commands.stop, None, None, cancels=self.events, queue=False, api_visibility="private")
