"""Images by diffusers: a tiny Stable Diffusion of random weights, saved and loaded as a real one is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from requests_of import some_requests

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.diffusion_images import DiffusionImages, encode_png

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("no_hub")

Tiny = Callable[[str], Path]


def small(tiny_pipeline: Tiny, **options: Any) -> DiffusionImages:
    options = {"steps": 2, "batch_size": 3, **options}
    return DiffusionImages(str(tiny_pipeline("stable_diffusion")), local_files_only=True, **options)


def test_a_pipeline_from_disk_draws_one_image_per_request(tiny_pipeline: Tiny) -> None:
    requests = some_requests(4, "integers")
    samples = list(small(tiny_pipeline).synthesize(requests))
    assert {sample.request.id for sample in samples} == {request.id for request in requests}
    for sample in samples:
        image = Image.open(io.BytesIO(sample.content))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
        record = sample.record()
        assert record["guidance"] == sample.request.guidance
        assert (record["steps"], record["scheduler"]) == (2, "DPMSolverMultistepScheduler")
        assert (record["height"], record["width"], record["provider"]) == (32, 32, "diffusers")
        assert record["model"] == str(tiny_pipeline("stable_diffusion"))
    assert len({sample.content for sample in samples}) == len(samples)


def test_a_batch_has_one_guidance_scale_and_at_most_its_size(tiny_pipeline: Tiny) -> None:
    generator = small(tiny_pipeline)
    requests = some_requests(30, "integers")
    batches = generator.batches(requests)
    assert all(len({request.guidance for request in batch}) == 1 and len(batch) <= 3 for batch in batches)
    assert sorted(r.id for batch in batches for r in batch) == sorted(r.id for r in requests)
    assert len(batches) <= 60 / 3 + 4


def test_the_same_seed_is_the_same_image_and_the_global_generators_are_left_alone(tiny_pipeline: Tiny) -> None:
    requests = some_requests(2, "integers")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = list(small(tiny_pipeline).synthesize(requests))
    assert torch.equal(torch.rand(3), expected)
    again = list(small(tiny_pipeline).synthesize(requests))
    assert [sample.content for sample in first] == [sample.content for sample in again]
    other = list(small(tiny_pipeline).synthesize(some_requests(2, "integers", seed=9)))
    assert {sample.content for sample in other}.isdisjoint(sample.content for sample in first)


def test_guidance_reaches_the_pipeline(tiny_pipeline: Tiny) -> None:
    generator = small(tiny_pipeline)
    called: list[dict[str, Any]] = []
    pipeline = generator.pipeline
    call = type(pipeline).__call__

    class Recorded(type(pipeline)):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            called.append(options)
            return call(self, *arguments, **options)

    Recorded.__call__.__signature__ = __import__("inspect").signature(call)  # type: ignore[attr-defined]
    pipeline.__class__ = Recorded
    requests = some_requests(6, "integers")
    list(generator.synthesize(requests))
    assert sorted(options["guidance_scale"] for options in called) == sorted(
        batch[0].guidance for batch in generator.batches(requests)
    )
    assert all(len(options["generator"]) == len(options["prompt"]) for options in called)


def test_the_pipeline_s_own_guidance_and_scheduler_are_an_option(tiny_pipeline: Tiny) -> None:
    (sample, _) = small(tiny_pipeline, guidance="pipeline", scheduler="pipeline").synthesize(some_requests(1))
    assert sample.record()["guidance"] == 7.5
    assert sample.record()["scheduler"] == "DDIMScheduler"


def test_images_are_generated_and_saved_in_the_size_that_is_asked_for(tiny_pipeline: Tiny) -> None:
    (sample, _) = small(tiny_pipeline, size=48, saved_size=16).synthesize(some_requests(1, "integers"))
    assert Image.open(io.BytesIO(sample.content)).size == (16, 16)
    record = sample.record()
    assert (record["height"], record["width"], record["generated_size"]) == (16, 16, [48, 48])


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    missing = DiffusionImages(str(tmp_path / "nowhere"))
    with pytest.raises(FlgenError, match=r"^--synthesizer.checkpoint .*nowhere: there is no such folder; give one"):
        missing.check(some_requests(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlgenError, match=r"--synthesizer.checkpoint .*empty: cannot be loaded from this folder"):
        list(DiffusionImages(str(tmp_path / "empty")).synthesize(some_requests(1)))
    with pytest.raises(
        FlgenError, match=r"--synthesizer.checkpoint nobody/nothing: is no folder, and no model of .*give a folder"
    ) as it:
        list(DiffusionImages("nobody/nothing", local_files_only=True).synthesize(some_requests(1)))
    assert "\n" not in str(it.value)


def test_a_pipeline_that_makes_sound_is_refused(tiny_pipeline: Tiny) -> None:
    generator = DiffusionImages(str(tiny_pipeline("audioldm")), steps=1, size=None, local_files_only=True)
    with pytest.raises(FlgenError, match=r"a AudioLDMPipeline makes no images; sound is made by"):
        list(generator.synthesize(some_requests(1, "integers")))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--synthesizer.steps is 0"):
        DiffusionImages("owner/name", steps=0)
    with pytest.raises(UsageError, match=r"--synthesizer.size is 33: give a multiple of 8"):
        DiffusionImages("owner/name", size=33)
    with pytest.raises(UsageError, match=r"--synthesizer.checkpoint is empty"):
        DiffusionImages("")


def test_what_the_samples_depend_on_is_the_weights_and_not_the_batch(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    one, two = small(tiny_pipeline).identity(), small(tiny_pipeline, batch_size=7).identity()
    assert one == two
    assert small(tiny_pipeline, steps=3).identity() != one
    (digest,) = one["files"].values()
    assert len(digest) == 64


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_has_the_pixels_of_the_image(channels: int) -> None:
    image = np.linspace(-0.2, 1.2, 4 * 6 * channels).reshape(4, 6, channels)
    content, height, width = encode_png(image)
    pixels = np.asarray(Image.open(io.BytesIO(content))).reshape(4, 6, channels)
    assert (height, width) == (4, 6)
    assert np.array_equal(pixels, (image.clip(0, 1) * 255).round().astype(np.uint8))
