"""Images by a pre-trained diffusion model: Stable Diffusion, and whatever else diffusers loads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.diffusers_pipeline import DiffusersPipeline, Scheduler
from flgen.synthesis.pretrained import Precision
from flgen.synthesis.samples import Guidance, SampleRequest
from flgen.synthesis.synthesizer import Sample

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


class DiffusionImages(DiffusersPipeline):
    """Images by any text-to-image (or class-conditional) pipeline of diffusers (specification 3.2 to 3.4).

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or the id of a model on the hub.
        revision: Commit, branch or tag of the id.
        variant: Which weights files to take, such as `fp16`; null is the ordinary ones.
        scheduler: The sampler that replaces the pipeline's own; "pipeline" keeps it.
        steps: Denoising steps.
        size: Side of the generated images, pixels; null is the model's own.
        saved_size: Side to which images are reduced (bicubic) before they are saved, pixels; null keeps them.
        guidance: How each image's scale of classifier-free guidance is drawn: "integers" from {1, ..., 5},
            "continuous" from U[1, 5), "pipeline" is the pipeline's default. diffusers guides nothing at a scale of 1.
        negative_prompt: What images are guided away from.
        batch_size: Images generated at once; they share one guidance scale, so "continuous" makes them singly.
        precision: Type of the weights; "auto" is 16 on a GPU and 32 elsewhere.
        local_files_only: Never ask the hub.

    Raises:
        UsageError: An option is out of its range.
    """

    modality = "image"

    def __init__(
        self,
        checkpoint: str,
        revision: str | None = None,
        variant: str | None = None,
        scheduler: Scheduler = "dpm++",
        steps: int = 50,
        size: int | None = None,
        saved_size: int | None = None,
        guidance: Guidance = "integers",
        negative_prompt: str | None = None,
        batch_size: int = 8,
        precision: Precision = "auto",
        local_files_only: bool = False,
    ) -> None:
        super().__init__(
            checkpoint,
            revision,
            variant,
            scheduler,
            steps,
            guidance,
            negative_prompt,
            batch_size,
            precision,
            local_files_only,
        )
        option_ranges.at_least("synthesizer", 1, size=size, saved_size=saved_size)
        if size is not None and size % 8:
            raise UsageError(f"--synthesizer.size is {size}: give a multiple of 8")
        self.size = size
        self.saved_size = saved_size

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return one image for each request.

        Raises:
            FlgenError: If the pipeline makes no images.
        """
        output = self.call(requests, height=self.size, width=self.size, output_type="np")
        if not hasattr(output, "images"):
            raise FlgenError(
                f"--synthesizer.checkpoint {self.checkpoint}: a {type(self.pipeline).__name__} makes no images; "
                "sound is made by --synthesizer AudioLDM"
            )
        images = np.asarray(output.images)  # float32 (B, H, W, C) in [0, 1]
        if not np.isfinite(images).all():
            raise FlgenError(
                f"--synthesizer.precision {self.precision}: this model overflows in it; give bf16 or 32 instead"
            )
        flagged: Any = getattr(output, "nsfw_content_detected", None) or [None] * len(requests)
        samples = []
        for request, image, flag in zip(requests, images, flagged, strict=True):
            content, height, width = encode_png(image, self.saved_size)
            size = {"height": height, "width": width, "generated_size": list(image.shape[:2])}
            censored = {} if flag is None else {"flagged": bool(flag)}
            samples.append(Sample(request, content, "png", {**self.facts(request), **size, **censored}))
        return samples


def encode_png(image: np.ndarray, saved_size: int | None = None) -> tuple[bytes, int, int]:
    """Return an image as PNG with its height and width, pixels.

    Args:
        image: float array (H, W, C) in [0, 1], C = 1 or 3.
        saved_size: Side to reduce it to, pixels; None keeps it.
    """
    from PIL import Image

    pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if saved_size is not None:
        picture = picture.resize((saved_size, saved_size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue(), picture.height, picture.width
