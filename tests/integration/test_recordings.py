"""Recordings by speaker, from the command line to the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from small_runs import CONFIGS

from flgen.cli import main
from flgen.experiment.records import read_metrics, read_partition

CONFIG = str(CONFIGS / "spoken_digits.yaml")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three speakers say two digits, as tones: two recordings each for training and one to test on."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    times = np.arange(2000) / 8_000
    for number, speaker in enumerate(("lucas", "theo", "george")):
        for digit in (0, 1):
            for index in (4, 5, 6):
                hertz = 300 * (digit + 1) + 20 * number + index
                wave = (9000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)
                wavfile.write(folder / f"{digit}_{speaker}_{index}.wav", 8_000, wave)
    return folder.parent


def test_every_speaker_becomes_a_client_of_a_run(
    recordings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ["--config", CONFIG, "--data.root", str(recordings), "--model.hidden", "8", "--trainer.devices", "1"]
    assert main(["fit", *common, "--trainer.rounds", "2", "--run_dir", str(run)]) == 0
    assert "12 training recordings of 3 speakers; 6 test recordings of 3 speakers" in capsys.readouterr().err
    _, table = read_partition(run / "partition.csv")
    assert table[:, :2].tolist() == [[2, 2]] * 3
    rows = read_metrics(run / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2]
    assert main(["evaluate", "--ckpt_path", str(run / "checkpoints" / "last")]) == 0
    assert f"test/accuracy {rows[-1]['test/accuracy']:.6g}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data.root", "nowhere"], "spoken_digits: no DIGIT_SPEAKER_INDEX.wav in nowhere; give the folder"),
        (["--model", "SmallCNN"], "--model SmallCNN takes images, but --data SpokenDigits holds recordings"),
        (
            ["--method.training.augmentation", "crop_flip"],
            "--method.training.augmentation crop_flip moves images, but --data SpokenDigits holds recordings",
        ),
        (
            [
                *("--method", "Prism", "--model", "ResnetGenerator", "--model.loss", "KernelMMD"),
                *("--model.image_size", "8", "--model.channels", "1"),
            ],
            "--method Prism draws images, but --data SpokenDigits holds recordings",
        ),
    ],
)
def test_what_does_not_go_with_recordings_is_one_line(
    recordings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    common = ["--config", CONFIG, "--data.root", str(recordings), "--trainer.devices", "1"]
    assert main(["fit", *common, "--run_dir", str(tmp_path / "run"), *arguments]) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert says in errors[0]


def test_recordings_are_not_stored_as_shards_but_drawn_as_a_chart(
    recordings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--config", CONFIG, "--data.root", str(recordings)]
    assert main(["partition", *common, "--output", str(tmp_path / "shards")]) == 2
    assert "`--output` stores images, but `--data SpokenDigits` holds recordings" in capsys.readouterr().err
    assert main(["partition", *common, "--plot", str(tmp_path / "chart.png")]) == 0
    assert (tmp_path / "chart.png").is_file()
