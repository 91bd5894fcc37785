"""The ticket: a finished masked generator as one small file, with neither weights nor code in it (PRISM, section 7).

Layout of version 1; numbers are little-endian, `n`, `d` and `c` are those of the header:

    offset           bytes        what
    0                8            magic, the ASCII letters FLTICKET
    8                4            version, uint32
    12               4            n, bytes of the description, uint32, at most 65,536
    16               8            seed of the frozen weights, uint64
    24               8            d, masked weights, uint64
    32               8            c, channels of all batch normalisations, uint64
    40               32           SHA-256 of the file without these 32 bytes
    72               n            description, JSON in UTF-8
    72 + n           ceil(d / 8)  mask, most significant bit first, pad bits zero
    and then         4 c          running means, float32
    and then         4 c          running variances, float32

The description is an object: `architecture` with the `class_path` of one of flgen's models and its `init_args`, plain
values alone; and `provenance`, as in `Provenance`. Masks and statistics follow the order in which the network registers
its layers. Another coding of the mask will be another version. The digest finds damage; who made a file it cannot say.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace
from flgen.masks import network
from flgen.wire.bodies import Bits, WireError

MAGIC = b"FLTICKET"
VERSION = 1
OURS = "flgen.models."
"""Where a ticket's class must be: a file may choose among flgen's models, and start nothing else."""

NOT_PLAIN = "its generator's options are not plain values: numbers, strings, booleans, null"

_HEADER = struct.Struct("<8sIIQQQ")
_DIGEST = 32
_LONGEST_DESCRIPTION = 1 << 16


@dataclass(frozen=True)
class Provenance:
    """Where a ticket comes from.

    Args:
        data: Name of the data set that the generator learned from.
        data_class: Class path of the data set, nothing if unknown.
        run: Name of the run folder.
        round: The last round that it contains.
        seed: Seed of the run, which noise is drawn from unless another is asked for.
        masks: "sampled_once" or "threshold": how the mask was made of the probabilities.
    """

    data: str
    data_class: str
    run: str
    round: int
    seed: int
    masks: Literal["sampled_once", "threshold"]


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
    """

    class_path: str
    init_args: dict[str, Any]
    weight_seed: int
    mask: Tensor
    means: Tensor
    variances: Tensor
    provenance: Provenance

    @property
    def surviving(self) -> int:
        """Number of weights that are kept."""
        return int(self.mask.count_nonzero())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same weights as float32 numbers."""
        return 4 * len(self.mask)


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


def write_ticket(path: Path, ticket: Ticket) -> str:
    """Write a ticket; return the file's SHA-256.

    Args:
        path: The file, replaced as a whole or not at all.
        ticket: What to write.

    Raises:
        FlgenError: It is none that could be read again, or the file cannot be written.
    """
    description = _description_of(ticket)
    header = _HEADER.pack(MAGIC, VERSION, len(description), ticket.weight_seed, len(ticket.mask), len(ticket.means))
    numbers = torch.cat([ticket.means, ticket.variances]).numpy().astype("<f4").tobytes()
    body = description + Bits().encode(ticket.mask).numpy().tobytes() + numbers
    content = header + hashlib.sha256(header + body).digest() + body
    _parse(content)
    with atomic_replace(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_ticket(path: Path) -> Ticket:
    """Return the ticket of a file. Nothing of it is run; memory is in proportion to the file's length.

    Raises:
        FlgenError: There is no such file, or it is not a whole ticket of this version.
    """
    remedy = "give one that `flgen export` wrote"
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FlgenError(f"ticket {path} cannot be read (it is no file): {remedy}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_HEADER.size + _DIGEST)
            _lengths(start, size)  # before the rest is read
            content = start + file.read(size - len(start))
        return _parse(content)
    except OSError as error:
        raise FlgenError(f"ticket {path} cannot be read ({error.strerror}): {remedy}") from error
    except FlgenError as error:
        raise FlgenError(f"ticket {path} cannot be used: {error}") from error


def _lengths(start: bytes, size: int) -> tuple[int, int, int, int]:
    """Return bytes of the description, seed, weights and channels, after checking them against the file's size."""
    if not start.startswith(MAGIC):
        raise FlgenError("it does not start with FLTICKET: give a file that `flgen export` wrote")
    if len(start) < _HEADER.size + _DIGEST:
        raise FlgenError(f"it ends after {len(start)} bytes: it is truncated, get it again")
    _, version, described, seed, weights, channels = _HEADER.unpack_from(start)
    if version != VERSION:
        raise FlgenError(f"it has version {version}, this flgen reads version {VERSION}: export it again")
    if described > _LONGEST_DESCRIPTION:
        raise FlgenError(f"it announces a description of {described} bytes, at most {_LONGEST_DESCRIPTION} are allowed")
    announced = _HEADER.size + _DIGEST + described + (weights + 7) // 8 + 8 * channels
    if announced != size:
        raise FlgenError(f"it has {size} bytes, its header announces {announced}: it is damaged, get it again")
    return described, seed, weights, channels


def _parse(content: bytes) -> Ticket:
    """Return the ticket that the bytes of a file are."""
    described, seed, weights, channels = _lengths(content[: _HEADER.size + _DIGEST], len(content))
    header, digest, body = content[: _HEADER.size], content[_HEADER.size :][:_DIGEST], content[_HEADER.size + _DIGEST :]
    if hashlib.sha256(header + body).digest() != digest:
        raise FlgenError("its checksum is wrong: it is damaged, get it again")
    class_path, init_args, provenance = _read_description(body[:described])
    packed, numbers = body[described : len(body) - 8 * channels], body[len(body) - 8 * channels :]
    try:
        octets = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)
        mask = Bits.decode(octets, (weights,), torch.bool)[""]
    except WireError as error:
        raise FlgenError(f"its mask cannot be read ({error})") from error
    values = torch.from_numpy(np.frombuffer(numbers, "<f4").astype(np.float32))
    means, variances = values[:channels], values[channels:]
    if not values.isfinite().all() or bool((variances < 0).any()):
        raise FlgenError("its statistics are not finite, or a variance is negative")
    return Ticket(class_path, init_args, seed, mask, means, variances, provenance)


def _description_of(ticket: Ticket) -> bytes:
    """Return the JSON of a ticket, the same bytes for the same ticket."""
    described = {
        "architecture": {"class_path": ticket.class_path, "init_args": ticket.init_args},
        "provenance": asdict(ticket.provenance),
    }
    try:
        return json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise FlgenError(NOT_PLAIN) from error


def _read_description(text: bytes) -> tuple[str, dict[str, Any], Provenance]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FlgenError("its description is no JSON") from error
    architecture = _object(described, "description", ("architecture", "provenance"))["architecture"]
    class_path, init_args = _object(architecture, "architecture", ("class_path", "init_args")).values()
    if not (isinstance(class_path, str) and re.fullmatch(rf"{re.escape(OURS)}[a-z0-9_]+\.[A-Za-z0-9]+", class_path)):
        raise FlgenError(f"its generator {_shown(class_path)} is none of {OURS}*, which alone can be in a ticket")
    if not (isinstance(init_args, dict) and all(name.isidentifier() and _plain(init_args[name]) for name in init_args)):
        raise FlgenError(NOT_PLAIN)
    names = {field.name: int if field.name in ("round", "seed") else str for field in fields(Provenance)}
    facts = _object(described["provenance"], "provenance", tuple(names))
    for name, type_ in names.items():
        if type(facts[name]) is not type_ or not _plain(facts[name]):
            raise FlgenError(f"its provenance has no proper {name}: {_shown(facts[name])}")
    if facts["masks"] not in ("sampled_once", "threshold"):
        raise FlgenError(f"its provenance names a kind of mask that does not exist: {_shown(facts['masks'])}")
    return class_path, init_args, Provenance(**facts)


def _object(value: Any, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return an object of the description, in the order of its keys, which must be these."""
    if not isinstance(value, dict) or set(value) != set(keys):
        raise FlgenError(f"its {name} must have {', '.join(keys)} and nothing else")
    return {key: value[key] for key in keys}


def _plain(value: Any) -> bool:
    """Say whether a value is null, a boolean, a number of 64 bits, or a string that can be shown."""
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    return ascii(value)[:80]
