"""Stable Diffusion from a given noise: a tiny one of random weights, saved and loaded as a real one is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flgen import Digits
from flgen.errors import FlgenError, UsageError
from flgen.synthesis.diffusion_latents import DiffusionLatents

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("no_hub")

Tiny = Callable[[str], Path]


def loaded(place: Path, **options: Any) -> DiffusionLatents:
    generator = DiffusionLatents(str(place), **{"steps": 2, "precision": "32", "local_files_only": True, **options})
    generator.load("cpu")
    return generator


def with_scheduler(place: Path, folder: Path, kind: str) -> Path:
    """Copy a pipeline and give it another sampler."""
    import diffusers

    shutil.copytree(place, folder)
    old = diffusers.DDIMScheduler.from_pretrained(place, subfolder="scheduler")
    as_usual = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    getattr(diffusers, kind).from_config(old.config, **as_usual).save_pretrained(folder / "scheduler")
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index.replace("DDIMScheduler", kind))
    return folder


def noise(n: int, H: int) -> torch.Tensor:
    return torch.randn(n, H, generator=torch.Generator().manual_seed(5))


def test_sizes_are_read_without_loading_weights(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    place = tmp_path / "light"
    shutil.copytree(tiny_pipeline("stable_diffusion"), place, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    generator = DiffusionLatents(str(place), local_files_only=True)
    generator.check(Digits())
    assert (generator.latent_dim, generator.image_shape) == (4 * 16 * 16, (3, 32, 32))
    with pytest.raises(FlgenError, match=r"^--method.generator.checkpoint .*light: cannot be loaded from this folder"):
        generator.load("cpu")


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_images_are_those_of_the_pipeline_s_own_noise(tiny_pipeline: Tiny, tmp_path: Path, kind: str) -> None:
    """The initial sigma, which is 1 but for Euler's, and there depends on the steps, is in the latent once."""
    import diffusers

    place = with_scheduler(tiny_pipeline("stable_diffusion"), tmp_path / kind, kind)
    generator = loaded(place)
    w = generator.sample_latents(2, torch.Generator().manual_seed(5))
    unit = noise(2, 4 * 16 * 16)
    sigma = float((w / unit).mean())
    torch.testing.assert_close(w, unit * sigma)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        ["a cat"] * 2, latents=unit.view(2, 4, 16, 16), num_inference_steps=2, guidance_scale=7.5, output_type="pt"
    ).images
    assert sigma == pytest.approx(float(pipeline.scheduler.init_noise_sigma), rel=1e-5)
    assert (sigma > 1.5) == (kind == "EulerDiscreteScheduler")
    torch.testing.assert_close(generator.synthesize(w), expected.float(), rtol=0, atol=2e-5)


def test_noise_of_an_ancestral_sampler_is_the_same_for_every_latent_and_batch(
    tiny_pipeline: Tiny, tmp_path: Path
) -> None:
    kind = "EulerAncestralDiscreteScheduler"
    place = with_scheduler(tiny_pipeline("stable_diffusion"), tmp_path / kind, kind)
    one, three = loaded(place, steps=3, batch_size=1), loaded(place, steps=3, batch_size=3)
    w = one.sample_latents(3, torch.Generator().manual_seed(5))
    torch.testing.assert_close(three.synthesize(w), one.synthesize(w), rtol=0, atol=2e-5)
    twin = one.synthesize(w[:1].repeat(2, 1))
    assert torch.equal(twin[0], twin[1])


def test_prompt_guidance_and_steps_reach_the_pipeline(tiny_pipeline: Tiny) -> None:
    place = tiny_pipeline("stable_diffusion")
    w = noise(1, 4 * 16 * 16)
    images = [
        loaded(place, **options).synthesize(w)
        for options in ({}, {"prompt": "a dog"}, {"guidance": 1.0}, {"guidance": 3.0}, {"steps": 3})
    ]
    for place_, image in enumerate(images):
        assert all(not torch.allclose(image, other, rtol=0, atol=1e-5) for other in images[:place_])


def test_what_the_prompt_says_is_computed_once(tiny_pipeline: Tiny) -> None:
    generator = loaded(tiny_pipeline("stable_diffusion"), batch_size=1)
    text_encoder = generator.networks()[0]
    calls: list[int] = []
    text_encoder.register_forward_hook(lambda *_: calls.append(1))
    generator.synthesize(noise(2, generator.latent_dim))
    assert calls == []
    generator.load("cpu")
    assert len(calls) == 2  # the prompt and the empty one


def test_half_precision_gives_float32_images(tiny_pipeline: Tiny) -> None:
    w = noise(1, 4 * 16 * 16)
    exact = loaded(tiny_pipeline("stable_diffusion")).synthesize(w)
    coarse = loaded(tiny_pipeline("stable_diffusion"), precision="bf16").synthesize(w)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() < 0.1


def test_where_it_comes_from(tiny_pipeline: Tiny) -> None:
    generator = DiffusionLatents(str(tiny_pipeline("stable_diffusion")), trained_on="laion", licence="openrail")
    facts = generator.provenance()
    assert (facts["data"], facts["licence"], facts["prompt"], facts["guidance"]) == (
        "laion",
        "openrail",
        "a cat",
        "7.5",
    )
    assert len(str(facts["sha256"])) == 64
    hub = DiffusionLatents("owner/name", revision="abc").provenance()
    assert (hub["sha256"], hub["revision"]) == (None, "abc")


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlgenError, match=r"^--method.generator.checkpoint .*nowhere: there is no such folder"):
        DiffusionLatents(str(tmp_path / "nowhere")).check(Digits())
    (tmp_path / "empty").mkdir()
    for place in (str(tmp_path / "empty"), "nobody/nothing"):
        with pytest.raises(FlgenError, match=rf"^--method.generator.checkpoint {place}: .*loaded.*give a folder") as it:
            DiffusionLatents(place, local_files_only=True).check(Digits())
        assert "\n" not in str(it.value)


def test_a_pipeline_of_another_kind_is_refused(tiny_pipeline: Tiny) -> None:
    with pytest.raises(FlgenError, match=r"a AudioLDMPipeline does not draw from one initial noise"):
        loaded(tiny_pipeline("audioldm"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--method.generator.steps is 0: give 1 or more"),
        ({"guidance": 0.5}, "--method.generator.guidance is 0.5: give 1 or more"),
        ({"checkpoint": ""}, "--method.generator.checkpoint is empty"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        DiffusionLatents(**{"checkpoint": "owner/name", **options})
