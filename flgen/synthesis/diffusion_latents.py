"""Stable Diffusion as a map from initial noise to images: the noise is the latent, the prompt is always the same."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.diffusers_pipeline import load_pipeline, snapshot_of
from flgen.synthesis.extra import require_extra
from flgen.synthesis.latent_generator import OPTION, LatentGenerator
from flgen.synthesis.pretrained import Precision, check_local, loading, local_files, place_of, quiet, seeded
from flgen.synthesis.synthesizer import content_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData
else:
    torch = deferred_module("torch")

NOISE_SEED = 0  # of what ancestral samplers add on the way: the same for every latent, so that w alone decides
CHECKPOINT = f"{OPTION}.checkpoint"


class DiffusionLatents(LatentGenerator):
    """Stable Diffusion 1 or 2, from the initial noise to the image (specification, sections 1.5 and 2.2).

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or the id of a model on the hub.
        revision: Commit, branch or tag of the id.
        variant: Which weights files to take, such as `fp16`; null is the ordinary ones.
        prompt: What all images are drawn to; what they are away from is the empty prompt.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; diffusers guides nothing at 1.
        trained_on: Name of the data set behind it, for the record; the clients' own is refused. Null: not known.
        licence: Its licence, for the record.
        batch_size: Images drawn at once; it limits memory alone.
        precision: Type of the weights; "auto" is 16 on a GPU and 32 elsewhere.
        local_files_only: Never ask the hub.

    Raises:
        UsageError: An option is out of its range.
    """

    def __init__(
        self,
        checkpoint: str,
        revision: str | None = None,
        variant: str | None = None,
        prompt: str = "a cat",
        steps: int = 50,
        guidance: float = 7.5,
        trained_on: str | None = None,
        licence: str | None = None,
        batch_size: int = 4,
        precision: Precision = "auto",
        local_files_only: bool = False,
    ) -> None:
        option_ranges.at_least("method.generator", 1, steps=steps, guidance=guidance, batch_size=batch_size)
        if not checkpoint:
            raise UsageError(f"{CHECKPOINT} is empty: give a folder, or the id of a model such as owner/name")
        self.checkpoint = checkpoint
        self.revision = revision
        self.variant = variant
        self.prompt = prompt
        self.steps = steps
        self.guidance = guidance
        self.trained_on = trained_on
        self.licence = licence
        self.batch_size = batch_size
        self.precision = precision
        self.local_files_only = local_files_only

    @property
    def latent_dim(self) -> int:
        """Channels x height x width of the noise, flat: 16,384 for Stable Diffusion 1.5."""
        channels, height, width = self._noise_shape
        return channels * height * width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that the pipeline draws by itself."""
        vae = self._configs["vae"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)  # pixels per latent, along a side
        _, height, width = self._noise_shape
        return vae["out_channels"], height * scale, width * scale

    def learned_from(self) -> str | None:
        """Return what `trained_on` says."""
        return self.trained_on

    def provenance(self) -> dict[str, str | None]:
        """Return the checkpoint, data, licence, and the digest of its folder, or the commit of a hub's."""
        local = local_files(self.checkpoint)
        commit = None if "_pipeline" not in vars(self) else snapshot_of(self._pipeline.config.get("_name_or_path"))
        return {
            "name": self.checkpoint,
            "data": self.trained_on,
            "licence": self.licence,
            "sha256": content_digest(local[0]) if local else None,
            "revision": commit or self.revision,
            "prompt": self.prompt,
            "steps": str(self.steps),
            "guidance": f"{self.guidance:g}",
        }

    def check(self, data: LabelledData) -> None:
        """Make sure that diffusers is installed and that the checkpoint is there; its sizes are read, no weights.

        Raises:
            UsageError: The generator has learned from these data.
            FlgenError: Something is missing.
        """
        require_extra("diffusers", "transformers")
        check_local(CHECKPOINT, self.checkpoint)
        self._configs  # noqa: B018  (reading them is the check)
        super().check(data)

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        """The options of UNet and VAE, as the checkpoint's JSON files have them."""
        require_extra("diffusers", "transformers")
        where: dict[str, Any] = {"revision": self.revision, "local_files_only": self.local_files_only}
        with loading(CHECKPOINT, self.checkpoint):
            import diffusers

            kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
            place = place_of(self.checkpoint)
            return {part: dict(kind.load_config(place, subfolder=part, **where)) for part, kind in kinds.items()}

    @property
    def _noise_shape(self) -> tuple[int, int, int]:
        unet = self._configs["unet"]
        size = unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return unet["in_channels"], height, width

    @cached_property
    def _pipeline(self) -> Any:
        require_extra("diffusers", "transformers")
        check_local(CHECKPOINT, self.checkpoint)
        pipeline = load_pipeline(
            CHECKPOINT,
            self.checkpoint,
            device=self.device,
            precision=self.precision,
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
            safety_checker=None,  # a black image would be a lie about the latent
            requires_safety_checker=False,
        )
        import diffusers

        wanted: Any = diffusers.StableDiffusionPipeline
        if not isinstance(pipeline, wanted):
            raise FlgenError(
                f"{CHECKPOINT} {self.checkpoint}: a {type(pipeline).__name__} does not draw from one initial noise and "
                "one prompt; give a Stable Diffusion 1 or 2"
            )
        pipeline.scheduler.set_timesteps(self.steps)  # some schedulers' init sigma depends on the steps
        return pipeline

    def networks(self) -> list[nn.Module]:
        """Return text encoder, UNet and VAE."""
        pipeline = self._pipeline
        return [pipeline.text_encoder, pipeline.unet, pipeline.vae]

    def load(self, device: torch.device | str) -> None:
        """Put the pipeline on a device, and compute what the prompts say, once."""
        super().load(device)
        with torch.no_grad(), quiet():
            said, unsaid = self._pipeline.encode_prompt(self.prompt, self.device, 1, self.guidance > 1, "")
        self._prompts: tuple[Tensor, Tensor | None] = said, unsaid  # (1, tokens, width) each

    @property
    def _sigma(self) -> float:
        return float(self._pipeline.scheduler.init_noise_sigma)

    def sample_latents(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the noise that the scheduler begins with: N(0, 1) times its initial sigma."""
        return super().sample_latents(n, rng) * self._sigma

    def draw(self, w: Tensor) -> Tensor:
        """Return what all denoising steps make of exactly this noise."""
        said, unsaid = self._prompts
        b = len(w)
        # The pipeline multiplies whatever it begins with by the initial sigma, which w has been multiplied by already.
        noise = (w / self._sigma).view(b, *self._noise_shape).to(said.dtype)
        with seeded(NOISE_SEED, self.device), quiet():
            drawn: Tensor = self._pipeline(
                prompt_embeds=said.expand(b, -1, -1),
                negative_prompt_embeds=None if unsaid is None else unsaid.expand(b, -1, -1),
                latents=noise,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator("cpu").manual_seed(NOISE_SEED) for _ in range(b)],
                output_type="pt",
                return_dict=False,
            )[0]
        return drawn  # (b, 3, height, width) in [0, 1]
