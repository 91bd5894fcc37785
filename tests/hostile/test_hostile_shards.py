"""Shards of clients and of generated samples, their indices, and archives of recordings, from somebody else."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import TIMES, Bomb, altered, bomb_that_works, contents_of, damaged, outcome, refusal, tried
from hypothesis import given
from PIL import Image

from flgen.data import IID, AsStored, ClientShards, Digits, SpokenDigits
from flgen.data.shards import read_index, write_client_shards
from flgen.federation.interruption import StopRequest
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.sample_store import SampleStore, read_manifest, read_sample, read_shard
from flgen.synthesis.samples import BareLabel, plan_samples
from flgen.synthesis.synthesis_job import SynthesisJob
from flgen.synthesis.synthetic_set import load_synthetic
from flgen.topology.channel import Channel

CLASSES = list("0123456789")


class Quiet:
    def start(self, done: int, total: int, own: int) -> None: ...

    def advance(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients' digits."""
    data, folder = Digits(test_fraction=0.9), tmp_path_factory.mktemp("stored") / "shards"
    data.setup()
    write_client_shards(data, data.split_clients(IID(40), np.random.default_rng(0))[:2], folder, 3)
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated digits of each class."""
    folder = tmp_path_factory.mktemp("generated") / "samples"
    prompts = [BareLabel(f"p{number}", number, name) for number, name in enumerate(CLASSES)]
    requests = plan_samples(CLASSES, prompts, 2, seed=3)
    job = SynthesisJob(folder, Procedural(size=8), CLASSES, prompts, requests, 3, 7)
    job.run(job.identity(), Channel(0, 1, torch.device("cpu"), 60, 60), StopRequest(), Quiet())
    return folder


@pytest.fixture
def clients(stored: Path, tmp_path: Path) -> Path:
    return copied(stored, tmp_path / "at" / "shards")


@pytest.fixture
def samples(generated: Path, tmp_path: Path) -> Path:
    return copied(generated, tmp_path / "at" / "samples")


def copied(source: Path, folder: Path) -> Path:
    for name, content in contents_of(source).items():
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def all_of(folder: Path) -> int:
    """Read whatever a run reads of a folder of clients: in memory, and as a stream."""
    found = 0
    for budget in (1000.0, 0.0):
        data = ClientShards(str(folder), memory_budget_mb=budget)
        for client, rows in enumerate(data.split_clients(AsStored(), np.random.default_rng(0))):
            for images, _ in data.client_data(client, rows).batches(4, torch.Generator(), epochs=1):
                found += len(images)
    return found


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def with_holes(name: str, size: int) -> bytes:
    """A tar file whose one member is said to have `size` bytes, of which none are stored."""
    header = bytearray(tar_of(member(name, type=tarfile.GNUTYPE_SPARSE))[:512])
    header[386:482] = (b"%011o\0" % size + b"%011o\0" % 0) + b"\0" * 72
    header[483:495] = b"%011o\0" % size
    return checked(header) + b"\0" * 1024


def checked(header: bytearray) -> bytes:
    """A header with its checksum made to fit."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def backwards(name: str) -> bytes:
    """A tar file whose first header says that the next one lies before it."""
    header = bytearray(tar_of(member(name, b"x" * 512))[:512])
    header[124:136] = struct.pack(">i", -1) + struct.pack(">q", -1024)
    return checked(header) + b"\0" * 2048


def bytes_at_most(load: Callable[[], Any]) -> tuple[str, int]:
    """Return the refusal of a loader, and how much memory of Python's it took."""
    tracemalloc.start()
    said = refusal(load)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return said, peak


@TIMES
def test_any_values_in_an_index_of_clients(times: int, clients: Path, tmp_path: Path) -> None:
    index = json.loads((clients / "index.json").read_text())

    @tried(60 * times)
    @given(altered(index))
    def holds(changed: Any) -> None:
        (clients / "index.json").write_text(json.dumps(changed))
        outcome(lambda: all_of(clients))
        assert [path.name for path in tmp_path.iterdir()] == ["at"]

    holds()


@TIMES
@pytest.mark.parametrize("name", ["client-0000/shard-00000.tar", "index.json"])
def test_any_bytes_in_place_of_what_clients_store(name: str, times: int, clients: Path) -> None:
    intact = (clients / name).read_bytes()

    @tried(40 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        (clients / name).write_bytes(content)
        outcome(lambda: all_of(clients))

    holds()


@TIMES
@pytest.mark.parametrize("name", ["manifest.jsonl", "index.json", "shard-000-00000.tar"])
def test_any_bytes_in_place_of_what_a_generator_made(name: str, times: int, samples: Path, tmp_path: Path) -> None:
    intact = (samples / name).read_bytes()

    @tried(25 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        (samples / name).write_bytes(content)
        outcome(lambda: load_synthetic(samples, Digits()))
        assert [path.name for path in tmp_path.iterdir()] == ["at"]

    holds()


@TIMES
@pytest.mark.parametrize("name", ["manifest.jsonl", "index.json"])
def test_any_values_in_what_a_generator_wrote_down(name: str, times: int, samples: Path, tmp_path: Path) -> None:
    intact = [json.loads(line) for line in (samples / name).read_text().splitlines()] if "jsonl" in name else None
    intact = intact or json.loads((samples / name).read_text())

    @tried(30 * times)
    @given(altered(intact))
    def holds(changed: Any) -> None:
        lines = changed if isinstance(changed, list) else [changed]
        (samples / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        outcome(lambda: load_synthetic(samples, Digits()))
        outcome(lambda: SampleStore(samples).counts(len(CLASSES)))
        assert [path.name for path in tmp_path.iterdir()] == ["at"]

    holds()


@TIMES
def test_any_facts_of_a_sample_are_brought_in_order_or_refused(times: int, samples: Path, tmp_path: Path) -> None:
    shard = samples / "shard-000-00000.tar"
    facts = next(read_shard(shard)).facts
    content = next(read_shard(shard)).content

    @tried(30 * times)
    @given(altered(facts))
    def holds(changed: Any) -> None:
        id, label = facts["id"], str(facts["class_id"]).encode()
        entries = ((f"{id}.png", content), (f"{id}.cls", label), (f"{id}.json", json.dumps(changed).encode()))
        (samples / "partial" / f"{id}.tar").write_bytes(tar_of(*(member(*entry) for entry in entries)))
        outcome(lambda: list(read_shard(samples / "partial" / f"{id}.tar")))
        outcome(lambda: read_sample(samples / "partial" / f"{id}.tar", id))
        assert [path.name for path in tmp_path.iterdir()] == ["at"]

    holds()


def test_a_pickle_in_a_shard_is_not_opened(clients: Path, samples: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    blob = pickle.dumps(bomb_that_works(canary))
    for path in (clients / "client-0000" / "shard-00000.tar", samples / "shard-000-00000.tar"):
        with tarfile.open(path, "a") as tar:
            for ending in ("pyd", "pkl", "pickle", "pth"):
                tar.addfile(
                    *[part if n == 0 else io.BytesIO(part) for n, part in enumerate(member(f"x.{ending}", blob))]
                )
    outcome(lambda: all_of(clients))
    outcome(lambda: load_synthetic(samples, Digits()))
    assert not canary.exists()


@pytest.mark.parametrize("place", ["../../x.png", "/tmp/x.png", "a/../../x.png"])
def test_names_of_members_are_no_paths(place: str, clients: Path, tmp_path: Path) -> None:
    before = contents_of(tmp_path)
    shard = clients / "client-0000" / "shard-00000.tar"
    shard.write_bytes(tar_of(member(place, b"x"), member(place.replace("png", "json"), b"{}")))
    before[str(shard.relative_to(tmp_path))] = shard.read_bytes()
    assert "is damaged" in refusal(lambda: all_of(clients))
    assert contents_of(tmp_path) == before


def test_links_and_devices_in_a_shard_are_passed_over(clients: Path) -> None:
    shard = clients / "client-0000" / "shard-00000.tar"
    (clients / "secret").write_text("secret")
    odd = [member("00000000.png", type=kind, linkname="../secret") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    shard.write_bytes(tar_of(*odd, member("00000001.png", type=tarfile.CHRTYPE)))
    assert "is damaged (it holds 0 samples" in refusal(lambda: all_of(clients))


def test_a_shard_outside_of_the_folder_is_refused(clients: Path, samples: Path) -> None:
    index = json.loads((clients / "index.json").read_text())
    index["clients"][0]["shards"][0]["file"] = "../shards/../../x.tar"
    (clients / "index.json").write_text(json.dumps(index))
    assert "lies outside the folder" in refusal(lambda: read_index(clients))
    first, *others = (samples / "manifest.jsonl").read_text().splitlines()
    for place in ("../../x.tar", "/dev/zero", "a/shard-000-00000.tar"):
        changed = json.dumps({**json.loads(first), "shard": place})
        (samples / "manifest.jsonl").write_text("\n".join([changed, *others]) + "\n")
        assert "is none of `flgen synthesize`" in refusal(lambda: read_manifest(samples))


BOMBS = {
    "holes": with_holes("00000000.png", 1 << 38),
    "backwards": backwards("00000000.png"),
    "compressed": gzip.compress(tar_of(member("00000000.png", bytes(50_000_000)))),
    "longer than the file": tar_of(member("00000000.png", b"x"))[:124] + b"77777777777\0" + bytes(400),
    "long names": b"".join(tar_of(member("x", b"y", type=tarfile.GNUTYPE_LONGNAME))[:1024] for _ in range(2000)),
    "empty": b"",
    "zeros": bytes(10240),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_made_to_exhaust_is_one_line_in_little_memory(bomb: str, clients: Path, tmp_path: Path) -> None:
    shard = clients / "client-0000" / "shard-00000.tar"
    shard.write_bytes(BOMBS[bomb].ljust(4096, b"\0"))  # as much as its samples would take
    said, peak = bytes_at_most(lambda: all_of(clients))
    assert f"{shard} is damaged" in said
    assert peak < 20_000_000
    assert "is damaged" in refusal(lambda: [*read_shard(shard), read_sample(shard, "00000-0000000")])


def test_an_archive_of_recordings_may_be_compressed_but_is_bounded(tmp_path: Path) -> None:
    for name, content in (("holes.tar", with_holes("0_a_0.wav", 1 << 38)), ("x.tar", backwards("0_a_0.wav"))):
        (tmp_path / name).write_bytes(content)
        said, peak = bytes_at_most(SpokenDigits(str(tmp_path / name)).setup)
        assert "is damaged" in said
        assert peak < 20_000_000
    other = gzip.compress(tar_of(member("big.bin", bytes(100_000_000))), 1)
    (tmp_path / "x.tar.gz").write_bytes(other)
    said, peak = bytes_at_most(SpokenDigits(str(tmp_path / "x.tar.gz")).setup)
    assert "no DIGIT_SPEAKER_INDEX.wav" in said
    assert peak < 50_000_000  # what a block of the compressed stream stands for


def test_numbers_of_an_index_take_no_memory_before_they_are_true(clients: Path) -> None:
    index = json.loads((clients / "index.json").read_text())
    index["clients"][0].update(samples=10**12, label_counts=[10**12] + [0] * 9)
    index["clients"][0]["shards"] = [{"file": "client-0000/shard-00000.tar", "samples": 10**12}]
    (clients / "index.json").write_text(json.dumps(index))
    assert "is too small for 1000000000000 samples" in refusal(lambda: ClientShards(str(clients)).train)


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(clients: Path) -> None:
    shard = clients / "client-0000" / "shard-00000.tar"
    shard.unlink()
    os.mkfifo(shard)
    assert "is damaged" in refusal(lambda: all_of(clients))


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, with no pixels in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_that_claims_to_be_huge_is_not_decoded() -> None:
    data = Digits()
    for content in (png(10**6, 10**6), png(2**31 - 1, 1), png(0, 5)):
        said, peak = bytes_at_most(lambda content=content: data.decode_sample(content, ".png"))
        assert "is damaged or not an image" in said
        assert peak < 20_000_000


def test_a_file_called_png_is_not_handed_to_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*arguments: Any, **options: Any) -> None:
        pytest.fail("an image was given to another program")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    Image.open(io.BytesIO(eps))  # Pillow takes it for an image
    from flgen.data.pixels import _decode

    said = refusal(lambda: _decode(io.BytesIO(eps), "x.png", 8, 1))
    assert "is damaged or not an image" in said


def test_bombs_are_what_the_tests_take_them_for(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(with_holes("a.png", 3_000_000))
    with tarfile.open(tmp_path / "x.tar", "r|") as tar:
        (info,) = [entry for entry in tar if entry.issparse()]
        assert info.size == 3_000_000
    assert isinstance(Bomb(tmp_path).__reduce__()[1][0], str)
