"""The ticket: a finished masked generator as one small file, with neither weights nor code in it (PRISM, section 7).

Layout of version 2; numbers are little-endian, `n`, `d`, `c` and `m` are those of the header:

    offset           bytes        what
    0                8            magic, the ASCII letters FLTICKET
    8                4            version, uint32
    12               4            n, bytes of the description, uint32, at most 65,536
    16               8            seed of the frozen weights, uint64
    24               8            d, masked weights, uint64
    32               8            c, channels of all batch normalisations, uint64
    40               8            m, bytes of the mask, uint64
    48               32           SHA-256 of the file without these 32 bytes
    80               n            description, JSON in UTF-8
    80 + n           m            mask, coded as the description says
    and then         4 c          running means, float32
    and then         4 c          running variances, float32

The description (`flgen.masks.ticket_description`) is an object: `architecture` with the `class_path` of one of flgen's
models and its `init_args`, plain values alone; `mask` with its `coding` and `layers`, the number of weights of each
layer, together d; and `provenance`, as in `Provenance`. Masks and statistics follow the order in which the network
registers its layers.

A mask whose coding is `packed` has one bit for each weight, most significant bit first, pad bits zero. One whose coding
is `entropy` is a range code, m / 4 words of uint32, of one layer after another (`flgen.wire.entropy_coding`). It is
what the range coder of the library constriction reads so: of a layer of n weights first two numbers, r0 and r1, each
with the model Uniform(isqrt(n) + 2), which are the rounded square roots of how many weights it drops and keeps; then
its n bits with the model Categorical([r0^2, r1^2] / (r0^2 + r1^2), perfect=False).

Version 1, which is read and no longer written, has no m (the digest is at 40, the description at 72), no `mask` in its
description, and the mask packed. The digest finds damage; who made a file it cannot say.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace
from flgen.masks import network
from flgen.masks.ticket_description import Coding, Description, Provenance, read_description
from flgen.wire.bodies import Bits, WireError
from flgen.wire.entropy_coding import MOST_CODED, decode_runs, encode_runs

MAGIC = b"FLTICKET"
VERSION = 2

_HEADERS = {1: struct.Struct("<8sIIQQQ"), 2: struct.Struct("<8sIIQQQQ")}
_DIGEST = 32
_START = _HEADERS[VERSION].size + _DIGEST
_LONGEST_DESCRIPTION = 1 << 16


@dataclass(frozen=True, eq=False)
class Ticket:
    """A generator as its seed, its mask, and what its batch normalisations divide by.

    Args:
        class_path: Class of the generator, below `flgen.models`.
        init_args: Its options (the kind of frozen weights among them): numbers, strings, booleans, null.
        weight_seed: Seed of the frozen weights, below 2^64.
        mask: Bool (d,) on the CPU, one per weight.
        means: Running means of all batch normalisations, float32 (c,).
        variances: Running variances, float32 (c,).
        provenance: Where it comes from.
        layers: Number of weights of each layer, together d, at least 1 each; nothing if unknown, as in version 1.
    """

    class_path: str
    init_args: dict[str, Any]
    weight_seed: int
    mask: Tensor
    means: Tensor
    variances: Tensor
    provenance: Provenance
    layers: tuple[int, ...] = ()

    @property
    def surviving(self) -> int:
        """Number of weights that are kept."""
        return int(self.mask.count_nonzero())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same weights as float32 numbers."""
        return 4 * len(self.mask)


class WrittenTicket(NamedTuple):
    """What became of a ticket: the file's SHA-256, and how its mask is coded, in how many bytes."""

    sha256: str
    coding: Coding
    mask_bytes: int


class _Sizes(NamedTuple):
    """What the header says."""

    version: int
    described: int
    seed: int
    weights: int
    channels: int
    mask_bytes: int


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch normalisations of a network in the order in which it registers them."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the running means and variances of all batch normalisations, float32 (c,) each, on the CPU."""
    norms = batch_norms(module)
    parts = [[norm.running_mean for norm in norms], [norm.running_var for norm in norms]]
    means, variances = (
        torch.cat([torch.empty(0), *(values.cpu() for values in part if values is not None)]) for part in parts
    )
    return means, variances


def check_fit(ticket: Ticket, module: nn.Module) -> None:
    """Make sure that a network has as many weights and channels as a ticket.

    Args:
        ticket: A ticket.
        module: A network, which may be on the device "meta".

    Raises:
        FlgenError: It has others.
    """
    weights = sum(place.stop - place.start for place in network.layer_slices(module).values())
    channels = sum(norm.num_features for norm in batch_norms(module))
    if (weights, channels) != (len(ticket.mask), len(ticket.means)):
        raise FlgenError(
            f"the mask has {len(ticket.mask)} bits and statistics of {len(ticket.means)} channels, the network "
            f"{weights} weights and {channels} channels"
        )


def apply_ticket(ticket: Ticket, module: nn.Module) -> None:
    """Put mask and statistics into a network that has the frozen weights, and switch it to evaluation mode.

    Args:
        ticket: A ticket.
        module: The network that it describes, on any device.

    Raises:
        FlgenError: It is another network.
    """
    check_fit(ticket, module)
    network.fix_masks(module, ticket.mask)
    start = 0
    for norm in batch_norms(module):
        place = slice(start, start + norm.num_features)
        for buffer, values in ((norm.running_mean, ticket.means), (norm.running_var, ticket.variances)):
            if buffer is not None:
                buffer.copy_(values[place])
        start = place.stop
    module.eval()


def write_ticket(path: Path, ticket: Ticket, coding: Coding = "entropy") -> WrittenTicket:
    """Write a ticket; say how.

    Args:
        path: The file, replaced as a whole or not at all.
        ticket: What to write.
        coding: "entropy" takes what the density of each layer allows, or packs the mask where that is no shorter;
            "packed" takes a bit for each weight.

    Raises:
        FlgenError: It is none that could be read again, or the file cannot be written.
    """
    layers = ticket.layers or ((len(ticket.mask),) if len(ticket.mask) else ())
    coding, mask = _coded(ticket.mask, layers, coding)
    description = Description(ticket.class_path, ticket.init_args, ticket.provenance, coding, layers).to_json()
    sizes = (ticket.weight_seed, len(ticket.mask), len(ticket.means), len(mask))
    header = _HEADERS[VERSION].pack(MAGIC, VERSION, len(description), *sizes)
    numbers = torch.cat([ticket.means, ticket.variances]).numpy().astype("<f4").tobytes()
    body = description + mask + numbers
    content = header + hashlib.sha256(header + body).digest() + body
    _parse(content)
    with atomic_replace(path) as temporary:
        temporary.write_bytes(content)
    return WrittenTicket(hashlib.sha256(content).hexdigest(), coding, len(mask))


def read_ticket(path: Path) -> Ticket:
    """Return the ticket of a file. Nothing of it is run; memory is in proportion to the file, or to 2^26 weights.

    Raises:
        FlgenError: There is no such file, or it is not a whole ticket of these versions.
    """
    remedy = "give one that `flgen export` wrote"
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FlgenError(f"ticket {path} cannot be read (it is no file): {remedy}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_START)
            _sizes(start, size)  # before the rest is read
            content = start + file.read(size - len(start))
        return _parse(content)
    except OSError as error:
        raise FlgenError(f"ticket {path} cannot be read ({error.strerror}): {remedy}") from error
    except FlgenError as error:
        raise FlgenError(f"ticket {path} cannot be used: {error}") from error


def _sizes(start: bytes, size: int) -> _Sizes:
    """Return what the header says, after checking it against the file's size."""
    if not start.startswith(MAGIC):
        raise FlgenError("it does not start with FLTICKET: give a file that `flgen export` wrote")
    version = int.from_bytes(start[8:12], "little")
    if len(start) >= 12 and version not in _HEADERS:
        raise FlgenError(f"it has version {version}, this flgen reads versions 1 and {VERSION}: export it again")
    if len(start) < 12 or len(start) < _HEADERS[version].size + _DIGEST:
        raise FlgenError(f"it ends after {len(start)} bytes: it is truncated, get it again")
    described, seed, weights, channels, *coded = _HEADERS[version].unpack_from(start)[2:]
    if described > _LONGEST_DESCRIPTION:
        raise FlgenError(f"it announces a description of {described} bytes, at most {_LONGEST_DESCRIPTION} are allowed")
    mask_bytes = coded[0] if coded else (weights + 7) // 8
    announced = _HEADERS[version].size + _DIGEST + described + mask_bytes + 8 * channels
    if announced != size:
        raise FlgenError(f"it has {size} bytes, its header announces {announced}: it is damaged, get it again")
    return _Sizes(version, described, seed, weights, channels, mask_bytes)


def _parse(content: bytes) -> Ticket:
    """Return the ticket that the bytes of a file are."""
    sizes = _sizes(content[:_START], len(content))
    start = _HEADERS[sizes.version].size
    header, digest, body = content[:start], content[start:][:_DIGEST], content[start + _DIGEST :]
    if hashlib.sha256(header + body).digest() != digest:
        raise FlgenError("its checksum is wrong: it is damaged, get it again")
    described = read_description(body[: sizes.described], sizes.version, sizes.weights)
    coded, numbers = body[sizes.described :][: sizes.mask_bytes], body[sizes.described + sizes.mask_bytes :]
    try:
        mask = _decoded(coded, sizes.weights, described)
    except WireError as error:
        raise FlgenError(f"its mask cannot be read ({error})") from error
    values = torch.from_numpy(np.frombuffer(numbers, "<f4").astype(np.float32))
    means, variances = values[: sizes.channels], values[sizes.channels :]
    if not values.isfinite().all() or bool((variances < 0).any()):
        raise FlgenError("its statistics are not finite, or a variance is negative")
    architecture, origin = (described.class_path, described.init_args), described.provenance
    return Ticket(*architecture, sizes.seed, mask, means, variances, origin, described.layers)


def _coded(mask: Tensor, layers: tuple[int, ...], coding: Coding) -> tuple[Coding, bytes]:
    """Return a mask as its coding asks, or packed where that is no longer."""
    packed = Bits().encode(mask).numpy().tobytes()
    if coding == "entropy" and len(mask) <= MOST_CODED:
        code = encode_runs(mask.numpy().view(np.uint8), layers, 2)
        if len(code) < len(packed):
            return "entropy", code
    return "packed", packed


def _decoded(coded: bytes, weights: int, described: Description) -> Tensor:
    """Return the mask, bool (d,)."""
    if described.coding == "entropy":
        return torch.from_numpy(decode_runs(coded, described.layers, 2)).bool()
    octets = torch.frombuffer(bytearray(coded), dtype=torch.uint8) if coded else torch.empty(0, dtype=torch.uint8)
    return Bits.decode(octets, (weights,), torch.bool)[""]
