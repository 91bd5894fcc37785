"""The run folder: made whole, never overwritten, and its configuration never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from flgen.errors import FlgenError
from flgen.experiment.runs import RunFolder


def test_the_folder_has_the_places_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "x")
    folder.check_new()
    folder.create()
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "samples"]
    places = {folder.config, folder.metrics, folder.ledger, folder.events, folder.checkpoints, folder.samples}
    assert {path.name for path in places} == {
        "config.yaml",
        "metrics.csv",
        "ledger.csv",
        "events.jsonl",
        "checkpoints",
        "samples",
    }
    assert all(path.parent == folder.path for path in places)


def test_an_empty_folder_is_new(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_new()
    RunFolder(tmp_path / "not" / "there").check_new()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "round-00003").mkdir(parents=True)
    with pytest.raises(FlgenError) as refusal:
        RunFolder(tmp_path).check_new()
    assert str(refusal.value) == (
        f"run folder {tmp_path} already exists: continue it with --ckpt_path last, or choose another --run_dir"
    )


def test_a_run_without_a_checkpoint_is_not_said_to_be_continuable(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    with pytest.raises(FlgenError, match=r"no checkpoint to continue: remove it, or choose another --run_dir$"):
        folder.check_new()


def test_a_folder_of_several_seeds_is_not_said_to_be_removable(tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "config.yaml").write_text("seed_everything: 0\n")
    with pytest.raises(
        FlgenError, match=r"it has runs of several seeds: continue them with --seeds, or choose another"
    ):
        RunFolder(tmp_path).check_new()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(FlgenError, match=f"run folder {path} already exists"):
        RunFolder(path).check_new()
    for folder in (path, path / "deeper"):
        with pytest.raises(FlgenError, match=f"run folder {folder} cannot be written to .*--run_dir") as refusal:
            RunFolder(folder).create()
        assert "\n" not in str(refusal.value)
    assert path.read_text() == "mine"


def test_a_folder_that_refuses_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlgenError, match="run folder /proc/flgen cannot be written to"):
        RunFolder(Path("/proc/flgen")).create()


def test_creating_again_keeps_what_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    (folder.samples / "round-00001.png").write_bytes(b"image")
    folder.create()
    assert (folder.samples / "round-00001.png").read_bytes() == b"image"


def test_an_earlier_configuration_is_kept_under_the_rounds_it_was_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config("rounds: 3\n", before_round=1)
    folder.write_config("rounds: 3\n", before_round=4)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    folder.write_config("rounds: 6\n", before_round=4)
    assert folder.config.read_text() == "rounds: 6\n"
    assert (tmp_path / "config-until-round-00003.yaml").read_text() == "rounds: 3\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_run_left_before_its_first_checkpoint_may_be_begun_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_config("seed_everything: 0\n", before_round=1)
    folder.check_new(begun=True)
    other = RunFolder(tmp_path / "photos")
    other.path.mkdir()
    (other.path / "holiday.png").touch()
    with pytest.raises(FlgenError, match="already exists"):
        other.check_new(begun=True)


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    kept = [folder.metrics, folder.samples / "round-00001.png", folder.checkpoints / "round-00001" / "server.pt"]
    left = [folder.path / ".metrics.csv.77.tmp", folder.samples / ".round-00002.png.77.tmp"]
    left += [folder.path / f".state-rank-{rank}" / "client-000000-1.pt" for rank in (0, 3)]
    for file in [*kept, *left]:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    folder.create()
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in left)
    assert not list(folder.path.glob(".state*"))
