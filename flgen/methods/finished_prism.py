"""A generator that PRISM has finished training, out of a checkpoint or out of a ticket.

w <- frozen weights of the run's seed
checkpoint: s <- scores ; m ~ Bern(sigmoid(s)) once, or m = [sigmoid(s) > 0.5]
            BatchNorm <- running statistics, measured on noise
ticket:     m and BatchNorm <- what a checkpoint gave when it was exported
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment.class_paths import locate
from flgen.experiment.config import Section, build_parser, describe, parse
from flgen.experiment.runs import RunFolder
from flgen.federation.streams import RandomStreams
from flgen.synthesis.pretrained import seeded
from flgen.synthesis.synthesizer import content_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.experiment import checkpoints
    from flgen.masks import layers, network
    from flgen.masks import ticket as tickets
else:
    torch = deferred_module("torch")
    checkpoints = deferred_module("flgen.experiment.checkpoints")
    layers = deferred_module("flgen.masks.layers")
    network = deferred_module("flgen.masks.network")
    tickets = deferred_module("flgen.masks.ticket")

METHOD = "Prism"
NEEDED = ("latent", "channels", "image_size", "recalibrate")

KeptMask = Literal["sampled_once", "threshold"]


class FinishedGenerator(ABC):
    """Where a finished generator comes from.

    Args:
        option: The option that names it, as it is typed.
        place: What was typed after it.
    """

    def __init__(self, option: str, place: str) -> None:
        self.option = option
        self.place = place

    @property
    def named(self) -> str:
        """How errors begin."""
        return f"{self.option} {self.place}"

    @cached_property
    @abstractmethod
    def network(self) -> Any:
        """The generator with its frozen weights, on the CPU.

        Raises:
            UsageError: It is of another method.
            FlgenError: It is missing or damaged.
        """

    @abstractmethod
    def finish(self) -> None:
        """Give the generator, on the device that it is on, its mask and its statistics."""

    @abstractmethod
    def origin(self) -> tickets.Provenance:
        """Return data set, run, round, seed and kind of mask."""

    @property
    def noise_of_seed(self) -> bool:
        """Whether the run was private by noise that the run's seed names."""
        return False

    @abstractmethod
    def ticket(self) -> tickets.Ticket:
        """Finish the generator, and return it as a ticket.

        Raises:
            UsageError: It is of another method.
            FlgenError: It is missing or damaged.
        """

    @property
    @abstractmethod
    def weights_file(self) -> Path:
        """What holds all that was learnt."""

    def digest(self) -> str:
        """Return the SHA-256 of the file that holds all that was learnt."""
        return content_digest(self.weights_file)


class CheckpointGenerator(FinishedGenerator):
    """The generator of a checkpoint of PRISM, which lies in the folder of its run.

    Args:
        option: The option that names it, as it is typed.
        place: Folder of the checkpoint, such as runs/x/checkpoints/last.
        masks: How the mask is made of the probabilities.
        recalibration_batches: Noise batches that measure BatchNorm's statistics; None takes the run's number.
    """

    def __init__(
        self, option: str, place: str, masks: KeptMask = "sampled_once", recalibration_batches: int | None = None
    ) -> None:
        super().__init__(option, place)
        self.masks: KeptMask = masks
        self.recalibration_batches = recalibration_batches

    @cached_property
    def _found(self) -> checkpoints.Checkpoint:
        path = Path(self.place).expanduser()
        if RunFolder(path).config.is_file():
            raise UsageError(f"{self.named} is a run folder: give {path / 'checkpoints' / 'last'}")
        if not (path.parent if path.name == "last" else path).is_dir():
            raise FlgenError(f"{self.named}: there is none; give one like runs/x/checkpoints/last")
        try:
            found = checkpoints.find_checkpoint(path)
        except FlgenError as error:
            raise FlgenError(f"{self.named}: {error}") from error
        method = found.identity.get("method")
        if method != METHOD:
            shown = method if isinstance(method, str) and method.isidentifier() else ascii(method)
            raise UsageError(f"{self.named}: is of a run of {shown:.40}; give a checkpoint of {METHOD}")
        if type(found.identity.get("seed")) is not int or not isinstance(found.identity.get("data"), str):
            raise FlgenError(f"{self.named}: its manifest.json has no seed and data of its run; use another one")
        return found

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._found.path.parent.parent

    @property
    def weights_file(self) -> Path:
        """The server's state; together with the seed the scores in it are all weights."""
        return self._found.path / "server.pt"

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The configuration of the run."""
        run = RunFolder(self.folder)
        try:
            config = run.read_config()
        except FlgenError as error:
            raise FlgenError(f"{self.named}: must be inside its run folder ({error})") from error
        for section in ("model", "method"):
            options = config[section].get("init_args") if isinstance(config.get(section), dict) else None
            if not isinstance(options, dict):
                raise FlgenError(f"{self.named}: config.yaml of its run describes no {section}")
        return config

    @property
    def _streams(self) -> RandomStreams:
        return RandomStreams(int(self._found.identity["seed"]))

    def origin(self) -> tickets.Provenance:
        """Return data set, run, round, seed and kind of mask."""
        data = self._config.get("data")
        identity = self._found.identity
        class_path = data.get("class_path") if isinstance(data, dict) else None
        return tickets.Provenance(
            data=str(identity["data"]),
            data_class=str(class_path or ""),
            run=str(self.folder),
            round=self._found.round,
            seed=int(identity["seed"]),
            masks=self.masks,
        )

    @cached_property
    def network(self) -> Any:
        """The generator with its frozen weights and its scores, on the CPU."""
        described = self._config["model"]
        try:
            options = {name: None if name == "loss" else value for name, value in described["init_args"].items()}
            with seeded(0, "cpu"):  # constructors draw weights, which are overwritten below
                generator = _generator({**described, "init_args": options})
            generator.reset_weights(self._streams.seed_for("weights"))
            network.flatten_scores(generator).load(self._found.server_state()["method"]["scores"])
            lacking = [name for name in NEEDED if not hasattr(generator, name)]
        except UsageError as error:  # of an option that nobody typed
            raise FlgenError(f"{self.named}: in {RunFolder(self.folder).config}, {error}") from error
        except FlgenError:
            raise
        except Exception as error:  # whatever a class of the user's own raises
            raise FlgenError(
                f"{self.named}: the generator that {RunFolder(self.folder).config} describes cannot be built "
                f"({_reason(error)})"
            ) from error
        if lacking:
            raise FlgenError(f"{self.named}: its {type(generator).__name__} has no {lacking[0]}")
        return generator

    def finish(self) -> None:
        """Choose the mask, and measure what BatchNorm normalises by."""
        network.fix_masks(self.network, self._mask())
        options = self._config["method"]["init_args"]
        batches = self.recalibration_batches or options.get("recalibration_batches")
        if type(batches) is not int or batches < 1:
            raise FlgenError(
                f"{self.named}: config.yaml of its run has {batches!r:.40} as recalibration_batches, no number of them"
            )
        self.network.recalibrate(self._streams.torch("recalibration", round=self._found.round), batches)

    def _mask(self) -> Tensor:
        """m ~ Bern(sigmoid(s)) once, or m = [sigmoid(s) > 0.5]; float32 (d,)."""
        scores = network.scores_vector(self.network)
        if self.masks == "threshold":
            return layers.threshold_mask(scores)
        draws = self._streams.torch("evaluation masks", round=self._found.round)
        return torch.bernoulli(torch.sigmoid(scores.cpu()), generator=draws)

    @property
    def noise_of_seed(self) -> bool:
        """Whether the run was private by noise that the run's seed names."""
        privacy = self._config["method"]["init_args"].get("privacy")
        options = privacy.get("init_args") if isinstance(privacy, dict) else None
        return isinstance(options, dict) and options.get("noise_key", "none was drawn") is None

    def ticket(self) -> tickets.Ticket:
        """Finish the generator, and return it as a ticket."""
        generator = self.network
        self.finish()
        means, variances = tickets.statistics(generator)
        described = describe(generator)
        return tickets.Ticket(
            class_path=described["class_path"],
            init_args={name: value for name, value in described["init_args"].items() if name != "loss"},
            weight_seed=self._streams.seed_for("weights"),
            mask=self._mask().bool(),
            means=means,
            variances=variances,
            provenance=replace(self.origin(), run=self.folder.absolute().name),  # not where it lies on this machine
            layers=tuple(place.stop - place.start for place in network.layer_slices(generator).values()),
        )


class TicketGenerator(FinishedGenerator):
    """The generator of a ticket.

    Args:
        option: The option that names it, as it is typed.
        place: The file.
    """

    @property
    def weights_file(self) -> Path:
        """The ticket."""
        return Path(self.place).expanduser()

    @cached_property
    def _ticket(self) -> tickets.Ticket:
        if not self.weights_file.is_file():
            raise FlgenError(f"{self.named}: there is no such file; `flgen export` writes one")
        try:
            return tickets.read_ticket(self.weights_file)
        except FlgenError as error:
            raise FlgenError(f"{self.option}: {error}") from error

    def origin(self) -> tickets.Provenance:
        """Return data set, run, round, seed and kind of mask."""
        return self._ticket.provenance

    @cached_property
    def network(self) -> Any:
        """The generator with its frozen weights, on the CPU; its size is checked before it takes memory."""
        ticket = self._ticket
        try:
            chosen = locate(ticket.class_path)
            if not (isinstance(chosen, type) and hasattr(chosen, "recalibrate")):
                raise FlgenError(f"{ticket.class_path} is no generator with masks")
            with torch.device("meta"):
                tickets.check_fit(ticket, chosen(**ticket.init_args))
            generator = chosen(**ticket.init_args)
            generator.reset_weights(ticket.weight_seed)
        except Exception as error:  # whatever options that do not belong together raise
            raise FlgenError(f"{self.named}: its generator cannot be built ({_reason(error)})") from error
        return generator

    def finish(self) -> None:
        """Take mask and statistics from the ticket."""
        tickets.apply_ticket(self._ticket, self.network)

    def ticket(self) -> tickets.Ticket:
        """Finish the generator, and return the ticket that it is of."""
        self.finish()
        return self._ticket


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _generator(described: Any) -> Any:
    """Return the network that a class_path with init_args of a configuration describes; nothing else can be made so."""
    model = Section("model", LightningModule, "class", required=True)
    configuration = parse(build_parser([model], {}, ""), [f"--model={json.dumps(described)}"], [model])
    return configuration.parser.instantiate(configuration.values).model
