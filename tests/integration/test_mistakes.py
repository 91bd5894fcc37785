"""Mistakes on the command line and broken surroundings: one line that says what, where and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small_runs import CONFIGS, DIGITS, Flgen

MISTAKES = {
    "unknown key": (
        ("--trainer.rouns=3",),
        2,
        r"--trainer.rouns: there is no such option; did you mean trainer.rounds\?",
    ),
    "unknown init_arg": (("--method.local_stps=3",), 2, r"--method.local_stps: .* did you mean local_steps\?"),
    "wrong type": (("--trainer.rounds=many",), 2, r"--trainer.rounds: many is not of type int"),
    "wrong class": (("--method=Prysm",), 2, r"--method Prysm: there is no such class; did you mean Prism\?"),
    "graph of a star": (("--method.topology=Ring",), 2, r"topology Ring: there is no such class; valid names are Star"),
    "missing file": (("--config=nowhere.yaml",), 2, r"nowhere.yaml: there is no such file"),
    "missing data": (("--data=MNIST", "--data.root=nowhere", "--model.image_size=32"), 1, r"nowhere.*--data.root"),
    "missing weights": (
        ("--data.image_size=16", "--model.image_size=16", "--model.loss=VggMoments", "--model.loss.weights=no.pth"),
        1,
        r"no.pth.*--model.loss.weights",
    ),
    "unknown extractor": (("--evaluation.extractors=[digit]",), 2, r"digit.*did you mean 'digits'\?"),
    "too many clients": (("--partition.clients=2000",), 2, r"--partition.clients.* 2000 .*1438"),
    "too many processes": (("--trainer.devices=11",), 2, r"11 processes for 10 clients.*--trainer.devices"),
    "cohort too large": (("--trainer.clients_per_round=11",), 2, r"--trainer.clients_per_round is 11: give 1 to 10"),
    "unwritable run folder": (("--run_dir=/proc/flgen/run",), 1, r"/proc/flgen/run cannot be written.*--run_dir"),
    "no checkpoint": (("--ckpt_path=last",), 1, r"no usable checkpoint in .*--ckpt_path"),
    "not a checkpoint": (("--ckpt_path=.",), 1, r"is not a checkpoint.*runs/x/checkpoints/last"),
}


PEER_MISTAKES = {
    "not a number": (("--method.training.epochs", "x"), r"--method.training.epochs: x is not of type int$"),
    "abbreviation": (
        ("--method.training.epoch", "3"),
        r"--method.training.epoch: LocalTraining has no 'epoch'; did you mean epochs\?$",
    ),
    "value for options": (("--method.training=3",), r"--method.training: 3 is no option; give --method.training.NAME"),
    "degree too large": (
        ("--method.topology.degree", "99"),
        r"--method.topology.degree is 99, but 10 clients have at most 9 others: lower it, or use FullyConnected$",
    ),
    "cohort of peers": (
        ("--method", "DisPFL", "--trainer.clients_per_round", "3"),
        r"--trainer.clients_per_round is 3, but with DisPFL every client trains in every round: remove it",
    ),
    "density of nothing": (
        ("--method.sparsity.density", "0"),
        r"--method.sparsity.density is 0.0: give a share above 0, at most 1$",
    ),
    "unknown topology": (
        ("--method.topology", "RandomGrph"),
        r"--method.topology RandomGrph: there is no such class; did you mean RandomGraph\?$",
    ),
    "pattern of no layer": (
        ("--method.sparsity.masked", '["head*"]'),
        r"--method.sparsity.masked has 'head\*', which names no parameter of two or more dimensions; there are network",
    ),
    "graph of nothing": (
        ("--method.topology", "FixedGraph"),
        r"missing: --method.topology.graph; give it here or in a --config$",
    ),
    "option of another topology": (
        ("--method.topology", "Ring", "--method.topology.degree", "3"),
        r"--method.topology.degree: Ring has no 'degree'; valid names are active, seed$",
    ),
    "star between peers": (
        ("--method.topology", "Star"),
        r"--method.topology Star: there is no such class; valid names are FixedGraph, FullyConnected, .*Ring$",
    ),
}


def check_mistake(done: Any, status: int, pattern: str, tmp_path: Path) -> None:
    """One line says what is wrong, and nothing is left of the run."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("flgen: training", "flgen: extractor"))]
    assert len(lines) == 1, done.stderr
    assert re.search(pattern, lines[0]), lines[0]
    assert lines[0].startswith("flgen: error: ")
    assert done.returncode == status
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name: str, flgen: Flgen, tmp_path: Path) -> None:
    arguments, status, pattern = MISTAKES[name]
    done = flgen("fit", "--config", DIGITS, "--run_dir=run", *arguments)
    check_mistake(done, status, pattern, tmp_path)


@pytest.mark.parametrize("name", PEER_MISTAKES)
def test_a_mistake_about_peers_is_one_line_and_leaves_nothing_behind(name: str, flgen: Flgen, tmp_path: Path) -> None:
    arguments, pattern = PEER_MISTAKES[name]
    done = flgen("fit", "--config", str(CONFIGS / "dispfl_digits.yaml"), "--run_dir=run", *arguments)
    check_mistake(done, 2, pattern, tmp_path)
    assert not list(tmp_path.iterdir())
