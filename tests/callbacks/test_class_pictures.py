"""Class pictures of a run: a row per evaluation, pixel by pixel, and a grid for loggers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flgen import LocalTraining, RandomProjection, SmallCNN
from flgen.callbacks import ClassPictures, SampleGrids
from flgen.experiment.runs import RunFolder
from flgen.methods.latent_alignment import AlignmentTraining
from flgen.trainer import FederatedTrainer

NAMES = ("zero", "one", "two")


def trainer_at(folder: Path, loggers: list[Any] | None = None) -> Any:
    return SimpleNamespace(folder=RunFolder(folder), loggers=loggers or [])


def picture(channels: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (channels, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "mode"), [(1, "LA"), (3, "RGBA")])
def test_a_row_holds_every_pixel_and_absent_classes_are_transparent(tmp_path: Path, channels: int, mode: str) -> None:
    pictures = {2: picture(channels, 2), 0: picture(channels, 0)}
    ClassPictures().on_class_pictures(trainer_at(tmp_path), round=7, pictures=pictures, class_names=NAMES)
    with Image.open(tmp_path / "pairs" / "round-00007.png") as image:
        assert (image.mode, image.size) == (mode, (15, 4))
        row = np.asarray(image)
    for label, columns in enumerate(np.split(row, 3, axis=1)):
        alpha = columns[..., -1]
        if label in pictures:
            assert (alpha == 255).all()
            assert (columns[..., :-1] == pictures[label].permute(1, 2, 0).numpy()).all()
        else:
            assert (alpha == 0).all()


def test_loggers_get_a_grid(tmp_path: Path) -> None:
    seen: list[Any] = []
    logger = SimpleNamespace(log_image=lambda name, images, step: seen.append((name, images[0], step)))
    pictures = {1: torch.zeros(1, 4, 4, dtype=torch.uint8)}
    ClassPictures().on_class_pictures(trainer_at(tmp_path, [logger]), round=3, pictures=pictures, class_names=NAMES)
    ((name, grid, step),) = seen
    assert (name, step) == ("pairs", 3)
    values = np.asarray(grid)  # 2 by 2, the last cell empty: class 1 is black, the others are grey
    middle = values.shape[0] // 2
    assert (values[:middle, middle + 4 : -4][4:-4] == 0).all()
    assert (values[:, : middle - 4] == 128).all()


def test_every_fit_has_them_unless_it_names_its_callbacks() -> None:
    kinds = [type(callback) for callback in FederatedTrainer().callbacks]
    assert kinds[-2:] == [SampleGrids, ClassPictures]
    assert FederatedTrainer(callbacks=[]).callbacks == []


def test_a_run_of_fedktl_leaves_what_clients_were_sent(tmp_path: Path, fit_small: Any) -> None:
    options = {
        "training": LocalTraining(batch_size=32, clip_norm=5.0),
        "generator": RandomProjection(channels=1),
        "alignment": AlignmentTraining(epochs=2),
    }
    seen: dict[int, dict[int, torch.Tensor]] = {}

    class Witness(ClassPictures):
        def on_class_pictures(self, trainer: Any, round: int, pictures: Any, class_names: Any) -> None:
            seen[round] = {label: shown.clone() for label, shown in pictures.items()}
            super().on_class_pictures(trainer, round, pictures, class_names)

    fit_small(
        tmp_path / "run",
        method="FedKTL",
        method_options=options,
        model=SmallCNN(image_size=8, width=4, learning_rate=0.02),
        every=1,
        callbacks=[Witness()],
    )
    assert sorted(path.name for path in (tmp_path / "run" / "pairs").iterdir()) == [
        "round-00001.png",
        "round-00002.png",
    ]
    assert sorted(seen[2]) == list(range(10))
    with Image.open(tmp_path / "run" / "pairs" / "round-00002.png") as image:
        row = np.asarray(image)
    sent = torch.cat([seen[2][label][0] for label in range(10)], dim=1)
    assert (row[..., 0] == sent.numpy()).all()


def test_a_method_that_sends_none_leaves_no_folder(tmp_path: Path, fit_small: Any) -> None:
    fit_small(tmp_path / "run", method="FedAvg", every=1, callbacks=[ClassPictures()])
    assert not (tmp_path / "run" / "pairs").exists()
