"""From labels to prompts, from prompts to synthetic data, and from latents to images.

The names below are the ones that a configuration can name; importing them does not import torch.
"""

from flgen.synthesis.chat_prompts import ChatPrompts
from flgen.synthesis.diffusion_images import DiffusionImages
from flgen.synthesis.diffusion_latents import DiffusionLatents
from flgen.synthesis.latent_generator import LatentGenerator
from flgen.synthesis.local_prompts import LocalPrompts
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.prompt_source import PromptSource
from flgen.synthesis.random_latents import RandomProjection
from flgen.synthesis.ready_files import ReadyFiles
from flgen.synthesis.remote_images import RemoteImages
from flgen.synthesis.sound import AudioLDM
from flgen.synthesis.speech import SpeechT5
from flgen.synthesis.stylegan import StyleGAN
from flgen.synthesis.synthesizer import Synthesizer
from flgen.synthesis.templates import Templates
from flgen.synthesis.text_samples import TextSamples

__all__ = [
    "AudioLDM",
    "ChatPrompts",
    "DiffusionImages",
    "DiffusionLatents",
    "LatentGenerator",
    "LocalPrompts",
    "Procedural",
    "PromptSource",
    "RandomProjection",
    "ReadyFiles",
    "RemoteImages",
    "SpeechT5",
    "StyleGAN",
    "Synthesizer",
    "Templates",
    "TextSamples",
]
