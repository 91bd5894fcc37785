"""What a ticket says of itself, in JSON: its architecture, how its mask is coded, and where it comes from."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from flgen.errors import FlgenError

Coding = Literal["packed", "entropy"]
"""How the mask is written: a bit for each weight, or as many as the densities of its layers allow."""

OURS = "flgen.models."
"""Where a ticket's class must be: a file may choose among flgen's models, and start nothing else."""

NOT_PLAIN = "its generator's options are not plain values: numbers, strings, booleans, null"


@dataclass(frozen=True)
class Provenance:
    """Where a ticket comes from.

    Args:
        data: Name of the data set that the generator learned from.
        data_class: Class path of the data set, nothing if unknown.
        run: Name of the run folder.
        round: The last round that it contains.
        seed: Seed of the run, which noise is drawn from unless another is asked for.
        masks: "sampled_once" or "threshold": how the mask was made of the probabilities.
    """

    data: str
    data_class: str
    run: str
    round: int
    seed: int
    masks: Literal["sampled_once", "threshold"]


@dataclass(frozen=True)
class Description:
    """The description of a ticket.

    Args:
        class_path: Class of the generator, below `flgen.models`.
        init_args: Its options: numbers, strings, booleans, null.
        provenance: Where the ticket comes from.
        coding: How its mask is written.
        layers: Number of weights of each layer; nothing if unknown.
    """

    class_path: str
    init_args: dict[str, Any]
    provenance: Provenance
    coding: Coding
    layers: tuple[int, ...]

    def to_json(self) -> bytes:
        """Return it as version 2 has it, the same bytes for the same description; raises FlgenError if it cannot be."""
        described = {
            "architecture": {"class_path": self.class_path, "init_args": self.init_args},
            "mask": {"coding": self.coding, "layers": self.layers},
            "provenance": asdict(self.provenance),
        }
        try:
            return json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise FlgenError(NOT_PLAIN) from error


def read_description(text: bytes, version: int, weights: int) -> Description:
    """Return the description in a ticket.

    Args:
        text: JSON in UTF-8.
        version: Version of the ticket; the first says nothing of the mask, which is packed.
        weights: Number of weights that its header announces, d.

    Raises:
        FlgenError: It is none, or does not fit the header.
    """
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FlgenError("its description is no JSON") from error
    parts = ("architecture", "provenance") if version == 1 else ("architecture", "mask", "provenance")
    described = _object(described, "description", parts)
    class_path, init_args = _architecture(described["architecture"])
    coding, layers = ("packed", ()) if version == 1 else _mask(described["mask"], weights)
    return Description(class_path, init_args, _provenance(described["provenance"]), coding, layers)


def _architecture(value: Any) -> tuple[str, dict[str, Any]]:
    class_path, init_args = _object(value, "architecture", ("class_path", "init_args")).values()
    if not (isinstance(class_path, str) and re.fullmatch(rf"{re.escape(OURS)}[a-z0-9_]+\.[A-Za-z0-9]+", class_path)):
        raise FlgenError(f"its generator {_shown(class_path)} is none of {OURS}*, which alone can be in a ticket")
    if not (isinstance(init_args, dict) and all(name.isidentifier() and _plain(init_args[name]) for name in init_args)):
        raise FlgenError(NOT_PLAIN)
    return class_path, init_args


def _mask(value: Any, weights: int) -> tuple[Coding, tuple[int, ...]]:
    coding, layers = _object(value, "mask", ("coding", "layers")).values()
    if coding not in ("packed", "entropy"):
        raise FlgenError(f"its mask has a coding that does not exist: {_shown(coding)}")
    if not (isinstance(layers, list) and all(type(size) is int and 0 < size <= weights for size in layers)):
        raise FlgenError(f"its mask has layers that are not of 1 to {weights} weights: {_shown(layers)}")
    if sum(layers) != weights:
        raise FlgenError(f"its mask has layers of {sum(layers)} weights together, its header announces {weights}")
    return coding, tuple(layers)


def _provenance(value: Any) -> Provenance:
    names = {field.name: int if field.name in ("round", "seed") else str for field in fields(Provenance)}
    facts = _object(value, "provenance", tuple(names))
    for name, type_ in names.items():
        if type(facts[name]) is not type_ or not _plain(facts[name]):
            raise FlgenError(f"its provenance has no proper {name}: {_shown(facts[name])}")
    if facts["masks"] not in ("sampled_once", "threshold"):
        raise FlgenError(f"its provenance names a kind of mask that does not exist: {_shown(facts['masks'])}")
    return Provenance(**facts)


def _object(value: Any, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return an object of the description, in the order of its keys, which must be these."""
    if not isinstance(value, dict) or set(value) != set(keys):
        raise FlgenError(f"its {name} must have {', '.join(keys)} and nothing else")
    return {key: value[key] for key in keys}


def _plain(value: Any) -> bool:
    """Say whether a value is null, a boolean, a number of 64 bits, or a string that can be shown."""
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    return ascii(value)[:80]
