"""Pre-trained generators in miniature: random weights, saved to disk as the libraries save real ones.

The sizes are those of the specification of GPT-FL, section 3.5.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPEAKERS = 3
X_VECTOR = 16


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in the vocabularies of byte-level tokenizers."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    symbols = byte_symbols()
    words = ["<|startoftext|>", "<|endoftext|>", *symbols, *(symbol + "</w>" for symbol in symbols)]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)


def roberta_tokenizer() -> Any:
    from transformers import RobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_symbols()]
    return RobertaTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)


def ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[32, 64],
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        sample_size=32,
    )


UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def hifi_gan() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
            initializer_range=0.2,  # less is silence, more is a square wave
        )
    )


def save_stable_diffusion(folder: Path) -> Path:
    """Save a Stable Diffusion that draws 32x32 pixels."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        max_position_embeddings=77,
    )
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            **UNET, sample_size=16, cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True
        ),
        vae=vae(channels=3),
        text_encoder=CLIPTextModel(text),
        tokenizer=clip_tokenizer(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_audioldm(folder: Path) -> Path:
    """Save an AudioLDM."""
    from diffusers import AudioLDMPipeline, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    torch.manual_seed(0)
    text = ClapTextConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        projection_dim=32,
        max_position_embeddings=100,
    )
    AudioLDMPipeline(
        unet=UNet2DConditionModel(
            **UNET,
            sample_size=32,
            cross_attention_dim=(32, 64),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=32,
            class_embeddings_concat=True,
        ),
        vae=vae(channels=1),
        text_encoder=ClapTextModelWithProjection(text),
        tokenizer=roberta_tokenizer(),
        scheduler=ddim(),
        vocoder=hifi_gan(),
    ).save_pretrained(folder)
    return folder


def save_audioldm2(folder: Path) -> Path:
    """Save an AudioLDM2."""
    from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
    from transformers import (
        ClapAudioConfig,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapTextConfig,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5EncoderModel,
        T5Tokenizer,
    )

    torch.manual_seed(0)
    clap = ClapConfig(
        text_config=ClapTextConfig(
            vocab_size=261,
            hidden_size=8,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=1,
            projection_dim=16,
            max_position_embeddings=100,
        ).to_dict(),
        audio_config=ClapAudioConfig(
            spec_size=8,
            window_size=4,
            num_mel_bins=8,
            patch_embeds_hidden_size=8,
            hidden_size=8,
            depths=[1, 1],
            num_hidden_layers=1,
            num_attention_heads=[1, 1],
            projection_dim=16,
            patch_size=1,
            patch_stride=1,
            patch_embed_input_channels=4,
        ).to_dict(),
        projection_dim=16,
    )
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((chr(n), -2.0) for n in range(ord("a"), ord("z") + 1))]
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_ctx=99, n_positions=99)
    gpt2.max_new_tokens = 8
    AudioLDM2Pipeline(
        vae=vae(channels=1),
        text_encoder=ClapModel(clap),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=32, d_model=32, d_ff=37, d_kv=8, num_heads=2, num_layers=2, pad_token_id=0)
        ),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16),
        language_model=GPT2LMHeadModel(gpt2),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=T5Tokenizer(vocab=[*letters, ("▁", -2.0)], extra_ids=0, model_max_length=77),
        feature_extractor=ClapFeatureExtractor(feature_size=8, sampling_rate=16000),
        unet=AudioLDM2UNet2DConditionModel(
            **UNET, sample_size=32, cross_attention_dim=([None, 16, 32], [None, 16, 32]), norm_num_groups=8
        ),
        scheduler=ddim(),
        vocoder=hifi_gan(),
    ).save_pretrained(folder)
    return folder


def save_speecht5(folder: Path) -> Path:
    """Save a SpeechT5 as `model`, its HiFi-GAN as `vocoder` and the x-vectors of three speakers as `speakers.npy`."""
    import sentencepiece
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5Tokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 10),
        model_writer=trained,
        model_type="char",
        vocab_size=35,
        hard_vocab_limit=False,
        pad_id=1,
        bos_id=0,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    spm = folder / "spm_char.model"
    spm.write_bytes(trained.getvalue())
    tokenizer = SpeechT5Tokenizer(str(spm))
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        speaker_embedding_dim=X_VECTOR,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        speech_decoder_postnet_layers=2,
        max_text_positions=64,
        max_speech_positions=128,
    )
    model = SpeechT5ForTextToSpeech(config)
    torch.nn.init.constant_(model.speech_decoder_postnet.prob_out.bias, -10.0)  # it speaks up to the allowed length
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    hifi_gan().save_pretrained(folder / "vocoder")
    spm.unlink()
    np.save(folder / "speakers.npy", np.random.default_rng(0).normal(size=(SPEAKERS, X_VECTOR)).astype(np.float32))
    return folder


def save_gpt2(folder: Path) -> Path:
    """Save a GPT-2 over bytes with its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    torch.manual_seed(0)
    words = [*byte_symbols(), "<|endoftext|>"]
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(words), n_positions=256)
    config.bos_token_id = config.eos_token_id = len(words) - 1
    GPT2LMHeadModel(config).save_pretrained(folder)
    GPT2Tokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder
