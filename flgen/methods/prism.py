"""PRISM: Seo, Han, Yoo, "PRISM: privacy-preserving improved stochastic masking for federated generative models", 2025.

Symbols of the specification: w frozen weights, s scores, theta = sigmoid(s), m a binary mask, E local steps, B fake
images per step, K uploads, c the number of ones among K, eps_m the clamp, lambda_t the coefficient of the mask-aware
dynamic moving average (MADA).

    server: seed -> frozen w ; s_0 ~ N(0, 1)
    round t:
      every client receives s_t
      client k: s <- s_t ; E times: m ~ Bern(sigmoid(s)), x = G(z; w m), s <- AdamStep(s, dL/ds)
                sends m_k ~ Bern(sigmoid(s))                              one bit per weight
      server: theta_agg = eps_m + (1 - 2 eps_m) c / K ; s_agg = logit(theta_agg)
              lambda_t = distance between masks of s_t and masks of s_agg
              s_{t+1} = lambda_t s_agg + (1 - lambda_t) s_t               on s or on theta
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any, ClassVar, Literal

from flgen.data.image_data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.methods.base import ServerMethod
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data import image_set as images
    from flgen.federation import optimizer_state
    from flgen.federation.clients import Client, Federation
    from flgen.masks import network
    from flgen.metrics import drift
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    drift = deferred_module("flgen.metrics.drift")
    images = deferred_module("flgen.data.image_set")
    network = deferred_module("flgen.masks.network")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")

Space = Literal["score", "theta"]
Distance = Literal["expected_hamming", "sampled_hamming", "cosine"]
MaskKind = Literal["stochastic", "sampled_once", "threshold"]

MASK_KINDS: tuple[MaskKind, ...] = ("stochastic", "sampled_once", "threshold")
EVALUATION_BATCH = 128  # section 1.7: the reference evaluates in batches of 128


class Prism(ServerMethod):
    """Learn which frozen weights of a generator to keep; clients send one bit per weight.

    Options left at null are set by the preset (section 11 of the specification): "reference" behaves as the
    authors' code, "paper" as the published text, "fixed" has the defects removed.

    Args:
        preset: "reference", "paper" or "fixed".
        local_steps: Generator steps per client and round, E.
        batch_size: Fake images per step, B.
        learning_rate: Adam's, for the scores.
        mask_clamp: eps_m; probabilities stay in [eps_m, 1 - eps_m].
        mada: Whether the server moves its model by MADA; false takes the new aggregate as it is.
        alpha: Fraction of the layers, the last ones, that send real scores instead of bits (PRISM-alpha).
        straight_through: Gradient of the mask: "identity", or "scaled_p" (times theta once more).
        mada_space: Whether scores or probabilities are averaged over rounds.
        mada_distance: lambda: expected or sampled Hamming distance, or 1 - cosine of two sampled masks.
        mada_counts: Whether each layer counts once in lambda, or block convolutions twice ("reference").
        alpha_split: Whether alpha counts layers, or entries of the authors' list of them ("reference").
        evaluation_norm: BatchNorm when images are drawn: "recalibrated" running statistics or the "batch"'s own.
        evaluated_mask: The kind of mask behind the headline metrics; all three are always reported.
        recalibration_batches: Noise batches of 64 of a recalibration.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    generative = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "reference": {
            "straight_through": "scaled_p",
            "mada_space": "score",
            "mada_distance": "sampled_hamming",
            "mada_counts": "reference",
            "alpha_split": "reference",
            "evaluation_norm": "batch",
            "evaluated_mask": "stochastic",
        },
        "paper": {
            "straight_through": "identity",
            "mada_space": "theta",
            "mada_distance": "sampled_hamming",
            "mada_counts": "once",
            "alpha_split": "layers",
            "evaluation_norm": "batch",
            "evaluated_mask": "sampled_once",
        },
        "fixed": {
            "straight_through": "identity",
            "mada_space": "theta",
            "mada_distance": "expected_hamming",
            "mada_counts": "once",
            "alpha_split": "layers",
            "evaluation_norm": "recalibrated",
            "evaluated_mask": "sampled_once",
        },
    }

    def __init__(
        self,
        preset: Literal["reference", "paper", "fixed"] = "fixed",
        local_steps: int = 100,
        batch_size: int = 64,
        learning_rate: float = 0.1,
        mask_clamp: float = 0.01,
        mada: bool = True,
        alpha: float = 0.0,
        straight_through: Literal["identity", "scaled_p"] | None = None,
        mada_space: Space | None = None,
        mada_distance: Distance | None = None,
        mada_counts: Literal["once", "reference"] | None = None,
        alpha_split: Literal["layers", "reference"] | None = None,
        evaluation_norm: Literal["recalibrated", "batch"] | None = None,
        evaluated_mask: MaskKind | None = None,
        recalibration_batches: int = 100,
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        option_ranges.at_least(
            "method", 1, local_steps=local_steps, batch_size=batch_size, recalibration_batches=recalibration_batches
        )
        if not 0 < mask_clamp < 0.5:
            raise UsageError(f"--method.mask_clamp is {mask_clamp}: give a number between 0 and 0.5")
        if not 0 <= alpha <= 1:
            raise UsageError(f"--method.alpha is {alpha}: give a fraction from 0 to 1")
        option_ranges.above_0("method", learning_rate=learning_rate)
        self.preset = preset
        self.local_steps = local_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.mask_clamp = mask_clamp
        self.mada = mada
        self.alpha = alpha
        default = self.presets[preset]
        self.straight_through = straight_through or default["straight_through"]
        self.mada_space: Space = mada_space or default["mada_space"]
        self.mada_distance: Distance = mada_distance or default["mada_distance"]
        self.mada_counts = mada_counts or default["mada_counts"]
        self.alpha_split = alpha_split or default["alpha_split"]
        self.evaluation_norm = evaluation_norm or default["evaluation_norm"]
        self.evaluated_mask: MaskKind = evaluated_mask or default["evaluated_mask"]
        self.recalibration_batches = recalibration_batches

    @property
    def draws_weights(self) -> str:
        """The frozen weights are those of the run's seed."""
        return "its frozen weights are those of --seed_everything"

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a masked generator of such images, and load what its loss needs."""
        loss = _checked_generator(model, data).loss
        loss.adopt(self.preset)
        loss.load()

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """seed -> frozen w ; s_0 ~ N(0, 1), the same on every rank."""
        super().setup(federation, model, data, fabric)
        self.generator = generator = _checked_generator(model, data)
        self.loss = generator.loss
        self.loss.adopt(self.preset)
        generator.reset_weights(federation.streams.seed_for("weights"))
        generator.reset_scores(federation.streams.torch("scores"))
        self.scores = network.flatten_scores(model)  # what the resident generator computes with
        self.s_t = self.scores.vector.detach().clone()
        self.first_score = first_score_sent(generator, self.alpha, self.alpha_split)
        self.adam = torch.optim.Adam([self.scores.vector], lr=self.learning_rate, betas=(0.5, 0.999), fused=True)
        self.lambda_t = 1.0

    def download(self, t: int) -> codecs.Payload:
        """s_t."""
        return {"scores": codecs.dense(self.s_t)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """s <- s_t ; E generator steps ; send m_k ~ Bern(sigmoid(s))."""
        self.scores.load(download["scores"])
        if not client.state:  # once: what is ever needed of the client's own images
            client.state = self.loss.prepare(client.data, client.random("statistics", 0))
        optimizer_state.load(self.adam, client.state)  # its moments stay with the client from round to round
        device = self.fabric.device
        z = client.random("noise", t, device)
        reals = self._real_batches(client, t)
        network.sample_masks(self.generator, client.random("masks", t, device), self.straight_through)
        self.generator.train()

        total = torch.zeros((), device=device)
        for step in range(self.local_steps):
            with self.fabric.autocast():
                x = self.generator(self.generator.noise(self.batch_size, z))
            L = self.loss(x.float(), client.state, next(reals))
            self.scores.backward(L)
            self.adam.step()
            total += L.detach()
            self.on_local_step(step + 1, self.local_steps)

        optimizer_state.store(self.adam, client.state)
        client.metrics = {
            "train/loss": float(total) / self.local_steps,
            "train/distance": float(client.state["distance"]),
        }
        s = self.scores.vector.detach()
        m = torch.bernoulli(torch.sigmoid(s), generator=client.random("upload", t, device))
        upload = {"mask": codecs.bits(m[: self.first_score])}
        if self.first_score < len(s):
            upload["scores"] = codecs.dense(s[self.first_score :].clone())
        return upload

    def _real_batches(self, client: Client, t: int) -> Iterator[Tensor | None]:
        """The real images of each step, for a loss that looks at them."""
        if not self.loss.real_batch:
            return repeat(None)
        stream = client.random("reals", t)
        batches = client.data.batches(self.loss.real_batch, stream, steps=self.local_steps)
        return (images for images, _ in batches)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """theta_agg from the counts, s_agg = logit(theta_agg), then one MADA step for all layers."""
        K, received = len(uploads), uploads.sum()
        s_agg = torch.logit(aggregate_masks(received["mask"], K, self.mask_clamp))
        if "scores" in received:
            s_agg = torch.cat([s_agg, received["scores"] / K])
        s_t = self.s_t.double()
        self.lambda_t = self._distance(t, torch.sigmoid(s_t), torch.sigmoid(s_agg))
        if self.mada:
            s_agg = moving_average(s_t, s_agg, self.lambda_t, self.mada_space, self.mask_clamp)
        self.s_t = s_agg.to(self.s_t)

    def _distance(self, t: int, p: Tensor, q: Tensor) -> float:
        """lambda_t between the models with probabilities p and q."""
        counts = self.generator.accounting_weights() if self.mada_counts == "reference" else None
        if self.mada_distance == "expected_hamming":
            return drift.expected_hamming(p, q, counts)
        draws = self.federation.streams.torch("mada", round=t, device=p.device)
        m_old, m_new = torch.bernoulli(p, generator=draws), torch.bernoulli(q, generator=draws)
        if self.mada_distance == "cosine":
            return drift.cosine_distance(m_old, m_new, counts)
        return drift.sampled_hamming(m_old, m_new, counts)

    def round_metrics(self, t: int) -> dict[str, float]:
        """lambda_t, and the density and entropy of the new theta."""
        theta = torch.sigmoid(self.s_t.double())
        return {
            "mask/drift": self.lambda_t,
            "mask/density": float(theta.mean()),
            "mask/entropy_bits": float(drift.binary_entropy(theta).mean()),
        }

    def samples(self, count: int, t: int) -> dict[str, Tensor]:
        """Draw images with each kind of mask, the headline's first; noise is the same in every round."""
        kinds = sorted(MASK_KINDS, key=lambda kind: kind != self.evaluated_mask)
        return {kind: self._draw(kind, count, t) for kind in kinds}

    def _draw(self, kind: MaskKind, count: int, t: int) -> Tensor:
        device, streams = self.fabric.device, self.federation.streams
        self.scores.load(self.s_t)
        masks = streams.torch("evaluation masks", round=t, device=device)
        if kind == "stochastic":
            network.sample_masks(self.generator, masks)
        elif kind == "sampled_once":
            network.fix_masks(self.generator, torch.bernoulli(torch.sigmoid(self.s_t), generator=masks))
        else:
            network.threshold_masks(self.generator)
        if self.evaluation_norm == "recalibrated":
            recalibration = streams.torch("recalibration", round=t, device=device)
            self.generator.recalibrate(recalibration, self.recalibration_batches)
        else:
            self.generator.train()
        z = streams.torch("evaluation noise", device=device)
        with self.fabric.autocast():
            return draw_images(self.generator, count, z)

    def state_dict(self) -> dict[str, Any]:
        """s_{t+1} and lambda_t."""
        return {"scores": self.s_t, "lambda": self.lambda_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scores of a checkpoint, for the rounds to come and for whoever holds the generator."""
        if state["scores"].shape != self.s_t.shape:
            raise UsageError(
                f"the checkpoint has {state['scores'].numel()} scores, this model {self.s_t.numel()}: give the --model "
                "options that wrote it"
            )
        self.s_t = state["scores"].to(self.s_t)
        self.lambda_t = state["lambda"]
        self.scores.load(self.s_t)


def draw_images(generator: Any, count: int, z: torch.Generator) -> Tensor:
    """Draw images with a generator that has its masks, in batches of 128 as they are evaluated (section 1.7).

    Args:
        generator: A generator with masks.
        count: How many.
        z: Draws the noise.

    Returns:
        uint8 tensor (count, channels, height, width).
    """
    with torch.no_grad():
        # Whole batches only: a small last one would be normalised by few images.
        batches = [generator(generator.noise(EVALUATION_BATCH, z)) for _ in range(0, count, EVALUATION_BATCH)]
    return images.to_bytes(torch.cat(batches)[:count].float())


def aggregate_masks(counts: Tensor, K: int, eps_m: float) -> Tensor:
    """Return theta_agg = eps_m + (1 - 2 eps_m) c / K, float64 (d,) (section 5.2).

    Args:
        counts: Integer number of ones c of each weight (d,).
        K: Number of masks.
        eps_m: Clamp.
    """
    return eps_m + (1 - 2 * eps_m) * counts.double() / K


def moving_average(s_t: Tensor, s_agg: Tensor, lambda_t: float, space: Space, eps_m: float) -> Tensor:
    """Return s_{t+1}, float64 (d,): lambda_t times the new aggregate plus (1 - lambda_t) times the old model (5.4).

    Args:
        s_t: Old scores (d,), float64.
        s_agg: Scores of the new aggregate (d,), float64.
        lambda_t: Distance of their masks, in [0, 1].
        space: What is averaged: scores, or probabilities kept in [eps_m, 1 - eps_m].
        eps_m: Clamp.
    """
    if space == "score":
        return lambda_t * s_agg + (1 - lambda_t) * s_t
    theta = lambda_t * torch.sigmoid(s_agg) + (1 - lambda_t) * torch.sigmoid(s_t)
    return torch.logit(theta.clamp(eps_m, 1 - eps_m))


def first_score_sent(generator: Any, alpha: float, split: Literal["layers", "reference"]) -> int:
    """Return where the scores that PRISM-alpha sends begin in the flat vector; before it, bits are sent (5.3).

    "layers" takes the last int(alpha * layers) layers. "reference" counts on the authors' list, in which the layers
    of a block stand twice in a row; a layer with any entry among the last int(alpha * entries) sends scores.
    """
    slices = network.layer_slices(generator)
    entries = list(slices)
    if split == "reference":
        twice = [name for name, times in generator.layer_multiplicity().items() if times == 2]
        blocks = {name: [other for other in twice if _block(other) == _block(name)] for name in twice}
        entries = []
        for name in slices:
            if name not in entries:
                entries += 2 * blocks[name] if name in blocks else [name]
    sent = entries[len(entries) - int(alpha * len(entries)) :]
    return min((slices[name].start for name in sent), default=max(place.stop for place in slices.values()))


def _block(layer: str) -> str:
    return layer.rpartition(".")[0]


def _checked_generator(model: LightningModule, data: LabelledData) -> Any:
    """Return the model, which has every part that a generator with masks needs."""
    needed = ("noise", "loss", "reset_weights", "reset_scores", "recalibrate", "accounting_weights")
    lacking = [name for name in needed if getattr(model, name, None) is None]
    if lacking:
        raise UsageError(
            f"--model {type(model).__name__} cannot be trained by Prism (it has no {', '.join(lacking)}): use a "
            "generator with masked layers and a --model.loss, such as ResnetGenerator"
        )
    if not isinstance(data, ImageData):
        raise UsageError(
            f"--method Prism draws images, but --data {type(data).__name__} holds {data.noun}: give images"
        )
    generator: Any = model
    wanted, given = (generator.channels, generator.image_size), (data.channels, data.image_size)
    if wanted != given:
        raise UsageError(
            f"--model draws images of {wanted[0]} x {wanted[1]} x {wanted[1]}, --data has {given[0]} x {given[1]} x "
            f"{given[1]}: make --model.channels and --model.image_size fit"
        )
    return generator
