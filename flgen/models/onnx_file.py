"""A finished masked generator as an ordinary network in an ONNX file, for programs that know neither masks nor PyTorch.

The graph maps `noise` (batch, latent, 1, 1) to `images` (batch, channels, height, width) in [-1, 1], both float32. Its
weights are frozen weights times mask, so those that the mask drops are zeros; upsampling is a resize before an ordinary
convolution, which keeps them zero, and a batch normalisation right after a convolution is part of its weights. Nothing
in the file says where it was written.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace
from flgen.masks.layers import MaskedConv2d, MaskedConvTranspose2d, MaskedLayer, MaskedLinear
from flgen.masks.network import layer_slices, masked_layers
from flgen.models.residual import UpsampledConv2d
from flgen.synthesis.extra import require_extra

OPSET = 18
"""Version of ONNX's operators: the one that PyTorch's exporter writes without conversion."""

LARGEST = 2**31 - 1
"""Bytes of the longest message of protocol buffers, and so of a network in one file."""

_DESCRIPTION = 1 << 20  # what graph and statistics may take besides the weights, bytes


def require_onnx() -> None:
    """Make sure that the packages which write ONNX files are installed.

    Raises:
        FlgenError: One is not.
    """
    require_extra("onnx", "onnxscript", extra="onnx")


@torch.no_grad()
def unmasked(module: nn.Module) -> nn.Module:
    """Return a copy of a network in which ordinary layers hold the weights that the masks keep.

    Args:
        module: A network whose masks are fixed.

    Raises:
        FlgenError: A masked layer is of a kind that has no ordinary counterpart here.
    """
    counterparts: dict[int, Any] = {id(layer): _ordinary(name, layer) for name, layer in masked_layers(module)}
    return copy.deepcopy(module, counterparts)


def write_onnx(path: Path, generator: Any, about: Mapping[str, Any] | None = None) -> str:
    """Write a generator as an ONNX file, the same bytes for the same generator; return the file's SHA-256.

    Args:
        path: The file, replaced as a whole or not at all.
        generator: A generator with fixed masks, in evaluation mode, on the CPU.
        about: Facts that the file's metadata hold, by name.

    Raises:
        FlgenError: ONNX is not installed, the generator is too large for one file or has layers that ONNX lacks, or
            the file cannot be written.
    """
    require_onnx()
    import onnx

    size = 4 * sum(place.stop - place.start for place in layer_slices(generator).values())
    if size > LARGEST - _DESCRIPTION:
        raise FlgenError(f"its weights take {size:,} bytes, an ONNX file holds {LARGEST:,}: write a ticket instead")
    network = unmasked(generator)
    z = torch.Generator().manual_seed(0)
    try:
        program = torch.onnx.export(
            network,
            (generator.noise(2, z),),  # two: a batch of one would be taken for a constant
            dynamo=True,
            input_names=["noise"],
            output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise FlgenError(f"{type(generator).__name__} cannot be written as ONNX ({reason})") from error
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    for name, value in (about or {}).items():
        model.metadata_props.add(key=name, value=str(value))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    with atomic_replace(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _ordinary(name: str, layer: MaskedLayer) -> nn.Module:
    """Return the ordinary layer that computes what a masked one does."""
    weight, bias = layer.effective()
    made: nn.Module
    if type(layer) is MaskedLinear:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    elif type(layer) in (MaskedConv2d, UpsampledConv2d):
        made = _convolution(nn.Conv2d, weight.shape[1], weight.shape[0], layer, bias is not None)
    elif type(layer) is MaskedConvTranspose2d:
        made = _convolution(nn.ConvTranspose2d, weight.shape[0], weight.shape[1], layer, bias is not None)
    else:
        raise FlgenError(f"its layer {name} is a {type(layer).__name__}, which has no ordinary counterpart")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    doubled = isinstance(layer, UpsampledConv2d)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), made) if doubled else made


def _convolution(kind: type[nn.Module], inputs: int, outputs: int, layer: Any, bias: bool) -> nn.Module:
    side = layer.weight.shape[2]
    return kind(inputs, outputs, side, stride=layer.stride, padding=layer.padding, bias=bias, device="meta")


def _forget_origin(model: Any) -> None:
    """Clear what the exporter notes about the source code of each node: file names, lines, traces."""
    graph = model.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in chain([model, graph], *parts):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
