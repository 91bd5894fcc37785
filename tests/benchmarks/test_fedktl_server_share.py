"""FedKTL: what the server does in a round, training its transformer and drawing images, as a share of the round."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from cnn_workload import NEVER, SEED, Stripes
from report import Report
from torch import Tensor, nn

from flgen import IID, Evaluation, FederatedTrainer, FedKTL, LocalTraining, PooledClassifier
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.experiment.records import read_metrics
from flgen.masks.network import threshold_masks
from flgen.models import ResnetGenerator
from flgen.synthesis import LatentGenerator

pytestmark = pytest.mark.benchmark

CLIENTS = 20
SAMPLES_PER_CLIENT = 300
BATCH_SIZE = 10
ROUNDS = 4
LATENT = 512
SIDE = 32


class ColourStripes(Stripes):
    """The striped images, in colour and as large as CIFAR's."""

    def layout(self) -> ImageLayout:
        return ImageLayout("colour stripes", tuple("0123456789"), channels=3, image_size=SIDE)

    def load(self) -> tuple[ImageSet, ImageSet]:
        grey = super().load()
        train, test = (nn.functional.pad(part.images, (2, 2, 2, 2)).expand(-1, 3, -1, -1) for part in grey)
        return ImageSet(train, grey[0].labels), ImageSet(test, grey[1].labels)


class Untrained(LatentGenerator):
    """PRISM's generator at 32x32 with nothing learned: what it draws takes as long as if there were."""

    latent_dim = LATENT
    image_shape = (3, SIDE, SIDE)
    batch_size = 64

    def __init__(self) -> None:
        self._network = ResnetGenerator(image_size=SIDE, channels=3, latent=LATENT, width=64)
        threshold_masks(self._network)

    def networks(self) -> list[nn.Module]:
        return [self._network]

    def draw(self, w: Tensor) -> Tensor:
        return (self._network(w.view(-1, LATENT, 1, 1)) + 1) / 2


def test_the_server_s_share_of_a_round(report: Report, tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    model = PooledClassifier("cnn4", image_size=SIDE, channels=3, feature_width=512, learning_rate=0.01)
    trainer = FederatedTrainer(rounds=ROUNDS, accelerator="cpu", devices=1, threads_per_rank=1, checkpoint_every=NEVER)
    trainer.fit(
        FedKTL(LocalTraining(batch_size=BATCH_SIZE, clip_norm=100.0), Untrained()),
        model,
        ColourStripes(SAMPLES_PER_CLIENT * CLIENTS),
        IID(CLIENTS),
        evaluation=Evaluation(every=NEVER, extractors=[]),
        run_dir=tmp_path / "run",
        seed_everything=SEED,
    )
    rounds = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["round"] > 1]  # those with pairs
    assert [row["generator/images_drawn"] for row in rounds] == [10] * (ROUNDS - 1)
    report.add(
        "FedKTL, the server's share of the round",
        median(100 * row["time/aggregation_s"] / row["time/round_s"] for row in rounds),
        20,
        "%",
        f"4-layer CNN at {SIDE}x{SIDE}, {CLIENTS} clients of {SAMPLES_PER_CLIENT} images, ten classes, batch "
        f"{BATCH_SIZE}, 1 epoch, 1 rank, 1 thread; 100 epochs of the transformer to latents of {LATENT}, ten images of "
        f"PRISM's generator; wall clock, median of {len(rounds)} rounds with pairs: "
        f"{median(row['time/aggregation_s'] for row in rounds):.2f} s of "
        f"{median(row['time/round_s'] for row in rounds):.1f} s",
    )
