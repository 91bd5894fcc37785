"""Sound by AudioLDM and AudioLDM2, and whatever else diffusers loads that makes sound from prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.synthesis.diffusers_pipeline import DiffusersPipeline, Scheduler
from flgen.synthesis.pretrained import Precision
from flgen.synthesis.samples import Guidance, SampleRequest
from flgen.synthesis.synthesizer import Sample
from flgen.synthesis.waveforms import encode_wav

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred_module("numpy")


class AudioLDM(DiffusersPipeline):
    """Sound by AudioLDM or AudioLDM2, whichever the checkpoint is (specification 3.3, 3.4).

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or the id of a model on the hub.
        revision: Commit, branch or tag of the id.
        variant: Which weights files to take, such as `fp16`; null is the ordinary ones.
        scheduler: The sampler that replaces the pipeline's own; "pipeline" keeps it.
        steps: Denoising steps; the authors use 100 with AudioLDM, the default of AudioLDM2 is 200.
        seconds: Length of each sound, s.
        guidance: How each sound's scale of classifier-free guidance is drawn: "integers" from {1, ..., 5},
            "continuous" from U[1, 5), "pipeline" is the pipeline's default. diffusers guides nothing at a scale of 1.
        negative_prompt: What sounds are guided away from, such as `low quality`.
        batch_size: Sounds generated at once; they share one guidance scale, so "continuous" makes them singly.
        precision: Type of the weights; "auto" is 16 on a GPU and 32 elsewhere.
        local_files_only: Never ask the hub.

    Raises:
        UsageError: An option is out of its range.
    """

    modality = "audio"

    def __init__(
        self,
        checkpoint: str,
        revision: str | None = None,
        variant: str | None = None,
        scheduler: Scheduler = "pipeline",
        steps: int = 100,
        seconds: float = 5.0,
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
        if not 0 < seconds < float("inf"):
            raise UsageError(f"--synthesizer.seconds is {seconds}: give seconds above 0")
        self.seconds = seconds

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return one sound for each request.

        Raises:
            FlgenError: If the pipeline makes no sound.
        """
        if "audio_length_in_s" not in self._accepted:
            raise FlgenError(
                f"--synthesizer.checkpoint {self.checkpoint}: a {type(self.pipeline).__name__} makes no sound from "
                "prompts; images are made by --synthesizer DiffusionImages"
            )
        output: Any = self.call(requests, audio_length_in_s=self.seconds, output_type="np")
        waveforms = np.asarray(output.audios, dtype=np.float32).reshape(len(requests), -1)  # (B, T)
        rate = int(self.pipeline.vocoder.config.sampling_rate)
        length = {"seconds": waveforms.shape[1] / rate, "sample_rate": rate}
        return [
            Sample(request, encode_wav(waveform, rate), "wav", {**self.facts(request), **length})
            for request, waveform in zip(requests, waveforms, strict=True)
        ]
