"""The name of a set of weights."""

import hashlib

from torch import nn


def weights_hash(module: nn.Module) -> str:
    """12 hexadecimal digits that change with any weight or buffer of `module`."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
