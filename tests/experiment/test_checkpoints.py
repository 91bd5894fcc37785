"""A checkpoint is complete or not there; a damaged one is named and never chosen; reading one runs no code."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flgen.errors import FlgenError
from flgen.experiment.checkpoints import (
    DIGEST,
    FileRecord,
    checkpoint_name,
    checkpoint_to_continue,
    find_checkpoint,
    finish_checkpoint,
    open_checkpoint,
    remove_old_checkpoints,
    start_checkpoint,
    write_state,
)

IDENTITY = {"seed": 7, "method": "Prism", "partition": "abc"}


def moments(client: int, round: int) -> dict[str, Tensor]:
    return {"exp_avg": torch.full((300,), float(client)), "step": torch.tensor(round)}


def write(folder: Path, round: int) -> Path:
    """A checkpoint as two ranks write it: four clients and the server."""
    partial = start_checkpoint(folder, round)
    files = [
        write_state(partial, "clients-00000.pt", {client: moments(client, round) for client in (0, 2)}),
        write_state(partial, "clients-00001.pt", {client: moments(client, round) for client in (1, 3)}),
        write_state(partial, "server.pt", {"scores": torch.arange(50.0) + round, "metrics": {"train/loss": 0.5}}),
    ]
    return finish_checkpoint(partial, round, IDENTITY, files)


def rounds_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    assert path == tmp_path / "round-00010"
    checkpoint = open_checkpoint(path)
    assert checkpoint.round == 10
    assert checkpoint.identity == IDENTITY
    server = checkpoint.server_state()
    assert torch.equal(server["scores"], torch.arange(50.0) + 10)
    assert server["metrics"] == {"train/loss": 0.5}
    clients = checkpoint.client_states()
    assert sorted(clients) == [0, 1, 2, 3]
    for client, state in clients.items():
        assert torch.equal(state["exp_avg"], moments(client, 10)["exp_avg"])
        assert state["step"].item() == 10


def test_only_the_checkpoint_is_left_behind(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert rounds_of(tmp_path) == ["round-00001"]
    assert rounds_of(path) == ["clients-00000.pt", "clients-00001.pt", "manifest.json", "server.pt"]


def test_a_half_written_one_is_not_found_and_makes_way_for_the_next(tmp_path: Path) -> None:
    write(tmp_path, 1)
    partial = start_checkpoint(tmp_path, 2)
    write_state(partial, "server.pt", {"scores": torch.zeros(3)})  # and here the process was killed
    assert find_checkpoint(tmp_path / "last").round == 1
    assert list(start_checkpoint(tmp_path, 3).iterdir()) == []
    write(tmp_path, 3)
    assert rounds_of(tmp_path) == ["round-00001", "round-00003"]


def test_a_round_that_is_run_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "server.pt").write_bytes(b"torn")
    assert open_checkpoint(write(tmp_path, 1)).round == 1
    assert rounds_of(tmp_path) == ["round-00001"]


def test_going_on_from_an_earlier_round_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    for t in (5, 6, 7, 8):
        write(tmp_path, t)
    write(tmp_path, 6)  # after --ckpt_path round-00005
    remove_old_checkpoints(tmp_path, keep=2)
    assert rounds_of(tmp_path) == ["round-00005", "round-00006"]
    assert find_checkpoint(tmp_path / "last").round == 6


@pytest.mark.parametrize(("keep", "left"), [(1, [100_000]), (2, [99_999, 100_000]), (9, [3, 20, 99_999, 100_000])])
def test_the_newest_are_kept_and_what_is_no_checkpoint_is_left_alone(
    keep: int, left: list[int], tmp_path: Path
) -> None:
    for t in (3, 20, 99_999, 100_000):
        write(tmp_path, t)
    (tmp_path / "round-00001-my-favourite").mkdir()
    remove_old_checkpoints(tmp_path, keep)
    assert rounds_of(tmp_path) == sorted(["round-00001-my-favourite", *(checkpoint_name(t) for t in left)])
    assert find_checkpoint(tmp_path / "last").round == 100_000


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, append, Path.unlink, replace_by_a_folder])
@pytest.mark.parametrize("name", ["server.pt", "clients-00001.pt"])
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    damage(path / name)
    with pytest.raises(FlgenError, match=f"checkpoint {path} is damaged: {name} is missing or not") as refusal:
        open_checkpoint(path)
    assert "\n" not in str(refusal.value)
    assert "--ckpt_path last" in str(refusal.value)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    partial = start_checkpoint(tmp_path, 1)
    path = finish_checkpoint(partial, 1, IDENTITY, [write_state(partial, "server.pt", {"a": 1})])
    whole = (path / "server.pt").read_bytes()
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (path / "server.pt").write_bytes(damaged)
        with pytest.raises(FlgenError, match="damaged"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"format": 1}',
        '{"format": 1, "round": "ten", "identity": {}, "files": []}',
        '{"format": 1, "round": 1, "identity": 4, "files": []}',
        '{"format": 1, "round": 1, "identity": {}, "files": [{"name": "server.pt"}]}',
        '{"format": 1, "round": 1, "identity": {}, "files": [{"name": 3, "bytes": 0, "blake2b": ""}]}',
        '{"format": 1, "round": 1, "identity": {}, "files": [7]}',
        "\udcff",
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FlgenError, match=f"checkpoint {path} is damaged: its manifest.json") as refusal:
        open_checkpoint(path)
    assert "\n" not in str(refusal.value)


def change_manifest(path: Path, **changes: Any) -> None:
    """Change a manifest as somebody does who knows how: without its own digest, as earlier versions wrote it."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["blake2b"]
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_flipped_bit_in_a_manifest_changes_nothing_or_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    whole = (path / "manifest.json").read_bytes()
    right = open_checkpoint(path)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        (path / "manifest.json").write_bytes(damaged)
        try:
            found = open_checkpoint(path)
        except FlgenError:
            continue
        assert found == right


def test_a_manifest_without_a_digest_is_that_of_an_earlier_version(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    right = open_checkpoint(path)
    change_manifest(path)
    assert open_checkpoint(path) == right


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    change_manifest(path, format=2)
    with pytest.raises(FlgenError, match="has format 2, this flgen reads format 1"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../outside.pt", "/etc/hostname", "sub/server.pt", "..", "", ".", "a\0b"])
def test_a_manifest_that_points_outside_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 1)
    outside = path.parent / "outside.pt"
    torch.save({0: {"x": torch.zeros(1)}}, outside)
    honest = write_state(path.parent, "outside.pt", {0: {"x": torch.zeros(1)}})
    change_manifest(path, files=[asdict(FileRecord(name, honest.bytes, honest.blake2b))])
    with pytest.raises(FlgenError, match="damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("place", ["nowhere", "checkpoints", "checkpoints/round-00009"])
def test_a_folder_that_is_no_checkpoint_is_named(place: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 1)
    with pytest.raises(FlgenError, match=f"{tmp_path / place} is not a checkpoint"):
        find_checkpoint(tmp_path / place)


def test_last_is_the_newest_by_whichever_way_it_is_named(tmp_path: Path) -> None:
    for t in (9, 10):
        write(tmp_path / "checkpoints", t)
    assert find_checkpoint("last", tmp_path).round == 10
    assert find_checkpoint(str(tmp_path / "checkpoints" / "last")).round == 10
    assert find_checkpoint(tmp_path / "checkpoints" / "last", tmp_path / "another run").round == 10
    assert find_checkpoint(tmp_path / "checkpoints" / "round-00009", tmp_path).round == 9


def test_last_falls_back_to_the_newest_good_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flgen"), "propagate", True)
    for t in (1, 2, 3):
        write(tmp_path, t)
    truncate(tmp_path / "round-00003" / "clients-00000.pt")
    (tmp_path / "round-00002" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "flgen"):
        assert find_checkpoint(tmp_path / "last").round == 1
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "round-00003 is damaged: clients-00000.pt" in warnings[0]
    assert "round-00002 is not a checkpoint" in warnings[1]


def test_a_damaged_one_that_was_named_is_not_replaced_by_another(tmp_path: Path) -> None:
    write(tmp_path, 1)
    truncate(write(tmp_path, 2) / "server.pt")
    with pytest.raises(FlgenError, match="damaged"):
        find_checkpoint(tmp_path / "round-00002")


def test_no_good_checkpoint_at_all_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "checkpoints"):
        with pytest.raises(FlgenError, match=f"no usable checkpoint in {path}: ") as refusal:
            find_checkpoint(path / "last")
        assert "\n" not in str(refusal.value)
    truncate(write(tmp_path / "checkpoints", 1) / "server.pt")
    with pytest.raises(FlgenError, match="no usable checkpoint"):
        find_checkpoint("last", tmp_path)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps({"scores": bomb}, protocol=2))


def saved_by_torch(path: Path, bomb: Bomb) -> None:
    torch.save({"scores": bomb}, path)


def pickled_in_an_archive(path: Path, bomb: Bomb) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("plant", [pickled, saved_by_torch, pickled_in_an_archive])
def test_code_in_a_checkpoint_is_refused_and_not_run(plant: Callable[[Path, Bomb], None], tmp_path: Path) -> None:
    target = tmp_path / "made by the bomb"
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()  # it works
    target.unlink()

    partial = start_checkpoint(tmp_path, 1)
    record = write_state(partial, "server.pt", {})
    plant(partial / "server.pt", Bomb(target))
    honest = write_state(partial, "clients-00000.pt", {0: moments(0, 1)})
    path = finish_checkpoint(partial, 1, IDENTITY, [record, honest])
    content = (path / "server.pt").read_bytes()
    planted = FileRecord("server.pt", len(content), hashlib.blake2b(content).hexdigest()[:32])
    change_manifest(path, files=[asdict(planted), asdict(honest)])
    checkpoint = open_checkpoint(path)
    with pytest.raises(FlgenError, match=r"server\.pt cannot be read") as refusal:
        checkpoint.server_state()
    assert "\n" not in str(refusal.value)
    assert not target.exists()


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    partial = start_checkpoint(tmp_path, 2)
    (partial / "server.pt").symlink_to("/dev/full")
    with pytest.raises(FlgenError, match=r"server.pt cannot be written \(.*\): free some space") as failure:
        write_state(partial, "server.pt", {"scores": torch.zeros(1000)})
    assert "\n" not in str(failure.value)
    assert find_checkpoint(tmp_path / "last").round == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(FlgenError, match="cannot be written"):
        start_checkpoint(tmp_path / "checkpoints", 1)


@pytest.mark.parametrize("ckpt_path", ["auto", "last"])
def test_a_checkpoint_of_another_version_is_not_passed_over(ckpt_path: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 1)
    manifest = write(tmp_path / "checkpoints", 2) / "manifest.json"
    theirs = {**json.loads(manifest.read_text()), "format": 99}
    del theirs[DIGEST]
    manifest.write_text(json.dumps(theirs))
    with pytest.raises(FlgenError, match=r"has format 99, this flgen reads format 1: use the flgen that wrote it"):
        checkpoint_to_continue(ckpt_path, tmp_path)


def test_auto_is_the_newest_good_one_or_a_fresh_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint_to_continue("auto", tmp_path) is None
    assert checkpoint_to_continue(None, tmp_path) is None
    for round in (1, 2):
        (write(tmp_path / "checkpoints", round) / "server.pt").touch()
    newest = checkpoint_to_continue("auto", tmp_path)
    assert newest is not None
    assert newest.round == 2
    (newest.path / "server.pt").write_bytes(b"torn")
    older = checkpoint_to_continue("auto", tmp_path)
    assert older is not None
    assert older.round == 1
    (older.path / "server.pt").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING, logger="flgen"):
        assert checkpoint_to_continue("auto", tmp_path) is None
    assert "server.pt is missing or not what was written" in caplog.text
    with pytest.raises(FlgenError, match="anew in this one with --ckpt_path auto"):
        checkpoint_to_continue("last", tmp_path)
