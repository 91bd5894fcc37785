"""What methods share whose server learns from what clients' models say about unlabelled public data.

The public data are the training samples of another data set, of the shape of the task's; their labels are never read.
They are normalised as the task's own samples are, since one network sees both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flgen.data.labelled_data import LabelledData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from torch import Tensor

    from flgen.data import client_data, labelled_set
    from flgen.federation import local_training, resident
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
else:
    torch = deferred_module("torch")
    client_data = deferred_module("flgen.data.client_data")
    labelled_set = deferred_module("flgen.data.labelled_set")
    local_training = deferred_module("flgen.federation.local_training")
    resident = deferred_module("flgen.federation.resident")


def required(public_data: LabelledData | None, method: str) -> LabelledData:
    """Return the public data that a method was given.

    Raises:
        UsageError: It was given none.
    """
    if public_data is None:
        raise UsageError(
            f"--method.public_data is missing: {method} distils on unlabelled samples that everybody may see; name a "
            "data set of the shape of --data (--method.public_data CIFAR100 for CIFAR10)"
        )
    return public_data


def load_public_data(public: LabelledData, data: LabelledData) -> None:
    """Read the public data into memory.

    Args:
        public: Where unlabelled samples come from.
        data: The task's data set.

    Raises:
        UsageError: The samples of the two have different shapes or types.
        FlgenError: Files are missing or damaged.
    """
    theirs, ours = public.layout(), data.layout()
    if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
        raise UsageError(
            f"--method.public_data has {public.noun} of shape {theirs.shape}, --data has {data.noun} of shape "
            f"{ours.shape}: make them alike, such as by --method.public_data.image_size or --data.image_size"
        )
    try:
        public.prepare_data()
        public.setup()
    except FlgenError as error:
        # A data set knows its options by the name of the section that the task's data have.
        raise type(error)(str(error).replace("--data.", "--method.public_data.")) from error


def check_logits(model: LightningModule, data: LabelledData) -> None:
    """Refuse a module whose `forward` does not map a batch to logits (B, classes).

    Raises:
        UsageError: It cannot be called with a batch, or returns something else.
    """
    shape = tuple(getattr(answer_for_two(model, data, model), "shape", ()))
    if shape != (2, data.classes):
        raise UsageError(
            f"--model {type(model).__name__} must be a classifier whose forward(batch) returns logits, (2, "
            f"{data.classes}) for a batch of 2; it returns shape {shape}"
        )


def answer_for_two(model: LightningModule, data: LabelledData, ask: Callable[[Tensor], Any]) -> Any:
    """Return what a module answers to a batch of two blank samples, in eval mode.

    Args:
        model: On any device.
        data: What its samples are like.
        ask: Calls the module, or a part of it.

    Raises:
        UsageError: The module cannot be called with such a batch.
    """
    layout, training = data.layout(), model.training
    parameter = next(model.parameters(), None)
    blank = torch.zeros(2, *layout.shape, dtype=layout.dtype, device=None if parameter is None else parameter.device)
    model.eval()
    try:
        with torch.no_grad():
            return ask(data.standardize(blank))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--model {type(model).__name__} must be a classifier of batches as --data gives them, of samples of shape "
            f"{layout.shape}; it fails on one ({reason[:200]})"
        ) from error
    finally:
        model.train(training)


def feature_size(model: LightningModule, data: LabelledData, expected: int | None, method: str) -> int:
    """Return d_z, the number of elements that a module's `features` gives its `head`.

    Args:
        model: On any device.
        data: Where its inputs come from.
        expected: What it should be; null takes what it is.
        method: Who asks, for messages.

    Raises:
        UsageError: The module lacks one of the two, or they do not fit together.
    """
    module: Any = model
    lacking = [name for name in ("features", "head") if not callable(getattr(module, name, None))]
    if lacking:
        raise UsageError(
            f"--model {type(model).__name__} cannot be trained by {method} (it has no {' and no '.join(lacking)}): "
            "give it features(batch), (B, d_z), and head(z), which returns logits, or use a classifier of flgen's own"
        )
    z = answer_for_two(model, data, module.features)
    logits = answer_for_two(model, data, lambda _: module.head(z))
    if z.ndim != 2 or logits.shape != (2, data.classes):
        raise UsageError(
            f"--model {type(model).__name__}: for a batch of 2 its features() returns shape {tuple(z.shape)} and its "
            f"head() {tuple(logits.shape)}, but {method} needs (2, d_z) and (2, {data.classes})"
        )
    if expected not in (None, z.shape[1]):
        raise UsageError(
            f"--method.features is {expected}, but the head of --model {type(model).__name__} takes {z.shape[1]}: give "
            f"the model a bottleneck of {expected}, or leave --method.features null"
        )
    return int(z.shape[1])


def shuffled_rows(public: LabelledData, draws: torch.Generator) -> Tensor:
    """Return the rows of all public samples, int64 (N,), in an order that a CPU generator draws."""
    public.setup()  # nothing, if `prepare` has been called
    return torch.randperm(len(public.train), generator=draws)


def unlabelled(public: LabelledData, rows: Tensor, device: torch.device | str) -> client_data.TensorClientData:
    """Return some public samples, each labelled with its position among them: what was said about it stands there.

    Args:
        public: Where they come from.
        rows: Rows of its training samples, int64 (n,).
        device: Where batches are wanted.
    """
    public.setup()  # nothing, if `prepare` has been called
    samples = public.train.inputs
    positions = torch.full((len(samples),), -1, dtype=torch.int64)
    positions[rows] = torch.arange(len(rows))
    return client_data.TensorClientData(labelled_set.LabelledSet(samples, positions), rows, device, len(rows))


def logits_on(at: resident.ResidentModel, samples: client_data.ClientData) -> Tensor:
    """Return the logits f(x) of every sample with the weights as they stand, in eval mode, float32 (n, classes)."""
    at.module.eval()
    with torch.no_grad(), at.fabric.autocast():
        batches = [at.module(at.data.standardize(x)).float() for x, _ in samples.in_order(resident.TEST_BATCH)]
    return torch.cat(batches)


def soft_cross_entropy(logits: Tensor, p: Tensor) -> Tensor:
    """Return the mean over samples of - sum_c p_c log softmax(logits)_c.

    Args:
        logits: (B, classes).
        p: Probabilities (B, classes); their type is that of the sum.
    """
    return -(p * torch.log_softmax(logits.to(p.dtype), dim=1)).sum(dim=1).mean()


def train_on_server(
    at: resident.ResidentModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
    after_step: Callable[[], object] | None = None,
) -> float:
    """Train the weights as they stand on batches of the server's own; return the mean loss of the steps.

    Args:
        at: The resident module.
        optimizer: Over its parameters.
        batches: What the loss takes, on the device.
        loss: Returns the loss of a batch.
        seed: Of the global generators meanwhile, for modules that draw from them (dropout).
        after_step: Called after each step.
    """
    losses: list[Tensor] = []

    def step(batch: Any, index: int) -> Tensor:
        value = loss(*batch)
        losses.append(value.detach())
        return value

    local_training.train_locally(
        at.module,
        optimizer,
        batches,
        at.fabric,
        seed=seed,
        steps=0,
        on_step=lambda done, of: None,  # a server's step is not interrupted: the clients' round is over
        loss=step,
        after_step=after_step,
    )
    return float(torch.stack(losses).mean()) if losses else 0.0


def received_in_order(uploads: Uploads, federation: Federation) -> list[tuple[Client, dict[str, Tensor]]]:
    """Return each client with what it sent, in an order that numbering the clients otherwise does not change."""
    received = [(federation.clients[number], sent) for number, sent in uploads.gather().items()]
    return sorted(received, key=lambda pair: pair[0].key)


def sample_weighted_mean(received: Sequence[tuple[Client, dict[str, Tensor]]], name: str = "weights") -> Tensor:
    """Return sum_k (n_k / n) w_k of an entry w_k of what clients sent, in its shape, float64.

    Args:
        received: Each client with what it sent.
        name: Of the entry.
    """
    n = sum(client.samples for client, _ in received)
    total = torch.zeros_like(received[0][1][name], dtype=torch.float64)
    for client, sent in received:
        total += sent[name].double() * (client.samples / n)
    return total
