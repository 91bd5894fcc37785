"""A pipeline's stages: which needs which, and the key by which a finished one is known (gptfl.md, section 1.1)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.errors import UsageError

MOST_STAGES, LONGEST_NAME = 100, 60

_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Stage:
    """One command of a pipeline.

    Args:
        name: Its name in the pipeline.
        command: What is typed after `flgen`.
        configs: Files that its configuration begins with.
        config: Its own options, laid over them; `${NAME}` in a text stands for what stage NAME makes.
        needs: The stages that it refers to, in the order of their names.
        key: Digest of everything that its result depends on: equal key, equal result.
    """

    name: str
    command: str
    configs: tuple[str, ...]
    config: dict[str, Any]
    needs: tuple[str, ...]
    key: str

    @property
    def folder(self) -> str:
        """Name of the folder that it works in."""
        return f"{self.name}-{self.key[:12]}"

    def resolved(self, artefact: Callable[[str], str]) -> dict[str, Any]:
        """Return the stage's own options with every reference replaced.

        Args:
            artefact: Returns what a stage makes, by name.
        """
        replaced: dict[str, Any] = _replace(self.config, artefact)
        return replaced


def read_stages(stages: Mapping[str, Any], seed: int, commands: Mapping[str, Any]) -> dict[str, Stage]:
    """Return the stages of a pipeline by name, each after those that it needs.

    Args:
        stages: {name: {command, config, configs}} as in the configuration.
        seed: `seed_everything` of every stage that gives none.
        commands: The commands that a pipeline can run.

    Raises:
        UsageError: A stage is badly written, needs one that does not exist, or needs itself by a detour.
    """
    if len(stages) > MOST_STAGES:
        raise UsageError(f"--stages has {len(stages)} stages: at most {MOST_STAGES} are taken, divide the pipeline")
    given = {name: _checked(name, options, commands) for name, options in stages.items()}
    done: dict[str, Stage] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UsageError(f"--stages: {' needs '.join((*path[path.index(name) :], name))[:400]}: break the circle")
        if name in done:
            return
        options = {"seed_everything": seed, **given[name].get("config", {})}
        needs = tuple(sorted(_references(options)))
        for other in needs:
            if other not in given:
                raise UsageError(
                    f"--stages.{name} refers to ${{{ascii(other)[1:-1]:.60}}}: there are {', '.join(given)[:400]}"
                )
            visit(other, (*path, name))
        configs = tuple(given[name].get("configs", ()))
        content = {
            "command": given[name]["command"],
            "config": options,
            "configs": [_content(name, file) for file in configs],
            "inputs": [done[other].key for other in needs],
        }
        try:
            key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        except (TypeError, ValueError) as error:  # names that are numbers here and texts there have no order
            raise UsageError(f"--stages.{name}: its options have names that are no texts") from error
        done[name] = Stage(name, given[name]["command"], configs, options, needs, key)

    for name in given:
        visit(name, ())
    return done


def _checked(name: str, options: Any, commands: Mapping[str, Any]) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UsageError(f"--stages.{ascii(name)[1:-1]:.40}: a stage's name has letters, digits, - and _ only")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"--stages.{name:.40}...: give a stage a name of at most {LONGEST_NAME} letters")
    if not isinstance(options, dict) or not set(options) <= {"command", "config", "configs"}:
        raise UsageError(f"--stages.{name}: give a mapping of command, config and configs")
    command = options.get("command")
    if command not in list(commands):
        shown = command if isinstance(command, str) and command.isprintable() else ascii(command)
        raise UsageError(f"--stages.{name}.command is {shown:.40}: give one of {', '.join(commands)}")
    if not isinstance(options.get("config", {}), dict) or not isinstance(options.get("configs", []), list):
        raise UsageError(f"--stages.{name}: config is a mapping of options, configs a list of files")
    return options


def _content(name: str, file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, ValueError, TypeError) as error:
        shown = file if isinstance(file, str) and file.isprintable() else ascii(file)
        raise UsageError(f"--stages.{name}.configs: {shown:.80} cannot be read") from error


def _references(value: Any) -> set[str]:
    if isinstance(value, str):
        return set(_REFERENCE.findall(value))
    if isinstance(value, dict):
        return set().union(*map(_references, value.values()))
    return set().union(*map(_references, value)) if isinstance(value, list) else set()


def _replace(value: Any, artefact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: artefact(match[1]), value)
    if isinstance(value, dict):
        return {name: _replace(item, artefact) for name, item in value.items()}
    return [_replace(item, artefact) for item in value] if isinstance(value, list) else value
