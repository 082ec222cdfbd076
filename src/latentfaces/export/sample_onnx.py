"""Sample faces with numpy and onnxruntime alone: python sample_onnx.py NUM_IMAGES SEED."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def gaussian(bits: np.random.MT19937, size: int) -> np.ndarray:
    """Draw (size,) values as torch.randn does: Box-Muller on blocks of 16; the last 16 again if they are no block."""
    uniform = (bits.random_raw(size) & 0xFFFFFF) / np.float32(2**24)
    last = (bits.random_raw(16) & 0xFFFFFF) / np.float32(2**24) if size % 16 else uniform[-16:]
    first, second = np.concatenate([uniform[: size // 16 * 16], last]).reshape(-1, 2, 8).swapaxes(0, 1)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return np.concatenate([values[: size - 16], values[-16:]])


def sample(folder: Path, names: list[tuple[int, int]], condition: np.ndarray | None = None) -> np.ndarray:
    """Return the faces (n, 3, R, R) in [-1, 1] with these names (seed, number); condition (n, size): 0 is unknown."""
    plan = json.loads((folder / "sampling.json").read_text())
    shape, streams = plan["latent_shape"], [np.random.MT19937() for _ in names]
    known = np.zeros((len(names), plan["condition_size"]), np.float32) if condition is None else condition
    denoiser, decoder = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("denoiser", "decoder"))
    for stream, name in zip(streams, names, strict=True):
        key = np.random.SeedSequence(name).generate_state(624).astype(np.uint32)
        stream.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    terms: list[np.ndarray] = []
    for step in plan["steps"]:
        if step["kind"] == "noise":
            terms.append(np.stack([gaussian(s, int(np.prod(shape))).reshape(shape) for s in streams]))
            continue
        x = np.asarray(sum(c * term for c, term in zip(step["x"], terms, strict=True)), np.float32)
        if step["kind"] == "denoise":
            values = {"x_t": x, "condition": known}
            values |= {key: np.full(len(x), step[key], np.float32) for key in ("t", "t_next", "guided") if key in step}
            terms.append(denoiser.run(None, {i.name: values[i.name] for i in denoiser.get_inputs()})[0].astype(float))
    return decoder.run(None, {"latents": x})[0]


def png(face: np.ndarray, folder: Path) -> bytes:
    """Encode a face (3, R, R) in [-1, 1] as PNG with XMP, which marks it as generated."""
    rows = ((face + 1) * 127.5).round().clip(0, 255).transpose(1, 2, 0).reshape(face.shape[1], -1)
    lines = np.insert(rows, 0, 0, axis=1).astype(np.uint8)  # 0: unfiltered
    xmp = json.loads((folder / "sampling.json").read_text())["xmp"].encode()
    chunks = {b"IHDR": struct.pack(">2I5B", *face.shape[:0:-1], 8, 2, 0, 0, 0)}
    chunks |= {b"iTXt": b"XML:com.adobe.xmp" + bytes(5) + xmp, b"IDAT": zlib.compress(lines.tobytes()), b"IEND": b""}
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


if __name__ == "__main__":
    here, (num_images, seed) = Path(__file__).parent, map(int, sys.argv[1:])
    for start in range(0, num_images, 16):
        for number, face in enumerate(sample(here, [(seed, n) for n in range(start, num_images)[:16]]), start):
            Path(f"{number:05d}.png").write_bytes(png(face, here))
