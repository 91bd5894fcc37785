"""A text-to-image diffusion pipeline small enough to be trained on a CPU in minutes.

Nobody's pre-trained model draws 8x8 digits, and none can be downloaded everywhere. This trains one that
`DiffusionPipeline.from_pretrained` loads like any other: a latent diffusion model in miniature with a text encoder
that reads bytes, so that the whole of GPT-FL can be tried on data sets of small images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flgen.deferred import deferred_module
from flgen.errors import UsageError
from flgen.synthesis.extra import require_extra

diffusers = deferred_module("diffusers")
transformers = deferred_module("transformers")

log = logging.getLogger("flgen")

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a photo of a {}",
    "a picture of the {}",
    "an image that shows {}",
    "a drawing of {}",
    "a handwritten {}",
    "the digit {}",
    "a photo of the number {}",
    "a close-up photo of {} on paper",
    "a black and white picture of {}",
    "{} in the middle of an image",
)
PROMPT_DROPOUT = 0.15  # share of images trained without a prompt, for classifier-free guidance
AUTOENCODER_WIDTHS = (16, 32)
WIDTHS = (32, 64)
TEXT_WIDTH = 64
TEXT_LENGTH = 48
LATENT_CHANNELS = 4
BATCH = 64
AUTOENCODER_STEPS = 400
LEARNING_RATE = 2e-3
AVERAGE_DECAY = 0.99  # of the weights that are kept: a moving average over the last steps
TRAINING_TIMES = 1000
LOG_EVERY_S = 15.0


def train_small_diffusion(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    folder: str | Path,
    *,
    steps: int = 1500,
    seed: int = 0,
) -> None:
    """Train a Stable Diffusion in miniature on labelled images and save it with `save_pretrained`.

    First an autoencoder learns to pass images through latents of half their height and width, then text encoder and
    UNet learn together to take noise off the latents (v-prediction), with prompts of the class names.

    Args:
        images: uint8 tensor (N, C, H, W), C = 1 or 3, sides multiples of 8.
        labels: int64 tensor (N,), indices of `class_names`.
        class_names: What prompts call the classes.
        folder: Where the pipeline goes.
        steps: Training steps of the diffusion model, of 64 images each.
        seed: Of all random numbers.

    Raises:
        UsageError: If the images have another form.
        FlgenError: If diffusers or transformers is not installed.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] % 8 or images.shape[3] % 8:
        raise UsageError(
            "small diffusion takes uint8 images (N, C, H, W), sides in eights, "
            f"not {tuple(images.shape)} {images.dtype}"
        )
    require_extra("diffusers", "transformers")
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    pixels = images.float() / 127.5 - 1.0  # (N, C, H, W) in [-1, 1]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)  # what constructors draw
        vae = diffusers.AutoencoderKL(
            in_channels=images.shape[1],
            out_channels=images.shape[1],
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=AUTOENCODER_WIDTHS,
            norm_num_groups=8,
            latent_channels=LATENT_CHANNELS,
            sample_size=images.shape[-1],
        )
        _train_autoencoder(vae, pixels, min(steps, AUTOENCODER_STEPS), generator)
        with torch.no_grad():
            latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(512)])
        scale = 1.0 / float(latents.std())
        vae.register_to_config(scaling_factor=scale)
        tokenizer = _tokenizer()
        end = tokenizer.eos_token_id
        text_encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=end,
                pad_token_id=end,
                max_position_embeddings=TEXT_LENGTH,
            )
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=latents.shape[-1],
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=WIDTHS,
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
        )
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=TRAINING_TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        _train_denoiser(
            unet, text_encoder, tokenizer, scheduler, latents * scale, labels, class_names, steps, generator
        )
    diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(str(folder))
    log.info("small diffusion pipeline of %d images: %s, %.0f s", len(images), folder, time.monotonic() - started)


def _train_autoencoder(vae: Any, pixels: Tensor, steps: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.Adam(vae.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for _ in _counted("autoencoder", steps):
        batch = pixels[torch.randint(len(pixels), (BATCH,), generator=generator)]
        latent = vae.encode(batch).latent_dist.mean
        # Noise on the latents makes the decoder forgive small errors of the denoiser.
        noisy = latent + 0.05 * torch.randn(latent.shape, generator=generator)
        loss = F.mse_loss(vae.decode(noisy).sample, batch) + 1e-3 * latent.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(False)


def _train_denoiser(
    unet: Any,
    text_encoder: Any,
    tokenizer: Any,
    scheduler: Any,
    latents: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Train UNet and text encoder together; what they end with is the moving average of their weights."""
    prompts = ["", *(template.format(name) for name in class_names for template in TEMPLATES)]
    tokens = tokenizer(
        prompts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids  # (1 + classes * templates, TEXT_LENGTH)
    trained = torch.nn.ModuleList([unet, text_encoder]).train()
    parameters = list(trained.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for _ in _counted("denoiser", steps):
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean, noise = latents[rows], torch.randn((BATCH, *latents.shape[1:]), generator=generator)
        times = torch.randint(TRAINING_TIMES, (BATCH,), generator=generator)
        wording = 1 + labels[rows] * len(TEMPLATES) + torch.randint(len(TEMPLATES), (BATCH,), generator=generator)
        wording[torch.rand(BATCH, generator=generator) < PROMPT_DROPOUT] = 0
        used, place = wording.unique(return_inverse=True)
        context = text_encoder(tokens[used]).last_hidden_state[place]  # (BATCH, TEXT_LENGTH, TEXT_WIDTH)
        predicted = unet(scheduler.add_noise(clean, noise, times), times, context).sample
        loss = F.mse_loss(predicted, scheduler.get_velocity(clean, noise, times))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1.0 - AVERAGE_DECAY)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)


def _counted(network: str, steps: int) -> Iterator[int]:
    """Yield the numbers of the steps, and say from time to time how far it has come."""
    said = time.monotonic()
    for step in range(1, steps + 1):
        yield step
        if time.monotonic() - said >= LOG_EVERY_S:
            said = time.monotonic()
            log.info("small diffusion pipeline: %s, step %d/%d", network, step, steps)


def _tokenizer() -> Any:
    """Return CLIP's tokenizer with the 256 bytes for its vocabulary: any text is a sequence of letters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)
