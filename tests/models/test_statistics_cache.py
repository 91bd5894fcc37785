"""Moments on the disk: whole or not at all, and only under the very same key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from client_images import pixels

from flgen.models.statistics_cache import StatisticsCache, arithmetic_of, digest_of, digest_of_images

MOMENTS = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = StatisticsCache(tmp_path / "new")
    assert cache.read({"images": "a"}) is None
    cache.write({"images": "a", "size": [1, 2]}, MOMENTS)
    kept = cache.read({"size": [1, 2], "images": "a"})
    assert kept is not None
    assert torch.equal(kept, MOMENTS)
    assert cache.read({"images": "a", "size": [2, 1]}) is None
    (path,) = (tmp_path / "new").iterdir()
    assert path.suffix == ".safetensors"


@pytest.mark.parametrize("where", [0, 20, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: int) -> None:
    cache = StatisticsCache(tmp_path)
    cache.write({}, MOMENTS)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="flgen"):
        assert cache.read({}) is None
    (message,) = (record.message for record in caplog.records)
    assert f"the statistics are computed again: the file {path} is damaged" in message
    assert len(message.splitlines()) == 1


def test_a_digest_sees_type_shape_and_every_bit() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    others = [tensor.view(2, 3), tensor.view(torch.int32), tensor + torch.tensor([0, 0, 0, 0, 0, 1e-6])]
    assert len({digest_of([other]) for other in (tensor, *others)}) == 4
    assert digest_of([tensor]) == digest_of([tensor.clone()])
    assert digest_of([tensor[:3], tensor[3:]]) != digest_of([tensor])
    assert digest_of([torch.zeros(())]) != digest_of([torch.zeros(1)])


def test_images_are_a_set_unless_their_places_matter() -> None:
    images = pixels(6, size=4)
    here, there = images.split(4), images.flip(0).split(2)
    assert digest_of_images(here, ordered=False) == digest_of_images(there, ordered=False)
    assert digest_of_images(here, ordered=True) != digest_of_images(there, ordered=True)
    assert digest_of_images(here, ordered=True) != digest_of_images(images.split(3), ordered=True)
    twice = torch.cat([images, images[:1]])
    assert digest_of_images([twice], ordered=False) != digest_of_images([images], ordered=False)


def test_precision_and_threads_are_part_of_the_arithmetic() -> None:
    plain = arithmetic_of(torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = arithmetic_of(torch.device("cpu"))
    assert plain["autocast"] is None
    assert half["autocast"] == "torch.bfloat16"
    assert plain["threads"] == torch.get_num_threads()
