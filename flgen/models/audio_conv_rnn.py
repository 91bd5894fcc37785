"""The convolutional and recurrent classifier of recordings."""

from __future__ import annotations

from flgen.data.log_mel import MELS
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.models.classifiers import Classifier, check_counts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred_module("torch")

WIDTHS = (64, 128)


class AudioConvRNN(Classifier):
    """Two convolutions over time, a bidirectional GRU, the mean over time and two linear layers; trained by SGD.

    It reads log-mel features. All recordings of a data set have one length, so that the mean over time has no frames in
    it that only fill up a batch. Initial weights are PyTorch's own, hence those of `seed_everything`.

    Args:
        classes: Number of classes. Null takes the data set's (from Python: 10).
        hidden: Width of each direction of the GRU.
        dropout: Share of the values behind the convolutions that are dropped in training.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.

    Raises:
        UsageError: A size is too small, or a number is out of its range.

    Source: FedAudio's `audio_conv_rnn`, gptfl.md, section 5.3.
    """

    def __init__(
        self,
        classes: int | None = None,
        hidden: int = 128,
        dropout: float = 0.1,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, momentum)
        classes = 10 if classes is None else classes
        check_counts(classes=classes, hidden=hidden)
        if not 0.0 <= dropout < 1.0:
            raise UsageError(f"--model.dropout {dropout}: it must be at least 0 and below 1")
        self.classes, self.hidden, self.dropout = classes, hidden, dropout
        nn = torch.nn
        self.convolutions = nn.Sequential(
            nn.Conv1d(MELS, WIDTHS[0], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2),
            nn.Conv1d(WIDTHS[0], WIDTHS[1], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2),
            nn.Dropout(dropout),
        )
        self.recurrence = nn.GRU(WIDTHS[1], hidden, batch_first=True, bidirectional=True)
        self.summary = nn.Sequential(nn.Linear(2 * hidden, WIDTHS[1]), nn.ReLU(inplace=True))
        self.linear = nn.Linear(WIDTHS[1], classes)

    def features(self, inputs: Tensor) -> Tensor:
        """Map log-mel features (B, T, 128), T at least 4, to z (B, 128)."""
        steps = self.convolutions(inputs.mT).mT  # (B, T // 4, 128)
        states, _ = self.recurrence(steps)  # (B, T // 4, 2 hidden)
        z: Tensor = self.summary(states.mean(dim=1))
        return z
