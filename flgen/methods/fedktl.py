"""FedKTL: Zhang, Liu, Hua, Cao, "An Upload-Efficient Scheme for Transferring Knowledge From a Server-Side Pre-trained
Generator to Clients in Heterogeneous Federated Learning", CVPR 2024.

everybody, from one seed: V, a simplex of class vectors ; h'_0      server: F, a frozen generator, D_I empty
round t, each client k of the cohort, with a network f_k, h_k of its own:
    h' <- h'_0 ; E epochs of SGD on  CE( arcface(h_k(f_k(x)), V), y ) + mu ||h'(f_k(I)) - q||^2,  (I, q) in D_I
    P_k^c = unit( mean of unit h_k(f_k(x)) over x of class c ) ; send (P_k^c, c) for each class that it holds
server:
    F <- aligned, so that F(P) lie where the generator's latents do, one cluster per class
    Q-^c = mean over clients of F(P_k^c)
    D_I <- { (image that the generator draws of Q-^c, Q-^c) }
prediction: argmax_c cos( h_k(f_k(x)), v_c )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from flgen.data import ImageData, LabelledData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import latent_alignment
from flgen.methods.own_networks import Fidelity, OwnNetworks
from flgen.synthesis.latent_generator import LatentGenerator
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import image_set
    from flgen.federation import resident, side_steps
    from flgen.federation.clients import Client, Federation
    from flgen.methods import class_vectors
    from flgen.models import feature_transformer, simplex_etf
    from flgen.synthesis import client_images
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    class_vectors = deferred_module("flgen.methods.class_vectors")
    client_images = deferred_module("flgen.synthesis.client_images")
    codecs = deferred_module("flgen.wire.codecs")
    feature_transformer = deferred_module("flgen.models.feature_transformer")
    image_set = deferred_module("flgen.data.image_set")
    side_steps = deferred_module("flgen.federation.side_steps")
    simplex_etf = deferred_module("flgen.models.simplex_etf")

NEVER = -1
"""Age of a class that no client has ever held."""


class FedKTL(OwnNetworks):
    """Clients with different networks learn from a generator that only the server has (fedktl.md, section 1).

    A network's head is h_k, its projection into the space of the class vectors, K = C. Predicted is the class whose
    vector lies nearest. Under secure aggregation the server sees, of each class, the mean prototype over the clients
    that hold it, and aligns F on those; of a class that a single client holds, that is its prototype. A class that
    nobody has ever held has no image; one that nobody holds in this round keeps its last. With a single class in D_I
    there is no transfer, since BatchNorm needs two images.

    Args:
        training: How clients train; the published clients clip gradients at 100.
        generator: Draws the images; it is never trained.
        mu: Weight of the transfer; published are 50 for StyleGAN, 100 for Stable Diffusion.
        scale: s of ArcFace.
        margin: m of ArcFace, radians.
        margin_guard: Whether the margin also makes those samples harder that lie beyond pi - m.
        alignment: How the server trains F.
        reproject: Whether centroids are scaled to the length sqrt(H) of Gaussian latents before they are drawn
            ("norm"): a mean of such latents is too short. Null is "norm" for Gaussian latent spaces and "none" for
            learned ones and as published. An addition of flgen's.
        image_bits: 32 sends images as floats, as published; 8 as bytes.
        antialias: Whether the filter widens where generated images shrink; the published code's does not.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings, the
            centroids are a table that starts from noise, is never given the means, and is what is drawn; bandwidths
            are the published ones, pixels of StyleGAN3 are off by half a grey level, and images shrink without
            antialiasing.
        topology: How uploads reach the server.

    Raises:
        UsageError: No generator, a number is out of its range, or options that contradict each other.
    """

    incidental: ClassVar[frozenset[str]] = frozenset(
        f"generator.init_args.{option}"
        for option in ("batch_size", "pickle", "code", "trust", "checkpoint", "ticket", "local_files_only", "licence")
    )

    def __init__(
        self,
        training: LocalTraining = LocalTraining(clip_norm=100.0),
        generator: LatentGenerator | None = None,
        mu: float = 50.0,
        scale: float = 64.0,
        margin: float = 0.5,
        margin_guard: bool = True,
        alignment: latent_alignment.AlignmentTraining = latent_alignment.AlignmentTraining(),
        reproject: Literal["none", "norm"] | None = None,
        image_bits: Literal[8, 32] = 32,
        antialias: bool = True,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        if generator is None:
            raise UsageError(
                "--method.generator is missing: FedKTL's server draws images with a pre-trained one; name it, such as "
                "--method.generator PrismGenerator --method.generator.checkpoint runs/x/checkpoints/last"
            )
        option_ranges.at_least("method", 0, mu=mu, margin=margin)
        if margin >= math.pi / 2:
            raise UsageError(f"--method.margin is {margin}: give an angle below pi / 2, in radians")
        option_ranges.above_0("method", scale=scale)
        if fidelity == "reference" and alignment.centroids == "batch":
            raise UsageError(
                "--method.alignment.centroids batch learns no table, but --method.fidelity reference draws that table: "
                "use --method.alignment.centroids table"
            )
        self.generator = generator
        self.mu = mu
        self.scale = scale
        self.margin = margin
        self.margin_guard = margin_guard
        self.alignment = alignment
        self.reproject = reproject
        self.image_bits = image_bits
        self.antialias = antialias
        self.summed = self.topology.secure_aggregation is not None
        self.collection = "sum" if self.summed else "gather"

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check networks, data and generator."""
        if not isinstance(data, ImageData):
            raise UsageError(f"--method FedKTL needs images, but --data {type(data).__name__} holds {data.noun}")
        super().prepare(model, data)
        self.generator.fidelity = self.fidelity
        self.generator.check(data)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """V, h'_0 and F; D_I is empty."""
        super().setup(federation, model, data, fabric)
        device, streams, H = fabric.device, federation.streams, self.generator.latent_dim
        self.shared_seed = streams.seed_for("class vectors and projection")
        common = torch.Generator().manual_seed(self.shared_seed)
        self.V = simplex_etf.simplex_etf(self.C, common).to(device, torch.float32)
        h_0 = feature_transformer.initial_projection(self.d, H, common)
        self.h_0 = {name: tensor.to(device) for name, tensor in h_0.items()}

        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(streams.seed_for("feature transformer"))
            self.F = feature_transformer.FeatureTransformer(self.C, H).to(device).eval()
            e = torch.randn(self.C, H)  # the reference's table; otherwise means are written over it
        self.e = e.to(device)
        self.P, self.y = torch.zeros(0, self.C, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        self.Q_bar = torch.zeros(self.C, H, device=device)
        self.age = torch.full((self.C,), NEVER, dtype=torch.int64, device=device)
        self.images = torch.zeros(self.C, *data.layout().shape, device=device)
        self.noticed: dict[str, float] = {}
        self._betas: Tensor | None = None
        self._provenance: dict[str, Any] | None = None

    def opening(self) -> codecs.Payload:
        """The seed of V and h'_0."""
        return {"seed": codecs.dense(torch.tensor([self.shared_seed]))}

    def download(self, t: int) -> codecs.Payload:
        """D_I, the pairs of all classes that have one; nothing in the first round."""
        known = self.age != NEVER
        if not known.any():
            return {}
        images = self.images[known]
        sent = images if self.image_bits == 32 else (images * 255).round().to(torch.uint8)
        return {"images": codecs.dense(sent), "latents": codecs.dense(self.Q_bar[known])}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Train with the pairs of the round before, then send prototypes."""
        at = self.residents.load(client)
        pairs = self._pairs(client, download, t) if "images" in download and len(download["images"]) > 1 else None
        self._train(client, at, pairs, t)
        client.state = self.residents.state(client)

        model: Any = at.module
        unit = at.in_eval(self.training_data(client), lambda x: simplex_etf.unit_length(model(x).float()))
        P, counts = class_vectors.class_means(unit, self.C, nothing=self.P[:0])
        return class_vectors.send("prototypes", simplex_etf.unit_length(P), counts > 0, self.summed)

    def _train(self, client: Client, at: resident.ResidentModel, pairs: Iterator[Any] | None, t: int) -> None:
        """E epochs on L^A + mu L^M, for the client's network and for h', which is thrown away afterwards."""
        model: Any = at.module
        h = {name: tensor.clone().requires_grad_() for name, tensor in self.h_0.items()}
        sgd = torch.optim.SGD(list(h.values()), lr=at.learning_rate(t))
        step_h = side_steps.side_steps(sgd, clip_norm=self.training.clip_norm)
        looked_at = 0

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            x, y = batch
            cos = simplex_etf.cosines(model(x), self.V)
            logits = simplex_etf.arcface_logits(cos, y, self.scale, self.margin, self.margin_guard)
            L_A = torch.nn.functional.cross_entropy(logits, y)
            model.log("train/loss", L_A)
            if pairs is None:
                return L_A
            nonlocal looked_at
            images, q = next(pairs)
            looked_at += len(q)
            L_M = torch.nn.functional.mse_loss(feature_transformer.project(model.features(images), h), q)
            model.log("train/transfer_loss", L_M)
            return L_A + self.mu * L_M

        data = self.training_data(client)
        after = None if pairs is None else step_h
        at.train(client, t, self.on_local_step, data=data, loss=loss, after_step=after)
        at.add_flops(client, looked_at)

    def _pairs(self, client: Client, download: dict[str, Tensor], t: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches of D_I without end, as the client's network takes images."""
        data: Any = self.data
        images, latents = download["images"], download["latents"]
        as_bytes = images.dtype == torch.uint8
        x = data.standardize(images) if as_bytes else client_images.standardize_unit(images, data)
        draws = client.random("pairs", t)
        while True:
            for picked in latent_alignment.minibatches(len(x), max(2, self.training.batch_size), draws):
                rows = picked.to(x.device)
                yield x[rows], latents[rows]

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """F <- aligned ; Q-^c ; D_I."""
        sent = class_vectors.receive("prototypes", uploads, self.federation, self.C, self.summed)
        self.noticed = self.formula_metrics(len(uploads), sent.pairs)
        self.age[self.age != NEVER] += 1
        P, y = sent.rows.to(self.V), sent.labels.to(self.V.device)
        self.noticed["generator/images_drawn"] = 0
        if len(P) < 2:  # BatchNorm needs two
            return
        if torch.equal(P, self.P) and torch.equal(y, self.y):  # nothing has changed: the pairs are still theirs
            self.age[y] = 0
            return
        self.P, self.y = P, y
        drawn = self.Q_bar.clone(), self.age != NEVER
        self._align(t, P, y)
        self._render(*drawn)

    def _align(self, t: int, P: Tensor, y: Tensor) -> None:
        """Train F on the prototypes; Q-^c of every class among them, whose age becomes 0."""
        draws = self.federation.streams.torch("alignment", round=t)
        betas, prior = self._prior()
        reference = self.fidelity == "reference"
        held = torch.zeros(self.C, dtype=torch.bool, device=P.device)
        held[y] = True

        if not reference:
            self.e[held] = self._means(P, y)[held]
        self.noticed |= latent_alignment.train(self.F, P, y, self.e, prior, betas, draws, self.alignment)
        Q_bar = self.e if reference else self._means(P, y)
        with torch.no_grad():
            Q = self.F(P)
        n = min(len(P), latent_alignment.MOST_COMPARED)
        self.noticed |= latent_alignment.health(Q, y, Q_bar[held], prior(n, draws), prior(n, draws), betas)
        if self._scale_of_means == "norm":
            Q_bar = simplex_etf.unit_length(Q_bar) * self.generator.latent_dim**0.5
        self.Q_bar[held] = Q_bar[held]
        self.age[held] = 0

    def _means(self, P: Tensor, y: Tensor) -> Tensor:
        """Mean of F(P) of each class (C, H), F in eval mode."""
        with torch.no_grad():
            means, _ = class_vectors.class_means([(self.F.eval()(P), y)], self.C)
        return means.to(self.e)

    def _render(self, drawn: Tensor, known: Tensor) -> None:
        """Draw the images of those Q-^c that are not those drawn last."""
        changed = (self.Q_bar != drawn).any(dim=1) | ~known
        changed &= self.age != NEVER
        if changed.any():
            data: Any = self.data
            images = self.generator.synthesize(self.Q_bar[changed])
            antialias = self.antialias and self.fidelity == "corrected"
            fitted = client_images.to_client_images(images, data.channels, data.image_size, antialias)
            self.images[changed] = fitted.to(self.images)
        self.noticed["generator/images_drawn"] = int(changed.sum())

    def _prior(self) -> tuple[Tensor, Callable[[int, torch.Generator], Tensor]]:
        """The kernels' bandwidths, and what draws valid latents; the generator is loaded when it is first needed."""
        if self._betas is None:
            self.generator.load(self.fabric.device)
            chosen = self.alignment.bandwidths or ("paper" if self._as_published else "median")
            self._betas = torch.tensor(latent_alignment.PUBLISHED_BANDWIDTHS)
            if chosen == "median":
                draws = self.federation.streams.torch("median distance of latents")
                latents = self.generator.sample_latents(latent_alignment.MEDIAN_SAMPLES, draws)
                self._betas = latent_alignment.median_bandwidths(latents)
        return self._betas, self.generator.sample_latents

    @property
    def _scale_of_means(self) -> Literal["none", "norm"]:
        return self.reproject or ("none" if self._as_published else "norm")

    @property
    def _as_published(self) -> bool:
        """Whether what is left open follows the publication, which had learned latent spaces in mind."""
        return self.generator.prior == "learned" or self.fidelity == "reference"

    def predictor(self, at: resident.ResidentModel, download: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Argmax_c of the cosine of h_k(f_k(x)) and v_c, over all classes."""
        model: Any = at.module
        return lambda x: simplex_etf.cosines(model(x), self.V).argmax(dim=1)

    def class_pictures(self) -> dict[int, Tensor]:
        """What clients are sent, by class."""
        shown = image_set.to_bytes(self.images * 2 - 1)
        return {c: shown[c] for c in range(self.C) if self.age[c] != NEVER}

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """sum_i K C_i up, N C (H + 3 R^2) down, of C classes and images of 3 R^2 numbers."""
        return pairs * self.C, participants * self.C * (self.generator.latent_dim + self.images[0].numel())

    def round_metrics(self, t: int) -> dict[str, float]:
        """The alignment's losses and health, how many images were drawn, and how old the oldest pair is, in rounds."""
        oldest = {"generator/oldest_pair": float(self.age.max())} if (self.age != NEVER).any() else {}
        return {**self.noticed, **oldest}

    def provenance(self) -> dict[str, Any]:
        """Where the generator comes from."""
        if self._provenance is None:
            self._provenance = self.generator.provenance()
        return self._provenance

    def state_dict(self) -> dict[str, Any]:
        """F, the centroids, the prototypes they were made of, the pairs and their ages, and whose they are."""
        return {
            "transformer": self.F.state_dict(),
            "centroids": self.e,
            "prototypes": self.P,
            "labels": self.y,
            "latents": self.Q_bar,
            "images": self.images,
            "age": self.age,
            "generator": self.provenance().get("sha256"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds.

        Raises:
            UsageError: Its pairs were drawn by another generator.
        """
        drawn_by, ours = state["generator"], self.provenance().get("sha256")
        if drawn_by != ours:
            raise UsageError(
                f"--method.generator is another one than that of the checkpoint (sha256 {ours}, not {drawn_by}): give "
                "the weights that the run began with, or start anew without --ckpt_path"
            )
        self.F.load_state_dict(state["transformer"])
        self.e = state["centroids"].to(self.e)
        self.P, self.y = state["prototypes"].to(self.P), state["labels"].to(self.y)
        self.Q_bar = state["latents"].to(self.Q_bar)
        self.images = state["images"].to(self.images)
        self.age = state["age"].to(self.age)
