"""What the generators that are diffusers pipelines share: loading one, its scheduler, and a call for some requests."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.extra import require_extra
from flgen.synthesis.pretrained import Precision, check_local, loading, local_files, pick_dtype, place_of, quiet, seeded
from flgen.synthesis.samples import Guidance, SampleRequest
from flgen.synthesis.synthesizer import Synthesizer

if TYPE_CHECKING:
    import torch
else:
    torch = deferred_module("torch")

Scheduler = Literal["dpm++", "ddim", "euler", "unipc", "pipeline"]

SCHEDULERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
CHECKPOINT = "--synthesizer.checkpoint"


class DiffusersPipeline(Synthesizer):
    """A generator that `DiffusionPipeline.from_pretrained` loads.

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or the id of a model on the hub.
        revision: Commit, branch or tag of the id.
        variant: Which weights files to take, such as `fp16`; null is the ordinary ones.
        scheduler: The sampler that replaces the pipeline's own; "pipeline" keeps it.
        steps: Denoising steps.
        guidance: How each sample's scale of classifier-free guidance is drawn: "integers" from {1, ..., 5},
            "continuous" from U[1, 5), "pipeline" is the pipeline's default. diffusers guides nothing at a scale of 1.
        negative_prompt: What samples are guided away from.
        batch_size: Samples generated at once; they share one guidance scale, so "continuous" makes them singly.
        precision: Type of the weights; "auto" is 16 on a GPU and 32 elsewhere.
        local_files_only: Never ask the hub.
    """

    incidental: ClassVar[frozenset[str]] = Synthesizer.incidental | {"variant"}

    def __init__(
        self,
        checkpoint: str,
        revision: str | None,
        variant: str | None,
        scheduler: Scheduler,
        steps: int,
        guidance: Guidance,
        negative_prompt: str | None,
        batch_size: int,
        precision: Precision,
        local_files_only: bool,
    ) -> None:
        option_ranges.at_least("synthesizer", 1, steps=steps, batch_size=batch_size)
        if not checkpoint:
            raise UsageError(f"{CHECKPOINT} is empty: give a folder, or the id of a model such as owner/name")
        self.checkpoint = checkpoint
        self.revision = revision
        self.variant = variant
        self.scheduler = scheduler
        self.steps = steps
        self.guidance = guidance
        self.negative_prompt = negative_prompt
        self.batch_size = batch_size
        self.precision = precision
        self.local_files_only = local_files_only

    def files(self) -> list[Path]:
        """Return the checkpoint, if it is a folder of this machine."""
        return local_files(self.checkpoint)

    def check(self, requests: Sequence[SampleRequest]) -> None:
        """Make sure that diffusers is installed, and that a checkpoint that is a path exists."""
        require_extra("diffusers", "transformers")
        check_local(CHECKPOINT, self.checkpoint)

    def batch_key(self, request: SampleRequest) -> float | None:
        """Return the guidance scale, of which a call takes one."""
        return request.guidance

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline on `device`, loaded at first use.

        Raises:
            FlgenError: If it cannot be loaded.
        """
        self.check([])
        return load_pipeline(
            CHECKPOINT,
            self.checkpoint,
            device=self.device,
            precision=self.precision,
            scheduler=self.scheduler,
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
        )

    @cached_property
    def _accepted(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(type(self.pipeline).__call__).parameters)

    def call(self, requests: Sequence[SampleRequest], **more: Any) -> Any:
        """Return the pipeline's output for some requests of equal guidance.

        Args:
            requests: They give prompts, one generator each, and the guidance scale.
            more: Further arguments of the call; those that are None are left out.

        Raises:
            FlgenError: If the pipeline takes neither prompts nor class labels, or lacks one of `more`.
        """
        name = type(self.pipeline).__name__
        if "prompt" in self._accepted:
            arguments: dict[str, Any] = {"prompt": [request.prompt for request in requests]}
        elif "class_labels" in self._accepted:
            arguments = {"class_labels": [request.class_id for request in requests]}
        else:
            raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: a {name} takes neither prompts nor class labels")
        guidance = requests[0].guidance
        arguments |= {
            "num_inference_steps": self.steps,
            "guidance_scale": guidance,
            "negative_prompt": None if self.negative_prompt is None else [self.negative_prompt] * len(requests),
            **more,
        }
        arguments = {option: value for option, value in arguments.items() if value is not None}
        for option in arguments:
            if option not in self._accepted:
                remedy = "give --synthesizer.guidance pipeline" if option == "guidance_scale" else f"leave out {option}"
                raise UsageError(f"{CHECKPOINT} {self.checkpoint}: a {name} takes no {option}; {remedy}")
        # Generators on the CPU, so that noise is the same on every device.
        arguments["generator"] = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        with torch.inference_mode(), seeded(requests[0].seed, self.device), quiet():
            return self.pipeline(**arguments)

    def facts(self, request: SampleRequest) -> dict[str, Any]:
        """Return what every sample of this pipeline records."""
        guidance = request.guidance
        if guidance is None and "guidance_scale" in self._accepted:
            guidance = self._accepted["guidance_scale"].default
        return {
            "guidance": guidance,
            "steps": self.steps,
            "scheduler": type(self.pipeline.scheduler).__name__,
            "provider": "diffusers",
            "model": self.checkpoint,
            "revision": self.revision or snapshot_of(self.pipeline.config.get("_name_or_path")),
        }


def load_pipeline(
    option: str,
    checkpoint: str,
    *,
    device: torch.device | str,
    precision: Precision,
    scheduler: Scheduler = "pipeline",
    **more: Any,
) -> Any:
    """Return a pipeline on a device.

    Args:
        option: Where the checkpoint is given, for messages, such as `--synthesizer.checkpoint`.
        checkpoint: A folder that `save_pretrained` wrote, or the id of a model on the hub.
        device: Where it draws.
        precision: Type of the weights; "auto" is 16 on a GPU and 32 elsewhere.
        scheduler: The sampler that replaces the pipeline's own; "pipeline" keeps it.
        more: Further arguments of `DiffusionPipeline.from_pretrained`.

    Raises:
        FlgenError: If it cannot be loaded.
    """
    with loading(option, checkpoint):
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        dtype = pick_dtype(precision, device)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(place_of(checkpoint), torch_dtype=dtype, **more)
        if scheduler != "pipeline":
            kind = getattr(diffusers, SCHEDULERS[scheduler])
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)


def snapshot_of(path: str | os.PathLike[str] | None) -> str | None:
    """Return the commit in the path of a downloaded model, `.../snapshots/<commit>`."""
    parts = Path(path).parts if path else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
