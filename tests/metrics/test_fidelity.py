from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from flgen.errors import FlgenError, UsageError
from flgen.metrics import fidelity as fidelity_module
from flgen.metrics.features import extract_features
from flgen.metrics.fidelity import (
    fidelity,
    fidelity_metrics,
    frechet_distance,
    frechet_distance_of,
    kernel_distance,
    precision_recall_density_coverage,
)


def gaussian(count: int, features: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return shift + scale * torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def projection(images: torch.Tensor) -> torch.Tensor:
    """Map images (B, 3, 8, 8) uint8 to 16 features by a fixed random matrix."""
    matrix = torch.randn(192, 16, generator=torch.Generator().manual_seed(5))
    return torch.relu(images.flatten(1).float() / 255 @ matrix)


class ProjectionExtractor(FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("16",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "16"

    def forward(self, images):
        return (projection(images),)


class TensorImages(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Projection(torch.nn.Module):
    def forward(self, images):
        return projection(images)


@pytest.fixture
def torch_fidelity_extractor(monkeypatch):
    monkeypatch.delitem(FEATURE_EXTRACTORS_REGISTRY, "projection", raising=False)
    register_feature_extractor("projection", ProjectionExtractor)
    yield "projection"
    del FEATURE_EXTRACTORS_REGISTRY["projection"]


def test_frechet_distance_of_two_known_gaussians():
    distance = frechet_distance_of(np.zeros(2), np.eye(2), [1.0, 2.0], np.diag([4.0, 9.0]))
    assert distance == pytest.approx(10.0, rel=1e-12)


def test_frechet_distance_of_one_feature():
    assert frechet_distance_of([0.0], [[1.0]], [3.0], [[4.0]]) == pytest.approx(10.0, rel=1e-12)
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])  # variances 2 and 8, means 1 and 7
    assert frechet_distance(real, fake) == pytest.approx(36 + 2, rel=1e-6)


def test_fid_and_kid_equal_those_of_torch_fidelity_on_the_same_images(torch_fidelity_extractor):
    draws = torch.Generator().manual_seed(3)
    real = torch.randint(0, 256, (300, 3, 8, 8), generator=draws, dtype=torch.uint8)
    fake = torch.randint(0, 200, (260, 3, 8, 8), generator=draws, dtype=torch.uint8)
    theirs = calculate_metrics(
        input1=TensorImages(fake),
        input2=TensorImages(real),
        feature_extractor=torch_fidelity_extractor,
        fid=True,
        kid=True,
        kid_subset_size=260,
        batch_size=64,
        rng_seed=7,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    features = [extract_features(Projection(), images, batch_size=64, device="cpu") for images in (real, fake)]
    ours = fidelity(*features, seed=7)
    assert theirs["frechet_inception_distance"] > 0.1
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_kernel_distance_is_fixed_by_its_seed_and_draws_subsets_of_a_thousand():
    real, fake = gaussian(1200, 4, 0), gaussian(1100, 4, 1, shift=0.3)
    first = kernel_distance(real, fake, subsets=5, seed=1)
    assert kernel_distance(real, fake, subsets=5, seed=1) == first
    assert kernel_distance(real, fake, subsets=5, seed=2) != first
    assert kernel_distance(real, fake, subsets=5, seed=2**63 - 1) == pytest.approx(0.4, rel=0.5)


def test_nothing_touches_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fidelity(gaussian(40, 4, 0), gaussian(40, 4, 1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(("k", "real_count", "fake_count"), [(3, 200, 150), (5, 120, 300), (1, 60, 60)])
def test_precision_recall_density_coverage_equal_prdc(k, real_count, fake_count):
    prdc = pytest.importorskip("prdc")
    real, fake = gaussian(real_count, 6, 0), gaussian(fake_count, 6, 1, shift=0.4, scale=0.8)
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
    ours = precision_recall_density_coverage(real, fake, k)
    assert 0 < ours["coverage"] < 1
    assert ours == pytest.approx({key: float(value) for key, value in theirs.items()}, abs=1e-12)


def test_four_values_of_a_hand_made_case():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii for k = 1: 1, 1, 1, 8
    fake = torch.tensor([[0.5], [3.0], [30.0]])  # radii 2.5, 2.5, 27
    values = precision_recall_density_coverage(real, fake, 1)
    # 0.5 lies in the balls of 0 and 1, 3.0 in that of 10 (2 is exactly 1 away, which is outside); 30 in none.
    assert values == pytest.approx({"precision": 2 / 3, "recall": 1.0, "density": 1.0, "coverage": 3 / 4})


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    real, fake = gaussian(101, 5, 0), gaussian(97, 5, 1, shift=0.5)
    whole = precision_recall_density_coverage(real, fake)
    monkeypatch.setattr(fidelity_module, "DISTANCES_AT_ONCE", 700)
    assert precision_recall_density_coverage(real, fake) == whole


def test_equal_sets_are_perfect():
    real = gaussian(50, 4, 0)
    values = fidelity(real, real.clone())
    assert values["fid"] == pytest.approx(0.0, abs=1e-6)
    assert (values["precision"], values["recall"], values["coverage"]) == (1.0, 1.0, 1.0)


def test_a_collapsed_generator_has_finite_values():
    values = fidelity(gaussian(50, 8, 0), torch.zeros(50, 8))
    assert all(math.isfinite(value) for value in values.values())
    assert values["recall"] == 0.0


def test_fewer_images_than_features_stay_finite():
    values = fidelity(gaussian(20, 64, 0), gaussian(20, 64, 1))
    assert all(math.isfinite(value) for value in values.values())
    assert values["fid"] > 1


def test_nothing_is_printed(capfd):
    fidelity(gaussian(30, 4, 0), gaussian(30, 4, 1))
    assert capfd.readouterr() == ("", "")


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match=r"2 generated images and there are 1: raise --evaluation\.images"):
        fidelity(gaussian(10, 4, 0), gaussian(1, 4, 1))
    with pytest.raises(UsageError, match=r"2 real images and there are 0"):
        frechet_distance(gaussian(0, 4, 0), gaussian(10, 4, 1))
    with pytest.raises(UsageError, match=r"--evaluation\.images"):
        kernel_distance(gaussian(1, 4, 0), gaussian(10, 4, 1))


@pytest.mark.parametrize("k", [0, 8, 9])
def test_a_ball_must_reach_to_an_existing_neighbour(k):
    with pytest.raises(UsageError, match=rf"--evaluation\.neighbours {k} is not between 1 and 7 for 8 images"):
        fidelity(gaussian(20, 4, 0), gaussian(8, 4, 1), k=k)


def test_the_largest_k_works():
    assert precision_recall_density_coverage(gaussian(8, 4, 0), gaussian(8, 4, 1), 7)["coverage"] > 0


def test_features_that_are_no_numbers_are_refused():
    broken = gaussian(10, 4, 0)
    broken[3, 2] = torch.nan
    with pytest.raises(FlgenError, match="features of the generated images hold NaN"):
        fidelity(gaussian(10, 4, 1), broken)


def test_features_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 4\) and \(10, 5\)"):
        fidelity(gaussian(10, 4, 0), gaussian(10, 5, 1))


def test_metrics_are_named_after_their_extractor():
    values = fidelity(gaussian(20, 4, 0), gaussian(20, 4, 1))
    assert fidelity_metrics(values, "digits") == {
        "fid/digits": values["fid"],
        "kid/digits": values["kid"],
        "prdc/precision/digits": values["precision"],
        "prdc/recall/digits": values["recall"],
        "prdc/density/digits": values["density"],
        "prdc/coverage/digits": values["coverage"],
    }
