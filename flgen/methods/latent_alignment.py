"""FedKTL's domain alignment: the server trains F so that prototypes become latents that a generator can draw
(fedktl.md, sections 1.4 and 2.3).

each round, from the prototypes (P_j, y_j), j = 1..M:
    e_c <- mean of F(P_j) over y_j = c                                          F in eval mode
    E_s epochs of minibatches of n:  w ~ prior, n valid latents
        F, e <- Adam on  MMD(F(P), w) + lambda / (n H) sum_j ||F(P_j) - e_{y_j}||^2
    Q-^c <- mean of F(P_j) over y_j = c                                         F in eval mode
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.methods import class_vectors
else:
    torch = deferred_module("torch")
    class_vectors = deferred_module("flgen.methods.class_vectors")

PUBLISHED_BANDWIDTHS = (10.0, 15.0, 20.0, 50.0)
"""beta of the published kernels, of the scale of StyleGAN's W space."""

MEDIAN_FACTORS = (0.25, 0.5, 1.0, 2.0)
"""What half the median squared distance is multiplied by for the kernels of another latent space."""

MEDIAN_SAMPLES = 500

MOST_COMPARED = 1000
"""Most latents that health is measured on: the kernels of twice as many take a few hundred megabytes."""


@dataclass(frozen=True)
class AlignmentTraining:
    """How the server trains F in every round.

    Args:
        epochs: Passes over the prototypes, E_s.
        batch_size: Prototypes per step, B_s.
        learning_rate: Of Adam, eta_s; published are 0.01, and 0.1 for Stable Diffusion.
        clip_norm: Largest L2 norm of the gradient of F, and of the centroids'.
        compactness: Weight of the distance to the class centroids, lambda; published are 1 for StyleGAN-XL, 0.1 for
            StyleGAN3 and 0.01 for Stable Diffusion.
        bandwidths: "paper" takes the published kernels, "median" some that fit the latent space of the generator; null
            is "paper" for learned latent spaces and "median" for Gaussian ones, where the published kernels are blind.
        centroids: Whether the centroids e are a table that learns beside F ("table", as published), or the means of
            F(P) within each minibatch ("batch").

    Raises:
        UsageError: A number is out of its range.
    """

    epochs: int = 100
    batch_size: int = 100
    learning_rate: float = 0.01
    clip_norm: float = 100.0
    compactness: float = 1.0
    bandwidths: Literal["paper", "median"] | None = None
    centroids: Literal["table", "batch"] = "table"

    def __post_init__(self) -> None:
        option_ranges.at_least("method.alignment", 1, epochs=self.epochs)
        option_ranges.at_least("method.alignment", 2, batch_size=self.batch_size)
        option_ranges.above_0("method.alignment", learning_rate=self.learning_rate, clip_norm=self.clip_norm)
        option_ranges.at_least("method.alignment", 0, compactness=self.compactness)


def train(
    F: nn.Module,
    P: Tensor,
    y: Tensor,
    e: Tensor,
    prior: Callable[[int, torch.Generator], Tensor],
    betas: Tensor,
    draws: torch.Generator,
    options: AlignmentTraining,
) -> dict[str, float]:
    """Train F on the prototypes of one round, and e beside it; return the losses of the last epoch.

    Args:
        F: The feature transformer, trained in place.
        P: Prototypes (M, K), M at least 2.
        y: Their classes int64 (M,).
        e: Centroid of each class (C, H), trained in place if they are a table.
        prior: Returns n valid latents (n, H), drawn from a CPU generator.
        betas: Bandwidths (kernels,).
        draws: CPU generator, source of order and latents.
        options: How.
    """
    table = torch.nn.Parameter(e)
    parts = [list(F.parameters())] + ([[table]] if options.centroids == "table" else [])
    adams = [torch.optim.Adam(part, lr=options.learning_rate, fused=True) for part in parts]
    F.train()
    total = torch.zeros(2, device=P.device)
    for epoch in range(options.epochs):
        batches = list(minibatches(len(P), options.batch_size, draws))
        for picked in batches:
            rows = picked.to(P.device)
            w = prior(len(rows), draws)
            Q = F(P[rows])
            centroids = table if options.centroids == "table" else means_of_batch(Q, y[rows], len(e))
            L_mmd, L_mse = mmd(Q, w, betas), torch.nn.functional.mse_loss(Q, centroids[y[rows]])
            for adam in adams:
                adam.zero_grad()
            (L_mmd + options.compactness * L_mse).backward()
            for part, adam in zip(parts, adams, strict=True):
                torch.nn.utils.clip_grad_norm_(part, options.clip_norm)
                adam.step()
            if epoch == options.epochs - 1:
                total += torch.stack([L_mmd.detach(), L_mse.detach()]) / len(batches)
    F.eval()
    L_mmd, L_mse = total.tolist()
    return {"alignment/mmd_loss": L_mmd, "alignment/mse_loss": L_mse}


def minibatches(samples: int, batch_size: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled rows in batches; a last batch of one joins the batch before it, as BatchNorm needs two.

    Args:
        samples: Number of rows.
        batch_size: Rows of a batch, at least 2.
        draws: CPU generator, source of the order.
    """
    batches = list(torch.randperm(samples, generator=draws).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    yield from batches


def means_of_batch(Q: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the mean of each class within a minibatch (classes, H), zero for classes that are not in it.

    Args:
        Q: Latents (n, H).
        y: Their classes int64 (n,).
        classes: Number of classes.
    """
    one_hot = torch.nn.functional.one_hot(y, classes).to(Q.dtype)
    return one_hot.T @ Q / one_hot.sum(dim=0).clamp(min=1).unsqueeze(1)


def squared_distances(a: Tensor) -> Tensor:
    """Return ||a_i - a_j||^2, never negative (n, n)."""
    gram = a @ a.T
    lengths = gram.diagonal()
    distances = (lengths.unsqueeze(0) + lengths.unsqueeze(1) - 2 * gram).clamp(min=0)
    return distances - torch.diag_embed(distances.diagonal())


def kernel(squared: Tensor, betas: Tensor) -> Tensor:
    """Return kappa, the sum over beta of exp(-d^2 / (2 beta)), of the shape of the squared distances."""
    total = torch.zeros_like(squared)
    for beta in betas.tolist():  # one after the other: all at once would take as many times the memory
        total = total + torch.exp(-squared / (2 * beta))
    return total


def mmd(Q: Tensor, w: Tensor, betas: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two sets of equal size, diagonals included (a V-statistic).

    Args:
        Q: Latents (n, H).
        w: Latents (n, H).
        betas: Bandwidths (kernels,).

    Source: FedKTL, section 1.4.
    """
    n = len(Q)
    kappa = kernel(squared_distances(torch.cat([Q, w.to(Q)])), betas)
    return kappa[:n, :n].mean() + kappa[n:, n:].mean() - 2 * kappa[:n, n:].mean()


def median_bandwidths(w: Tensor) -> Tensor:
    """Return bandwidths for a latent space: quarter, half, once and twice half the median squared distance (4,).

    Args:
        w: Valid latents (n, H), `MEDIAN_SAMPLES` or more.

    Source: FedKTL, section 2.3.
    """
    rows, columns = torch.triu_indices(len(w), len(w), offset=1)
    med = squared_distances(w.double())[rows, columns].median()
    return torch.tensor(MEDIAN_FACTORS, dtype=torch.float64) * med.cpu() / 2


def health(Q: Tensor, y: Tensor, Q_bar: Tensor, w: Tensor, w_other: Tensor, betas: Tensor) -> dict[str, float]:
    """Return what shows whether F has learnt to make valid latents; its loss alone does not (section 2.3).

    `alignment/mmd_excess` is the discrepancy beyond that of two prior batches of the same size, `norm_ratio` the mean
    length of class centroids in that of valid latents, `separation_ratio` their mean distance in that of two valid
    latents, `mse` the mean squared distance to the own class's centroid, per element.

    Args:
        Q: F(P) in eval mode (M, H).
        y: Classes int64 (M,).
        Q_bar: Centroids of the classes that are there (c, H), in the order of their numbers.
        w: Valid latents (m, H), m at most M: of thousands of prototypes a part is compared, for want of memory.
        w_other: As many more.
        betas: Bandwidths (kernels,).
    """
    classes = y.unique()
    of_class = torch.searchsorted(classes, y)
    apart = torch.pdist(Q_bar).mean() if len(Q_bar) > 1 else Q_bar.new_zeros(())
    figures = {
        "mmd_excess": mmd(Q[: len(w)], w, betas) - mmd(w_other, w, betas),
        "norm_ratio": Q_bar.norm(dim=1).mean() / w.norm(dim=1).mean(),
        "separation_ratio": apart / (w - w_other).norm(dim=1).mean(),
        "mse": (Q - Q_bar[of_class]).square().mean(),
    }
    return {f"alignment/{name}": float(figure) for name, figure in figures.items()}
