"""Perceptual distance (LPIPS)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from latentfaces.errors import UserError


class PerceptualDistance(nn.Module):
    """LPIPS (Zhang et al. 2018) in float32, differentiable in the second image.

    The network is not trained. It is not in `parameters()` or `state_dict()`, to keep checkpoints small.

    Args:
        net: backbone: "vgg" (Rombach et al. 2022), "alex" or "squeeze".
        weights: torchvision's weights file of the backbone; downloaded once if None.
    """

    def __init__(self, net: Literal["vgg", "alex", "squeeze"] = "vgg", weights: str | None = None) -> None:
        super().__init__()
        # These imports take seconds.
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

        backbones = {"vgg": VGG16_Weights, "alex": AlexNet_Weights, "squeeze": SqueezeNet1_1_Weights}
        url = backbones[net].IMAGENET1K_V1.url
        name = url.rpartition("/")[2]
        cached = Path(torch.hub.get_dir()) / "checkpoints" / name
        path = Path(weights).expanduser() if weights is not None else cached
        if weights is not None and not path.is_file():
            raise UserError(f"model.loss.perceptual.weights={weights} does not exist. Use torchvision's {name}.")
        try:
            if path.is_file():  # torchvision would unpickle arbitrary code; this rejects it
                torch.load(path, weights_only=True, map_location="meta")
            with found_by_torchvision(path, name):
                network = LearnedPerceptualImagePatchSimilarity(net_type=net).net
        except (URLError, TimeoutError, ConnectionError):
            raise UserError(
                f"The perceptual loss could not download {name}. Put {url} into {cached.parent}, set "
                "model.loss.perceptual.weights=FILE, or disable the loss with model/loss=l1_kl."
            ) from None
        except (RuntimeError, EOFError, UnpicklingError) as error:  # another network, truncated, empty, or HTML
            why = (str(error) or "the file is empty").splitlines()[0]
            raise UserError(f"{path} is not torchvision's {name}, or is damaged: {why}. Download it again.") from None
        self.unregistered = [network.requires_grad_(False)]

    @classmethod
    def untrained(cls, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> "PerceptualDistance":
        """Return a distance with random weights, which needs no file; for measuring cost."""
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        distance = cls.__new__(cls)
        nn.Module.__init__(distance)
        distance.unregistered = [_NoTrainLpips(pretrained=False, net=net, pnet_rand=True).requires_grad_(False)]
        return distance

    def network_on(self, device: torch.device) -> nn.Module:
        """Return the network, moved to the device on first use."""
        with torch.inference_mode(False):  # tensors moved in validation must work in training too
            self.unregistered[0] = self.unregistered[0].to(device)
        return self.unregistered[0]

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the mean distance of images and reconstructions, (b, 3, H, W) in [-1, 1]."""
        network = self.network_on(images.device)
        # In bfloat16 the difference of two similar normalized features is mostly rounding error.
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = network(images.float(), reconstructions.float())
        return distance.mean()


@contextmanager
def found_by_torchvision(path: Path, name: str) -> Iterator[None]:
    """Make torchvision load `path` as its weights file `name`."""
    if not path.is_file():
        yield
        return
    hub_dir = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        (Path(folder) / "checkpoints" / name).symlink_to(path.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(hub_dir)
