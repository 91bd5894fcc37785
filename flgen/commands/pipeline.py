"""`flgen pipeline`: the stages of one configuration, each a command of its own, each skipped when it is done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flgen.commands.child_process import run_flgen
from flgen.commands.sections import parse_command, seed_section
from flgen.errors import UsageError
from flgen.experiment.config import Section, to_yaml
from flgen.experiment.records import atomic_replace, read_metrics
from flgen.experiment.stages import Stage, read_stages
from flgen.experiment.summary import read_summary


class Output(NamedTuple):
    """Where a command leaves what it makes.

    Args:
        option: The option that says where; its value is a path inside the stage's folder.
        file: That path; empty for the folder itself.
        artefact: What other stages refer to, inside the folder.
    """

    option: str
    file: str
    artefact: str


OUTPUTS = {
    "labels": Output("output", "labels.json", "labels.json"),
    "prompts": Output("output", "prompts.jsonl", "prompts.jsonl"),
    "generator": Output("output", "pipeline", "pipeline"),
    "synthesize": Output("output", "samples", "samples"),
    "pretrain": Output("run_dir", "run", "run/final.safetensors"),
    "fit": Output("run_dir", "run", "run"),
}
"""The commands that a pipeline can run."""

OPTIONS: dict[str, dict[str, Any]] = {
    "only": {
        "type": list[str],
        "default": [],
        "help": "Run these stages alone; what they need must be there already.",
    },
}


@dataclass(frozen=True)
class Place:
    """Where one stage works.

    Args:
        stage: The stage.
        root: The pipeline's folder.
    """

    stage: Stage
    root: Path

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.root / self.stage.folder

    @property
    def config(self) -> Path:
        """The stage's configuration: `flgen COMMAND --config` of it runs the stage alone."""
        return self.folder / "stage.yaml"

    @property
    def done(self) -> Path:
        """Written when the stage is complete."""
        return self.folder / "done.json"

    @property
    def output(self) -> Path:
        """What the command is told to write."""
        return self.folder / OUTPUTS[self.stage.command].file

    @property
    def artefact(self) -> Path:
        """What other stages take."""
        return self.folder / OUTPUTS[self.stage.command].artefact

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of every metric that a run of the stage has logged; with several seeds their mean."""
        summary = self.output / "summary.csv"
        if summary.is_file():
            return {row.metric: row.mean for row in read_summary(summary) if row.round == "final"}
        found: dict[str, float] = {}
        for row in read_metrics(self.output / "metrics.csv"):
            found.update(row)
        return found


def run(arguments: list[str]) -> int:
    """Run the stages of a configuration, one command after another, and skip those that are done."""
    sections = [
        seed_section(),
        Section("run_dir", str, default="runs/pipeline", help="Folder of all stages."),
        Section("stages", dict[str, Any], required=True, help="{name: {command, config, configs}}."),
    ]
    options = parse_command("pipeline", run.__doc__ or "", arguments, sections, OPTIONS).values
    if not options.stages:
        raise UsageError("--stages is missing: give {name: {command, config, configs}} in a --config")
    stages = read_stages(options.stages, options.seed_everything, OUTPUTS)
    if unknown := sorted(set(options.only) - set(stages)):
        raise UsageError(f"--only {unknown[0]}: there are {', '.join(stages)}")
    places = {name: Place(stage, Path(options.run_dir)) for name, stage in stages.items()}
    for name in options.only:
        for other in stages[name].needs:
            if not places[other].done.is_file() and other not in options.only:
                raise UsageError(
                    f"--only {name}: it needs stage {other}, which is not done: add it, or leave out --only"
                )
    chosen = [place for name, place in places.items() if not options.only or name in options.only]
    to_do = [place for place in chosen if not place.done.is_file()]
    for place in to_do:
        _write_config(place, lambda other: str(places[other].artefact))
    for place in to_do:  # hours before its turn
        if status := run_flgen([*_arguments(place), "--print_config"], quiet=True):
            print(f"flgen: stage {place.stage.name} cannot run: correct its options", file=sys.stderr)
            return status
    for place in chosen:
        if status := _run_stage(place):
            return status
    _summarise(places, Path(options.run_dir))
    return 0


def _write_config(place: Place, artefact: Callable[[str], str]) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    options = {**place.stage.resolved(artefact), OUTPUTS[place.stage.command].option: str(place.output)}
    with atomic_replace(place.config) as temporary:
        temporary.write_text(to_yaml(options))


def _arguments(place: Place) -> list[str]:
    """Return what is typed after `flgen` to run a stage from its beginning."""
    files = (*place.stage.configs, str(place.config))
    return [place.stage.command, *(part for file in files for part in ("--config", file))]


def _run_stage(place: Place) -> int:
    stage = place.stage
    if place.done.is_file():
        print(f"stage {stage.name}: done before ({place.folder})", flush=True)
        return 0
    arguments = _arguments(place)
    if (place.output / "checkpoints").is_dir():
        arguments += ["--ckpt_path", "auto"]
    print(f"stage {stage.name}: flgen {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    status = run_flgen(arguments)
    if status:
        remedy = "correct its options" if status == 2 else "the same command goes on"
        print(f"flgen: stage {stage.name} ended with exit status {status}; {remedy}", file=sys.stderr)
        return status
    report = {"key": stage.key, "command": stage.command, "seconds": round(time.monotonic() - started, 1)}
    with atomic_replace(place.done) as temporary:
        temporary.write_text(json.dumps(report) + "\n")
    return 0


def _summarise(places: Mapping[str, Place], root: Path) -> None:
    """Print the test metrics that the stages reached, and write them to summary.json."""
    reached = {}
    for name, place in places.items():
        metrics = {metric: value for metric, value in place.metrics.items() if metric.startswith("test/")}
        if metrics:
            reached[name] = metrics
            accuracies = {metric: value for metric, value in metrics.items() if metric.startswith("test/accuracy")}
            print(f"{name}: {'  '.join(f'{metric} {value:.4f}' for metric, value in accuracies.items())}")
    with atomic_replace(root / "summary.json") as temporary:
        temporary.write_text(json.dumps(reached, indent=1) + "\n")
