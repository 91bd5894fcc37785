"""The moments of a run at which a callback may act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flgen.trainer import FederatedTrainer


class Callback:
    """Something that watches a run: override the hooks it needs.

    The trainer calls every hook on every rank, by keyword; a hook may leave out arguments that it does not
    read. A callback that writes or draws does so where `trainer.is_global_zero` holds. Rounds and local steps
    count from 1.
    """

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Processes, data and method are ready; `trainer.first_round` comes next."""

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        """Nothing of this round has happened yet."""

    def on_client_start(self, trainer: FederatedTrainer, round: int, client: int) -> None:
        """This rank turns to a client of its cohort."""

    def on_local_step(self, trainer: FederatedTrainer, round: int, client: int, step: int, steps: int) -> None:
        """The client has finished local step `step` of `steps`."""

    def on_client_end(self, trainer: FederatedTrainer, round: int, client: int) -> None:
        """The client has finished its part of the round."""

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        """The round is over; `metrics` holds what was measured in it, by metric name."""

    def on_evaluation_start(self, trainer: FederatedTrainer, round: int) -> None:
        """The state after `round` is about to be evaluated."""

    def on_evaluation_end(
        self,
        trainer: FederatedTrainer,
        round: int,
        metrics: Mapping[str, float],
        images: Mapping[str, torch.Tensor],
    ) -> None:
        """The evaluation is done; on rank 0 `images` holds samples by name, uint8 (images, channels, height, width)."""

    def on_class_pictures(
        self,
        trainer: FederatedTrainer,
        round: int,
        pictures: Mapping[int, torch.Tensor],
        class_names: Sequence[str],
    ) -> None:
        """After an evaluation, on rank 0: the pictures that clients are sent, uint8 (C, H, W), by class."""

    def on_checkpoint(self, trainer: FederatedTrainer, round: int, path: Path) -> None:
        """A complete checkpoint of the state after `round` stands at `path`."""

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """All rounds are done."""

    def on_exception(self, trainer: FederatedTrainer, error: BaseException) -> None:
        """The run ends early because of `error`, Ctrl-C included."""
