"""Overrides reach the config as the text that the user gave."""

from pathlib import Path

import pytest

from latentfaces.config.overrides import as_text

HOME = Path.home()
TEXTS = {
    "name=2026_11_29": 'name="2026_11_29"',
    "name=1e-4": 'name="1e-4"',
    "name=true": 'name="true"',
    "name=faces": "name=faces",
    "experiment=2026_11": 'experiment="2026_11"',
    "name='1_0'": "name='1_0'",
    "data.root=2026_11_28": 'data.root="2026_11_28"',
    "data.root=~/faces": f'data.root="{HOME}/faces"',
    "output='~/my faces'": f'output="{HOME}/my faces"',
    "hydra.run.dir=~/runs/a": f'hydra.run.dir="{HOME}/runs/a"',
    "vae=null": "vae=null",
    "vae=taesd:weights#taef1": 'vae="taesd:weights#taef1"',
    "vae='taesd:my weights#taef1'": 'vae="taesd:my weights#taef1"',
    "model.optimizer.lr=1e-4": "model.optimizer.lr=1e-4",
    "data.labels=~/labels.csv": f'data.labels="{HOME}/labels.csv"',
    "data.label_types.age=number": "++data.label_types.age=number",
    "labels.Smiling=1": "++labels.Smiling=1",
    "labels.5_o_Clock_Shadow=1": "++labels={5_o_Clock_Shadow: 1}",
    "labels.age.years=30": "++labels={age.years: 30}",
    "mark_key=~/key.pem": f'mark_key="{HOME}/key.pem"',
    "task.weights=~/net.pt": f'task.weights="{HOME}/net.pt"',
    "task.weights=[1.5,2.0]": "task.weights=[1.5,2.0]",
    "~callbacks.previews": "~callbacks.previews",
    "-m": "-m",
}


@pytest.mark.parametrize("override", TEXTS)
def test_names_and_paths_are_text(override: str) -> None:
    assert as_text(override) == TEXTS[override]
