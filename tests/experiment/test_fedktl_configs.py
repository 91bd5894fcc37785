"""The shipped experiments of FedKTL, its generators and its baselines (fedktl.md, sections 1.7, 4 and 5)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_config import PARSE_ALL

CONFIGS = Path(__file__).parents[2] / "configs"

BASES = ["fedktl_cifar10", "fedktl_cifar100", "fedktl_digits", "fedktl_flowers", "fedktl_tinyimagenet"]
GENERATORS = {"stylegan_xl": (50, 0.01, 1), "stylegan3": (50, 0.01, 0.1), "stable_diffusion": (100, 0.1, 0.01)}
"""mu, eta_s and lambda, as published for each generator (section 1.7)."""

METHODS = {
    "feddistill": "FedDistill",
    "fedgen_heads": "FedGenHeads",
    "fedgh": "FedGH",
    "fedkd": "FedKD",
    "fedproto": "FedProto",
    "fedtgp": "FedTGP",
    "fml": "FML",
    "lgfedavg": "LGFedAvg",
    "local_networks": "Local",
}
CLIPPED = {"fedkd": 10.0, "fml": 10.0}


@pytest.fixture(scope="module")
def overlaid() -> dict[tuple[str, str], dict[str, Any]]:
    """Every base by its name and "", and every overlay over each of them, by both names."""
    overlays = {"": None}
    overlays |= {name: CONFIGS / "baselines" / f"{name}.yaml" for name in METHODS}
    overlays |= {name: CONFIGS / "generators" / f"{name}.yaml" for name in GENERATORS}
    pairs = {(base, name): [CONFIGS / f"{base}.yaml", path] for base in BASES for name, path in overlays.items()}
    asked = json.dumps([[str(path) for path in files if path] for files in pairs.values()])
    done = subprocess.run([sys.executable, "-c", PARSE_ALL], input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {pair: json.loads(text) for pair, text in zip(pairs, done.stdout.splitlines(), strict=True)}


def test_no_file_is_forgotten() -> None:
    overlays = (CONFIGS / "baselines").glob("*.yaml")
    named = [path.stem for path in overlays if "over a fedktl" in " ".join(path.read_text().split("\n# "))]
    assert sorted(named) == sorted(METHODS)
    assert sorted(path.stem for path in (CONFIGS / "generators").glob("*.yaml")) == sorted(GENERATORS)
    assert sorted(path.stem for path in CONFIGS.glob("fedktl_*.yaml")) == sorted([*BASES, *OTHERS])


OTHERS = ["fedktl_cifar10_reduced", "fedktl_generator_digits", "fedktl_generator_mnist"]


def test_an_overlay_keeps_all_of_the_experiment_but_the_method(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        for section in ("seed_everything", "model", "data", "partition", "split", "evaluation", "trainer"):
            assert config[section] == overlaid[base, ""][section], (base, overlay, section)


def test_a_baseline_trains_as_the_experiment_does_but_for_clipping(overlaid: Any) -> None:
    for base in BASES:
        for overlay, name in METHODS.items():
            method = overlaid[base, overlay]["method"]
            assert method["class_path"] == f"flgen.{name}"
            expected = dict(overlaid[base, ""]["method"]["init_args"]["training"])
            expected["clip_norm"] = CLIPPED.get(overlay)
            assert method["init_args"]["training"] == expected, (base, overlay)
            assert method["init_args"]["init"] == "independent"
            assert "generator" not in method["init_args"]


def test_a_generator_brings_the_numbers_that_were_published_with_it(overlaid: Any) -> None:
    for base in BASES:
        for overlay, (mu, eta, compactness) in GENERATORS.items():
            options = overlaid[base, overlay]["method"]["init_args"]
            alignment = options["alignment"]
            assert (options["mu"], alignment["learning_rate"], alignment["compactness"]) == (mu, eta, compactness)
            assert (alignment["epochs"], alignment["batch_size"]) == (100, 100)


def test_the_published_experiments_have_the_numbers_of_the_specification(overlaid: Any) -> None:
    sizes = {"cifar10": 32, "cifar100": 32, "flowers": 64, "tinyimagenet": 64}
    for name, size in sizes.items():
        config = overlaid[f"fedktl_{name}", ""]
        options = config["method"]["init_args"]
        assert options["training"]["batch_size"] == 10
        assert (options["training"]["epochs"], options["training"]["clip_norm"]) == (1, 100)
        assert (options["scale"], options["margin"]) == (64, 0.5)
        assert config["model"]["class_path"] == "flgen.HtFE8"
        assert config["model"]["init_args"]["learning_rate"] == 0.01
        assert config["model"]["init_args"]["feature_width"] == 512
        partition = config["partition"]["init_args"]
        assert (partition["clients"], partition["alpha"], partition["min_samples"]) == (20, 0.1, 40)
        split = config["split"]
        assert (split["test"], split["test_fraction"]) == ("own", 0.25)
        assert split["merge_test"] == (name != "tinyimagenet")
        assert split["validation_fraction"] > 0
        assert config["data"]["init_args"]["image_size"] == size
        if name != "tinyimagenet":  # whose mean and deviation are 1/2
            assert config["data"]["init_args"]["pixels"] == "centred"
        assert options["generator"]["init_args"]["trust"] is False


def test_the_published_flowers_are_all_photographs_pressed_into_the_square(overlaid: Any) -> None:
    options = overlaid["fedktl_flowers", ""]["data"]["init_args"]
    assert (options["with_validation"], options["whole"]) == (True, True)


def test_the_clients_of_the_digits_experiment_have_four_different_networks_of_one_width(overlaid: Any) -> None:
    config = overlaid["fedktl_digits", ""]
    assert len({json.dumps(network) for network in config["model"]}) == 4
    assert {network["init_args"]["feature_width"] for network in config["model"]} == {64}
    assert config["data"]["init_args"]["part"] == "private"
    assert (config["partition"]["init_args"]["clients"], config["partition"]["init_args"]["alpha"]) == (10, 0.1)
