"""UA-GAN: Zhang, Qu, Chang, Liu, Metaxas, Chen, "Training Federated GANs with Theoretical Guarantees: A Universal
Aggregation Approach", 2021.

server: G ; client k: D_k
round t:
    server: X_d, X_g <- G(noise)
    client k: L times  D_k <- Adam step on real images against X_d
              sends c h_k(x) = c D_k(x) / (1 - D_k(x)) and c d h_k(x) / d x for x in X_g,  c one over the largest odds
    server: h = sum_k pi_k h_k,  pi_k = n_k / n ;  D_ua = h / (1 + h)
            l(x) = - log D_ua(x), or log(1 - D_ua(x))
            G <- Adam step along  1/B sum_i (d l / d h) (sum_k pi_k d h_k / d x_i) d x_i / d G
"""

from __future__ import annotations

import math

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.methods.remote_discriminators import (
    GeneratorLoss,
    ImageType,
    RemoteDiscriminators,
    image_loss,
    image_loss_slope,
)
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    codecs = deferred_module("flgen.wire.codecs")


class UAGAN(RemoteDiscriminators):
    """One generator against the discriminator of the clients' mixture, whose odds are the mean of theirs.

    Clients of few classes see images of the others' as fakes; odds are averaged and not scores, so that one client that
    takes an image for real outweighs those that do not know its class.

    Args:
        local_steps: Steps of a discriminator per round, L; the generator takes one.
        batch_size: Real images, and generated ones, per step, B; also the images that are judged.
        fake_batches: Batches in X_d, which local steps use in turn.
        generator_loss: What the generator minimises: "non_saturating" - log D_ua, or "saturating" log(1 - D_ua).
        largest_log_odds: b: odds are exp of log-odds kept within plus or minus this, and are sent as shares of the
            largest, e^b, which are at most 1; the gradient of log-odds beyond b is sent with odds at the bound. Sums in
            fixed point of f fraction bits round odds to steps of e^b 2^-f.
        generator_learning_rate: Of the generator's Adam.
        discriminator_learning_rate: Of the discriminators' Adam.
        betas: Adam's decays of its two moments, of both.
        image_dtype: How images travel down, "float32" or "float16"; odds and their gradients are always float32.
        recalibration_batches: Noise batches of 64 by which BatchNorm is calibrated before images are drawn.
        topology: How answers reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "sample_weighted_sum"

    def __init__(
        self,
        local_steps: int = 1,
        batch_size: int = 64,
        fake_batches: int = 1,
        generator_loss: GeneratorLoss = "non_saturating",
        largest_log_odds: float = 8.0,
        generator_learning_rate: float = 5e-4,
        discriminator_learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        image_dtype: ImageType = "float32",
        recalibration_batches: int = 100,
        topology: Star | None = None,
    ) -> None:
        super().__init__(
            local_steps,
            batch_size,
            fake_batches,
            generator_learning_rate,
            discriminator_learning_rate,
            betas,
            image_dtype,
            recalibration_batches,
            topology,
        )
        option_ranges.above_0("method", largest_log_odds=largest_log_odds)
        self.generator_loss: GeneratorLoss = generator_loss
        self.largest_log_odds = largest_log_odds
        self.pooled_loss = 0.0

    def answer(self, client: Client, X_g: Tensor, t: int) -> codecs.Payload:
        """c h_k = exp(logit - b) and c d h_k / d x = c h_k d logit / d x, c = e^-b."""
        logits, gradients = self.judge_images(X_g)
        b = self.largest_log_odds
        ch_k = (logits.clamp(-b, b) - b).exp()
        return {"odds": codecs.dense(ch_k), "odds_gradient": codecs.dense(ch_k.view(-1, 1, 1, 1) * gradients)}

    def feedback(self, uploads: Uploads) -> Tensor:
        """d l / d x of the pooled discriminator, whose logit is log h: d log h / d x = (d h / d x) / h."""
        b = self.largest_log_odds
        pooled = {name: mean * math.exp(b) for name, mean in uploads.mean().items()}
        h = pooled["odds"].clamp(min=math.exp(-b))  # as no odds are smaller, less comes of rounding
        self.pooled_loss = float(image_loss(h.log(), self.generator_loss).mean())
        slope = image_loss_slope(h.log(), self.generator_loss) / h
        return slope.view(-1, 1, 1, 1) * pooled["odds_gradient"]

    def round_metrics(self, t: int) -> dict[str, float]:
        """The generator's loss against the pooled discriminator, and the mean norm of F_i."""
        return {"train/generator_loss": self.pooled_loss, **super().round_metrics(t)}
