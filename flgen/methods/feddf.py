"""FedDF: Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020.

round t: the cohort trains as in FedAvg, each client sends w_k
server:
    w <- sum_k (n_k / n) w_k
    for at most 10^4 public batches b:
        q(b) = softmax( 1/|S| sum_k f_k(b) / T )                        the mean of logits, then softmax
        w <- Adam step on KL( q(b) || softmax(f_w(b) / T) )
which w becomes w_{t+1}:
    "public"   every 100 steps: is KL on held-back public samples lower than ever? stop after 1000 steps in which it was
               not; the w with the lowest KL, the average's own among them
    "clients"  the average and the w after each fifth of the steps go down; each client returns the loss of each on
               samples of its own that it never trains on; the w with the lowest sum
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from flgen.data.labelled_data import LabelledData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from torch import Tensor

    from flgen.data.client_data import ClientData
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")


@dataclass(frozen=True)
class Student:
    """The server's weights after some steps of distillation.

    Args:
        step: How many; 0 is the average itself.
        weights: float32 (d + b,).
        loss: KL to the ensemble on the public samples that are held back; NaN if nobody has looked.
    """

    step: int
    weights: Tensor
    loss: float = float("nan")


class FedDF(FedAvg):
    """FedAvg, whose average then learns to say what the clients' models say together (gptfl.md, section 6.5).

    The module's `forward` must return logits (B, classes). Which student is kept must not be judged by what it has
    learnt, nor by the test split. By "public" samples the server judges alone, by the ensemble and not by labels, for
    it has none. By "clients" it asks those of the round, who hold back some of their own labelled samples; that costs
    them `students` + 1 more models per round, down, and no round ends early.

    Args:
        training: How clients train.
        public_data: The unlabelled samples; its labels are not read.
        temperature: T, by which logits are divided.
        distillation_steps: Most steps per round, over which the learning rate falls to 0 along a cosine.
        distillation_batch_size: Samples per step.
        distillation_learning_rate: Of Adam, at first.
        validation: Who says which student is kept: held-back "public" samples, or "clients".
        validation_fraction: Share of the public samples that is held back for that, or of each client's own.
        validate_every: Steps between two looks at the public ones; the last step is looked at in any case.
        patience: Steps without a lower loss on them after which a round's distillation ends.
        students: How many the clients judge beside the average, at equal distances up to the last step.
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
        validation: Literal["public", "clients"] = "public",
        validation_fraction: float = 0.1,
        validate_every: int = 100,
        patience: int = 1000,
        students: int = 5,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        self.public_data = distillation.required(public_data, "FedDF")
        option_ranges.at_least(
            "method",
            1,
            distillation_steps=distillation_steps,
            distillation_batch_size=distillation_batch_size,
            validate_every=validate_every,
            patience=patience,
            students=students,
        )
        option_ranges.above_0("method", temperature=temperature, distillation_learning_rate=distillation_learning_rate)
        option_ranges.shares("method", validation_fraction=validation_fraction)
        first_look = min(validate_every, distillation_steps)
        if validation == "public" and patience < first_look:
            raise UsageError(
                f"--method.patience is {patience}, so every round would end before its first look at the held-back "
                f"samples, after {first_look} steps: raise it, or lower --method.validate_every"
            )
        if validation == "clients" and students > distillation_steps:
            raise UsageError(
                f"--method.students is {students}: give 1 to {distillation_steps}, the steps of distillation "
                "(--method.distillation_steps)"
            )
        self.temperature = temperature
        self.distillation_steps = distillation_steps
        self.distillation_batch_size = distillation_batch_size
        self.distillation_learning_rate = distillation_learning_rate
        self.validation = validation
        self.validates = validation == "clients"
        self.validation_fraction = validation_fraction
        self.validate_every = validate_every
        self.patience = patience
        self.students = students

    def check(self, federation: Federation) -> None:
        """Refuse clients that have nothing to hold back, where they must."""
        super().check(federation)
        if self.validates:
            federation.check_split("FedDF with --method.validation clients")

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the module is a classifier, and load the public data."""
        distillation.check_logits(model, data)
        distillation.load_public_data(self.public_data, data)

    def training_data(self, client: Client) -> ClientData:
        """Return all that a client has, or what it does not hold back."""
        return client.split(self.validation_fraction)[0] if self.validates else client.data

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w <- sum_k (n_k / n) w_k, then distillation from the ensemble of all w_k."""
        received = distillation.received_in_order(uploads, self.federation)
        everything = distillation.unlabelled(self.public_data, self._rows(), self.w.device)
        f_bar = torch.zeros((), dtype=torch.float64, device=self.w.device)
        for _, sent in received:
            self.load(sent["weights"])
            f_bar = f_bar + distillation.logits_on(self.resident, everything).double() / len(received)
        self.load(distillation.sample_weighted_mean(received))
        if self.validates:
            self.offered = self.several_students(t, f_bar.float())
            return
        best = self.best_student(t, f_bar.float())
        self._take(best, best.loss)

    def candidates(self, t: int) -> codecs.Payload:
        """The average and the students."""
        return {"students": codecs.dense(torch.stack([student.weights for student in self.offered]))}

    def judge(self, client: Client, candidates: dict[str, Tensor], t: int) -> codecs.Payload:
        """The loss of each, summed over what the client holds back."""
        _, held_back = client.split(self.validation_fraction)
        losses = []
        for w in candidates["students"]:
            self.load(w)
            losses.append(self.resident.summed_loss(held_back))
        samples = torch.tensor([held_back.samples])
        return {"losses": codecs.dense(torch.tensor(losses, dtype=torch.float64)), "samples": codecs.dense(samples)}

    def settle(self, t: int, judgements: Uploads) -> None:
        """w_{t+1} <- the one with the lowest sum; the first of several."""
        said = [judgement for _, judgement in distillation.received_in_order(judgements, self.federation)]
        losses = torch.stack([judgement["losses"] for judgement in said]).sum(dim=0)
        best = int(losses.nan_to_num(nan=torch.inf).argmin())  # who is beyond all numbers is no better
        held_back = sum(int(judgement["samples"]) for judgement in said)
        self._take(self.offered[best], float(losses[best]) / held_back)
        self.offered = []

    def best_student(self, t: int, f_bar: Tensor) -> Student:
        """Train the resident weights, looking at held-back public samples; return the best of all that were looked at.

        Args:
            t: The round.
            f_bar: Mean logits of the ensemble, (N, classes), in the order of `_rows`.
        """
        held_back = max(1, int(self.validation_fraction * len(f_bar)))
        rows = self._rows()
        validation = distillation.unlabelled(self.public_data, rows[:held_back], self.w.device)

        def validate() -> float:
            said = distillation.logits_on(self.resident, validation)
            self.model.train()
            return float(ensemble_divergence(f_bar[:held_back], said, self.temperature))

        best = Student(0, self.w.clone(), validate())

        def go_on(step: int) -> bool:
            nonlocal best
            looks = step % self.validate_every == 0 or step == self.distillation_steps
            if looks and (loss := validate()) < best.loss:
                best = Student(step, self.w.clone(), loss)
            return step - best.step < self.patience

        self.distil(t, rows[held_back:], f_bar[held_back:], go_on)
        return best

    def several_students(self, t: int, f_bar: Tensor) -> list[Student]:
        """Train the resident weights on all public samples; return the average and `students` of them.

        Args:
            t: The round.
            f_bar: Mean logits of the ensemble, (N, classes), in the order of `_rows`.
        """
        kept = [Student(0, self.w.clone())]
        steps = {self.distillation_steps * part // self.students for part in range(1, self.students + 1)}

        def go_on(step: int) -> bool:
            if step in steps:
                kept.append(Student(step, self.w.clone()))
            return True

        self.distil(t, self._rows(), f_bar, go_on)
        return kept

    def distil(self, t: int, rows: Tensor, f_bar: Tensor, go_on: Callable[[int], bool]) -> None:
        """Train the resident weights to say what the ensemble says.

        Args:
            t: The round.
            rows: The public samples to learn from, int64 (n,).
            f_bar: Mean logits of the ensemble on them (n, classes).
            go_on: Told the number of steps taken after each; says whether there shall be another.
        """
        samples = distillation.unlabelled(self.public_data, rows, self.w.device)
        adam = torch.optim.Adam(self.model.parameters(), lr=self.distillation_learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.distillation_steps)
        step, goes_on = 0, True

        def after_step() -> None:
            nonlocal step, goes_on
            cosine.step()
            step += 1
            goes_on = go_on(step)

        order = self.federation.streams.torch("public batches", round=t)
        batches = samples.batches(self.distillation_batch_size, order, steps=self.distillation_steps)
        distillation.train_on_server(
            self.resident,
            adam,
            takewhile(lambda _: goes_on, batches),
            lambda b, o: ensemble_divergence(f_bar[o], self.model(self.data.standardize(b)), self.temperature),
            seed=self.federation.streams.seed_for("distillation", round=t),
            after_step=after_step,
        )

    def _take(self, student: Student, loss: float) -> None:
        self.w_t = student.weights
        self.distilled = {"distillation/loss": loss, "distillation/steps": student.step}

    def _rows(self) -> Tensor:
        """The public samples in an order that is the same in every round, those to hold back first."""
        return distillation.shuffled_rows(self.public_data, self.federation.streams.torch("public validation"))

    def round_metrics(self, t: int) -> dict[str, float]:
        """Loss of the student that was taken on the samples held back, and after how many steps it was reached."""
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
