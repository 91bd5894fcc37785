"""The 16 feature layers of a frozen VGG19 with batch normalisation (PRISM, section 3.1)."""

from __future__ import annotations

import math
import pickle
import socket
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor

from flgen.errors import FlgenError

VggMode = Literal["eval", "train"]
VggRange = Literal["imagenet", "symmetric"]

CHANNELS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
POOLED_AFTER = (1, 3, 7, 11)  # 2x2 maximum; the pooling after the last convolution feeds nothing that is used
SMALLEST_IMAGE = 16  # pixels; four poolings
_BATCH_NORM_EPS = 1e-5
_DOWNLOAD_SILENCE_S = 30.0  # torch's downloader would wait for ever
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def feature_count(image_size: int) -> int:
    """Return D, the number of features of one image: 303,104 at 32x32, 1,212,416 at 64x64."""
    total, side = 0, image_size
    for layer, channels in enumerate(CHANNELS):
        total += channels * side * side
        if layer in POOLED_AFTER:
            side //= 2
    return total


def vgg_input(images: Tensor, value_range: VggRange) -> Tensor:
    """Return what the network is shown (section 3.1).

    Args:
        images: Float images (B, 1 or 3, H, W) in [-1, 1].
        value_range: For colour images: `imagenet` shifts and scales each channel as ImageNet networks expect it,
            `symmetric` leaves [-1, 1]. Grey images are repeated to three channels and always left in [-1, 1].

    Returns:
        Float images (B, 3, H, W).
    """
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if value_range == "symmetric":
        return images
    mean = torch.tensor(_IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(_IMAGENET_STD, device=images.device).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


class VggFeatures:
    """Maps images to the outputs of the 16 ReLUs. Its weights are constants: no gradient is computed for them.

    In mode `eval` batch normalisation uses the network's own statistics and is folded into the convolutions; in mode
    `train` it uses those of the batch, so that an image's features depend on the images beside it.

    Args:
        state: torchvision's `vgg19_bn` state dict, of which only `features.*` is used.
        mode: See above.

    Raises:
        KeyError: An entry is missing.
        ValueError: An entry has another shape.
    """

    def __init__(self, state: dict[str, Tensor], mode: VggMode) -> None:
        self.mode = mode
        self._filters: list[tuple[Tensor, Tensor]] = []  # convolution weight and bias
        self._scales: list[tuple[Tensor, Tensor]] = []  # batch normalisation weight and bias, mode `train` only
        index = inputs = 0
        for layer, channels in enumerate(CHANNELS):
            convolution, norm = f"features.{index}", f"features.{index + 1}"
            weight, bias = state[f"{convolution}.weight"], state[f"{convolution}.bias"]
            if weight.shape != (channels, inputs or 3, 3, 3):
                raise ValueError(f"{convolution}.weight has shape {tuple(weight.shape)}")
            gamma, beta = state[f"{norm}.weight"], state[f"{norm}.bias"]
            if mode == "eval":
                gain = gamma / (state[f"{norm}.running_var"] + _BATCH_NORM_EPS).sqrt()
                weight = weight * gain[:, None, None, None]
                bias = (bias - state[f"{norm}.running_mean"]) * gain + beta
            else:
                self._scales.append((gamma, beta))
            self._filters.append((weight, bias))
            inputs = channels
            index += 4 if layer in POOLED_AFTER else 3

    @property
    def weights(self) -> list[Tensor]:
        """All numbers that decide its features."""
        return [tensor for pair in (*self._filters, *self._scales) for tensor in pair]

    def to(self, device: torch.device) -> VggFeatures:
        """Move the weights to `device`, in place."""
        if self._filters[0][0].device != device:
            self._filters = [(weight.to(device), bias.to(device)) for weight, bias in self._filters]
            self._scales = [(weight.to(device), bias.to(device)) for weight, bias in self._scales]
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to 16 feature maps (B, C, h, w) in forward order."""
        features: list[Tensor] = []
        maps = images
        for layer, (weight, bias) in enumerate(self._filters):
            maps = F.conv2d(maps, weight, bias, padding=1)
            if self.mode == "train":
                gamma, beta = self._scales[layer]
                maps = F.batch_norm(maps, None, None, gamma, beta, training=True, eps=_BATCH_NORM_EPS)
            maps = torch.relu_(maps)
            features.append(maps)
            if layer in POOLED_AFTER:
                maps = F.max_pool2d(maps, 2)
        return features


def load_state(weights: str) -> dict[str, Tensor]:
    """Return the `features.*` part of a VGG19-BN state dict.

    Args:
        weights: `imagenet` (torchvision's loader, from its cache or the network), `random` (seeded, for trials), or
            the path of a state dict saved by torch.

    Raises:
        FlgenError: The weights cannot be downloaded, or the file is missing, damaged or of another network.
    """
    if weights == "random":
        return _random_state()
    state = _imagenet_state() if weights == "imagenet" else _file_state(Path(weights))
    return {name: value for name, value in state.items() if name.startswith("features.")}


def load_features(weights: str, mode: VggMode) -> VggFeatures:
    """Return the feature network; the arguments are those of `load_state` and `VggFeatures`.

    Raises:
        FlgenError: As `load_state`.
    """
    try:
        return VggFeatures(load_state(weights), mode)
    except (KeyError, ValueError, RuntimeError) as error:
        raise FlgenError(
            f"{weights} holds no VGG19-BN weights ({' '.join(str(error.args[0]).split())[:200]}): "
            "give --model.loss.weights a state dict of torchvision's vgg19_bn"
        ) from error


def _imagenet_state() -> dict[str, Tensor]:
    from torchvision.models import VGG19_BN_Weights

    published = VGG19_BN_Weights.IMAGENET1K_V1
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SILENCE_S)
    try:
        return dict(published.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FlgenError(
            f"the ImageNet weights of VGG19-BN could not be downloaded ({_reason(error)}): fetch {published.url} "
            "on a machine with network and give its path as --model.loss.weights PATH"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _file_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FlgenError(
            f"no VGG19-BN weights at {path}: give --model.loss.weights a state dict of torchvision's vgg19_bn"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise FlgenError(
            f"the VGG19-BN weights at {path} are damaged ({_reason(error)}): "
            "fetch them again or give another file as --model.loss.weights PATH"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise FlgenError(f"{path} holds no state dict: save one with torch.save(network.state_dict(), path)")
    return state


def _random_state() -> dict[str, Tensor]:
    """Kaiming-normal filters of a fixed seed, with normalisations that change nothing in mode `eval`."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    index, inputs = 0, 3
    for layer, channels in enumerate(CHANNELS):
        filters = torch.randn(channels, inputs, 3, 3, generator=generator) * math.sqrt(2 / (9 * inputs))
        state[f"features.{index}.weight"] = filters
        state[f"features.{index}.bias"] = torch.zeros(channels)
        norm = f"features.{index + 1}"
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones(channels), torch.zeros(channels)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.zeros(channels), torch.ones(channels)
        inputs = channels
        index += 4 if layer in POOLED_AFTER else 3
    return state


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
