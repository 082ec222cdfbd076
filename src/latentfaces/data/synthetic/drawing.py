"""Face parameters to an image, painted from back to front."""

import numpy as np
from numpy.typing import NDArray

from latentfaces.data.synthetic.canvas import Canvas, Plane, bump, ellipse, planes, smooth, squircle
from latentfaces.data.synthetic.traits import Face, sample_face, scaled

SUPERSAMPLING = 2
FACE_CENTER = 0.05  # v of the widest point of the head
DRAWING_VERSION = 2
"""Change it whenever the image of a seed changes: a pack of another version is rejected."""


def draw_face(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Draw the face of a seed, (size, size, 3) RGB. It is the same face at every size."""
    face = sample_face(np.random.default_rng(seed))
    canvas = _canvas(face, size * SUPERSAMPLING)
    _backdrop(face, canvas)
    hair = _hair(face, canvas) if face.style.volume else None
    if hair:
        _hair_behind(face, canvas, *hair)
    for draw in (_clothes, _ears, _skin, _eyes, _brows, _nose, _mouth, _beard):
        draw(face, canvas)
    _glasses(face, canvas)
    if hair:
        _hair_front(face, canvas, *hair)
    _hat(face, canvas)
    rgb = canvas.rgb * planes(face.light_color)
    rgb = rgb.reshape(3, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    return np.ascontiguousarray(np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _canvas(face: Face, side: int) -> Canvas:
    """Return an empty canvas of side x side pixels with the coordinates of a face."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    cos, sin = float(np.cos(face.roll)) / face.scale, float(np.sin(face.roll)) / face.scale
    u = (x - face.center[0]) * cos + (y - face.center[1]) * sin
    v = (y - face.center[1]) * cos - (x - face.center[0]) * sin
    depth = np.maximum(1 - _outline(face, u, v) ** 2, 0)
    p, q = u - face.yaw * depth, v - face.pitch * depth
    return Canvas(np.zeros((3, side, side), np.float32), x, y, u, v, p, q, 2 / side / face.scale)


def _outline(face: Face, u: Plane, v: Plane) -> Plane:
    """Return the distance from the middle of the head, 1 on its outline."""
    width = face.width * (1 - face.taper * smooth(0.1, face.chin, v))
    height = np.where(v < FACE_CENTER, np.float32(-0.74), np.float32(face.chin - FACE_CENTER))
    return squircle(u / width, (v - FACE_CENTER) / height, np.where(v < FACE_CENTER, np.float32(0.35), 0))


def _lit(face: Face, normal_x: Plane, normal_y: Plane) -> Plane:
    """Return the brightness of a surface, about 0.5 to 1.1, from the x and y slopes of its normal."""
    x, y, z = face.light
    facing = (normal_x * x + normal_y * y + z) / np.sqrt(1 + normal_x**2 + normal_y**2)
    return face.ambient + (1.12 - face.ambient) * np.maximum(facing, 0)


def _backdrop(face: Face, canvas: Canvas) -> None:
    """Paint a gradient between two colors, with soft discs of light."""
    along = canvas.x * float(np.cos(face.backdrop_angle)) + canvas.y * float(np.sin(face.backdrop_angle))
    canvas.paint(np.ones_like(along), face.backdrop[0])
    canvas.paint(smooth(-1.2, 1.2, along), face.backdrop[1])
    for x, y, radius, softness, color in face.blobs:
        canvas.paint(0.6 * canvas.cover(ellipse(canvas.x, canvas.y, (x, y), (radius, radius)), softness), color)


def _hair(face: Face, canvas: Canvas) -> tuple[Plane, Plane]:
    """Return the signed distance to the outer shape of the hair (H, W), and its color everywhere (3, H, W)."""
    style, u, v, phases = face.style, canvas.u, canvas.v, face.phases
    bottom = 0.25 + style.volume
    curve = 0.6 * face.wave * np.sin(7 * v + phases[0] + 0.6 * u)
    width = face.width + 0.85 * style.volume + (0.05 * curve + 0.10) * smooth(0.0, 1.0, v) * (style.end > 0.5)
    height = np.minimum(v, 0) / (0.71 + style.volume) + np.maximum(v - max(style.end - bottom, 0.0), 0) / bottom
    across = u / width
    radius = squircle(across, height, 0.25)
    if style.curl:
        strands = np.sin(17 * u + 2 * np.sin(13 * v + phases[1])) * np.sin(17 * v + 2 * np.sin(14 * u + phases[2]))
        radius = radius + 0.035 * np.sin(13 * u + phases[1]) * np.sin(13 * v + phases[2])
    else:
        fan = (u - face.parting) / (np.abs(v + 0.95) + 0.35) + 0.12 * curve * smooth(-0.2, 0.8, v)
        strands = 0.45 * np.sin(35 * fan + phases[3]) + 0.3 * np.sin(61 * fan + phases[4] + 2 * v)
        strands += 0.3 * np.sin(17 * fan + phases[5] - v)
    shade = _lit(face, 0.9 * across, 0.9 * height) * (0.85 + 0.13 * strands)
    sheen = np.exp(-(((height + 0.62 - 0.25 * across**2) / 0.15) ** 2)) * (0.55 + 0.45 * strands)
    return (radius - 1) * face.width, planes(face.hair) * shade + (0.04 + 0.14 * planes(face.hair)) * sheen


def _hair_behind(face: Face, canvas: Canvas, distance: Plane, color: Plane) -> None:
    """Paint the hair behind the head, and a bun on top."""
    if face.style.bun:
        bun = ellipse(canvas.u, canvas.v, (face.parting * 0.4, -0.76), (0.22, 0.17))
        canvas.paint(canvas.cover(bun), color * (0.75 - 0.25 * bun / 0.17))
    canvas.paint(canvas.cover(distance), color * 0.7)


def _clothes(face: Face, canvas: Canvas) -> None:
    """Paint the neck with the chin's shadow on it, then the shoulders."""
    canvas = canvas.crop((-9, 9), (0.25, 9))
    u, v = canvas.u, canvas.v
    half = 0.25 + 0.08 * face.masculine
    shoulder = 0.86 + 0.30 * smooth(half, 1.1, np.abs(u)) + 0.12 * np.maximum(np.abs(u) - half, 0) ** 2
    shade = _lit(face, 1.1 * np.clip(u / half, -1, 1), np.full_like(u, 0.1))
    shadow = canvas.cover((_outline(face, u + 0.1 * face.light[0], v - 0.12) - 1) * 0.6, 0.22)
    mask = canvas.cover(np.minimum(np.abs(u) - half, shoulder + 0.02 - v))
    canvas.paint(mask, planes(face.skin) * shade)
    canvas.tint(mask * shadow, (0.66, 0.56, 0.54))
    collar = (0.80 + face.neckline) + 0.14 * (1 - (u / half) ** 2)
    cloth = canvas.cover(np.maximum(shoulder, collar) - v)
    folds = 1 + 0.07 * np.sin(9 * u + 5 * v + face.phases[1]) * np.sin(4 * u + face.phases[2])
    canvas.paint(cloth, planes(face.cloth) * _lit(face, 0.8 * u, 0.9 * (shoulder - v) + 0.2) * folds)
    canvas.tint(cloth * shadow, (0.8, 0.8, 0.8))


def _ears(face: Face, canvas: Canvas) -> None:
    """Paint the ears, unless hair covers them; they move against the face when the head turns."""
    if face.style.side > 0.3:
        return
    for side in (-1, 1):
        center = (side * face.width - 0.25 * face.yaw, 0.12)
        part = canvas.crop((center[0] - 0.15, center[0] + 0.15), (-0.1, 0.35))
        mask = part.cover(ellipse(part.u - 0.15 * side * (0.12 - part.v), part.v, center, (0.08, 0.15)))
        part.paint(mask, planes(face.skin) * _lit(face, (part.u - center[0]) * 6 + side * 0.3, part.v * 2 - 0.24))
        part.tint(mask * bump(part.u, part.v, (center[0] + 0.015 * side, 0.11), (0.035, 0.085)), (0.72, 0.55, 0.52))


def _skin(face: Face, canvas: Canvas) -> None:
    """Paint the head, shaded by the slopes of a relief of the face."""
    canvas = canvas.crop((-face.width - 0.1, face.width + 0.1), (-0.85, face.chin + 0.1))
    p, q, a = canvas.p, canvas.q, np.abs(canvas.p)
    outline = _outline(face, canvas.u, canvas.v)
    spacing, tip, mouth = face.eye_spacing, face.nose_length, _mouth_height(face)
    relief = (
        0.42 * np.sqrt(np.maximum(1.08 - outline**2, 0.02))
        + 0.045 * bump(a, q, (0, tip * 0.45), (0.65 * face.nose_width, tip * 0.65))
        + 0.045 * bump(a, q, (0, tip - 0.02), (0.80 * face.nose_width, 0.075))
        + 0.020 * bump(a, q, (0.95 * face.nose_width, tip), (0.045, 0.045))
        - 0.035 * bump(a, q, (spacing - 0.02, -0.03), (0.15, 0.09))
        + 0.020 * bump(a, q, (spacing, -0.17), (0.20, 0.06)) * (0.5 + face.masculine)
        + (0.025 + 0.02 * face.smile) * bump(a, q, (0.29, 0.22), (0.14, 0.13))
        + 0.030 * bump(a, q, (0, mouth), (0.20, 0.12))
        - 0.020 * bump(a, q, (0, mouth + 0.12), (0.12, 0.035))
        + 0.030 * bump(a, q, (0, face.chin - 0.08), (0.13, 0.08))
    )
    slope_y, slope_x = np.gradient(relief, canvas.pixel)
    dark = np.log(_lit(face, -slope_x, -slope_y))
    # Light that enters skin leaves it redder, so green and blue fall off faster in the shade.
    shade = np.exp(dark * np.array([0.85, 1.05, 1.12], np.float32).reshape(3, 1, 1))
    mask = canvas.cover((outline - 1) * 0.6)
    canvas.paint(mask, planes(face.skin) * shade)

    blush = bump(a, q, (0.30, 0.24), (0.13, 0.11)) + 0.6 * bump(a, q, (0, tip), (0.09, 0.07))
    canvas.tint(mask * blush * face.blush, (1.0, 0.76, 0.74))
    crease = a - 0.115 - 0.38 * (q - tip) - 0.03 * face.smile
    folds = np.exp(-((crease / 0.020) ** 2)) * smooth(tip - 0.03, tip + 0.05, q) * smooth(mouth, mouth - 0.08, q)
    bags = bump(a, q - 0.10 + 1.2 * (a - spacing) ** 2, (spacing, 0), (0.10, 0.018))
    canvas.tint(mask * folds * (0.05 + 0.5 * face.age + 0.2 * max(face.smile, 0.0)), (0.80, 0.70, 0.66))
    canvas.tint(mask * bags * (0.1 + 0.6 * face.age), (0.80, 0.70, 0.68))
    lines = np.exp(-((np.sin(38 * q + 0.6 * np.cos(5 * p)) / 0.4) ** 2)) * bump(p, q, (0, -0.31), (0.2, 0.08))
    canvas.tint(mask * lines * max(face.age - 0.35, 0.0), (0.85, 0.78, 0.75))
    if face.style.volume:
        distance = _opening(face, canvas)
        near = np.exp(np.minimum(distance, 0) / 0.07) * smooth(face.style.side + 0.1, face.style.side - 0.1, q)
        canvas.tint(mask * near * 0.45, (0.62, 0.50, 0.46))


def _eyes(face: Face, canvas: Canvas) -> None:
    """Paint both eyes: white, iris, pupil, highlight, lids and lashes."""
    size, light_x = face.eye_size, face.light[0]
    for side in (-1, 1):
        middle = side * face.eye_spacing
        part = canvas.crop((middle - 1.7 * size, middle + 1.7 * size), (-1.3 * size, 1.3 * size))
        across = side * (part.p - middle) / size  # -1 at the inner corner, 1 at the outer
        down = part.q / size - face.eye_tilt * across
        arc = 1 - across**2
        upper, lower = -0.58 * face.eye_open * arc, 0.42 * face.eye_open * arc
        over, under = (upper - down) * size, (down - lower) * size  # distances to the lids, negative inside the eye
        part.tint(bump(across, down, (0, -0.55), (1.0, 0.45)) * 0.5, (0.82, 0.72, 0.70))
        opening = part.cover(np.maximum(over, under))
        white = 0.88 - 0.30 * np.exp(np.minimum(over, 0) / 0.022) - 0.10 * np.abs(across) ** 3
        part.paint(opening, planes((1.0, 0.975, 0.96)) * white * (0.75 + 0.25 * face.ambient / 0.52))

        x, y = across - side * face.gaze[0] - side * 0.5 * face.yaw, down - face.gaze[1] + 0.04
        radius = np.hypot(x, y)
        ball = part.cover((radius - 0.47) * size) * opening
        glow = 0.75 + 0.7 * np.clip(y, -0.4, 0.6) - 0.5 * smooth(0.32, 0.47, radius)
        part.paint(ball, planes(face.iris) * np.maximum(glow + 0.25, 0.15))
        part.paint(part.cover((radius - 0.22) * size) * opening, (0.03, 0.025, 0.03))
        part.tint(ball * np.exp(np.minimum(over, 0) / 0.018), (0.45, 0.42, 0.42))
        spark = np.hypot(x - 0.17 * side * (1 if light_x > 0 else -1), y + 0.17) - 0.13
        part.paint(part.cover(spark * size) * opening, (1.0, 1.0, 1.0))

        inside = smooth(1.12, 0.95, np.abs(across))
        lash = (0.008 + 0.008 * face.lashes) * (0.65 + 0.45 * across) + 0.003
        part.paint(part.cover(np.abs(over - 0.3 * lash) - lash) * inside * 0.92, scaled(face.hair, 0.25))
        part.tint(part.cover(np.abs(under - 0.004) - 0.005) * inside * 0.6, (0.62, 0.48, 0.46))
        crease = np.abs(down - 1.15 * upper + 0.24 + 0.06 * across) * size - 0.006
        part.tint(part.cover(crease, 0.01) * smooth(1.1, 0.6, np.abs(across)) * 0.6, (0.66, 0.52, 0.49))


def _brows(face: Face, canvas: Canvas) -> None:
    """Paint the brows, thick at the nose and thin at the temple."""
    for side in (-1, 1):
        middle = side * (face.eye_spacing + 0.01)
        part = canvas.crop((middle - 0.22, middle + 0.22), (-0.34, -0.04))
        across = side * (part.p - middle) / 0.155
        height = -face.brow_height - face.brow_arch * (1 - (across - 0.15) ** 2) + face.brow_tilt * across + 0.012
        thickness = face.brow_thickness * (1 - 0.65 * smooth(-0.2, 1.1, across))
        edge = np.maximum(np.abs(part.q - height) - thickness, (np.abs(across) - 1) * 0.1)
        hairs = 0.85 + 0.12 * np.sin(60 * (part.p * side - 0.6 * part.q))
        part.paint(part.cover(edge, 0.014) * hairs * 0.9, scaled(face.hair, 0.75))


def _nose(face: Face, canvas: Canvas) -> None:
    """Darken the nostrils and the shadow under the nose, and lighten its tip."""
    width, tip = face.nose_width, face.nose_length
    part = canvas.crop((-0.25, 0.25), (-0.1, 0.5))
    # The tip stands nearer than the face around it, so it slides further when the head turns.
    p = part.p - 0.35 * face.yaw
    a, q = np.abs(p), part.q
    part.tint(0.40 * bump(p, q, (-0.5 * width * face.light[0], tip + 0.045), (width * 1.15, 0.028)), (0.6, 0.44, 0.4))
    part.tint(0.85 * bump(a, q + 0.3 * a, (0.45 * width, tip + 0.032), (0.030, 0.014)), (0.32, 0.20, 0.19))
    wing = np.abs(np.hypot((a - width) / 0.042, (q - tip) / 0.045) - 1) * 0.04
    outer = smooth(width - 0.01, width + 0.035, a)
    part.tint(0.35 * np.exp(-((wing / 0.014) ** 2)) * outer * smooth(tip - 0.05, tip, q), (0.62, 0.48, 0.46))
    shine = bump(p, q, (0.2 * width * face.light[0], tip - 0.035), (0.028, 0.028))
    part.paint(0.30 * shine, (1.0, 0.95, 0.90))


def _mouth_height(face: Face) -> float:
    """Return the q of the line between the lips."""
    return face.nose_length + 0.205


def _mouth(face: Face, canvas: Canvas) -> None:
    """Paint the lips, and between them teeth where the mouth is open."""
    half, middle = face.mouth_width, _mouth_height(face)
    part = canvas.crop((-1.5 * half, 1.5 * half), (middle - 0.16, middle + 0.26))
    across, q = part.p / half, part.q
    arc = np.maximum(1 - across**2, 0)
    line = middle - 0.10 * face.smile * (across**2 - 0.35)
    gap = 0.075 * face.mouth_open * arc
    inner_top, inner_bottom = line - 0.25 * gap, line + 0.75 * gap
    bow = 1 - 0.28 * np.exp(-((across / 0.16) ** 2))
    top = inner_top - face.lips[0] * arc**0.75 * bow
    bottom = inner_bottom + face.lips[1] * arc**0.7
    lips = part.cover(np.maximum(top - q, q - bottom), 0.006) * part.cover((np.abs(across) - 0.98) * half, 0.01)
    red, green, blue = face.lip_tint
    part.tint(lips, face.lip_tint)
    part.tint(lips * part.cover(q - line) * 0.5, (0.80, 0.72, 0.72))
    part.tint(0.5 * bump(across, q, (0, float(bottom.max()) + 0.022), (0.6, 0.018)), (0.70, 0.58, 0.55))
    gloss = bump(across, q - inner_bottom, (0.15 * face.light[0], 0.45 * face.lips[1]), (0.45, 0.3 * face.lips[1]))
    part.paint(0.22 * gloss * lips, (1.0, 0.9, 0.88))

    mouth = part.cover(np.maximum(inner_top - q, q - inner_bottom)) * smooth(0.002, 0.012, gap)
    part.paint(mouth, (0.25 * red, 0.12 * green, 0.13 * blue))
    depth = np.maximum(q - inner_top, 0) / np.maximum(gap, 1e-3)
    teeth = mouth * smooth(0.72, 0.55, depth) * smooth(0.97, 0.80, np.abs(across))
    part.paint(teeth, planes((0.96, 0.94, 0.90)) * (0.98 - 0.25 * across**2 - 0.12 * np.exp(-depth / 0.15)))
    seam = np.exp(-(((q - line) / 0.009) ** 2)) * smooth(1.08, 0.92, np.abs(across)) * (1 - mouth)
    part.tint(seam * (0.85 - 0.5 * min(face.mouth_open, 1.0)), (0.40, 0.26, 0.26))
    corner = bump(np.abs(part.p), q, (half, float(middle - 0.065 * face.smile)), (0.022, 0.022))
    part.tint(0.5 * corner, (0.62, 0.48, 0.46))


def _beard(face: Face, canvas: Canvas) -> None:
    """Paint a beard along the jaw and a mustache above the mouth, around the lips."""
    if not face.beard and not face.mustache:
        return
    part = canvas.crop((-face.width - 0.1, face.width + 0.1), (0.0, face.chin + 0.1))
    p, q, a, middle = part.p, part.q, np.abs(part.p), _mouth_height(face)
    hairs = 0.9 + 0.1 * np.sin(50 * p + face.phases[1]) * np.sin(31 * q + 40 * a)
    shade = _lit(face, p / face.width, 0.8 * (q - 0.5)) * hairs
    color = planes(scaled(face.hair, 0.72)) * shade

    edge = middle + 0.13 + 0.045 * max(face.mouth_open, 0.0) - 1.15 * np.maximum(a - 0.13, 0)
    jaw = part.cover(np.maximum(edge - q, 0.08 - q), 0.15) * part.cover((_outline(face, part.u, part.v) - 1.02) * 0.6)
    above = middle - 0.075 + 1.6 * a**2 - 0.04 * face.smile * (a > 0.1)
    lip = part.cover(np.maximum(np.abs(q - above) - 0.034, a - 1.05 * face.mouth_width), 0.03)
    part.paint(np.maximum(jaw * face.beard, lip * face.mustache), color)


def _opening(face: Face, canvas: Canvas) -> Plane:
    """Return the signed distance to the gap in the hair that shows the face, negative inside."""
    style, u = face.style, canvas.u - 0.6 * face.yaw
    half = face.width * style.opening * (1 + 0.4 * smooth(0.6, 1.3, canvas.v))
    slanted = canvas.v + face.sweep * (u - face.parting)
    rise = np.minimum(slanted - 0.05, 0) / (0.05 - style.hairline)
    ragged = 0.5 * np.sin(29 * u + face.phases[3]) + 0.5 * np.sin(47 * u + face.phases[4] + 9 * canvas.v)
    rim: Plane = 0.012 * ragged * np.minimum(-rise, 1)
    return (squircle(u / half, rise, style.square) - 1) * half - rim


def _hair_front(face: Face, canvas: Canvas, distance: Plane, color: Plane) -> None:
    """Paint the hair in front of the head: over the forehead, the temples and, if long, the shoulders."""
    tips = 0.03 * np.sin(21 * canvas.u + face.phases[5])
    mask = canvas.cover(distance) * canvas.cover(-_opening(face, canvas), 0.02)
    canvas.paint(mask * canvas.cover(canvas.v - face.style.side - tips, 0.06), color)


def _hat(face: Face, canvas: Canvas) -> None:
    """Paint a knitted hat over the hair."""
    if face.hat is None:
        return
    u, v = canvas.u, canvas.v
    volume = 0.7 * face.style.volume
    shape = ellipse(u, v, (0, -0.2), (face.width + 0.06 + volume, 0.59 + volume))
    brim = v + 0.28 - 0.07 * (u / face.width) ** 2
    knit = 0.92 + 0.08 * np.sin(40 * u / (1.2 + 0.3 * v))
    shade = _lit(face, u / 0.6, v + 0.4) * knit
    canvas.paint(canvas.cover(np.maximum(shape, brim)), planes(face.hat) * shade)
    canvas.tint(canvas.cover(np.maximum(shape, np.abs(brim + 0.13) - 0.008), 0.015), (0.6, 0.6, 0.6))
    canvas.tint(0.4 * canvas.cover(np.maximum(shape, np.abs(brim - 0.03) - 0.03), 0.03), (0.5, 0.42, 0.4))


def _glasses(face: Face, canvas: Canvas) -> None:
    """Paint the frame of a pair of glasses and a faint reflection in its lenses."""
    if face.glasses is None:
        return
    part = canvas.crop((-face.width - 0.05, face.width + 0.05), (-0.25, 0.28))
    a, q = np.abs(part.p), part.q - 0.025
    corner = 0.06 + 0.08 * face.glasses_round
    wide, high = 0.185 - corner - 0.02 * face.glasses_round, 0.145 - corner
    x, y = np.maximum(np.abs(a - face.eye_spacing - 0.005) - wide, 0), np.maximum(np.abs(q) - high, 0)
    lens = np.hypot(x, y) - corner
    bridge = np.maximum(np.abs(q + 0.045 - 0.8 * a**2) - 0.010, np.maximum(a - face.eye_spacing, -lens))
    temple = np.maximum(np.abs(q + 0.06) - 0.012, np.maximum(face.eye_spacing + 0.1 - a, -lens))
    part.paint(0.10 * part.cover(lens) * smooth(-0.2, 0.2, part.p + q), (1.0, 1.0, 1.0))
    part.tint(0.5 * part.cover(np.abs(lens) - 0.012, 0.04), (0.75, 0.68, 0.66))
    frame = np.minimum(np.minimum(np.abs(lens) - 0.011, bridge), temple)
    part.paint(part.cover(frame) * part.cover((_outline(face, part.u, part.v) - 1.03) * 0.6), face.glasses)
