"""From labels to prompts, and from prompts to synthetic data.

The names below are the ones that a configuration can name; importing them does not import torch.
"""

from flgen.synthesis.chat_prompts import ChatPrompts
from flgen.synthesis.diffusion_images import DiffusionImages
from flgen.synthesis.local_prompts import LocalPrompts
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.prompt_source import PromptSource
from flgen.synthesis.ready_files import ReadyFiles
from flgen.synthesis.remote_images import RemoteImages
from flgen.synthesis.sound import AudioLDM
from flgen.synthesis.speech import SpeechT5
from flgen.synthesis.synthesizer import Synthesizer
from flgen.synthesis.templates import Templates
from flgen.synthesis.text_samples import TextSamples

__all__ = [
    "AudioLDM",
    "ChatPrompts",
    "DiffusionImages",
    "LocalPrompts",
    "Procedural",
    "PromptSource",
    "ReadyFiles",
    "RemoteImages",
    "SpeechT5",
    "Synthesizer",
    "Templates",
    "TextSamples",
]
