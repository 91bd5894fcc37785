"""A PRISM checkpoint, or its ticket, as FedKTL's generator."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_prism
import torch
import yaml

from flgen import Digits, PrismGenerator
from flgen.data.image_set import to_bytes
from flgen.errors import FlgenError, UsageError
from flgen.experiment.weights import file_sha256
from flgen.federation.streams import RandomStreams
from flgen.masks.ticket import read_ticket, write_ticket
from flgen.methods.finished_prism import CheckpointGenerator


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run folder, and the method that holds what the run ended with."""
    folder = tmp_path_factory.mktemp("runs") / "prism"
    return folder, small_prism.prism_run(folder)


@pytest.fixture
def run(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(trained[0], tmp_path / "prism"))


def last(run: Path) -> str:
    return str(run / "checkpoints" / "last")


@pytest.mark.parametrize("masks", ["sampled_once", "threshold"])
def test_it_draws_what_the_method_draws_from_the_same_noise(trained: tuple[Path, Any], masks: Any) -> None:
    folder, method = trained
    expected = method.samples(20, 2)[masks]
    generator = PrismGenerator(last(folder), masks, batch_size=128)
    generator.load("cpu")
    z = method.generator.noise(128, RandomStreams(7).torch("evaluation noise"))
    images = generator.synthesize(z.flatten(1))[:20]
    assert torch.equal(to_bytes(images * 2 - 1), expected)


def test_its_sizes_need_no_data(trained: tuple[Path, Any]) -> None:
    generator = PrismGenerator(last(trained[0]))
    assert (generator.latent_dim, generator.image_shape, generator.prior) == (8, (1, 8, 8), "gaussian")


def test_the_two_kinds_of_mask_and_other_numbers_of_batches_give_other_images(trained: tuple[Path, Any]) -> None:
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for options in ({}, {"masks": "threshold"}, {"recalibration_batches": 5}):
        generator = PrismGenerator(last(trained[0]), **options)  # type: ignore[arg-type]
        generator.load("cpu")
        images.append(generator.synthesize(z))
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_loading_it_again_changes_nothing(trained: tuple[Path, Any]) -> None:
    generator = PrismGenerator(last(trained[0]))
    generator.load("cpu")
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    first = generator.synthesize(z)
    generator.load("cpu")
    assert torch.equal(generator.synthesize(z), first)


def test_where_it_comes_from(trained: tuple[Path, Any]) -> None:
    folder, _ = trained
    facts = PrismGenerator(last(folder)).provenance()
    assert facts == {
        "name": "PRISM ResnetGenerator",
        "data": "digits-public",
        "data_class": "flgen.data.digits.Digits",
        "licence": None,
        "run": str(folder),
        "round": "2",
        "seed": "7",
        "masks": "sampled_once",
        "sha256": file_sha256(folder / "checkpoints" / "round-00002" / "server.pt"),
    }


@pytest.mark.parametrize("part", ["all", "public"])
def test_clients_whose_data_it_was_trained_on_are_refused(trained: tuple[Path, Any], part: Any) -> None:
    generator = PrismGenerator(last(trained[0]))
    generator.check(Digits(part="private"))
    with pytest.raises(UsageError, match=r"^--method.generator PrismGenerator was trained on digits-public"):
        generator.check(Digits(part=part))


def test_a_named_round_is_as_good_as_the_last(trained: tuple[Path, Any]) -> None:
    older = PrismGenerator(str(trained[0] / "checkpoints" / "round-00001"))
    older.check(Digits(part="private"))
    assert older.provenance()["round"] == "1"


def test_a_run_folder_and_a_place_without_a_checkpoint_are_refused(run: Path, tmp_path: Path) -> None:
    data = Digits(part="private")
    with pytest.raises(UsageError, match=rf"^--method.generator.checkpoint {run} is a run folder: give {last(run)}"):
        PrismGenerator(str(run)).check(data)
    for nowhere in (tmp_path / "none", tmp_path / "none" / "checkpoints" / "last"):
        with pytest.raises(
            FlgenError, match=rf"^--method.generator.checkpoint {nowhere}: there is none; give one like"
        ):
            PrismGenerator(str(nowhere)).check(data)


def test_a_damaged_checkpoint_and_one_without_its_run_are_refused(run: Path, tmp_path: Path) -> None:
    data = Digits(part="private")
    shutil.copytree(run / "checkpoints", tmp_path / "alone" / "checkpoints")
    with pytest.raises(FlgenError, match=r"^--method.generator.checkpoint .*must be inside its run folder \("):
        PrismGenerator(last(tmp_path / "alone")).check(data)
    newest = run / "checkpoints" / "round-00002"
    (newest / "server.pt").write_bytes(b"torn")
    with pytest.raises(
        FlgenError, match=r"^--method.generator.checkpoint .*server.pt is missing or not what was written"
    ):
        PrismGenerator(str(newest)).check(data)


def test_a_generator_that_does_not_fit_the_scores_is_refused(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["width"] = 4
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FlgenError, match=r"config.yaml describes cannot be built \(.+\)") as it:
        PrismGenerator(last(run)).check(Digits(part="private"))
    assert "\n" not in str(it.value)
    config["model"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FlgenError, match=r"config.yaml of its run describes no model"):
        PrismGenerator(last(run)).check(Digits(part="private"))


def test_a_run_of_another_method_is_refused(tmp_path: Path) -> None:
    small_prism.prism_run(tmp_path / "fedavg", method="FedAvg")
    with pytest.raises(UsageError, match=r"^--method.generator.checkpoint .*is of a run of FedAvg; give .*of Prism"):
        PrismGenerator(last(tmp_path / "fedavg")).check(Digits(part="private"))


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Any]) -> dict[str, str]:
    """Tickets of the run, by their kind of mask."""
    files = {}
    for masks in ("sampled_once", "threshold"):
        file = trained[0].parent / f"{masks}.flgen"
        write_ticket(file, CheckpointGenerator("--ckpt_path", last(trained[0]), masks).ticket())  # type: ignore[arg-type]
        files[masks] = str(file)
    return files


@pytest.mark.parametrize("masks", ["sampled_once", "threshold"])
def test_a_ticket_draws_what_its_checkpoint_draws(
    trained: tuple[Path, Any], exported: dict[str, str], masks: Any
) -> None:
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for generator in (PrismGenerator(last(trained[0]), masks), PrismGenerator(ticket=exported[masks])):
        generator.load("cpu")
        images.append(generator.synthesize(z))
    assert torch.equal(*images)


def test_where_a_ticket_comes_from(exported: dict[str, str]) -> None:
    assert PrismGenerator(ticket=exported["threshold"]).provenance() == {
        "name": "PRISM ResnetGenerator",
        "data": "digits-public",
        "data_class": "flgen.data.digits.Digits",
        "licence": None,
        "run": "prism",
        "round": "2",
        "seed": "7",
        "masks": "threshold",
        "sha256": file_sha256(Path(exported["threshold"])),
    }


@pytest.mark.parametrize("part", ["all", "public"])
def test_a_ticket_is_refused_to_clients_whose_data_it_was_trained_on(exported: dict[str, str], part: Any) -> None:
    generator = PrismGenerator(ticket=exported["sampled_once"])
    generator.check(Digits(part="private"))
    with pytest.raises(UsageError, match=r"^--method.generator PrismGenerator was trained on digits-public"):
        generator.check(Digits(part=part))


def test_a_ticket_that_is_missing_or_damaged_is_refused(exported: dict[str, str], tmp_path: Path) -> None:
    data = Digits(part="private")
    with pytest.raises(FlgenError, match=r"^--method.generator.ticket .*none.flgen: there is no such file"):
        PrismGenerator(ticket=str(tmp_path / "none.flgen")).check(data)
    torn = tmp_path / "torn.flgen"
    torn.write_bytes(Path(exported["sampled_once"]).read_bytes()[:-1])
    with pytest.raises(
        FlgenError, match=r"^--method.generator.ticket: ticket .*torn.flgen cannot be used: it has \d+ "
    ):
        PrismGenerator(ticket=str(torn)).check(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_args": {"image_size": 8, "width": 1 << 40}}, r"cannot be built \("),
        ({"init_args": {"image_size": 8, "width": 1 << 16}}, r"cannot be built \(the mask has \d+ bits"),
        ({"init_args": {"image_size": 1 << 62, "width": 1}}, r"cannot be built \("),
        ({"init_args": {"image_size": 9}}, r"cannot be built \(--model.image_size 9"),
        ({"init_args": {"colour": True}}, r"cannot be built \(.*unexpected keyword argument 'colour'"),
        ({"class_path": "flgen.models.generators.Missing"}, r"cannot be built \("),
        ({"class_path": "flgen.models.missing.Missing"}, r"cannot be built \(No module named"),
        ({"class_path": "flgen.models.generators.UsageError"}, r"is no generator with masks"),
        ({"class_path": "flgen.models.generators.pairwise"}, r"is no generator with masks"),
    ],
)
def test_a_ticket_whose_description_does_not_fit_its_mask_is_refused_at_once(
    exported: dict[str, str], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    write_ticket(tmp_path / "x.flgen", replace(read_ticket(Path(exported["sampled_once"])), **change))
    with pytest.raises(FlgenError, match=rf"^--method.generator.ticket .*{said}") as it:
        PrismGenerator(ticket=str(tmp_path / "x.flgen")).check(Digits(part="private"))
    assert "\n" not in str(it.value)


def test_one_of_checkpoint_and_ticket_is_given_and_a_ticket_has_its_own_mask() -> None:
    for options in ({}, {"checkpoint": "runs/x/checkpoints/last", "ticket": "x.flgen"}):
        with pytest.raises(
            UsageError, match=r"give one of --method.generator.checkpoint and --method.generator.ticket$"
        ):
            PrismGenerator(**options)  # type: ignore[arg-type]
    for options in ({"masks": "threshold"}, {"recalibration_batches": 5}):
        with pytest.raises(UsageError, match=r"^--method.generator.ticket x.flgen: a ticket has a mask .* of its own"):
            PrismGenerator(ticket="x.flgen", **options)  # type: ignore[arg-type]


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--method.generator.recalibration_batches is 0: give 1 or more"):
        PrismGenerator("runs/x/checkpoints/last", recalibration_batches=0)
