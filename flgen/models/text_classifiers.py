"""Classifiers of texts: a bag of learnt word vectors, and a pre-trained encoder (GPT-FL, section 5.3)."""

from __future__ import annotations

from pathlib import Path

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.models.classifiers import Classifier, check_counts

if TYPE_CHECKING:
    from typing import Any

    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")


class EmbeddingBagClassifier(Classifier):
    """The mean of the vectors of a text's tokens, padding left out, then one linear layer; trained by SGD.

    Initial weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        vocabulary: Number of different tokens. Null takes the data set's (from Python: 32,768).
        padding: The token that fills short texts. Null takes the data set's (from Python: 0).
        classes: Number of classes. Null takes the data set's (from Python: 3).
        width: Length of a token's vector.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, the padding is no token, or a number is negative.

    Source: GPT-FL, section 5.3 (text model for MELD).
    """

    def __init__(
        self,
        vocabulary: int | None = None,
        padding: int | None = None,
        classes: int | None = None,
        width: int = 64,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        vocabulary = 32768 if vocabulary is None else vocabulary
        padding = 0 if padding is None else padding
        classes = 3 if classes is None else classes
        check_counts(vocabulary=vocabulary, classes=classes, width=width)
        if not 0 <= padding < vocabulary:
            raise UsageError(f"--model.padding {padding}: it must be one of the {vocabulary} tokens, from 0")
        self.vocabulary, self.padding, self.classes, self.width = vocabulary, padding, classes, width
        self.embedding = torch.nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=padding)
        self.linear = torch.nn.Linear(width, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map tokens int64 (B, L) to z (B, width); a text of padding alone has z = 0."""
        z: Tensor = self.embedding(inputs)
        return z


class TransformerClassifier(Classifier):
    """A pre-trained encoder of transformers, the mean of its last states, padding left out, and one linear layer.

    The data must have the encoder's own tokens: `--data.tokenizer` names the same folder. A frozen encoder is a
    constant: it runs in evaluation mode, and is neither sent between server and clients nor written to checkpoints.
    Trained by SGD. The linear layer's initial weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        checkpoint: Folder of the encoder as transformers saves it (`config.json` and weights), or with
            `local_files_only false` also its name on the model hub.
        frozen: Whether the encoder stays as it is, and the linear layer alone is trained.
        local_files_only: Whether to read files that are here already, and never ask the model hub.
        vocabulary: Number of different tokens, no more than the encoder knows. Null takes the data set's (from Python:
            the encoder's).
        padding: The token that fills short texts. Null takes the data set's (from Python: the encoder's, or 0).
        classes: Number of classes. Null takes the data set's (from Python: 3).
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Attributes:
        init: Where the encoder came from, `checkpoint`.

    Raises:
        UsageError: The encoder's tokens are not those of the data, or a number is out of range.
        FlgenError: There is no encoder, or transformers is not installed.

    Source: GPT-FL, section 5.3 (optional sentence encoder).
    """

    def __init__(
        self,
        checkpoint: str,
        frozen: bool = True,
        local_files_only: bool = True,
        vocabulary: int | None = None,
        padding: int | None = None,
        classes: int | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        encoder = load_encoder(checkpoint, local_files_only)
        known, own_padding = encoder.config.vocab_size, encoder.config.pad_token_id or 0
        vocabulary = known if vocabulary is None else vocabulary
        padding = own_padding if padding is None else padding
        classes = 3 if classes is None else classes
        check_counts(vocabulary=vocabulary, classes=classes)
        if vocabulary > known or padding != own_padding:
            raise UsageError(
                f"--model.checkpoint {checkpoint} knows {known} tokens with {own_padding} as padding, but the data "
                f"have {vocabulary} with {padding}: give the encoder's own tokenizer as --data.tokenizer"
            )
        self.checkpoint, self.frozen, self.local_files_only = checkpoint, frozen, local_files_only
        self.vocabulary, self.padding, self.classes, self.init = vocabulary, padding, classes, checkpoint
        if frozen:
            # In a list it is no part of this module: its weights are not among those that a method sends and keeps.
            self._constant = [encoder.eval().requires_grad_(False)]
        else:
            self.encoder = encoder
        self.linear = torch.nn.Linear(encoder.config.hidden_size, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map tokens int64 (B, L) to z (B, Z), Z the width of the encoder's states."""
        encoder = self._constant[0].to(inputs.device) if self.frozen else self.encoder
        real = (inputs != self.padding).to(torch.int64)  # (B, L)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = encoder(input_ids=inputs, attention_mask=real).last_hidden_state  # (B, L, Z)
        weights = real.unsqueeze(2).to(states.dtype)
        z: Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return z


def load_encoder(checkpoint: str, local_files_only: bool) -> Any:
    """Return an encoder of transformers, float32.

    Args:
        checkpoint: Its folder, or its name on the model hub.
        local_files_only: Whether to read files that are here already, and never ask the model hub.

    Raises:
        UsageError: The model is no encoder that stands alone.
        FlgenError: It cannot be read, or transformers is not installed.
    """
    folder = Path(checkpoint).expanduser()
    remedy = "give the folder that save_pretrained wrote"
    if local_files_only and not folder.is_dir():
        raise FlgenError(f"--model.checkpoint {checkpoint}: there is no such folder; {remedy}")
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise FlgenError("--model.checkpoint needs the package transformers: install flgen[synthesis]") from error
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # every rank would draw one
    try:
        encoder = AutoModel.from_pretrained(
            str(folder) if folder.is_dir() else checkpoint,
            local_files_only=local_files_only,
            dtype=torch.float32,
            trust_remote_code=False,  # nobody is asked at the terminal, as the library would
        )
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise FlgenError(f"--model.checkpoint {checkpoint} cannot be read ({reason}); {remedy}") from error
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    if encoder.config.is_encoder_decoder:
        raise UsageError(
            f"--model.checkpoint {checkpoint} has an encoder and a decoder; give a model that is an encoder"
        )
    return encoder
