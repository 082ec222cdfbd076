"""How different two pictures look to a network that was trained to tell things apart."""

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
    """LPIPS (Zhang et al. 2018) in float32, with a gradient for the second picture.

    The network is no part of `parameters()` and `state_dict()`: it is not trained, and would swell every checkpoint.

    Args:
        net: the backbone: "vgg" (as Rombach et al. 2022), "alex" or "squeeze".
        weights: the backbone's file from torchvision; None fetches it once from the internet.
    """

    def __init__(self, net: Literal["vgg", "alex", "squeeze"] = "vgg", weights: str | None = None) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # these two take seconds to import
        from torchvision import models

        known = {"vgg": models.VGG16_Weights, "alex": models.AlexNet_Weights, "squeeze": models.SqueezeNet1_1_Weights}
        url = known[net].IMAGENET1K_V1.url
        name = url.rpartition("/")[2]
        cached = Path(torch.hub.get_dir()) / "checkpoints" / name
        path = Path(weights).expanduser() if weights is not None else cached
        if weights is not None and not path.is_file():
            raise UserError(f"model.loss.perceptual.weights={weights} does not exist: give torchvision's {name}")
        try:
            if path.is_file():  # torchvision's own loading would run what a file asks for; this refuses it
                torch.load(path, weights_only=True, map_location="meta")
            with found_by_torchvision(path, name):
                network = LearnedPerceptualImagePatchSimilarity(net_type=net).net
        except (URLError, TimeoutError, ConnectionError):
            raise UserError(
                f"the perceptual loss needs {name}, which cannot be fetched here: put {url} into {cached.parent} or "
                "name the file with model.loss.perceptual.weights=FILE; or go without it: model/loss=l1_kl"
            ) from None
        except (RuntimeError, EOFError, UnpicklingError) as error:  # another network's, cut, empty, a web page
            problem = (str(error) or "it is empty").splitlines()[0]
            raise UserError(f"{path} is not torchvision's {name}, or is damaged: {problem}") from None
        self.unregistered = [network.requires_grad_(False)]

    @classmethod
    def untrained(cls, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> "PerceptualDistance":
        """One of random weights, which needs no file: to count or time what it costs."""
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        distance = cls.__new__(cls)
        nn.Module.__init__(distance)
        distance.unregistered = [_NoTrainLpips(pretrained=False, net=net, pnet_rand=True).requires_grad_(False)]
        return distance

    def network_on(self, device: torch.device) -> nn.Module:
        """The network, moved to the device when it is first needed there."""
        with torch.inference_mode(False):  # what a validation moves must be of use to training
            self.unregistered[0] = self.unregistered[0].to(device)
        return self.unregistered[0]

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Images and reconstructions (b, 3, H, W) in [-1, 1] -> their mean distance, a scalar."""
        network = self.network_on(images.device)
        # The features are normalised: in bfloat16 the difference of two near ones is mostly rounding.
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = network(images.float(), reconstructions.float())
        return distance.mean()


@contextmanager
def found_by_torchvision(path: Path, name: str) -> Iterator[None]:
    """Let torchvision, which knows its weights by name in one folder, find `path` under that name."""
    if not path.is_file():
        yield
        return
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        (Path(folder) / "checkpoints" / name).symlink_to(path.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
