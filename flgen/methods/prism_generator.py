"""A generator that PRISM trained, as a frozen map from noise to images: what FedKTL needs, and offline.

w <- frozen weights of the run's seed ; s <- scores of the checkpoint
m ~ Bern(sigmoid(s)) once, or m = [sigmoid(s) > 0.5]
BatchNorm <- running statistics, measured on noise
z ~ N(0, I_H) ; image = (G(z; w m) + 1) / 2
"""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.experiment.runs import RunFolder
from flgen.federation.streams import RandomStreams
from flgen.synthesis.latent_generator import OPTION, LatentGenerator
from flgen.synthesis.pretrained import seeded
from flgen.synthesis.synthesizer import content_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData
    from flgen.experiment import checkpoints
    from flgen.masks import network
else:
    torch = deferred_module("torch")
    checkpoints = deferred_module("flgen.experiment.checkpoints")
    network = deferred_module("flgen.masks.network")

CHECKPOINT = f"{OPTION}.checkpoint"
METHOD = "Prism"
NEEDED = ("latent", "channels", "image_size", "recalibrate")


class PrismGenerator(LatentGenerator):
    """The generator of a PRISM run's checkpoint (FedKTL's specification, section 2.2).

    It draws the images that `flgen sample` draws from the checkpoint on a CPU, with BatchNorm recalibrated, given the
    same noise. The data set of the run must not be the clients': train it on other data, or on the public part.

    Args:
        checkpoint: Folder of the checkpoint, such as runs/x/checkpoints/last; config.yaml of the run is read as well.
        masks: The mask: "sampled_once" from the probabilities, or "threshold", what is kept more likely than not.
        recalibration_batches: Noise batches of 64 that measure BatchNorm's statistics; null takes the run's number.
        batch_size: Images drawn at once; it limits memory alone.

    Raises:
        UsageError: An option is out of its range.
    """

    def __init__(
        self,
        checkpoint: str,
        masks: Literal["sampled_once", "threshold"] = "sampled_once",
        recalibration_batches: int | None = None,
        batch_size: int = 64,
    ) -> None:
        option_ranges.at_least(
            "method.generator", 1, recalibration_batches=recalibration_batches, batch_size=batch_size
        )
        self.checkpoint = checkpoint
        self.masks = masks
        self.recalibration_batches = recalibration_batches
        self.batch_size = batch_size

    @property
    def latent_dim(self) -> int:
        """Length of the noise."""
        return int(self._generator.latent)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the run was trained on."""
        return self._generator.channels, self._generator.image_size, self._generator.image_size

    def learned_from(self) -> str:
        """Return the data set of the run."""
        return str(self._found.identity["data"])

    def provenance(self) -> dict[str, str | None]:
        """Return run, round, data set and the digest of the scores; together with the seed they are all weights."""
        data = self._config.get("data")
        return {
            **super().provenance(),
            "name": f"PRISM {type(self._generator).__name__}",
            "data_class": data.get("class_path") if isinstance(data, dict) else None,
            "run": str(self._folder),
            "round": str(self._found.round),
            "seed": str(self._found.identity["seed"]),
            "masks": self.masks,
            "sha256": content_digest(self._found.path / "server.pt"),
        }

    def check(self, data: LabelledData) -> None:
        """Make sure that the checkpoint is whole, is one of PRISM's, and fits the generator that its run names.

        Raises:
            UsageError: It is of another method, or its run was trained on the clients' data.
            FlgenError: It is missing or damaged.
        """
        self._generator  # noqa: B018  (building it is the check)
        super().check(data)

    @cached_property
    def _found(self) -> checkpoints.Checkpoint:
        path = Path(self.checkpoint).expanduser()
        if RunFolder(path).config.is_file():
            raise UsageError(f"{CHECKPOINT} {self.checkpoint} is a run folder: give {path / 'checkpoints' / 'last'}")
        if not (path.parent if path.name == "last" else path).is_dir():
            raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: there is none; give one like runs/x/checkpoints/last")
        try:
            found = checkpoints.find_checkpoint(path)
        except FlgenError as error:
            raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: {error}") from error
        if found.identity.get("method") != METHOD:
            raise UsageError(
                f"{CHECKPOINT} {self.checkpoint}: is of a run of {found.identity.get('method')}; give a checkpoint of "
                f"{METHOD}"
            )
        return found

    @property
    def _folder(self) -> Path:
        return self._found.path.parent.parent

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The configuration of the run."""
        folder = RunFolder(self._folder)
        try:
            config = folder.read_config()
        except FlgenError as error:
            raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: must be inside its run folder ({error})") from error
        for section in ("model", "method"):
            if not isinstance(config.get(section), dict) or "init_args" not in config[section]:
                raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: config.yaml of its run describes no {section}")
        return config

    @property
    def _streams(self) -> RandomStreams:
        return RandomStreams(int(self._found.identity["seed"]))

    @cached_property
    def _generator(self) -> Any:
        """The generator with its frozen weights and its scores, on the CPU."""
        described = self._config["model"]
        options = {name: None if name == "loss" else value for name, value in described["init_args"].items()}
        try:
            with seeded(0, "cpu"):  # constructors draw weights, which are overwritten below
                generator = _instantiate({**described, "init_args": options})
            generator.reset_weights(self._streams.seed_for("weights"))
            network.flatten_scores(generator).load(self._found.server_state()["method"]["scores"])
            lacking = [name for name in NEEDED if not hasattr(generator, name)]
        except FlgenError:
            raise
        except Exception as error:  # whatever a class of the user's own raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FlgenError(
                f"{CHECKPOINT} {self.checkpoint}: the generator that {RunFolder(self._folder).config} describes cannot "
                f"be built ({reason})"
            ) from error
        if lacking:
            raise FlgenError(f"{CHECKPOINT} {self.checkpoint}: its {type(generator).__name__} has no {lacking[0]}")
        return generator

    def networks(self) -> list[nn.Module]:
        """Return the generator."""
        return [self._generator]

    def load(self, device: torch.device | str) -> None:
        """Put the generator on a device, choose its mask, and measure what BatchNorm normalises by."""
        super().load(device)
        t, generator = self._found.round, self._generator
        if self.masks == "sampled_once":
            theta = torch.sigmoid(network.scores_vector(generator).cpu())
            draws = self._streams.torch("evaluation masks", round=t)
            network.fix_masks(generator, torch.bernoulli(theta, generator=draws))
        else:
            network.threshold_masks(generator)
        batches = self.recalibration_batches or self._config["method"]["init_args"]["recalibration_batches"]
        generator.recalibrate(self._streams.torch("recalibration", round=t), batches)

    def draw(self, w: Tensor) -> Tensor:
        """Return (G(z) + 1) / 2."""
        images: Tensor = self._generator(w[:, :, None, None])
        return (images + 1.0) / 2.0


def _instantiate(described: Any) -> Any:
    """Return the object that a class_path with init_args of a configuration describes."""
    if isinstance(described, list):
        return [_instantiate(value) for value in described]
    if not (isinstance(described, dict) and "class_path" in described):
        return described
    module, _, name = described["class_path"].rpartition(".")
    options = {option: _instantiate(value) for option, value in described.get("init_args", {}).items()}
    return getattr(importlib.import_module(module), name)(**options)
