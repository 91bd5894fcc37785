"""The two Inception-v3 networks that FIDs are quoted for, with weights from a local file or their download.

Their FIDs are not comparable with each other, which is why the extractor's name is part of the metric's name.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flgen.errors import FlgenError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Inception(nn.Module):
    """torch-fidelity's Inception-v3: TensorFlow's 2015 weights, 2,048-d pool, TensorFlow's resizing to 299.

    Args:
        weights: Path of a state dict; without it the file of torch-fidelity is downloaded once.
    """

    def __init__(self, weights: str | None = None) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        super().__init__()
        state = _read_weights("inception", URL_INCEPTION_V3, weights)
        # The constructor insists on reading a file and unpickles whatever is in it; it gets ours, already read safely.
        checked = io.BytesIO()
        torch.save(state, checked)
        checked.seek(0)
        with _mismatch_is_an_error("inception", URL_INCEPTION_V3, weights):
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=checked)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1 or 3, H, W) uint8 to features (B, 2048)."""
        return self.network(_three_channels(images))[0]


class TorchvisionInception(nn.Module):
    """torchvision's ImageNet Inception-v3, 2,048-d pool: the network behind PRISM's published FIDs.

    Images are resized to 299 bilinearly without antialiasing and normalised with ImageNet's mean and deviation, which
    go into the first convolution as they are (torchvision's `transform_input` is off, as in the reference code).

    Args:
        weights: Path of a state dict; without it torchvision's file is downloaded once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None) -> None:
        from torchvision.models import Inception_V3_Weights, inception_v3

        super().__init__()
        url = Inception_V3_Weights.IMAGENET1K_V1.url
        state = _read_weights("inception_torchvision", url, weights)
        state = {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}
        network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        with _mismatch_is_an_error("inception_torchvision", url, weights):
            network.load_state_dict(state)
        network.fc = nn.Identity()
        self.network = network.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1 or 3, H, W) uint8 to features (B, 2048)."""
        pixels = _three_channels(images).float() / 255
        pixels = F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
        return self.network((pixels - self.mean) / self.std)


def _three_channels(images: Tensor) -> Tensor:
    channels = images.shape[1]
    if channels not in (1, 3):
        raise UsageError(f"Inception takes images of 1 or 3 channels and these have {channels}")
    return images.expand(-1, 3, -1, -1)


def _read_weights(name: str, url: str, weights: str | None) -> dict[str, Tensor]:
    """Return a state dict from `weights`, or from the download of `url`, without unpickling anything but tensors."""
    if weights is not None:
        path = Path(weights).expanduser()
        remedy = f"download {url} and give the file's path by --evaluation.weights.{name} PATH"
        if not path.is_file():
            raise FlgenError(f"there is no file {path} with the weights of the extractor '{name}': {remedy}")
    else:
        path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
        remedy = "delete it to fetch it again"
    try:
        if weights is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with contextlib.redirect_stdout(sys.stderr):
                state = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
    except Exception as error:  # a damaged file can raise nearly anything
        reason = _first_line(error)
        if path.is_file():
            raise FlgenError(f"{path} is not a readable file of weights for '{name}' ({reason}): {remedy}") from error
        raise FlgenError(
            f"the extractor '{name}' needs its weights, which are neither at {path} nor to be had from {url} "
            f"({reason}): download them elsewhere and give the file's path by --evaluation.weights.{name} PATH"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise FlgenError(f"{path} holds no state dict for the extractor '{name}': {remedy}")
    return state


@contextlib.contextmanager
def _mismatch_is_an_error(name: str, url: str, weights: str | None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise FlgenError(
            f"{weights or url} holds the weights of another network than the extractor '{name}', "
            f"whose file is {url}: correct --evaluation.weights.{name}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
