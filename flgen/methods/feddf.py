"""FedDF: Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020.

round t: the cohort trains as in FedAvg, each client sends w_k
server:
    w <- sum_k (n_k / n) w_k
    for at most 10^4 public batches b:
        q(b) = softmax( 1/|S| sum_k f_k(b) / T )                        the mean of logits, then softmax
        w <- Adam step on KL( q(b) || softmax(f_w(b) / T) )
        every 100 steps: is KL on held-back public samples lower than ever? stop after 1000 steps in which it was not
    w_{t+1} <- the w with the lowest KL on the held-back samples
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from flgen.data.labelled_data import LabelledData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from torch import Tensor

    from flgen.topology.star import Uploads
else:
    torch = deferred_module("torch")


@dataclass
class _Best:
    """The weights with the lowest loss on the held-back samples so far."""

    loss: float
    weights: Tensor
    step: int = 0


class FedDF(FedAvg):
    """FedAvg, whose average then learns to say what the clients' models say together (gptfl.md, section 6.5).

    The module's `forward` must return logits (B, classes). Early stopping needs samples that are not learnt from. They
    are taken from the public ones and judged by the ensemble, not by labels: the server has no labelled sample of its
    own, clients keep theirs, and the test split is for testing. The best weights seen are kept, the average's own
    among them.

    Args:
        training: How clients train.
        public_data: The unlabelled samples; its labels are not read.
        temperature: T, by which logits are divided.
        distillation_steps: Most steps per round, over which the learning rate falls to 0 along a cosine.
        distillation_batch_size: Samples per step.
        distillation_learning_rate: Of Adam, at first.
        validation_fraction: Share of the public samples that is held back for early stopping.
        validate_every: Steps between two looks at them.
        patience: Steps without a lower loss on them after which a round's distillation ends.
        topology: How uploads reach the server.

    Raises:
        UsageError: No public data, or a number is out of its range.
    """

    collection: Collection = "gather"
    needs_single_uploads = "its server runs every client's model on the public data"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        public_data: LabelledData | None = None,
        temperature: float = 1.0,
        distillation_steps: int = 10_000,
        distillation_batch_size: int = 128,
        distillation_learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        validate_every: int = 100,
        patience: int = 1000,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        self.public_data = distillation.required(public_data, "FedDF")
        counts = {
            "distillation_steps": distillation_steps,
            "distillation_batch_size": distillation_batch_size,
            "validate_every": validate_every,
            "patience": patience,
        }
        for option, count in counts.items():
            if count < 1:
                raise UsageError(f"--method.{option} is {count}: give 1 or more")
        numbers = {"temperature": temperature, "distillation_learning_rate": distillation_learning_rate}
        for option, value in numbers.items():
            if not value > 0:
                raise UsageError(f"--method.{option} is {value}: give a number above 0")
        if not 0 < validation_fraction < 1:
            raise UsageError(f"--method.validation_fraction is {validation_fraction}: give a share between 0 and 1")
        self.temperature = temperature
        self.distillation_steps = distillation_steps
        self.distillation_batch_size = distillation_batch_size
        self.distillation_learning_rate = distillation_learning_rate
        self.validation_fraction = validation_fraction
        self.validate_every = validate_every
        self.patience = patience

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the module is a classifier, and load the public data."""
        distillation.check_logits(model, data)
        distillation.load_public_data(self.public_data, data)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w <- sum_k (n_k / n) w_k, then distillation from the ensemble of all w_k."""
        received = distillation.received_in_order(uploads, self.federation)
        everything = distillation.unlabelled(self.public_data, self._rows(), self.w.device)
        f_bar = torch.zeros((), dtype=torch.float64, device=self.w.device)
        for _, sent in received:
            self.load(sent["weights"])
            f_bar = f_bar + distillation.logits_on(self.resident, everything).double() / len(received)
        self.load(distillation.sample_weighted_mean(received))
        best = self.distil(t, f_bar.float())
        self.w_t = best.weights
        self.distilled = {"distillation/loss": best.loss, "distillation/steps": best.step}

    def distil(self, t: int, f_bar: Tensor) -> _Best:
        """Train the resident weights on the public samples; return the best of them.

        Args:
            t: The round.
            f_bar: Mean logits of the ensemble, (N, classes), in the order of `_rows`.
        """
        held_back = max(1, int(self.validation_fraction * len(f_bar)))
        rows, device = self._rows(), self.w.device
        learnt = distillation.unlabelled(self.public_data, rows[held_back:], device)
        validation = distillation.unlabelled(self.public_data, rows[:held_back], device)
        target, validation_target = f_bar[held_back:], f_bar[:held_back]

        def validate() -> float:
            student = distillation.logits_on(self.resident, validation)
            self.model.train()
            return float(ensemble_divergence(validation_target, student, self.temperature))

        best, step = _Best(validate(), self.w.clone()), 0
        adam = torch.optim.Adam(self.model.parameters(), lr=self.distillation_learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.distillation_steps)

        def after_step() -> None:
            nonlocal best, step
            cosine.step()
            step += 1
            if step % self.validate_every == 0 and (loss := validate()) < best.loss:
                best = _Best(loss, self.w.clone(), step)

        order = self.federation.streams.torch("public batches", round=t)
        batches = learnt.batches(self.distillation_batch_size, order, steps=self.distillation_steps)
        distillation.train_on_server(
            self.resident,
            adam,
            takewhile(lambda _: step - best.step < self.patience, batches),
            lambda b, o: ensemble_divergence(target[o], self.model(self.data.standardize(b)), self.temperature),
            seed=self.federation.streams.seed_for("distillation", round=t),
            after_step=after_step,
        )
        return best

    def _rows(self) -> Tensor:
        """The public samples in an order that is the same in every round, those to hold back first."""
        self.public_data.setup()
        draws = self.federation.streams.torch("public validation")
        return torch.randperm(len(self.public_data.train), generator=draws)

    def round_metrics(self, t: int) -> dict[str, float]:
        """KL to the ensemble on the held-back samples, and after how many steps it was reached."""
        return dict(self.distilled)


def ensemble_divergence(f_bar: Tensor, student: Tensor, T: float) -> Tensor:
    """Return KL( softmax(f_bar / T) || softmax(student / T) ), the mean over samples (section 6.5).

    Args:
        f_bar: Mean over the clients' models of their logits (B, classes).
        student: Logits (B, classes).
        T: Temperature.
    """
    log_q = torch.log_softmax(f_bar / T, dim=1)
    log_p = torch.log_softmax(student.to(f_bar.dtype) / T, dim=1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()
