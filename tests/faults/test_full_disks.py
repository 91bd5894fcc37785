"""The disk of the run folder is full.

Promised (design, section 6): the job ends non-zero, and one line names the file that could not be written and the
remedy; earlier checkpoints stay good; after space was made the same command goes on, to what an undisturbed run comes
to.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from harness import assert_equal, small_disk
from sabotage import Ballast, FullFile, aside
from system_tools import require

from flgen.callbacks import Evaluation, SampleGrids
from flgen.errors import FlgenError
from flgen.experiment.checkpoints import open_checkpoint
from flgen.experiment.records import read_events
from flgen.experiment.runs import RunFolder
from flgen.federation.launch import RanksFailed

ROUNDS = 3
MOMENTS = {
    "metrics.csv": ("on_round_start", 2),
    "ledger.csv": ("on_round_start", 2),
    "clients.csv": ("on_round_start", 2),
    "events.jsonl": ("on_round_end", 2),
    "samples/.round-00003.png.{pid}.tmp": ("on_evaluation_start", 3),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in ("ledger.csv", "clients.csv") else ()) for name in MOMENTS],
)
def test_a_record_that_cannot_be_written_ends_the_run_which_goes_on_later(
    name: str, fit_small: Any, tmp_path: Path
) -> None:
    hook, round = MOMENTS[name]
    pictures = name.startswith("samples")
    method = "Prism" if pictures else "FedAvg"

    def fit(run: str, *callbacks: Any, **options: Any) -> None:
        grids = [SampleGrids()] if pictures else []
        fit_small(tmp_path / run, method=method, rounds=ROUNDS, callbacks=[*callbacks, *grids], **options)

    fit("undisturbed")
    with pytest.raises(FlgenError, match="No space left on device; free some space") as failure:
        fit("run", FullFile(hook, round, name))
    shown = re.sub(r"/\.(.+)\.\{pid}\.tmp", r"/\1", name)
    assert f"cannot write {tmp_path / 'run' / shown}: " in str(failure.value)
    assert "\n" not in str(failure.value)
    file = tmp_path / "run" / name
    if aside(file).exists():
        aside(file).replace(file)  # space was made
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert (events[-1]["event"] == "failed") == (name != "events.jsonl")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        open_checkpoint(path)
    fit("run", ckpt_path="auto")
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_client_states_in_files_that_cannot_be_written_end_the_run_which_goes_on_later(
    fit_small: Any, tmp_path: Path
) -> None:
    class FullStates(FullFile):
        """Nothing more fits into the folder of client states."""

        def _fill(self, trainer: Any, round: int, **about: Any) -> None:
            if round == self.round:
                for generation in range(20):
                    file = trainer.run_dir / self.name / f"client-000002-{generation}.pt"
                    if not file.is_symlink() and not file.exists():
                        file.symlink_to("/dev/full")

    fit_small(tmp_path / "undisturbed", rounds=ROUNDS)
    full = FullStates("on_client_start", 2, ".state-rank-0")
    with pytest.raises(FlgenError, match=r"the state of client 2 cannot be written to .*free some space"):
        fit_small(tmp_path / "run", rounds=ROUNDS, callbacks=[full], client_state_mb=1e-6)
    fit_small(tmp_path / "run", rounds=ROUNDS, ckpt_path="auto", client_state_mb=1e-6)
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
    assert not list((tmp_path / "run").glob(".state*"))


def test_a_configuration_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config("rounds: 1", 1)
    (tmp_path / f".config.yaml.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(FlgenError, match=r"cannot write .*config.yaml: No space left on device; free some space"):
        folder.write_config("rounds: 2", 2)
    assert folder.config.read_text() == "rounds: 1"


@pytest.mark.system
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("leave_kb", [0, 40, 200])
@pytest.mark.parametrize("hook", ["on_round_start", "on_round_end"])
def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_space(
    hook: str, leave_kb: int, devices: int, fit_small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    require("mount", "umount", root=True)
    about = {"rounds": ROUNDS, "devices": devices, "evaluation": Evaluation(every=2, images=16, extractors=[])}
    fit_small(tmp_path / "undisturbed", **about)
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", mb=4) as disk:
        ballast = Ballast(hook, 2, str(disk / "ballast"), leave_kb)
        capfd.readouterr()
        with pytest.raises(FlgenError) as failure:
            fit_small(disk / "run", callbacks=[ballast, SampleGrids()], **about)
        if devices == 1:
            said = str(failure.value)
        else:
            assert isinstance(failure.value, RanksFailed)
            lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flgen: error:")]
            (said,) = lines
        assert str(disk / "run") in said
        assert "free some space" in said
        whole = [open_checkpoint(path).round for path in sorted((disk / "run" / "checkpoints").glob("round-*"))]
        assert whole[0] == 1

        (disk / "ballast").unlink()
        fit_small(disk / "run", callbacks=[SampleGrids()], ckpt_path="auto", **about)
        assert_equal(disk / "run", tmp_path / "undisturbed")
