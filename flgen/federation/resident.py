"""The one module of a rank, in which its clients take turns: load a client's weights, train, test, take them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgen.data import ImageData, LabelledData
from flgen.data.augmentation import AUGMENTATIONS
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.federation.flat_parameters import flatten_in_place
from flgen.federation.local_training import (
    LoggedValues,
    only_optimizer,
    test_module,
    test_predictions,
    train_locally,
)
from flgen.federation.training_options import LocalTraining
from flgen.metrics import flops

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric

    from flgen.data.client_data import ClientData
    from flgen.federation.clients import Client

TEST_BATCH = 256


class ResidentModel:
    """A module behind flat vectors: switching clients is one copy, a mask is one product.

    Args:
        module: On its device; its parameters and buffers become views of the vectors.
        data: Where its inputs come from.
        fabric: For precision and backward.
        training: How clients train.
        last: Names of the parameters that come last among the weights.
        joins_single_samples: Whether a last batch of one sample joins the batch before it.

    Attributes:
        last: Names of the parameters that come last among the weights, in their order.
        vector: All parameters, then all floating-point buffers, float32 (d + b,).
        weights: The parameters, a view (d,).
        buffers: The floating-point buffers (BatchNorm's statistics), a view (b,).
        counters: Integer buffers (BatchNorm's batch counter), int64 (c,).
    """

    def __init__(
        self,
        module: LightningModule,
        data: LabelledData,
        fabric: Fabric,
        training: LocalTraining,
        last: Collection[str] = (),
        joins_single_samples: bool = False,
    ) -> None:
        if training.augmentation != "none" and not isinstance(data, ImageData):
            raise UsageError(
                f"--method.training.augmentation {training.augmentation} moves images, but --data "
                f"{type(data).__name__} holds {data.noun}: use --method.training.augmentation none"
            )
        self.module = module
        self.data = data
        self.fabric = fabric
        self.training = training
        self.joins_single_samples = joins_single_samples
        named = dict(module.named_parameters())
        self.last = tuple(name for name in named if name in last)
        self._last = [parameter for name, parameter in named.items() if name in last]
        first = [parameter for name, parameter in named.items() if name not in last]
        floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        integers = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]
        d = sum(parameter.numel() for parameter in named.values())
        self._parameters = [*first, *self._last]
        self.vector = flatten_in_place([*self._parameters, *floating])
        self.weights, self.buffers = self.vector[:d], self.vector[d:]
        self.counters = flatten_in_place(integers) if integers else torch.empty(0, dtype=torch.int64)
        self.logged = LoggedValues(fabric)
        module.fabric = self.logged  # type: ignore[assignment]
        self._count_flops()

    def reset(self, seed: int) -> None:
        """Draw new initial weights, by `reset_parameters` of the module or of each of its layers.

        Args:
            seed: Of the draws; the global generator is given back as it was.

        Raises:
            UsageError: A layer has parameters and no `reset_parameters`.
        """
        with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []):
            torch.manual_seed(seed)
            whole = getattr(self.module, "reset_parameters", None)
            for layer in [self.module] if callable(whole) else self.module.modules():
                draw = getattr(layer, "reset_parameters", None)
                if callable(draw):
                    draw()
                elif next(layer.parameters(recurse=False), None) is not None:
                    raise UsageError(
                        f"--method.init independent draws weights by reset_parameters(), which {type(layer).__name__} "
                        "lacks: write it, or use --method.init shared"
                    )

    def train(
        self,
        client: Client,
        t: int,
        on_step: Callable[[int, int], None],
        *,
        epochs: int | None = None,
        steps_before: int = 0,
        steps_after: int = 0,
        data: ClientData | None = None,
        purpose: str = "batches",
        decay_round: int | None = None,
        loss: Callable[[Any, int], Any] | None = None,
        on_gradient: Callable[[], object] | None = None,
        after_step: Callable[[], object] | None = None,
        active: Mapping[str, int] | None = None,
        augmented: bool = True,
    ) -> None:
        """Train the module as it stands on a client's data, and add what it cost and logged to the client's metrics.

        Args:
            client: Whose data and random streams are used.
            t: The round.
            on_step: Told (steps done, steps in all) after each step.
            epochs: Passes over the data; null takes the training options'.
            steps_before: Steps of this client step that came before this call, for `on_step`.
            steps_after: Steps of this client step that will come after it.
            data: Part of the client's data; null takes all.
            purpose: Name of the random stream of the batches.
            decay_round: Round whose learning rate is used; null takes t.
            loss: Takes (batch, its number from 0) in place of the module's `training_step`.
            on_gradient: Called after each backward pass, before clipping.
            after_step: Called after each optimiser step.
            active: Number of weights that are not zero, by parameter name, for those that are not dense.
            augmented: Whether batches are augmented as the training options say.
        """
        training, data = self.training, data or client.data
        epochs = epochs or training.epochs
        optimizer = only_optimizer(self.module)
        for group in optimizer.param_groups:
            group["lr"] *= self.learning_rate_factor(t if decay_round is None else decay_round)
        steps = epochs * self.steps_per_epoch(data.samples)

        def before_step() -> None:
            if on_gradient is not None:
                on_gradient()
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.module.parameters(), training.clip_norm)

        self.logged.means()  # forget what a client that failed half way had said
        train_locally(
            self.module,
            optimizer,
            self.batches(client, data, purpose, t, epochs=epochs, augmented=augmented),
            self.fabric,
            seed=client.streams.seed_for(f"module/{purpose}", round=t, client=client.key),
            steps=steps,
            on_step=lambda done, of: on_step(steps_before + done, steps_before + of + steps_after),
            loss=loss,
            before_step=before_step if on_gradient or training.clip_norm is not None else None,
            after_step=after_step,
        )
        client.metrics.update(self.logged.means())
        self.add_flops(client, epochs * data.samples, active)

    def steps_per_epoch(self, samples: int) -> int:
        """Return the number of batches of one pass over some samples."""
        B = self.training.batch_size
        joined = self.joins_single_samples and samples > B and samples % B == 1
        return -(-samples // B) - joined

    def learning_rate_factor(self, t: int) -> float:
        """Return what the module's learning rate is multiplied by in round t."""
        return self.training.learning_rate_decay ** (t - 1)

    def learning_rate(self, t: int) -> float:
        """Return the learning rate of the module's optimiser in round t, eta_t."""
        rate: float = only_optimizer(self.module).param_groups[0]["lr"]
        return rate * self.learning_rate_factor(t)

    def batches(
        self,
        client: Client,
        data: ClientData,
        purpose: str,
        t: int,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        augmented: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches as the module takes them: augmented, float32, standardised."""
        shifts = client.random(f"{purpose} augmentation", t)
        size = min(self.training.batch_size, data.samples) if steps else self.training.batch_size
        drawn = data.batches(size, client.random(purpose, t), steps=steps, epochs=epochs)
        for x, y in without_single_samples(drawn) if self.joins_single_samples else drawn:
            if augmented and self.training.augmentation != "none":
                x = AUGMENTATIONS[self.training.augmentation](x, shifts)
            yield self.data.standardize(x), y

    def split_last(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat tensor (P,), one in the shape of each of the `last` parameters."""
        parts = flat.split([parameter.numel() for parameter in self._last])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self._last, strict=True)]

    def gradients(self) -> Tensor:
        """Return the gradients as they stand (d,), in the order of `weights`; zeros where there is none."""
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def add_to_gradients(self, term: Tensor) -> None:
        """Add a vector (d,), in the order of `weights`, to the gradients of all parameters that are trained."""
        parts = term.split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # this batch did not need the parameter
                parameter.grad = part.view_as(parameter).clone()
            else:
                parameter.grad.add_(part.view_as(parameter))

    def mask_gradients(self, masks: list[Tensor]) -> None:
        """Multiply the gradients of the `last` parameters by masks of their shapes."""
        for parameter, mask in zip(self._last, masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def test(self, data: ClientData, predict: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return what the module's `test_step` logs on some data, each batch weighted by its samples.

        Args:
            data: What it is tested on.
            predict: Maps inputs (B, ...) to classes (B,) in place of the module: then accuracy and F1 are measured.
        """
        self.logged.means()
        batches = ((self.data.standardize(x), y) for x, y in data.in_order(TEST_BATCH))
        if predict is not None:
            return test_predictions(self.module, batches, self.fabric, predict)
        return test_module(self.module, batches, self.fabric, self.logged)

    def test_split(self) -> dict[str, float]:
        """Return the same on the data set's whole test split."""
        rows = np.arange(len(self.data.test))
        return self.test(self.data.client_test_data(rows, self.fabric.device))

    def test_client(
        self, client: Client, point: str, predict: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Return the same on a client's own test data, each name followed by the point of the round: accuracy_trained.

        Of a client that holds samples back for validation the results on those are called `val/accuracy_trained`, and
        those on its test data `test/...`, whichever step the module has. A client without test data has no results on
        these.

        Args:
            client: With its data.
            point: The point of the round.
            predict: As for `test`.
        """
        results = {} if client.test_data.samples == 0 else self.test(client.test_data, predict)
        if client.validation_data is not None:
            held_back = self.test(client.validation_data, predict)
            results = {**_called("test", results), **_called("val", held_back)}
        return {f"{name}_{point}": value for name, value in results.items()}

    def in_eval(self, data: ClientData, answer: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float32 answers (B, ...) to every batch of some data, with its labels, in eval mode without gradients.

        Args:
            data: Gone through once, in order.
            answer: Maps inputs (B, ...) to answers.
        """
        self.module.eval()
        with torch.no_grad(), self.fabric.autocast():
            for x, y in data.in_order(TEST_BATCH):
                yield answer(self.data.standardize(x)).float(), y

    def summed_loss(self, data: ClientData) -> float:
        """Return the training loss summed over the samples of some data, without learning from them."""
        self.module.eval()
        total = 0.0
        with torch.no_grad(), self.fabric.autocast():
            for index, (x, y) in enumerate(data.in_order(TEST_BATCH)):
                total += float(_loss(self.module.training_step((self.data.standardize(x), y), index))) * len(y)
        self.logged.means()
        return total

    def gradient(self, client: Client, t: int, *, augmented: bool = True) -> Tensor:
        """Return the gradient on one batch of a client at the weights as they stand, of the `last` parameters (P,).

        Evaluation mode, no clipping, no weight decay (dispfl.md, section 5).
        """
        self.module.eval()
        ((x, y),) = self.batches(client, client.data, "search", t, steps=1, augmented=augmented)
        with self.fabric.autocast():
            loss = _loss(self.module.training_step((x, y), 0))
        gradients = torch.autograd.grad(loss, self._last, allow_unused=True, materialize_grads=True)
        self.logged.means()
        self.add_flops(client, len(y))
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _count_flops(self) -> None:
        """Measure what one sample costs: per layer, and by torch's own counter, forward and backward.

        Raises:
            UsageError: The module's `training_step` fails on a sample of the data set's shape.
        """
        layout = self.data.layout()
        sample = self.data.standardize(torch.zeros(1, *layout.shape, dtype=layout.dtype, device=self.fabric.device))
        label = torch.zeros(1, dtype=torch.int64, device=self.fabric.device)

        def step() -> Tensor:
            return _loss(self.module.training_step((sample, label), 0))

        try:
            self._costs = flops.layer_costs(self.module, step)
            self._counted_flops = flops.counted_training_flops(self.module, step)
        except FlgenError:
            raise
        except Exception as error:  # the module is the user's: whatever it raises is its answer
            raise UsageError(
                f"--model {type(self.module).__name__}: training_step fails on a sample of --data "
                f"{type(self.data).__name__}, {tuple(sample.shape)}: {type(error).__name__}: "
                f"{' '.join(str(error).split())} (FLGEN_TRACEBACK=1 shows where)"
            ) from error
        self.logged.means()

    def add_flops(self, client: Client, samples: int, active: Mapping[str, int] | None = None) -> None:
        """Charge a client for the forward and backward passes of some samples (dispfl.md, section 9.1)."""
        spent = {
            "flops/client_round": flops.client_round_flops(self._costs, samples=samples, epochs=1, active=active),
            "flops/client_round_torch": self._counted_flops * samples,
        }
        for name, count in spent.items():
            client.metrics[name] = client.metrics.get(name, 0) + count


def _called(part: str, results: Mapping[str, float]) -> dict[str, float]:
    """Return results under the name of the part of the data that they were measured on."""
    return {f"{part}/{name.removeprefix('test/').removeprefix('val/')}": value for name, value in results.items()}


def without_single_samples(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, of which one of a single sample has joined the one before it: BatchNorm needs two.

    Args:
        batches: Inputs (B, ...) and labels (B,); those of one sample that come first are left as they are.
    """
    waiting: tuple[Tensor, Tensor] | None = None
    for x, y in batches:
        if waiting is not None and len(y) == 1:
            x, y = torch.cat([waiting[0], x]), torch.cat([waiting[1], y])
        elif waiting is not None:
            yield waiting
        waiting = x, y
    if waiting is not None:
        yield waiting


def _loss(outcome: Any) -> Tensor:
    """Return the loss that a `training_step` returned, alone or in a dictionary."""
    loss: Tensor = outcome["loss"] if isinstance(outcome, Mapping) else outcome
    return loss
