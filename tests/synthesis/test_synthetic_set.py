"""Generated samples as training data: order, classes, amounts, decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_jobs import Quiet, run_job

from flgen.data import Digits
from flgen.data.image_set import ImageSet
from flgen.errors import FlgenError, UsageError
from flgen.federation.interruption import StopRequest
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.samples import BareLabel, plan_samples
from flgen.synthesis.synthesis_job import SynthesisJob
from flgen.synthesis.synthetic_set import load_synthetic

DIGITS = list("0123456789")


def job(folder: Path, names: list[str] = DIGITS, per_class: int = 4, shard: int = 7) -> SynthesisJob:
    prompts = [BareLabel(f"p{number}", number, name) for number, name in enumerate(names)]
    requests = plan_samples(names, prompts, per_class, seed=3)
    return SynthesisJob(folder, Procedural(size=16), names, prompts, requests, 3, shard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "digits"
    run_job(job(folder))
    return folder


def test_samples_come_as_the_data_set_stores_its_own(folder: Path) -> None:
    data = Digits()
    loaded = load_synthetic(folder, data)
    assert isinstance(loaded, ImageSet)
    assert loaded.images.shape == (40, 1, 8, 8)  # made as 16x16 in colour
    assert loaded.labels.tolist() == [n for n in range(10) for _ in range(4)]
    (content,) = [s.content for s in Procedural(size=16).synthesize(job(folder).requests[:1])]
    assert torch.equal(loaded.images[0], data.decode_sample(content, ".png"))


def test_how_samples_lie_in_shards_does_not_matter(folder: Path, tmp_path: Path) -> None:
    run_job(job(tmp_path / "other", shard=100))
    assert torch.equal(load_synthetic(tmp_path / "other", Digits()).images, load_synthetic(folder, Digits()).images)


def test_fewer_per_class_are_the_first_ones(folder: Path) -> None:
    every, two = load_synthetic(folder, Digits()), load_synthetic(folder, Digits(), per_class=2)
    assert torch.equal(two.images, every.images.reshape(10, 4, 1, 8, 8)[:, :2].reshape(20, 1, 8, 8))
    with pytest.raises(UsageError, match=r"has 4 samples of each class, and 9 are wanted; .*--per_class 9"):
        load_synthetic(folder, Digits(), per_class=9)


def test_classes_are_matched_by_name(folder: Path, tmp_path: Path) -> None:
    backwards = DIGITS[::-1]
    run_job(job(tmp_path / "set", backwards))
    loaded = load_synthetic(tmp_path / "set", Digits())
    assert loaded.labels.tolist() == [9 - n for n in range(10) for _ in range(4)]


def test_other_classes_are_refused(tmp_path: Path) -> None:
    run_job(job(tmp_path / "few", DIGITS[:9]))
    with pytest.raises(UsageError, match=r"few lacks 9; make prompts of the labels of digits"):
        load_synthetic(tmp_path / "few", Digits())
    run_job(job(tmp_path / "many", [*DIGITS, "ten"]))
    with pytest.raises(UsageError, match=r"many has, beyond those of this data set, ten; make prompts"):
        load_synthetic(tmp_path / "many", Digits())


def test_a_set_that_is_not_finished_or_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlgenError, match=r"index.json is missing; give a folder that `flgen synthesize` wrote"):
        load_synthetic(tmp_path, Digits())
    stop = StopRequest()
    run_job(job(tmp_path / "half"), Quiet(stop, 9), stop)
    with pytest.raises(FlgenError, match=r"half is not finished; run `flgen synthesize` again"):
        load_synthetic(tmp_path / "half", Digits())


def test_a_lost_or_damaged_shard_is_noticed(tmp_path: Path) -> None:
    run_job(job(tmp_path / "set"))
    shard = tmp_path / "set" / "shard-000-00002.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FlgenError, match=r"shard-000-00002.tar is damaged \(sample .* has another SHA-256\)"):
        load_synthetic(tmp_path / "set", Digits())
    shard.unlink()
    with pytest.raises(FlgenError, match=r"shard-000-00002.tar is missing"):
        load_synthetic(tmp_path / "set", Digits())
