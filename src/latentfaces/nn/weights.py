"""Hash of a network's weights."""

import hashlib

from torch import nn


def weights_hash(module: nn.Module) -> str:
    """Return 12 hexadecimal digits of a hash over all weights and buffers of `module`."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
