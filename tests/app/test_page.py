"""Every control of the page, by gradio's client."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.commands import run_command
from helpers.stand_ins import drawn, save_photo
from PIL import Image

from latentfaces.tasks.identify import identify

OWN = ["", "", "", "run's own", 1.5, "tuned", 2, 0]
"""Labels, guidance and its weight, sampler, steps and EMA width of the tab New faces."""


@pytest.fixture
def photo(tmp_path: Path) -> Any:
    """A face that is in no pack."""
    return handle_file(save_photo(drawn(1, first=5000)[0], tmp_path / "me.png"))


def made_again(command: str, tmp_path: Path) -> Path:
    """Run a command of the page as its user would. Return the folder of its files."""
    program, script, *overrides = shlex.split(command)
    assert (program, script) == ("python", "sample.py")
    run_command("sample.py", *overrides, f"output={tmp_path / 'again'}")
    return tmp_path / "again"


def refused(client: Client, *values: Any, api_name: str) -> str:
    """Return the error of a call. It must be one line."""
    with pytest.raises(AppError) as error:
        client.predict(*values, api_name=api_name)
    message = str(error.value)
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_the_shown_command_makes_the_same_file(client: Client, tmp_path: Path) -> None:
    settings = ["1", "", "free", "labels", 1.2, "ddim", 3, 0.1]
    gallery, command, _, files = client.predict(5, 3, *settings, api_name="/generate")
    assert "task=generate seed=5 num_images=3" in command
    assert "labels.smile=1 labels.age=free guidance=labels guidance.weight=1.2" in command
    assert "sampler=ddim sampler.num_steps=3 ema=0.1" in command
    again = made_again(command, tmp_path)
    assert [Path(image["image"]).name for image in gallery] == ["00000.png", "00001.png", "00002.png"]
    assert {Path(file).name for file in files} == {path.name for path in again.iterdir()}
    for file in files:
        assert Path(file).read_bytes() == (again / Path(file).name).read_bytes()
    assert any("trainedAlgorithmicMedia" in line for line in identify(files[0]))


def test_a_face_of_the_gallery_is_looked_at(client: Client, tmp_path: Path) -> None:
    client.predict(7, 2, *OWN, api_name="/generate")
    gallery, command, text, files = client.predict(1, api_name="/neighbours")
    assert "task=neighbours seed=7 task.first=1 num_images=1" in command
    assert "median_distance" in text
    assert [Path(image["image"]).name for image in gallery] == ["distances.png", "grid.png"]
    run_command("sample.py", "run=labeled", "seed=7", "num_images=2", "sampler.num_steps=2", f"output={tmp_path}/two")
    chosen = np.asarray(Image.open(tmp_path / "two" / "00001.png"))
    compared = np.asarray(Image.open(next(file for file in files if file.endswith("00000.png"))))
    assert np.abs(compared.astype(int) - chosen).max() <= 1
    assert "task=variations image=" in client.predict(1, api_name="/variations")[1]
    assert client.predict(1, api_name="/start_interpolation")[:2] == (7, 1)
    assert "no face 2" in refused(client, 2, api_name="/neighbours")


def test_faces_must_be_made_before_one_is_chosen(server: str) -> None:
    assert "no faces yet" in refused(Client(server, verbose=False), 0, api_name="/variations")


def test_ends_of_an_interpolation_are_faces_of_their_seeds(client: Client, tmp_path: Path) -> None:
    animation, _, command, _, files = client.predict(*OWN, 4, 3, 2, 4, 1, api_name="/interpolate")
    assert "num_images=4 seed=3 task.number=2 task.to_seed=4 task.to_number=1" in command
    assert animation.endswith("animation.gif")
    for seed, number, end in ((3, 2, "00000.png"), (4, 1, "00003.png")):
        more = [f"task.first={number}", "sampler.num_steps=2", f"output={tmp_path}/{seed}"]
        run_command("sample.py", "run=labeled", f"seed={seed}", "num_images=1", *more)
        face = np.asarray(Image.open(tmp_path / str(seed) / "00000.png")).astype(int)
        assert np.abs(np.asarray(Image.open(next(file for file in files if file.endswith(end)))) - face).max() <= 1


def test_two_photos_are_interpolated(client: Client, photo: Any) -> None:
    animation, _, command, _, _ = client.predict(2, photo, photo, api_name="/interpolate_photos")
    assert animation.endswith("animation.gif")
    assert "task.to_image=" in command


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("edit", [2, 1, 0.4], "task=edit image={photo} task.strength=0.4 seed=1 num_images=2"),
        ("vary", [2, 1, 0.3], "task=variations image={photo} task.amount=0.3 seed=1 num_images=2"),
        ("reconstruct", [], "task=reconstruct image={photo}"),
        ("invert", [], "task=invert image={photo}"),
        ("change", [None, "1", "", "", 2], "task=edit image={photo} labels.smile=1 guidance=labels guidance.weight=2"),
        ("slide", ["pc1", 2], "task=slide image={photo} direction=pc1 'task.range=[-2,2]'"),
    ],
)
def test_a_photo_is_edited(client: Client, photo: Any, name: str, values: list[Any], shown: str) -> None:
    compared, gallery, command, _, files = client.predict(photo, 1, *values, api_name=f"/{name}")
    kept = next(part for part in command.split() if part.startswith("image=")).removeprefix("image=")
    assert shown.format(photo=kept) in command
    assert Path(kept).exists()
    assert gallery
    assert (compared is None) == (name == "slide")
    assert any("compositeWithTrainedAlgorithmicMedia" in line for line in identify(files[0]))


@pytest.mark.parametrize(("name", "settings", "values"), [("fill", [1, 0], []), ("change", [], ["1", "", "", 2])])
def test_only_what_is_painted_changes(
    client: Client, photo: Any, tmp_path: Path, name: str, settings: list[Any], values: list[Any]
) -> None:
    painted = np.zeros((16, 16, 4), np.uint8)
    painted[4:9, 6:12] = 255
    Image.fromarray(painted).save(tmp_path / "layer.png")
    layer = handle_file(tmp_path / "layer.png")
    mask = {"background": None, "layers": [layer], "composite": None}
    *_, files = client.predict(photo, 1, *settings, mask, *values, api_name=f"/{name}")
    before = np.asarray(Image.open(photo["path"]).convert("RGB"))
    after = np.asarray(Image.open(next(file for file in files if file.endswith("00000.png"))))
    changed = (before != after).any(axis=-1)
    assert changed.any()
    assert not changed[painted[..., 3] == 0].any()


def test_a_photo_is_looked_at(client: Client, photo: Any) -> None:
    boxes, mask, note, _ = client.predict(photo, api_name="/look")
    assert Image.open(boxes).size == (16, 16)
    assert mask["background"]
    assert note in ("", "No face was found in the photo: its central square is used.")


def test_bad_uploads_and_values_are_one_line(client: Client, photo: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:999])
    assert "cannot be read" in refused(client, handle_file(tmp_path / "cut.png"), 1, api_name="/reconstruct")
    assert "cannot be read" in refused(client, handle_file(tmp_path / "bad.png"), api_name="/look")
    assert "Choose one first" in refused(client, None, 1, api_name="/reconstruct")
    assert "Nothing is painted" in refused(client, photo, 1, 1, 0, None, api_name="/fill")
    assert "No label" in refused(client, photo, 1, None, "", "", "", 2, api_name="/change")
    assert "labels.age" in refused(client, 0, 1, "", "", "200", *OWN[3:], api_name="/generate")
    assert client.predict(photo, 1, api_name="/reconstruct")  # the server lives


def test_photos_are_never_pages_and_other_files_are_not_served(
    server: str, client: Client, photo: Any, tmp_path: Path
) -> None:
    page = shutil.copy(photo["path"], tmp_path / "page.html")
    *_, command, _, _ = client.predict(handle_file(page), 1, api_name="/reconstruct")
    kept = Path(next(part for part in command.split() if part.startswith("image=")).removeprefix("image="))
    assert kept.suffix == ".png"
    assert httpx.get(f"{server}gradio_api/file={kept}").headers["content-type"] == "image/png"
    (kept.parents[1] / ".env").write_text("secret")
    assert httpx.get(f"{server}gradio_api/file={kept.parents[1]}/.env").status_code == 403


def test_two_browser_tabs_do_not_mix(server: str, client: Client) -> None:
    other = Client(server, verbose=False)
    jobs = [tab.submit(seed, 1, *OWN, api_name="/generate") for seed, tab in enumerate((client, other))]
    together = [Path(job.result()[0][0]["image"]).read_bytes() for job in jobs]
    alone = [client.predict(seed, 1, *OWN, api_name="/generate")[0][0]["image"] for seed in range(2)]
    assert together == [Path(path).read_bytes() for path in alone]


def test_runs_are_listed_and_shown(server: str, client: Client, place: Path) -> None:
    (place / "outputs" / "ldm" / "labeled" / "report.html").write_text("<p>The report</p>")
    table, choice = client.predict(api_name="/runs")
    rows = {(row[0], row[1]): row for row in table["data"]}
    assert set(rows) == {("faces", "ldm"), ("labeled", "ldm"), ("faces", "vae")}
    assert rows["faces", "ldm"][2:4] == ["finished", 4]
    assert ["ldm/labeled"] * 2 in [[*pair] for pair in choice["choices"]]
    about, previews, *_ = client.predict("ldm/labeled", api_name="/show_run")
    assert about.count('<img src="data:image/png;base64,') >= 1
    assert previews
    report = httpx.get(server + about.split('href="/')[1].split('"')[0])
    assert (report.text, report.headers["content-disposition"][:6]) == ("<p>The report</p>", "inline")
    weights = place / "outputs" / "ldm" / "labeled" / "checkpoints" / "last.ckpt"
    assert httpx.get(f"{server}gradio_api/file={weights}").status_code == 403
    assert "../.." in refused(client, "../..", api_name="/show_run")
