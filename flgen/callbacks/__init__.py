"""What watches a run: callbacks and loggers."""

from flgen.callbacks.base import Callback
from flgen.callbacks.class_pictures import ClassPictures
from flgen.callbacks.evaluation import Evaluation
from flgen.callbacks.loggers import (
    RunLogger,
    TensorBoardLogger,
    WandbLogger,
    close_loggers,
    log_image_grid,
    run_id,
)
from flgen.callbacks.progress import RoundProgress
from flgen.callbacks.sample_grids import SampleGrids

__all__ = [
    "Callback",
    "ClassPictures",
    "Evaluation",
    "RoundProgress",
    "RunLogger",
    "SampleGrids",
    "TensorBoardLogger",
    "WandbLogger",
    "close_loggers",
    "log_image_grid",
    "run_id",
]
