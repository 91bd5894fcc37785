"""`flgen prompts`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flgen.commands.sections import parse_command, seed_section, writable
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Section
from flgen.experiment.plain_values import json_value

if TYPE_CHECKING:
    from jsonargparse import Namespace

OPTIONS: dict[str, dict[str, Any]] = {
    "labels": {"type": str | None, "help": "The JSON file of `flgen labels`: its labels, in its order."},
    "label_names": {"type": list[str] | None, "help": "The labels themselves, in the order of their class ids."},
    "output": {"type": str, "default": "prompts.jsonl", "help": "The file; labels that have prompts in it keep them."},
}


def _sections() -> list[Section]:
    from flgen.data import LabelledData
    from flgen.synthesis import PromptSource

    return [
        seed_section(),
        Section("data", LabelledData, "class", help="The data set whose classes are the labels."),
        Section("prompts", PromptSource, "class", default={"class_path": "Templates"}, help="What writes the prompts."),
        Section("prompts_per_label", int | None, help="Prompts for each label; 200 by default, 20 from 100 labels on."),
        Section("synonyms", dict[str, list[str]], default={}, help="Other names of a label that a prompt may contain."),
        Section("require_label", bool, default=True, help="Take only prompts with their label or a synonym."),
    ]


def run(arguments: list[str]) -> int:
    """Write prompts for every label, from templates or by a language model."""
    configuration = parse_command("prompts", run.__doc__ or "", arguments, _sections(), OPTIONS)
    options = configuration.values
    given = [name for name in ("labels", "data", "label_names") if options.get(name) is not None]
    if len(given) != 1:
        also = f", not {' and '.join('--' + name for name in given)} together" if given else ""
        raise UsageError(f"say where the labels are: --labels FILE, --data CLASS or --label_names [A, B]{also}")
    built = configuration.build()
    labels = _labels(built)
    output = writable(options.output)

    from flgen.synthesis.prompts import write_prompts

    try:
        report = write_prompts(
            labels,
            built.prompts,
            output,
            prompts_per_label=options.prompts_per_label,
            synonyms=options.synonyms,
            require_label=options.require_label,
            seed=options.seed_everything,
        )
    except KeyboardInterrupt:
        logging.getLogger("flgen").warning(
            "interrupted: labels that are complete are in %s, the same command goes on with the others", output
        )
        return 130
    cost = built.prompts.summary()
    print(f"{report}{'; ' + cost if cost else ''}: {output}")
    return 0


def _labels(built: Namespace) -> list[str]:
    if built.label_names is not None:
        return list(built.label_names)
    if built.data is not None:
        return list(built.data.class_names)
    file = Path(built.labels)
    try:
        labels = json_value(file.read_bytes())["labels"]
    except OSError as error:
        raise FlgenError(f"--labels {file} cannot be read ({error.strerror}): `flgen labels` writes it") from None
    except (ValueError, KeyError, TypeError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise FlgenError(f'--labels {file} is no file of labels: it needs {{"labels": ["a", "b"]}}, as JSON')
    return labels
