"""A checkpoint that was tampered with, its digests made to fit: the states of before, or one line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import TIMES, altered, bomb_that_works, contents_of, damaged, outcome, refusal, tried, without_digest
from hypothesis import given

from flgen.errors import FlgenError
from flgen.experiment.checkpoints import (
    FileRecord,
    find_checkpoint,
    finish_checkpoint,
    open_checkpoint,
    start_checkpoint,
    write_state,
)

STATES = {client: {"exp_avg": torch.full((6,), float(client)), "step": torch.tensor(3)} for client in (0, 1)}
SERVER = {"method": {"scores": torch.arange(8.0)}, "metrics": {"train/loss": 0.5}, "logger_ids": [None]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints with one in it, and nothing else."""
    folder = tmp_path_factory.mktemp("hostile") / "run" / "checkpoints"
    partial = start_checkpoint(folder, 3)
    files = [write_state(partial, "clients-00000.pt", STATES), write_state(partial, "server.pt", SERVER)]
    return without_digest(finish_checkpoint(partial, 3, {"seed": 7, "method": "Prism", "data": "digits"}, files))


def taken_up(path: Path) -> int:
    """Read all that a run reads of a checkpoint; return how many clients it has."""
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint.server_state(), dict)
    states = checkpoint.client_states()
    assert all(isinstance(tensor, torch.Tensor) for state in states.values() for tensor in state.values())
    return len(states)


def sealed(path: Path) -> None:
    """Give the manifest the digests of the files as they are."""
    manifest = json.loads((path / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (path / entry["name"]).read_bytes()
        record = FileRecord(entry["name"], len(content), hashlib.blake2b(content).hexdigest()[:32])
        entry.update(asdict(record))
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """A checkpoint to tamper with, in a run folder of its own."""
    path = tmp_path / "run" / "checkpoints" / place.name
    path.mkdir(parents=True)
    for file in place.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@TIMES
def test_any_bytes_in_place_of_a_manifest(times: int, copied: Path, tmp_path: Path) -> None:
    manifest = (copied / "manifest.json").read_bytes()

    @tried(60 * times)
    @given(damaged(manifest))
    def holds(content: bytes) -> None:
        (copied / "manifest.json").write_bytes(content)
        assert isinstance(outcome(lambda: taken_up(copied)), int | FlgenError)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    holds()


@TIMES
def test_any_values_in_a_manifest(times: int, copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())

    @tried(80 * times)
    @given(altered(manifest))
    def holds(changed: Any) -> None:
        (copied / "manifest.json").write_text(json.dumps(changed))
        outcome(lambda: taken_up(copied))
        outcome(lambda: find_checkpoint(copied.parent / "last"))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    holds()


@TIMES
@pytest.mark.parametrize("name", ["server.pt", "clients-00000.pt"])
def test_any_bytes_in_a_file_that_the_manifest_vouches_for(name: str, times: int, copied: Path) -> None:
    intact = (copied / name).read_bytes()

    @tried(40 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        (copied / name).write_bytes(content)
        sealed(copied)
        outcome(lambda: taken_up(copied))

    holds()


@TIMES
def test_any_values_in_place_of_a_state(times: int, copied: Path) -> None:
    plain = {"0": {"exp_avg": 1.0, "step": 2}, "1": {"exp_avg": 1.0}}

    @tried(30 * times)
    @given(altered(plain))
    def holds(changed: Any) -> None:
        torch.save(changed, copied / "clients-00000.pt")
        torch.save(changed, copied / "server.pt")
        sealed(copied)
        outcome(lambda: taken_up(copied))

    holds()


@pytest.mark.parametrize("name", ["server.pt", "clients-00000.pt"])
def test_code_in_a_file_is_not_run(name: str, copied: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({0: {"x": bomb_that_works(canary)}}, copied / name)
    sealed(copied)
    assert "cannot be read" in refusal(lambda: taken_up(copied))
    assert not canary.exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    for name in ("../x.pt", "/etc/passwd", "a/../../x.pt", ".."):
        manifest["files"][0]["name"] = name
        (copied / "manifest.json").write_text(json.dumps(manifest))
        assert "is damaged" in refusal(lambda: taken_up(copied))
    assert list(contents_of(tmp_path)) == [
        "run",
        "run/checkpoints",
        "run/checkpoints/round-00003",
        *(f"run/checkpoints/round-00003/{file}" for file in ("clients-00000.pt", "manifest.json", "server.pt")),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000 + "]" * 100_000, '{"round": ' + "9" * 5000 + "}", '{"round": 1e999}', '"\\ud800"', "\0"],
)
def test_a_manifest_made_to_exhaust_is_one_line(text: str, copied: Path) -> None:
    (copied / "manifest.json").write_text(text)
    assert "manifest.json cannot be read" in refusal(lambda: taken_up(copied))


def test_what_is_no_file_is_one_line(copied: Path) -> None:
    (copied / "server.pt").unlink()
    (copied / "server.pt").mkdir()
    assert "server.pt is missing or not what was written" in refusal(lambda: taken_up(copied))
    (copied / "manifest.json").unlink()
    (copied / "manifest.json").mkdir()
    assert "no manifest.json" in refusal(lambda: taken_up(copied))


def test_states_of_other_shapes_are_the_checkpoints_fault(copied: Path) -> None:
    checkpoint, weights = open_checkpoint(copied), torch.zeros(4)

    def load() -> None:
        with checkpoint.taken_up():
            weights.copy_(checkpoint.server_state()["method"]["scores"])

    assert refusal(load).startswith(f"checkpoint {copied} cannot be taken up")


def test_removing_old_checkpoints_follows_no_link(copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (copied.parent / "round-00001").symlink_to(elsewhere)
    (copied.parent / "round-00009").symlink_to(elsewhere)
    partial = start_checkpoint(copied.parent, 4)
    outcome(lambda: finish_checkpoint(partial, 4, {}, [write_state(partial, "server.pt", SERVER)]))
    assert (elsewhere / "kept").exists()
