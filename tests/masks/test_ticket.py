"""The ticket: what is written is what is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen import ResnetGenerator
from flgen.errors import FlgenError
from flgen.masks import network
from flgen.masks.ticket import (
    Provenance,
    Ticket,
    apply_ticket,
    batch_norms,
    check_fit,
    read_ticket,
    statistics,
    write_ticket,
)
from flgen.masks.ticket_description import Coding
from flgen.metrics.drift import binary_entropy

ORIGIN = Provenance("digits-public", "flgen.data.digits.Digits", "prism", 2, 7, "sampled_once")
SMALL = {"image_size": 8, "channels": 1, "latent": 4, "width": 2}
CODED = SMALL | {"width": 8}  # large enough for a code to pay
HEADER = 80  # bytes, with the digest


def ticket_of(options: dict[str, Any], seed: int = 2**64 - 1, varied: bool = True) -> Ticket:
    """A ticket of a network of these options, with random contents and as many ones in all layers, or more and more."""
    with torch.device("meta"):
        generator = ResnetGenerator(**options)
    layers = tuple(place.stop - place.start for place in network.layer_slices(generator).values())
    channels = sum(norm.num_features for norm in batch_norms(generator))
    draws = torch.Generator().manual_seed(0)
    # The first layer keeps fewest weights, the last one most: 0.42 on average.
    densities = torch.linspace(0.02, 0.82, sum(layers)) if varied else torch.full((sum(layers),), 0.42)
    mask = torch.rand(sum(layers), generator=draws) < densities
    means, variances = torch.randn(channels, generator=draws), torch.rand(channels, generator=draws)
    return Ticket("flgen.models.generators.ResnetGenerator", options, seed, mask, means, variances, ORIGIN, layers)


def same(a: Ticket, b: Ticket) -> bool:
    tensors = ("mask", "means", "variances")
    others = ("class_path", "init_args", "weight_seed", "provenance", "layers")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and all(
        getattr(a, name) == getattr(b, name) for name in others
    )


def first_version(ticket: Ticket) -> bytes:
    """The file of a ticket as version 1 wrote it."""
    described = {
        "architecture": {"class_path": ticket.class_path, "init_args": ticket.init_args},
        "provenance": asdict(ticket.provenance),
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
    sizes = (len(text), ticket.weight_seed, len(ticket.mask), len(ticket.means))
    header = struct.pack("<8sIIQQQ", b"FLTICKET", 1, *sizes)
    body = text + np.packbits(ticket.mask.numpy()).tobytes()
    body += ticket.means.numpy().tobytes() + ticket.variances.numpy().tobytes()
    return header + hashlib.sha256(header + body).digest() + body


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tickets") / "x.flgen"
    assert write_ticket(path, ticket_of(CODED)).coding == "entropy"
    return path


def read_or_refusal(path: Path) -> Ticket | str:
    """Return the ticket of a file, or what is said of it."""
    try:
        return read_ticket(path)
    except FlgenError as error:
        return str(error)


def refusal_of(content: bytes, folder: Path) -> str:
    """Return what is said of a file with these bytes."""
    path = folder / "changed.flgen"
    path.write_bytes(content)
    with pytest.raises(FlgenError) as it:
        read_ticket(path)
    prefix = f"ticket {path} cannot be used: "
    assert str(it.value).startswith(prefix)
    return str(it.value).removeprefix(prefix)


def resealed(content: bytes) -> bytes:
    """Return a file of version 2 with a digest that fits what it holds."""
    return content[:48] + hashlib.sha256(content[:48] + content[HEADER:]).digest() + content[HEADER:]


def described_as(content: bytes, change: dict[str, Any]) -> bytes:
    """Return a sealed file in whose description some entries, by dotted name, have other values."""
    (length,) = struct.unpack_from("<I", content, 12)
    described = json.loads(content[HEADER : HEADER + length])
    for name, value in change.items():
        *parents, last = name.split(".")
        place = described
        for parent in parents:
            place = place[parent]
        place[last] = value
    text = json.dumps(described).encode()
    header = content[:12] + struct.pack("<I", len(text)) + content[16:HEADER]
    return resealed(header + text + content[HEADER + length :])


@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_what_is_written_is_what_is_read(tmp_path: Path, coding: Coding) -> None:
    for options in (CODED, CODED | {"width": 9, "bias": True}):  # the latter has a number of weights with pad bits
        ticket = ticket_of(options)
        done = write_ticket(tmp_path / "x.flgen", ticket, coding)
        content = (tmp_path / "x.flgen").read_bytes()
        assert (hashlib.sha256(content).hexdigest(), coding) == (done.sha256, done.coding)
        found = read_ticket(tmp_path / "x.flgen")
        assert same(found, ticket)
        write_ticket(tmp_path / "again.flgen", found, coding)
        assert (tmp_path / "again.flgen").read_bytes() == content


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    ticket = ticket_of(SMALL | {"width": 1, "bias": True})
    content = first_version(ticket)
    (tmp_path / "old.flgen").write_bytes(content)
    old = replace(ticket, layers=())  # which it does not say
    assert same(read_ticket(tmp_path / "old.flgen"), old)
    write_ticket(tmp_path / "new.flgen", old)
    assert same(read_ticket(tmp_path / "new.flgen"), replace(ticket, layers=(len(ticket.mask),)))

    for changed, said in (
        (content[:-1], "its header announces"),
        (content[:60], "it ends after 60 bytes"),
        (content[:-1] + b"\x7f", "its checksum is wrong"),
        (content[:8] + b"\2" + content[9:], "its header announces"),
    ):
        assert said in refusal_of(changed, tmp_path)


@pytest.mark.parametrize(("channels", "weights", "packed"), [(1, 3_543_616, 442_952), (3, 3_544_768, 443_096)])
def test_the_published_generator_takes_a_seed_a_bit_per_weight_and_its_statistics(
    channels: int, weights: int, packed: int, tmp_path: Path
) -> None:
    ticket = ticket_of({"image_size": 32, "channels": channels})
    assert (len(ticket.mask), ticket.dense_bytes) == (weights, 4 * weights)
    done = write_ticket(tmp_path / "x.flgen", ticket, "packed")
    assert (done.coding, done.mask_bytes) == ("packed", packed)
    assert header_of(tmp_path / "x.flgen") + 8 + packed + 11_264 == (tmp_path / "x.flgen").stat().st_size


def header_of(path: Path) -> int:
    """Return the bytes of a file that are neither seed nor mask nor statistics, fewer than 1,024."""
    (description,) = struct.unpack_from("<I", path.read_bytes(), 12)
    assert HEADER - 8 + description < 1024
    return HEADER - 8 + description


def test_the_mask_of_the_published_generator_takes_the_entropy_of_its_layers(tmp_path: Path) -> None:
    file = tmp_path / "x.flgen"
    even = ticket_of({"image_size": 32, "channels": 1}, varied=False)
    done = write_ticket(file, even)
    assert done.coding == "entropy"
    assert done.mask_bytes == pytest.approx(434_737, rel=1e-3)  # prism.md, section 7: density 0.42
    bound = len(even.mask) * float(binary_entropy(even.mask.double().mean())) / 8
    assert done.mask_bytes < 1.0002 * bound + 40  # the coder's rounding; two numbers for each of 11 layers
    size = file.stat().st_size
    assert size == header_of(file) + 8 + done.mask_bytes + 11_264
    assert size < 454_224 + header_of(file)
    assert same(read_ticket(file), even)

    varied = ticket_of({"image_size": 32, "channels": 1})  # as many ones
    layers = torch.split(varied.mask, list(varied.layers))
    bound = sum(len(layer) * float(binary_entropy(layer.double().mean())) / 8 for layer in layers)
    assert bound < write_ticket(file, varied).mask_bytes < 1.0002 * bound + 40
    assert bound < 0.9 * done.mask_bytes


def test_a_mask_that_a_code_would_not_shorten_is_packed(tmp_path: Path) -> None:
    ticket = ticket_of(SMALL)
    mask = torch.rand(len(ticket.mask), generator=torch.Generator().manual_seed(0)) < 0.5
    done = write_ticket(tmp_path / "x.flgen", replace(ticket, mask=mask))
    assert (done.coding, done.mask_bytes) == ("packed", math.ceil(len(mask) / 8))
    assert torch.equal(read_ticket(tmp_path / "x.flgen").mask, mask)


def test_a_mask_that_keeps_everything_takes_a_few_bytes(tmp_path: Path) -> None:
    ticket = ticket_of(SMALL)
    ticket = replace(ticket, mask=torch.ones_like(ticket.mask))
    assert write_ticket(tmp_path / "x.flgen", ticket).mask_bytes < 32
    assert same(read_ticket(tmp_path / "x.flgen"), ticket)


def test_a_packed_mask_lies_in_the_file_most_significant_bit_first(tmp_path: Path) -> None:
    ticket = ticket_of(SMALL)
    mask = torch.zeros_like(ticket.mask)
    mask[torch.tensor([0, 2, 3, 7, 8, 9])] = True
    write_ticket(tmp_path / "x.flgen", replace(ticket, mask=mask), "packed")
    content = (tmp_path / "x.flgen").read_bytes()
    (description,) = struct.unpack_from("<I", content, 12)
    assert content[HEADER + description :][:3] == bytes([0b10110001, 0b11000000, 0])


def test_a_network_draws_the_same_with_its_own_mask_and_with_the_ticket() -> None:
    generator = ResnetGenerator(**SMALL)
    generator.reset_weights(5)
    mask = ticket_of(SMALL).mask
    network.fix_masks(generator, mask)
    generator.recalibrate(torch.Generator().manual_seed(1), batches=2)
    means, variances = statistics(generator)
    ticket = replace(ticket_of(SMALL, seed=5), means=means, variances=variances)

    other = ResnetGenerator(**SMALL)
    other.reset_weights(ticket.weight_seed)
    apply_ticket(ticket, other)
    z = generator.noise(3, torch.Generator().manual_seed(2))
    assert torch.equal(other(z), generator(z))


def test_a_ticket_of_another_size_is_refused_before_the_network_takes_memory() -> None:
    with torch.device("meta"):
        huge = ResnetGenerator(**SMALL | {"width": 1 << 20})
    with pytest.raises(FlgenError, match=r"^the mask has \d+ bits .* the network \d{13,} weights and \d+ channels$"):
        check_fit(ticket_of(SMALL), huge)


@pytest.mark.parametrize("count", [0, 7, 8, 11, 12, 40, 72, 79, 80, 100, -1])
def test_a_truncated_file_is_refused(written: Path, tmp_path: Path, count: int) -> None:
    said = refusal_of(written.read_bytes()[:count], tmp_path)
    if 8 <= count < HEADER:
        assert said == f"it ends after {count} bytes: it is truncated, get it again"
    elif count in (0, 7):
        assert said.startswith("it does not start with FLTICKET")
    else:
        assert "its header announces" in said


@pytest.mark.parametrize(
    ("offset", "bytes_", "said"),
    [
        (0, b"PK", "it does not start with FLTICKET"),
        (8, struct.pack("<I", 3), "it has version 3, this flgen reads versions 1 and 2"),
        (8, struct.pack("<I", 1), "its header announces"),
        (12, struct.pack("<I", 2**32 - 1), "it announces a description of 4294967295 bytes"),
        (24, struct.pack("<Q", 2**64 - 1), "its checksum is wrong"),
        (32, struct.pack("<Q", 2**64 - 1), "its header announces 147573952589676"),
        (40, struct.pack("<Q", 2**64 - 1), "its header announces 184467440737095"),
        (16, b"\0", "its checksum is wrong"),
        (48, bytes(4), "its checksum is wrong"),
        (-1, b"\xff", "its checksum is wrong"),
    ],
)
def test_a_changed_header_is_refused(written: Path, tmp_path: Path, offset: int, bytes_: bytes, said: str) -> None:
    content = bytearray(written.read_bytes())
    start = offset % len(content)
    content[start : start + len(bytes_)] = bytes_
    assert said in refusal_of(bytes(content), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture.class_path": "os.system"}, "its generator 'os.system' is none of flgen.models.*"),
        ({"architecture.class_path": "flgen.models.generators.torch.load"}, "is none of flgen.models.*"),
        ({"architecture.class_path": ["x"]}, "is none of flgen.models.*"),
        ({"architecture.init_args": {"loss": {"class_path": "os.system"}}}, "are not plain values"),
        ({"architecture.init_args": {"width": float("nan")}}, "are not plain values"),
        ({"architecture.init_args": {"width": 2**70}}, "are not plain values"),
        ({"architecture.init_args": [1]}, "are not plain values"),
        ({"architecture": {}}, "its architecture must have class_path, init_args and nothing else"),
        ({"further": 1}, "its description must have architecture, mask, provenance and nothing else"),
        ({"mask": {"coding": "packed"}}, "its mask must have coding, layers and nothing else"),
        ({"mask.coding": "zip"}, "its mask has a coding that does not exist: 'zip'"),
        ({"mask.coding": ["packed"]}, "its mask has a coding that does not exist: ['packed']"),
        ({"mask.coding": "packed"}, "its mask cannot be read (payload body has"),
        ({"mask.layers": 5}, "weights: 5"),
        ({"mask.layers": [True]}, "weights: [True]"),
        ({"mask.layers": [0]}, "weights: [0]"),
        ({"mask.layers": [-1]}, "weights: [-1]"),
        ({"mask.layers": [10**4000]}, "weights: [1000"),
        ({"mask.layers": [5, 6]}, "its mask has layers of 11 weights together, its header announces"),
        ({"provenance.round": "2"}, "its provenance has no proper round: '2'"),
        ({"provenance.round": True}, "its provenance has no proper round: True"),
        ({"provenance.data": "\x1b[2J"}, r"its provenance has no proper data: '\x1b[2J'"),
        ({"provenance.masks": "stochastic"}, "a kind of mask that does not exist: 'stochastic'"),
    ],
)
def test_a_sealed_file_that_describes_something_else_is_refused(
    written: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    assert said in refusal_of(described_as(written.read_bytes(), change), tmp_path)


def test_a_sealed_file_with_numbers_that_mean_nothing_is_refused(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for number in (float("inf"), float("nan"), -1.0):
        assert "its statistics are not finite" in refusal_of(
            resealed(content[:-4] + struct.pack("<f", number)), tmp_path
        )
    wide = ticket_of(SMALL | {"width": 1, "bias": True})
    assert len(wide.mask) % 8
    write_ticket(tmp_path / "wide.flgen", wide, "packed")
    changed = bytearray((tmp_path / "wide.flgen").read_bytes())
    changed[-8 * len(wide.means) - 1] |= 1
    assert "pad bits that are not zero" in refusal_of(resealed(bytes(changed)), tmp_path)


def test_a_few_bytes_cannot_announce_a_mask_that_fills_the_memory(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for weights in (2**26 + 1, 2**62):
        huge = bytearray(described_as(content, {"mask.layers": [weights]}))
        huge[24:32] = struct.pack("<Q", weights)
        assert f"cannot be the code of {weights} symbols" in refusal_of(resealed(bytes(huge)), tmp_path)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    for wrong, said in (
        ({"class_path": "mine.Generator"}, "none of flgen.models"),
        ({"init_args": {"blocks": [1, 2]}}, "not plain values"),
        ({"init_args": {"blocks": {1}}}, "not plain values"),
        ({"layers": (3, 4)}, "its mask has layers of 7 weights together"),
    ):
        with pytest.raises(FlgenError, match=said):
            write_ticket(tmp_path / "x.flgen", replace(ticket_of(SMALL), **wrong))
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.flgen")
    for place in (tmp_path / "none.flgen", tmp_path, tmp_path / "pipe.flgen"):
        with pytest.raises(FlgenError, match=r"^ticket .* cannot be read \(.+\): give one that `flgen export` wrote$"):
            read_ticket(place)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 2**20), st.just(0)),
        st.tuples(st.just("insert"), st.integers(0, 2**20), st.integers(0, 255)),
        st.tuples(st.just("append"), st.just(0), st.integers(0, 255)),
        st.tuples(st.just("flip in the header"), st.integers(0, 400), st.integers(1, 255)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    octets = bytearray(content)
    for kind, place, value in changes:
        where = place % max(1, len(octets))
        if kind == "cut":
            del octets[where:]
        elif kind == "insert":
            octets.insert(where, value)
        elif kind == "append":
            octets.append(value)
        elif octets:
            octets[where] ^= value
    return bytes(octets)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(CHANGES)
def test_no_damage_goes_unnoticed(written: Path, changes: list[tuple[str, int, int]]) -> None:
    content = changed(written.read_bytes(), changes)
    if content != written.read_bytes():
        refusal_of(content, written.parent)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(CHANGES)
def test_damage_under_a_digest_that_fits_gives_a_ticket_or_one_line(
    written: Path, changes: list[tuple[str, int, int]]
) -> None:
    content = resealed(changed(written.read_bytes(), changes))
    path = written.parent / "sealed.flgen"
    path.write_bytes(content)
    found = read_or_refusal(path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
    else:
        write_ticket(path, found)
        assert same(read_ticket(path), found)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x), max_leaves=8), st.data()
)
def test_any_json_in_the_description_gives_a_ticket_or_one_line(written: Path, value: Any, data: st.DataObject) -> None:
    names = ["architecture", "architecture.class_path", "architecture.init_args", "architecture.init_args.width"]
    names += ["provenance", "provenance.data", "provenance.seed", "provenance.masks"]
    names += ["mask", "mask.coding", "mask.layers"]
    path = written.parent / "described.flgen"
    path.write_bytes(described_as(written.read_bytes(), {data.draw(st.sampled_from(names)): value}))
    found = read_or_refusal(path)
    assert isinstance(found, Ticket) or len(found.splitlines()) == 1


def test_a_description_that_is_nested_without_end_is_refused(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    deep = b"[" * 60_000
    header = content[:12] + struct.pack("<I", len(deep)) + content[16:HEADER]
    assert refusal_of(resealed(header + deep + content[HEADER + length :]), tmp_path) == "its description is no JSON"
