"""PRISM: Seo, Han, Yoo, "PRISM: privacy-preserving improved stochastic masking for federated generative models", 2025.

Symbols of the specification: w frozen weights, s scores, theta = sigmoid(s), m a binary mask, E local steps, B fake
images per step, K uploads, c the number of ones among K, eps_m the clamp, lambda_t the coefficient of the mask-aware
dynamic moving average (MADA).

    server: seed -> frozen w ; s_0 ~ N(0, 1)
    round t:
      every client receives s_t, or c and lambda_t of the round before, from which it takes the server's step itself
      client k: s <- s_t ; E times: m ~ Bern(sigmoid(s)), x = G(z; w m), s <- AdamStep(s, dL/ds)
                sends m_k ~ Bern(sigmoid(s))                              one bit per weight, coded fewer
      server: theta_agg = eps_m + (1 - 2 eps_m) c / K ; s_agg = logit(theta_agg)
              lambda_t = distance between masks of s_t and masks of s_agg
              s_{t+1} = lambda_t s_agg + (1 - lambda_t) s_t               on s or on theta
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.methods.base import ServerMethod
from flgen.methods.prism_privacy import PrismPrivacy
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Client, Federation
    from flgen.masks import network
    from flgen.methods import generator_training, mada, prism_layers
    from flgen.methods.mada import Distance, Space
    from flgen.metrics import drift
    from flgen.topology.star import Uploads
    from flgen.wire import codecs, entropy_coding
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    drift = deferred_module("flgen.metrics.drift")
    entropy_coding = deferred_module("flgen.wire.entropy_coding")
    generator_training = deferred_module("flgen.methods.generator_training")
    mada = deferred_module("flgen.methods.mada")
    network = deferred_module("flgen.masks.network")
    prism_layers = deferred_module("flgen.methods.prism_layers")

PRESETS = ("reference", "paper", "fixed")
SWITCHES: dict[str, tuple[str, str, str]] = {  # section 11: by preset
    "straight_through": ("scaled_p", "identity", "identity"),
    "mada_space": ("score", "theta", "theta"),
    "mada_distance": ("sampled_hamming", "sampled_hamming", "expected_hamming"),
    "mada_counts": ("reference", "once", "once"),
    "alpha_split": ("reference", "layers", "layers"),
    "evaluation_norm": ("batch", "batch", "recalibrated"),
    "evaluated_mask": ("stochastic", "sampled_once", "sampled_once"),
    "uplink": ("bits", "bits", "coded"),
    "downlink": ("scores", "scores", "counts"),
}

MaskKind = Literal["stochastic", "sampled_once", "threshold"]

MASK_KINDS: tuple[MaskKind, ...] = ("stochastic", "sampled_once", "threshold")
NEEDED = ("noise", "loss", "reset_weights", "reset_scores", "recalibrate", "accounting_weights")
MOST_COUNTED = 255  # uploads of a round whose counts fit the wire


class Prism(ServerMethod):
    """Learn which frozen weights of a generator to keep; clients send one bit per weight, or fewer.

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
        uplink: A mask's "bits", or "coded" against the probabilities that both sides know; under secure aggregation
            there are no bits to code.
        downlink: The "scores" as floats, or the "counts" of ones with lambda, coded, whenever everybody who takes part
            also took part in the round before. Both give the same run.
        privacy: How clients are protected: StatisticsGaussian (mechanism A), ThetaGaussian (B), CentralGaussian, or
            ReferenceBug; null: not at all.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    generative = True
    incidental = frozenset({"privacy.init_args.noise_key"})  # where the secret lies; that it is the same is checked
    state_on_every_rank = True  # clients hold the model that the server's last step started from
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        preset: {option: values[place] for option, values in SWITCHES.items()} for place, preset in enumerate(PRESETS)
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
        mada_space: Literal["score", "theta"] | None = None,
        mada_distance: Literal["expected_hamming", "sampled_hamming", "cosine"] | None = None,
        mada_counts: Literal["once", "reference"] | None = None,
        alpha_split: Literal["layers", "reference"] | None = None,
        evaluation_norm: Literal["recalibrated", "batch"] | None = None,
        evaluated_mask: MaskKind | None = None,
        recalibration_batches: int = 100,
        uplink: Literal["bits", "coded"] | None = None,
        downlink: Literal["scores", "counts"] | None = None,
        privacy: PrismPrivacy | None = None,
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
        self.uplink = uplink or default["uplink"]
        self.downlink = downlink or default["downlink"]
        if privacy is not None and not isinstance(privacy, PrismPrivacy):
            raise UsageError(f"--method.privacy is {privacy!r}: give a mechanism, such as StatisticsGaussian()")
        self.privacy = privacy
        self.protection = privacy or PrismPrivacy()  # the class itself protects nothing

    @property
    def draws_weights(self) -> str:
        """The frozen weights are those of the run's seed."""
        return "its frozen weights are those of --seed_everything"

    def check(self, federation: Federation) -> None:
        """Refuse a federation or a topology that the privacy asked for does not hold on."""
        super().check(federation)
        if self.protection.sends_updates and self.alpha:
            raise UsageError(
                f"--method.alpha is {self.alpha}, but under --method.privacy {type(self.protection).__name__} "
                "every layer sends changes of probabilities: leave --method.alpha out"
            )
        self.protection.check(self.topology)
        self.protection.begin(federation)

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a masked generator of such images, and load what its loss needs."""
        loss = self._checked(model, data).loss
        loss.adopt(self.preset)
        self.protection.check_loss(loss, data)
        self.protection.check_secret()
        loss.load()

    def _checked(self, model: LightningModule, data: LabelledData) -> Any:
        use = "a generator with masked layers and a --model.loss, such as ResnetGenerator"
        return generator_training.checked_generator(model, data, type(self).__name__, NEEDED, use)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """seed -> frozen w ; s_0 ~ N(0, 1), the same on every rank."""
        super().setup(federation, model, data, fabric)
        self.generator = generator = self._checked(model, data)
        self.loss = generator.loss
        self.loss.adopt(self.preset)
        self.protection.begin(federation)
        self.loss.release = self.protection.release()
        generator.reset_weights(federation.streams.seed_for("weights"))
        generator.reset_scores(federation.streams.torch("scores"))
        self.scores = network.flatten_scores(model)  # what the resident generator computes with
        self.s_t = self.scores.vector.detach().clone()
        self.held = self.s_t  # what clients hold; they know s_0, as they know w
        self.step: dict[str, Any] = {}  # what the server's last step took besides the scores that it started from
        self.first_score = prism_layers.first_score_sent(generator, self.alpha, self.alpha_split)
        self.adam = torch.optim.Adam([self.scores.vector], lr=self.learning_rate, betas=(0.5, 0.999), fused=True)
        self.lambda_t = 1.0
        self._leveled: tuple[Tensor, Tensor] | None = None

    def download(self, t: int) -> codecs.Payload:
        """s_t; or c, K and lambda of the step to it, for clients that hold what it started from."""
        if self.downlink == "scores" or self.protection.sends_updates:
            return {"scores": codecs.dense(self.s_t)}
        if t == 1:
            return {}
        before = {client.id for client in self.federation.cohort(t - 1)}
        if self.step["K"] > MOST_COUNTED or not all(client.id in before for client in self.federation.cohort(t)):
            return {"scores": codecs.dense(self.s_t)}
        step, levels = self.step, self._levels(self.step["from"])
        coded = codecs.coded(step["counts"], levels, alphabet=step["K"] + 1)
        facts = torch.tensor([step["K"], self.lambda_t], dtype=torch.float64)
        counts: codecs.Payload = {"counts": coded, "K_and_lambda": codecs.dense(facts)}
        return counts if step["scores"] is None else {**counts, "mean_scores": codecs.dense(step["scores"])}

    def coding_contexts(self) -> dict[str, Tensor]:
        """Levels of theta: masks are coded against those of theta_t, counts against those of the round before."""
        if self.uplink == "bits" and self.downlink == "scores":
            return {}
        levels = self._levels(self.held)
        return {"mask": levels, "counts": levels}

    def take_up(self, download: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        """Return s_t, as it was sent or by taking the server's step from what clients hold."""
        if "counts" in download:
            K, lambda_t = download["K_and_lambda"].tolist()
            s_agg = self._aggregated(download["counts"], int(K), download.get("mean_scores"))
            self.held = self._averaged(self.held, s_agg, lambda_t)
        elif "scores" in download:
            self.held = download["scores"]
        return {"scores": self.held}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """s <- s_t ; E generator steps ; send m_k ~ Bern(sigmoid(s))."""
        self.scores.load(download["scores"])
        if not client.state:  # once: what is ever needed of the client's own images
            client.state = self.loss.prepare(client.data, client.random("statistics", 0), client.key)
        network.sample_masks(self.generator, client.random("masks", t, self.fabric.device), self.straight_through)
        generator_training.train_generator(
            self.generator,
            self.scores,
            self.adam,
            self.loss,
            client,
            t,
            steps=self.local_steps,
            batch_size=self.batch_size,
            fabric=self.fabric,
            on_step=self.on_local_step,
        )
        return self._upload(client, self.scores.vector.detach(), download["scores"], t)

    def _upload(self, client: Client, s: Tensor, s_t: Tensor, t: int) -> codecs.Payload:
        """m_k ~ Bern(p_k), p_k = sigmoid(s) unless privacy makes it another; scores of the layers that send them."""
        theta_t = torch.sigmoid(s_t)
        if self.protection.sends_updates:
            return {"update": codecs.dense(self.protection.update(s, theta_t).float())}
        p, s_sent = self.protection.protect(s, theta_t, t, client.key)
        m = torch.bernoulli(p, generator=client.random("upload", t, s.device))[: self.first_score]
        upload = {"mask": codecs.bits(m)}
        if len(m) and self.uplink == "coded" and self.topology.secure_aggregation is None:
            theta = theta_t[: self.first_score].clamp(self.mask_clamp, 1 - self.mask_clamp)
            client.metrics["mask/cross_entropy_bits"] = drift.cross_entropy_bits(theta, m) / len(m)
            upload = {"mask": codecs.coded(m.bool(), self._levels(s_t))}
        if self.first_score < len(s):
            upload["scores"] = codecs.dense(s_sent[self.first_score :].clone())
        return upload

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """theta_agg from the counts, s_agg = logit(theta_agg), then one MADA step for all layers."""
        K, received = len(uploads), uploads.sum()
        s_t, scores = self.s_t, None
        if "scores" in received:
            scores = (received["scores"] / K).to(s_t)
        if "update" in received:
            counts = None
            s_agg = self._moved_by(received["update"], K, t)
        else:
            counts = received["mask"].to(torch.uint8 if K <= MOST_COUNTED else torch.int32)
            s_agg = self._aggregated(counts, K, scores)
        times = self.generator.accounting_weights() if self.mada_counts == "reference" else None
        draws = self.federation.streams.torch("mada", round=t, device=s_t.device)
        p, q = torch.sigmoid(s_t.double()), torch.sigmoid(s_agg)
        self.lambda_t = mada.mask_distance(p, q, self.mada_distance, times, draws)
        self.step = {"from": s_t, "counts": counts, "K": K, "scores": scores}
        self.s_t = self._averaged(s_t, s_agg, self.lambda_t)

    def _aggregated(self, counts: Tensor, K: int, scores: Tensor | None) -> Tensor:
        """s_agg = logit(theta_agg) of the layers that send bits, the mean of the scores of others; float64 (d,)."""
        s_agg = torch.logit(mada.aggregate_masks(counts, K, self.mask_clamp))
        return s_agg if scores is None else torch.cat([s_agg, scores.double()])

    def _moved_by(self, update: Tensor, K: int, t: int) -> Tensor:
        """s_agg where clients sent changes of theta: theta_agg = theta_t + (sum_k u_k + noise) / K, clamped."""
        theta_agg = torch.sigmoid(self.s_t.double()) + self.protection.noisy_sum(update, t) / K
        return torch.logit(theta_agg.clamp(self.mask_clamp, 1 - self.mask_clamp))

    def _averaged(self, s_t: Tensor, s_agg: Tensor, lambda_t: float) -> Tensor:
        """s_{t+1}, float32 (d,): MADA, or the aggregate as it is."""
        if self.mada:
            s_agg = mada.moving_average(s_t.double(), s_agg, lambda_t, self.mada_space, self.mask_clamp)
        return s_agg.to(s_t)

    def _levels(self, s: Tensor) -> Tensor:
        """Levels of theta = sigmoid(s) of the layers that send bits, uint8: what coding goes by."""
        if self._leveled is None or self._leveled[0] is not s:
            theta = torch.sigmoid(s[: self.first_score].double())
            self._leveled = s, entropy_coding.probability_levels(theta)
        return self._leveled[1]

    def round_metrics(self, t: int) -> dict[str, float]:
        """lambda_t, density and entropy of the new theta, what uploads take by other conventions, and epsilon."""
        theta = torch.sigmoid(self.s_t.double())
        measured = {
            "mask/drift": self.lambda_t,
            "mask/density": float(theta.mean()),
            "mask/entropy_bits": float(drift.binary_entropy(theta).mean()),
            **{f"mask/density/{name}": float(theta[place].mean()) for name, place in self.scores.slices.items()},
        }
        if not self.protection.sends_updates:
            K, bits, scores = self.step["K"], self.first_score, len(theta) - self.first_score
            measured["comm/up_bytes_packed"] = K * (-(-bits // 8) + self.s_t.element_size() * scores)
            measured["comm/up_bytes_authors"] = K * prism_layers.authors_upload_bytes(self.generator, self.alpha)
        if self.privacy is not None:
            measured["privacy/epsilon"] = self.protection.epsilon_after(t)
        return measured

    def exhausted(self, t: int) -> str:
        """Say so if round t would overspend the privacy budget."""
        return self.protection.exhausted(t)

    def provenance(self) -> dict[str, Any]:
        """What is guaranteed to whom, if anything is."""
        return {} if self.privacy is None else {"privacy": self.protection.record()}

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
        batches = self.recalibration_batches if self.evaluation_norm == "recalibrated" else 0
        return generator_training.draw_normalised(self.generator, count, t, streams, self.fabric, batches)

    def check_continuation(self, state: dict[str, Any]) -> None:
        """Refuse a state without what clients hold, and another cohort or secret than a private run began with."""
        self._check_kind(state)
        self.protection.check_continuation(state["privacy"])

    def _check_kind(self, state: dict[str, Any]) -> None:
        if "step" not in state:
            raise UsageError(
                "the checkpoint is of an earlier flgen, which did not note what clients hold: start anew without "
                "--ckpt_path (`flgen export` still takes it)"
            )

    def state_dict(self) -> dict[str, Any]:
        """s_{t+1}, lambda_t, the step to it, which the next download tells, and the noise of privacy."""
        return {"scores": self.s_t, "lambda": self.lambda_t, "step": self.step, "privacy": self.protection.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scores of a checkpoint, for the rounds to come and for whoever holds the generator."""
        if state["scores"].shape != self.s_t.shape:
            raise UsageError(
                f"the checkpoint has {state['scores'].numel()} scores, this model {self.s_t.numel()}: give the --model "
                "options that wrote it"
            )
        self._check_kind(state)
        self.s_t = state["scores"].to(self.s_t)
        self.lambda_t = state["lambda"]
        self.step = {
            name: value.to(self.s_t.device) if hasattr(value, "to") else value for name, value in state["step"].items()
        }
        self.held = self.step["from"] if self.step else self.s_t
        self.protection.load_state_dict(state["privacy"])
        self.scores.load(self.s_t)
