"""DynaFed: Pi, Zhang, Xie, Gao, Wang, Kim, Chen, "DYNAFED: Tackling Client Data Heterogeneity with Global Dynamics",
CVPR 2023.

rounds 1 .. L: FedAvg ; the server keeps x^0 .. x^L
after round L, once: images U and soft labels p, 15 per class, such that s SGD steps on them repeat what the rounds did
    3000 times:  x~ <- x^t, a random t ; s steps  x~ <- x~ - eta grad CE( f(aug(U); x~), p )
        x_tgt <- the mean of two or three of x^{t+1} .. x^{t+3}
        U, p, eta <- Adam step on  ||x~ - x_tgt||^2 / ||x^t - x_tgt||^2
rounds L+1 ..: FedAvg, then the server's model learns (U, p) for 20 epochs
"""

from __future__ import annotations

import logging
from typing import Any

from flgen.data.image_data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data import siamese_augmentation as augmentation
    from flgen.federation import flat_parameters
    from flgen.federation.clients import Federation
    from flgen.topology.star import Uploads
else:
    torch = deferred_module("torch")
    augmentation = deferred_module("flgen.data.siamese_augmentation")
    flat_parameters = deferred_module("flgen.federation.flat_parameters")

log = logging.getLogger("flgen")

_ROUNDING = 1e-6  # of a float32 model: what is nearer has not been trained


class DynaFed(FedAvg):
    """FedAvg, whose server makes images out of the first rounds' models and learns them later (gptfl.md, section 6.9).

    The module's `forward` must return logits (B, classes), and it must not have BatchNorm, whose statistics the steps
    on synthetic images could not repeat. Synthesis needs float32 and no dropout: it runs in eval mode. It happens at
    the end of round L and may take long; other processes wait as long as --trainer.round_timeout_s says.

    Args:
        training: How clients train.
        trajectory_rounds: Rounds of FedAvg that the images are made of, L.
        images_per_class: Synthetic images per class.
        synthesis_steps: Adam steps on the images.
        inner_steps: SGD steps on the images that repeat a few rounds, s.
        inner_batch_size: Images per inner step; null takes all of them.
        target_span: Models after the start of which two or more, drawn anew in each step, are averaged.
        image_learning_rate: Of Adam on the images.
        label_learning_rate: Of Adam on the logits of their labels, which begin at 0.
        step_size: Learning rate eta of the inner steps, at first.
        step_size_learning_rate: Of Adam on eta.
        fine_tune_epochs: Passes over the images after each later round; published are 20 for CIFAR-10 at alpha 0.01,
            15 at 0.16, 8 for CIFAR-100.
        fine_tune_batch_size: Images per step of them.
        fine_tune_learning_rate: Of their Adam.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(batch_size=32),
        trajectory_rounds: int = 25,
        images_per_class: int = 15,
        synthesis_steps: int = 3000,
        inner_steps: int = 20,
        inner_batch_size: int | None = None,
        target_span: int = 3,
        image_learning_rate: float = 5e-2,
        label_learning_rate: float = 1e-2,
        step_size: float = 0.04,
        step_size_learning_rate: float = 1e-5,
        fine_tune_epochs: int = 20,
        fine_tune_batch_size: int = 256,
        fine_tune_learning_rate: float = 1e-4,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        option_ranges.at_least("method", 2, trajectory_rounds=trajectory_rounds, target_span=target_span)
        option_ranges.at_least(
            "method",
            1,
            images_per_class=images_per_class,
            synthesis_steps=synthesis_steps,
            inner_steps=inner_steps,
            inner_batch_size=inner_batch_size,
            fine_tune_epochs=fine_tune_epochs,
            fine_tune_batch_size=fine_tune_batch_size,
        )
        option_ranges.above_0(
            "method",
            image_learning_rate=image_learning_rate,
            label_learning_rate=label_learning_rate,
            step_size=step_size,
            step_size_learning_rate=step_size_learning_rate,
            fine_tune_learning_rate=fine_tune_learning_rate,
        )
        self.trajectory_rounds = trajectory_rounds
        self.images_per_class = images_per_class
        self.synthesis_steps = synthesis_steps
        self.inner_steps = inner_steps
        self.inner_batch_size = inner_batch_size
        self.target_span = target_span
        self.image_learning_rate = image_learning_rate
        self.label_learning_rate = label_learning_rate
        self.step_size = step_size
        self.step_size_learning_rate = step_size_learning_rate
        self.fine_tune_epochs = fine_tune_epochs
        self.fine_tune_batch_size = fine_tune_batch_size
        self.fine_tune_learning_rate = fine_tune_learning_rate

    def check(self, federation: Federation) -> None:
        """Say so if the run ends before any image is learnt."""
        super().check(federation)
        if federation.rounds <= self.trajectory_rounds:
            log.warning(
                "--trainer.rounds is %d: DynaFed makes its images after round %d (--method.trajectory_rounds), so this "
                "run is FedAvg",
                federation.rounds,
                self.trajectory_rounds,
            )

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that images can be made for this module: a classifier of images without BatchNorm."""
        if not isinstance(data, ImageData):
            raise UsageError(f"--method DynaFed makes images, but --data {type(data).__name__} holds {data.noun}")
        batch_norm = torch.nn.modules.batchnorm._BatchNorm  # of any dimension, and the synchronised one
        normalised = [name for name, layer in model.named_modules() if isinstance(layer, batch_norm)]
        if normalised:
            raise UsageError(
                f"--model {type(model).__name__} has BatchNorm ({normalised[0]}), which DynaFed cannot match "
                "trajectories through: use a model without it, such as ConvNet, or with GroupNorm"
            )
        distillation.check_logits(model, data)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """x^0 = w_1."""
        super().setup(federation, model, data, fabric)
        self.parameters = dict(model.named_parameters())
        self.d = len(self.resident.weights)
        self.trajectory = [self.w_1[: self.d].cpu()]  # x^0 .. x^t, until the images are made
        self.images: Tensor | None = None
        self.soft_labels: Tensor | None = None
        self.learnt: dict[str, float] = {}

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """FedAvg ; then x^t is kept, in round L the images are made, later they are learnt."""
        super().aggregate(t, uploads)
        if self.images is None:
            self.trajectory.append(self.w_t[: self.d].cpu())
            if t >= self.trajectory_rounds:
                self.images, self.soft_labels = self.synthesise(t)
                self.trajectory = []
        else:
            self.load(self.w_t)
            self.learnt = {"distillation/loss": self.learn_images(t)}
            self.w_t = self.w.clone()

    def synthesise(self, t: int) -> tuple[Tensor, Tensor]:
        """Return images U (n, C, H, W), standardised, and their soft labels p (n, classes).

        Raises:
            FlgenError: The models do not move, or the images leave all bounds.
        """
        log.info("round %d: DynaFed makes images, in %d steps", t, self.synthesis_steps)
        device, draws = self.w.device, self.federation.streams.torch("synthesis", round=t)
        n = self.images_per_class * self.data.classes
        shape = self.data.standardize(torch.zeros(1, *self.data.layout().shape, dtype=torch.uint8)).shape[1:]
        U = torch.randn(n, *shape, generator=draws).to(device).requires_grad_()
        label_logits = torch.zeros(n, self.data.classes, device=device, requires_grad=True)
        eta = torch.tensor(self.step_size, device=device, requires_grad=True)
        adam = torch.optim.Adam(
            [
                {"params": [U], "lr": self.image_learning_rate},
                {"params": [label_logits], "lr": self.label_learning_rate},
                {"params": [eta], "lr": self.step_size_learning_rate},
            ]
        )
        self.load(self.w_t)
        self.model.eval()
        losses = []
        for _ in range(self.synthesis_steps):
            start, target = pick_target(len(self.trajectory), self.target_span, draws)
            x_t = self.trajectory[start].to(device)
            x_tgt = torch.stack([self.trajectory[number] for number in target]).mean(dim=0).to(device)
            if float(torch.dist(x_t, x_tgt)) <= _ROUNDING * float(x_tgt.norm()):
                raise FlgenError(
                    f"round {t}: the models of rounds {start} to {max(target)} are all the same, so there is no "
                    "trajectory to make images of: raise --model.learning_rate"
                )
            x = self.unroll(x_t, U, torch.softmax(label_logits, dim=1), eta, draws)
            L = matching_loss(x, x_t, x_tgt)
            adam.zero_grad()
            L.backward()
            adam.step()
            losses.append(L.detach())
        if not bool(
            torch.isfinite(U).all() & torch.isfinite(label_logits).all() & torch.isfinite(torch.stack(losses)).all()
        ):
            raise FlgenError(
                f"round {t}: the synthetic images hold NaN or infinity: lower --method.image_learning_rate or "
                "--method.step_size"
            )
        last = torch.stack(losses[-100:]).mean()
        self.learnt = {"synthesis/loss": float(last), "synthesis/step_size": float(eta.detach())}
        return U.detach(), torch.softmax(label_logits.detach(), dim=1)

    def unroll(self, x: Tensor, U: Tensor, p: Tensor, eta: Tensor, draws: torch.Generator) -> Tensor:
        """Return x~ (d,) after s SGD steps on U from x; gradients flow back to U, p and eta.

        Args:
            x: Weights at the start (d,).
            U: Images (n, C, H, W).
            p: Soft labels (n, classes).
            eta: Learning rate.
            draws: CPU generator of batches and augmentation.
        """
        x = x.clone().requires_grad_()
        for _ in range(self.inner_steps):
            images, labels = U, p
            if self.inner_batch_size is not None:
                rows = torch.randperm(len(U), generator=draws)[: self.inner_batch_size].to(U.device)
                images, labels = U[rows], p[rows]
            named = flat_parameters.named_parts(x, self.parameters)
            f = torch.func.functional_call(self.model, named, (augmentation.siamese(images, draws),))
            (gradient,) = torch.autograd.grad(distillation.soft_cross_entropy(f, labels), x, create_graph=True)
            x = x - eta * gradient
        return x

    def learn_images(self, t: int) -> float:
        """Let the resident weights learn the images; return the mean loss."""
        assert self.images is not None
        assert self.soft_labels is not None
        U, p, n = self.images, self.soft_labels, len(self.images)
        order = self.federation.streams.torch("fine tuning", round=t)
        batches = (
            (U[rows], p[rows])
            for _ in range(self.fine_tune_epochs)
            for rows in torch.randperm(n, generator=order).to(U.device).split(self.fine_tune_batch_size)
        )
        return distillation.train_on_server(
            self.resident,
            torch.optim.Adam(self.model.parameters(), lr=self.fine_tune_learning_rate),
            batches,
            lambda images, labels: distillation.soft_cross_entropy(self.model(images), labels),
            seed=self.federation.streams.seed_for("fine tuning", round=t),
        )

    def round_metrics(self, t: int) -> dict[str, float]:
        """How well the images repeat the trajectory, or how well the server's model has learnt them."""
        return dict(self.learnt)

    def state_dict(self) -> dict[str, Any]:
        """w_{t+1}, and the trajectory or what was made of it."""
        if self.images is None:
            return {**super().state_dict(), "trajectory": torch.stack(self.trajectory)}
        return {**super().state_dict(), "images": self.images, "soft_labels": self.soft_labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().load_state_dict(state)
        self.trajectory = [x.cpu() for x in state.get("trajectory", ())]
        self.images = state["images"].to(self.w) if "images" in state else None
        self.soft_labels = state["soft_labels"].to(self.w) if "images" in state else None


def matching_loss(x: Tensor, x_t: Tensor, x_tgt: Tensor) -> Tensor:
    """Return ||x - x_tgt||^2 / ||x_t - x_tgt||^2 (section 6.9).

    Args:
        x: Where the steps on the images have come to (d,).
        x_t: Where they began (d,).
        x_tgt: Where the rounds have come to (d,); not x_t.
    """
    return (x - x_tgt).square().sum() / (x_t - x_tgt).square().sum()


def pick_target(models: int, span: int, draws: torch.Generator) -> tuple[int, list[int]]:
    """Return a start and the later models whose mean is its target: two or more of the `span` that follow.

    Args:
        models: Number of models in the trajectory, 3 or more.
        span: How far ahead of the start a target may lie; near the end as far as there are models.
        draws: CPU generator.
    """
    start = int(torch.randint(models - 2, (), generator=draws))
    ahead = min(span, models - 1 - start)
    averaged = int(torch.randint(2, ahead + 1, (), generator=draws))
    return start, sorted(start + 1 + int(i) for i in torch.randperm(ahead, generator=draws)[:averaged])
