"""What every generator with a latent space must keep to (FedKTL's specification, section 2.1), and the leakage rule."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nvlabs_checkout
import pytest
import small_prism
import torch

from flgen import DiffusionLatents, Digits, PrismGenerator, RandomProjection, StyleGAN
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Section, build_parser, describe, parse
from flgen.synthesis.latent_generator import LatentGenerator, is_own_data

ADAPTERS = ["random", "stylegan", "stylegan_classes", "diffusion", "prism", "prism_threshold"]

# Batches of other sizes run through other kernels, which add in another order: a matrix product of one row and of
# several differ by rounding. In two steps of a denoiser it grows to 2e-6.
ROUNDING = dict.fromkeys(ADAPTERS, 1e-6) | {"diffusion": 1e-5}

Build = Callable[..., LatentGenerator]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Callable[[str], Path]) -> Iterator[Build]:
    """Return a function that gives a loaded generator by the name of its adapter."""
    folder = tmp_path_factory.mktemp("generators")
    checkout = nvlabs_checkout.write_checkout(folder / "code")

    def made(adapter: str, **options: Any) -> LatentGenerator:
        if adapter == "random":
            return RandomProjection(**options)
        if adapter.startswith("stylegan"):
            file = folder / f"{adapter}.pkl"
            if not file.exists():
                nvlabs_checkout.write_pickle(file, checkout, c_dim=5 if adapter == "stylegan_classes" else 0)
            return StyleGAN(str(file), str(checkout), trust=True, **options)
        if adapter == "diffusion":
            place = str(tiny_pipeline("stable_diffusion"))
            return DiffusionLatents(place, steps=2, precision="32", local_files_only=True, **options)
        if not (folder / "prism").exists():
            small_prism.prism_run(folder / "prism")
        masks = {"masks": "threshold"} if adapter == "prism_threshold" else {}
        return PrismGenerator(str(folder / "prism" / "checkpoints" / "last"), **masks, **options)

    def loaded(adapter: str, **options: Any) -> LatentGenerator:
        generator = made(adapter, **options)
        generator.load("cpu")
        return generator

    yield loaded
    nvlabs_checkout.forget_imports()


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def generator(adapter: str, build: Build) -> LatentGenerator:
    return build(adapter)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_latents_and_images_have_their_shapes_and_range(generator: LatentGenerator) -> None:
    w = generator.sample_latents(3, seeded(0))
    assert (w.dtype, w.shape) == (torch.float32, (3, generator.latent_dim))
    images = generator.synthesize(w)
    assert (images.dtype, images.shape) == (torch.float32, (3, *generator.image_shape))
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.01  # of a picture, not of a constant


def test_the_same_latents_are_the_same_images_bit_for_bit(generator: LatentGenerator) -> None:
    w = generator.sample_latents(3, seeded(0))
    first = generator.synthesize(w)
    torch.manual_seed(99)  # whatever has been drawn elsewhere
    assert torch.equal(generator.synthesize(w), first)
    assert not torch.equal(generator.synthesize(-w), first)


def test_a_generator_made_again_draws_the_same_images(adapter: str, generator: LatentGenerator, build: Build) -> None:
    w = generator.sample_latents(2, seeded(0))
    torch.testing.assert_close(build(adapter).synthesize(w), generator.synthesize(w), rtol=0, atol=1e-5)


def test_nothing_is_trained_and_nothing_carries_a_gradient(generator: LatentGenerator) -> None:
    networks = generator.networks()
    assert networks
    assert all(a is b for a, b in zip(networks, generator.networks(), strict=True))
    for network in networks:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    w = generator.sample_latents(2, seeded(0))
    assert not w.requires_grad
    images = generator.synthesize(w.clone().requires_grad_())
    assert not images.requires_grad
    (images * torch.ones(1, requires_grad=True)).sum().backward()  # a client may learn from them


def test_drawing_leaves_weights_and_the_global_generator_alone(generator: LatentGenerator) -> None:
    def digest() -> str:
        tensors = [tensor for network in generator.networks() for tensor in network.state_dict().values()]
        return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()

    before, state = digest(), torch.get_rng_state()
    generator.synthesize(generator.sample_latents(2, seeded(0)))
    assert digest() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_seeds_agree_and_others_differ(generator: LatentGenerator) -> None:
    w = generator.sample_latents(4, seeded(1))
    assert torch.equal(generator.sample_latents(4, seeded(1)), w)
    assert not torch.equal(generator.sample_latents(4, seeded(2)), w)
    assert len(w.unique(dim=0)) == 4


def test_the_batch_size_changes_nothing_but_memory(adapter: str, build: Build) -> None:
    one, three, all_at_once = (build(adapter, batch_size=size) for size in (1, 3, 8))
    w = one.sample_latents(5, seeded(0))
    for other in (three, all_at_once):
        torch.testing.assert_close(other.synthesize(w), one.synthesize(w), rtol=0, atol=ROUNDING[adapter])


def test_where_it_comes_from_is_recorded(generator: LatentGenerator) -> None:
    facts = generator.provenance()
    assert {"name", "data", "licence", "sha256"} <= set(facts)
    assert all(value is None or isinstance(value, str) for value in facts.values())
    digest = facts["sha256"]
    assert isinstance(generator, RandomProjection) or (digest is not None and len(digest) == 64)


def test_it_serves_clients_whose_data_it_has_not_seen(generator: LatentGenerator) -> None:
    generator.check(Digits(part="private"))


def test_latents_of_another_length_are_refused(generator: LatentGenerator) -> None:
    with pytest.raises(ValueError, match=rf"\(2, {generator.latent_dim + 1}\).* takes \(b, {generator.latent_dim}\)"):
        generator.synthesize(torch.zeros(2, generator.latent_dim + 1))


def test_pixels_that_are_not_finite_are_one_line() -> None:
    generator = RandomProjection()
    generator.load("cpu")
    with pytest.raises(FlgenError, match=r"^--method.generator RandomProjection drew pixels that are not finite"):
        generator.synthesize(torch.full((1, 8), float("nan")))


@pytest.mark.parametrize(
    ("named", "class_path"),
    [
        (["RandomProjection", "--generator.seed=3"], "flgen.RandomProjection"),
        (["StyleGAN", "--generator.pickle=a.pkl", "--generator.code=stylegan3"], "flgen.StyleGAN"),
        (["DiffusionLatents", "--generator.checkpoint=owner/name"], "flgen.DiffusionLatents"),
        (["PrismGenerator", "--generator.checkpoint=runs/x/checkpoints/last"], "flgen.PrismGenerator"),
    ],
)
def test_a_configuration_names_it_and_describes_it(named: list[str], class_path: str) -> None:
    sections = [Section("generator", LatentGenerator, "class", required=True)]
    configuration = parse(build_parser(sections, {}, ""), [f"--generator={named[0]}", *named[1:]], sections)
    chosen = configuration.resolved()["generator"]
    assert chosen["class_path"] == class_path
    described = describe(configuration.build().generator)
    assert described["class_path"].endswith(f".{named[0]}")
    assert described["init_args"] == chosen["init_args"]


@pytest.mark.parametrize(
    ("theirs", "ours", "own"),
    [
        ("digits", "digits", True),
        ("digits", "digits-private", True),
        ("digits-public", "digits-private", False),
        ("digits-public", "digits", True),
        ("digits-public", "digits-public", True),
        ("digits-private", "digits-public", True),
        ("mnist", "digits", False),
        ("digits-public", "mnist-private", False),
        ("CIFAR-10", "cifar10", True),
        ("cifar_100", "CIFAR-100", True),
        ("cifar10", "cifar100", False),
        ("digits-0.1-public", "digits-private", True),  # halves of another division
        ("digits-0.1-public", "digits-0.1-private", False),
        ("digits-0.1", "digits", True),
        ("Fashion-MNIST", "fashion_mnist", True),
    ],
)
def test_only_the_public_part_of_a_data_set_may_teach_a_generator_for_the_private_one(
    theirs: str, ours: str, own: bool
) -> None:
    assert is_own_data(theirs, ours) == own


def test_a_generator_that_says_what_it_learned_from_is_refused_for_that() -> None:
    class Sketch(RandomProjection):
        def learned_from(self) -> str:
            return "digits"

    Sketch().check(_Named("mnist"))  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"^--method.generator Sketch was trained on digits, and the clients hold digi"
    ):
        Sketch().check(Digits())


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name
