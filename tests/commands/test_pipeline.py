"""What a pipeline reads of a stage's results."""

from __future__ import annotations

from pathlib import Path

from flgen.commands.pipeline import Place
from flgen.experiment.records import MetricsTable
from flgen.experiment.stages import Stage
from flgen.experiment.summary import summarise, write_summary


def test_a_stage_of_several_seeds_reached_the_mean_of_their_final_rounds(tmp_path: Path) -> None:
    place = Place(Stage("tune", "fit", (), {"seeds": [0, 1]}, (), "0123456789abcdef"), tmp_path)
    place.output.mkdir(parents=True)
    runs = [[{"round": 1, "test/accuracy": 0.9}, {"round": 2, "test/accuracy": final}] for final in (0.5, 0.7)]
    write_summary(place.output / "summary.csv", summarise(runs))
    assert place.metrics == {"test/accuracy": (0.5 + 0.7) / 2}


def test_a_stage_of_one_run_reached_its_newest_values(tmp_path: Path) -> None:
    place = Place(Stage("tune", "fit", (), {}, (), "0123456789abcdef"), tmp_path)
    place.output.mkdir(parents=True)
    assert place.metrics == {}
    table = MetricsTable(place.output / "metrics.csv")
    table.write(1, {"test/accuracy": 0.5, "train/loss": 2.0})
    table.write(2, {"train/loss": 1.0})
    assert place.metrics == {"round": 2, "test/accuracy": 0.5, "train/loss": 1.0}
