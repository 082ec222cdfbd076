"""Labels: each format, kinds, missing values, and errors that name the place."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.photo_files import rewrite, write_zip

from latentfaces.data.labels import LabelTable, as_number, infer_kind, read_labels
from latentfaces.data.pack import Pack
from latentfaces.data.sources import DrawnFaces, Photos
from latentfaces.data.synthetic import known_labels, sample_face
from latentfaces.data.synthetic.known_labels import named
from latentfaces.errors import UserError
from latentfaces.labels import Label

NAN = float("nan")
NAMES = ["a/1.png", "a/2.png", "b/3.png", "b/4.png", "5.png"]
Read = Callable[..., LabelTable]


def pack_of(folder: Path, names: list[str], num_train: int) -> Pack:
    """Return a pack of images without pixels, of which the last are held out."""
    split = {"val": list(range(num_train, len(names)))}
    return Pack(folder, {"names": names, "num_images": len(names), "split": split, "sha256": "0123456789"})


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return `read(text, ...)`: labels of five images, of which the last is held out, from a file with this text."""

    def read_text(text: str | bytes, *chosen: str, file: str = "labels.csv", **kinds: str) -> LabelTable:
        path = tmp_path / file
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_labels(str(path), Photos(tmp_path), pack_of(tmp_path, NAMES, 4), chosen or None, kinds)

    return read_text


def values(table: LabelTable) -> dict[str, list[float]]:
    return {label.name: column.tolist() for label, column in zip(table.labels, table.values.T, strict=True)}


def same(found: list[float], expected: list[float]) -> bool:
    return np.array_equal(np.array(found), np.array(expected), equal_nan=True)


def test_csv_by_path_file_name_and_stem(read: Read) -> None:
    table = read(
        "name,glasses,age,hair\n3,1,30,red\na/1.png,0,20,black\na\\2.png,0,40,red\n4.png,1,50,blond\n5.png,0,90,red\n"
    )
    assert table.values.dtype == np.float32
    assert values(table) == {"glasses": [0, 0, 1, 1, 0], "age": [20, 40, 30, 50, 90], "hair": [0, 2, 2, 1, 2]}
    glasses, age, hair = table.labels
    assert (glasses, hair) == (Label("glasses", "binary"), Label("hair", "category", ("black", "blond", "red")))
    # Statistics are of the four training images, without the 90.
    assert (age.kind, age.mean, age.low, age.high) == ("number", 35, 20, 50)
    assert age.std == pytest.approx(np.std([20, 30, 40, 50]))


def test_names_with_another_suffix_and_those_of_aligned_faces(read: Read) -> None:
    table = read("name,age\n3.jpg,1\na/1.JPEG,2\na/2,3\n4.v2,4\n5.png,5\n")
    assert same(values(table)["age"], [2, 3, 1, NAN, 5])


def test_accents_of_macos_and_of_others_are_the_same(tmp_path: Path) -> None:
    composed, decomposed = "Jos\u00e9.png", "Jose\u0301.png"
    for name, listed in ((composed, decomposed), (decomposed, composed)):
        (tmp_path / "labels.csv").write_text(f"name,age\n{listed},1\n2.png,2\n")
        table = read_labels(str(tmp_path / "labels.csv"), Photos(tmp_path), pack_of(tmp_path, [name, "2.png"], 2))
        assert values(table)["age"] == [1, 2]


def test_spaces_inside_the_names_of_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("age, name\n1, my  face.png\n2, 2.png\n")
    table = read_labels(str(tmp_path / "labels.csv"), Photos(tmp_path), pack_of(tmp_path, ["my  face.png", "2.png"], 2))
    assert values(table)["age"] == [1, 2]


def test_missing_cells_and_rows_are_nan_and_counted(read: Read) -> None:
    table = read("name,smile,age\n1.png,1,\n2.png,,7\n3.png,0,9\nelsewhere.png,1,1\n")
    assert same(values(table)["smile"], [1, NAN, 0, NAN, NAN])
    assert same(values(table)["age"], [NAN, 7, 9, NAN, NAN])
    head, smile, age = table.summary.splitlines()
    assert "3 of 5 images have a row" in head
    assert "1 row(s) have no image, such as elsewhere.png" in head
    assert smile.split() == ["smile", "binary", "1", "in", "50.0%;", "3", "missing"]
    assert age.split() == ["age", "number", "7", "to", "9,", "mean", "8,", "std", "1;", "3", "missing"]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ({"0", "1"}, "binary"),
        ({"1"}, "binary"),
        ({"-1", "1"}, "binary"),
        ({"0.0", "1.0"}, "binary"),
        ({"True", "false"}, "binary"),
        ({"Yes", "no"}, "binary"),
        ({"-1", "0", "1"}, "number"),
        ({"1e-3", "7", "12.5"}, "number"),
        ({"7", "8", "typing error"}, "number"),
        ({"7", "old", "young"}, "category"),
        ({"0-2", "3-6"}, "category"),
        ({"0_2", "20_29"}, "category"),
        ({"1e300", "1e400"}, "category"),
        ({"nan", "inf", "-inf"}, "category"),
    ],
)
def test_kind_is_inferred(texts: set[str], kind: str) -> None:
    assert infer_kind(texts) == kind


@pytest.mark.parametrize("pair", ["0 1", "-1 1", "false TRUE", "No yes", "0.0 1.0"])
def test_every_form_of_a_binary_is_zero_and_one(read: Read, pair: str) -> None:
    no, yes = pair.split()
    assert same(values(read(f"name,x\n1,{no}\n2,{yes}\n3,{yes}\n"))["x"], [0, 1, 1, NAN, NAN])


def test_kind_can_be_set(read: Read) -> None:
    table = read("name,age,group\n1,10,7\n2,2,8\n3,10,\n", age="category", group="number")
    assert table.labels[0] == Label("age", "category", ("2", "10"))
    assert same(values(table)["age"], [1, 0, 1, NAN, NAN])
    assert table.labels[1].kind == "number"


def test_choice_of_thousands_of_digits_is_a_text(read: Read) -> None:
    assert read(f"name,hair\n1,{'9' * 5000}\n2,red\n").labels[0].kind == "category"


def test_choice_that_no_training_image_has_is_missing(read: Read) -> None:
    table = read("name,hair\n1,red\n2,black\n5,green\n")
    assert table.labels == [Label("hair", "category", ("black", "red"))]
    assert np.isnan(table.values[4, 0])


def test_chosen_labels_come_in_their_order(read: Read) -> None:
    table = read("name,a,b,c\n1,1,0,5\n2,0,0,5\n", "c", "a")
    assert [label.name for label in table.labels] == ["c", "a"]
    assert table.labels[0].std == 1  # a constant must not be divided by 0


def test_a_constant_number_has_a_std_of_one_despite_rounding(tmp_path: Path) -> None:
    names, path = [f"{number}.png" for number in range(7)], tmp_path / "labels.csv"
    path.write_text("name,x\n" + "".join(f"{name},0.1\n" for name in names))
    (label,) = read_labels(str(path), Photos(tmp_path), pack_of(tmp_path, names, 7)).labels
    assert np.full(7, 0.1).std() > 0
    assert (label.kind, label.low, label.std) == ("number", 0.1, 1)


def test_texts_that_are_no_category_are_left_out_unless_chosen(tmp_path: Path) -> None:
    names, path, source = [f"{number}.png" for number in range(65)], tmp_path / "labels.csv", Photos(tmp_path)
    rows = "".join(f"{name},note {name},{number % 2},\n" for number, name in enumerate(names))
    path.write_text(f"name,note,x,empty\n{rows}")
    table = read_labels(str(path), source, pack_of(tmp_path, names, 65))
    assert [label.name for label in table.labels] == ["x"]
    assert "left out: note (65 different texts), empty (0 different texts)" in table.summary
    with pytest.raises(UserError, match=r"note of .* has 65 different texts"):
        read_labels(str(path), source, pack_of(tmp_path, names, 65), ["note"])


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("name,x\n1,0\n2,1\na/1.png,0\n", r"labels\.csv, line 4: a/1\.png has a row already, .*labels\.csv, line 2"),
        ("name,x\n1,0\n2,1\n3,maybe\n", r"line 4: x is 'maybe', not a number"),
        ("name,x\n1,30\n2,31\n3,3O\n4,32\n", r"labels\.csv, line 4: x is '3O', not a number"),
        ("name,x\n1,30\n2,nan\n3,31\n", r"line 3: x is 'nan', not a number"),
        ("name,x\n1,0\n2,1\n5,maybe\n", r"line 4: x is 'maybe', not 0 or 1.*data\.label_types\.x=category"),
        ("name,x\n1,0\n2\n", r"line 3: 1 cells, but the header has 2"),
        ("name,x\n1,0,0\n", r"line 2: 3 cells, but the header has 2"),
        ("file,x\n1,0\n", r"line 1: no column `name`.*file, x"),
        ("name,x,x\n1,0,0\n", r"line 1: a column is there twice"),
        ("name,x\n", r"has no label of these images, such as a/1\.png: it has no rows"),
        ("", r"line 1: no column `name`"),
        ("name,x\n77.png,0\n", r"such as a/1\.png: 77\.png is none of the images"),
        (b"name,x\n1,\xff\n", r"labels\.csv is not a text in UTF-8"),
        (f'name,x\n1,"{"y" * 200_000}"\n', r"line 2: field larger than field limit"),
    ],
)
def test_error_names_file_and_line(read: Read, text: str | bytes, clue: str) -> None:
    with pytest.raises(UserError, match=clue) as raised:
        read(text)
    assert "\n" not in str(raised.value)


def test_columns_without_a_name_are_left_out(read: Read) -> None:
    assert list(values(read("name,x,,\n1,0,,\n2,1,,\n"))) == ["x"]


def test_rows_without_a_name_are_of_no_image(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image_number,x\n1,1\n2,0\n,\n,1\n")
    names = [f"{number:05d}.png" for number in range(3)]
    table = read_labels(str(tmp_path / "labels.csv"), Photos(tmp_path), pack_of(tmp_path, names, 3))
    assert same(values(table)["x"], [NAN, 1, 0])
    assert "2 of 3 images have a row" in table.summary


def test_spreadsheets_mark_and_blank_lines_are_read(read: Read) -> None:
    assert same(values(read("\ufeffname,x\r\n1,0\r\n\r\n2,1\r\n"))["x"], [0, 1, NAN, NAN, NAN])


def test_untrusted_texts_stay_in_one_line(read: Read) -> None:
    table = read('name,"ha\n ir"\n1,"red\x1b[2J"\n2,"dark\r\nbrown"\n"x\ny",1\n')
    assert table.labels == [Label("ha ir", "category", ("dark brown", "red\\x1b[2J"))]
    assert len(table.summary.splitlines()) == 2
    assert "such as x y" in table.summary


def test_name_of_several_images_needs_its_path(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,x\na/1.png,0\n1.png,1\n")
    with pytest.raises(UserError, match=r"line 3: several images are named 1\.png"):
        read_labels(str(tmp_path / "labels.csv"), Photos(tmp_path), pack_of(tmp_path, ["a/1.png", "b/1.png"], 2))


@pytest.mark.parametrize(
    ("chosen", "kinds", "clue"),
    [
        (["smiel"], {}, r"model\.labels=smiel is not in .*Labels: smile\."),
        ([], {"smiel": "number"}, r"data\.label_types\.smiel=number is not in"),
        ([], {"smile": "numbr"}, r"data\.label_types\.smile=numbr is invalid\. Kinds: binary, category, number"),
    ],
)
def test_unknown_names_and_kinds_are_rejected(read: Read, chosen: list[str], kinds: dict[str, str], clue: str) -> None:
    with pytest.raises(UserError, match=clue):
        read("name,smile\n1,0\n", *chosen, **kinds)


def test_stylegan_json(read: Read) -> None:
    table = read(json.dumps({"labels": [["a/1.png", 2], ["a/2.png", 10], ["b/3.png", None]]}), file="dataset.json")
    assert table.labels == [Label("class", "category", ("2", "10"))]
    assert same(values(table)["class"], [0, 1, NAN, NAN, NAN])
    table = read(json.dumps({"labels": [["a/1.png", [0, 0.5]], ["a/2.png", [1, 0.7]]]}), file="dataset.json")
    assert [(label.name, label.kind) for label in table.labels] == [("class_0", "binary"), ("class_1", "number")]


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("{", "is not readable JSON"),
        ("[" * 100_000, "is not readable JSON"),
        ('{"labels": null}', 'has no list "labels"'),
        ("[1]", 'has no list "labels"'),
        ('{"labels": [["a/1.png"]]}', r"entry 0 is not \[path, class\]"),
        ('{"labels": [["a/1.png", {"x": 1}]]}', "entry 0: .* is not a single value"),
        ('{"labels": [["a/1.png", 1], ["a/1.png", 1]]}', "entry 1: a/1.png has a row already"),
    ],
)
def test_damaged_json_is_one_line(read: Read, text: str, clue: str) -> None:
    with pytest.raises(UserError, match=clue) as raised:
        read(text, file="dataset.json")
    assert "\n" not in str(raised.value)


def test_ffhq_aging(tmp_path: Path) -> None:
    (tmp_path / "ffhq_aging_labels.csv").write_text(
        "image_number,age_group,age_group_confidence,gender,gender_confidence,glasses\n"
        "0,0-2,0.9999,male,0.98,None\n1,20-29,1.0,female,1.0,Normal\n2,10-14,0.5,male,0.9,None\n"
    )
    names = [f"00000/{number:05d}.png" for number in range(3)]
    wanted = ["age_group", "gender", "age_group_confidence", "glasses"]
    table = read_labels(str(tmp_path / "ffhq_aging_labels.csv"), Photos(tmp_path), pack_of(tmp_path, names, 3), wanted)
    assert table.labels[0].choices == ("0-2", "10-14", "20-29")  # youngest first
    assert table.labels[3].choices == ("None", "Normal")
    assert [label.kind for label in table.labels] == ["category", "category", "number", "category"]
    assert table.values[:, 0].tolist() == [0, 2, 1]


def test_ffhq_features_of_which_some_are_empty(tmp_path: Path) -> None:
    face = {"faceAttributes": {"smile": 0.9, "gender": "male", "hair": {"bald": 0.1, "hairColor": []}, "age": 7.0}}
    for number, content in enumerate([json.dumps([face, {}]), "[]", ""]):
        (tmp_path / f"{number:05d}.json").write_text(content)
    names = [f"{number:05d}.png" for number in range(3)]
    table = read_labels(str(tmp_path), Photos(tmp_path), pack_of(tmp_path, names, 3))
    assert [label.name for label in table.labels] == ["smile", "gender", "hair_bald", "age"]
    assert same(table.values[:, 3].tolist(), [7, NAN, NAN])
    assert "3 of 3 images have a row" in table.summary
    (tmp_path / "00001.json").write_text('[{"faceAttributes": 3}]')
    with pytest.raises(UserError, match=r"00001\.json is not a list of faces"):
        read_labels(str(tmp_path), Photos(tmp_path), pack_of(tmp_path, names, 3))


def test_folders_are_classes(tmp_path: Path) -> None:
    table = read_labels("folders", Photos(tmp_path), pack_of(tmp_path, NAMES, 4))
    assert table.labels == [Label("class", "category", ("a", "b"))]
    assert same(values(table)["class"], [0, 0, 1, 1, NAN])


@pytest.mark.parametrize("name", ["Straße", "Hair (color)", "a:b", "1"])
def test_a_label_that_no_override_can_name_is_rejected_unless_it_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.csv").write_text(f"name,5_o_Clock Shadow,{name}\n1,0,0\n2,1,1\n", "utf-8")
    pack = pack_of(tmp_path, NAMES, 4)
    with pytest.raises(UserError, match=re.escape(f"The label {name} of data.labels=labels.csv cannot be written as")):
        read_labels("labels.csv", Photos(tmp_path), pack)
    assert len(read_labels("labels.csv", Photos(tmp_path), pack, ["5_o_Clock Shadow"]).labels) == 1


def test_file_in_the_folder_of_the_images_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "labels.csv").write_text("name,x\n1,0\n2,1\n")
    assert read_labels("sub/labels.csv", Photos(tmp_path), pack_of(tmp_path, NAMES, 4)).values[1, 0] == 1
    with pytest.raises(UserError, match=r"data\.labels=nowhere\.csv does not exist"):
        read_labels("nowhere.csv", Photos(tmp_path), pack_of(tmp_path, NAMES, 4))
    with pytest.raises(UserError, match=r"contains no \.json"):
        read_labels(str(tmp_path), Photos(tmp_path), pack_of(tmp_path, NAMES, 4))


def test_damaged_file_in_the_zip_of_the_images_is_not_reported_as_missing(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "f.zip", {"sub/labels.csv": b"name,x\n1,0\n2,1\n"})
    pack = pack_of(tmp_path, NAMES, 4)
    assert read_labels("sub/labels.csv", Photos(path), pack).values[1, 0] == 1
    rewrite(path, "sub/labels.csv", {b"PK\1\2": 16}, "<I", 0)
    with pytest.raises(UserError, match=r"f\.zip/sub/labels\.csv cannot be read .*CRC"):
        read_labels("sub/labels.csv", Photos(path), pack)
    with pytest.raises(UserError, match=r"data\.labels=nowhere\.csv does not exist"):
        read_labels("nowhere.csv", Photos(path), pack)
    with pytest.raises(UserError, match=r"data\.labels=.*f\.zip is not a text in UTF-8\. Unpack or convert it"):
        read_labels(str(path), Photos(path), pack)


def test_drawn_faces_know_their_labels(tmp_path: Path) -> None:
    source = DrawnFaces(60)
    table = read_labels("auto", source, pack_of(tmp_path, source.names, 54))
    faces = [sample_face(np.random.default_rng(index)) for index in range(60)]
    found = values(table)
    assert found["glasses"] == [float(face.glasses is not None) for face in faces]
    assert found["age"] == pytest.approx([face.age for face in faces], abs=1e-3)
    assert {label.name: label.kind for label in table.labels} == {
        **dict.fromkeys(("glasses", "hat", "beard", "smile", "open_mouth"), "binary"),
        **dict.fromkeys(("hair", "hair_color", "skin"), "category"),
        "age": "number",
    }
    smiling = [face.smile for face, value in zip(faces, found["smile"], strict=True) if value == 1]
    serious = [face.smile for face, value in zip(faces, found["smile"], strict=True) if value == 0]
    assert min(smiling) > max(serious) + 0.25
    with pytest.raises(UserError, match=r"data\.labels=auto is for data=synthetic"):
        read_labels("auto", Photos(tmp_path), pack_of(tmp_path, NAMES, 4))


def test_a_color_between_two_names_has_no_label() -> None:
    names = [((0.0, 0.0, 0.0), "black"), ((1.0, 1.0, 1.0), "white"), ((0.9, 0.9, 0.9), "white")]
    grays = {level: named((level, level, level), names) for level in (0.0, 0.2, 0.31, 0.4, 0.7, 0.95, 1.0)}
    assert grays == {0.0: "black", 0.2: "black", 0.31: "", 0.4: "", 0.7: "white", 0.95: "white", 1.0: "white"}


def test_labels_of_drawn_faces_need_no_writable_pack() -> None:
    source = DrawnFaces(60)
    assert len(read_labels("auto", source, pack_of(Path("/dev/null"), source.names, 54)).values) == 60


def test_hair_under_a_hat_is_unknown() -> None:
    hats = [known_labels(seed) for seed in range(150)]
    hats = [labels for labels in hats if labels["hat"] == "1"]
    assert hats
    assert all(labels["hair"] == labels["hair_color"] == "" for labels in hats)


def test_numbers_are_finite_in_float32() -> None:
    assert as_number("-1e37") == -1e37
    assert all(math.isnan(as_number(text)) for text in ("1e39", "inf", "nan", "20_29", "x", ""))
