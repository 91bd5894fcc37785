"""The shipped experiments of PRISM under the methods that it is compared with (prism.md, section 9)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_config import PARSE_ALL

CONFIGS = Path(__file__).parents[2] / "configs"

OVERLAYS = {"dense_generator": ("FedAvgGenerator", "DenseGenerator"), "dp_fedavg_gan": ("DPFedAvgGAN", "ImageGAN")}
"""Method and model of each overlay."""


@pytest.fixture(scope="module")
def overlaid() -> dict[tuple[str, str], dict[str, Any]]:
    """Every prism_*.yaml by its name and "", and every overlay over each of them, by both names."""
    bases = sorted(CONFIGS.glob("prism_*.yaml"))
    pairs = [(base, overlay) for base in bases for overlay in ("", *OVERLAYS)]
    files = [[base, CONFIGS / "baselines" / f"{overlay}.yaml"] if overlay else [base] for base, overlay in pairs]
    asked = json.dumps([[str(path) for path in run] for run in files])
    done = subprocess.run([sys.executable, "-c", PARSE_ALL], input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.splitlines()
    return {(base.stem, overlay): json.loads(text) for (base, overlay), text in zip(pairs, texts, strict=True)}


def test_an_overlay_keeps_the_experiment_and_replaces_method_and_model(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        if not overlay:
            continue
        for section in ("seed_everything", "data", "partition", "split", "evaluation", "trainer"):
            assert config[section] == overlaid[base, ""][section], (base, overlay, section)
        chosen = config["method"]["class_path"], config["model"]["class_path"]
        assert chosen == tuple(f"flgen.{name}" for name in OVERLAYS[overlay])
        for size in ("latent", "width"):
            assert config["model"]["init_args"][size] == overlaid[base, ""]["model"]["init_args"][size]


def test_the_dense_control_differs_in_nothing_but_what_is_trained_and_how_fast(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        if overlay != "dense_generator":
            continue
        prism, dense = overlaid[base, ""], config
        assert dense["model"]["init_args"]["loss"] == prism["model"]["init_args"]["loss"]
        options, masked = dense["method"]["init_args"], prism["method"]["init_args"]
        for option in ("preset", "local_steps", "batch_size", "recalibration_batches"):
            assert options[option] == masked[option], (base, option)
        assert options["learning_rate"] == 0.001
        assert options["weighting"] == "uniform"


def test_the_private_gan_has_the_published_budget_and_steps_of_its_own(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        if overlay != "dp_fedavg_gan":
            continue
        options = config["method"]["init_args"]
        assert (options["privacy"]["epsilon"], options["privacy"]["delta"]) == (9.8, 1e-5), base
        assert (options["local_steps"], options["batch_size"], options["learning_rate"]) == (10, 32, 0.0005), base
