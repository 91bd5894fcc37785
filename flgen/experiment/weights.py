"""Weights as a file between stages: every parameter and buffer of a module, as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import atomic_replace

if TYPE_CHECKING:
    from torch.nn import Module


def save_weights(module: Module, path: Path, facts: Mapping[str, str]) -> str:
    """Write a module's parameters and buffers; return the file's SHA-256.

    Args:
        module: On any device.
        path: The file to write, `*.safetensors`; it is replaced as a whole or not at all.
        facts: Where the weights come from; kept in the file's header.

    Raises:
        FlgenError: The file cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    with atomic_replace(path) as temporary:
        # One entry: the writer puts several into an order that differs from run to run, and with it the file's digest.
        save_file(tensors, str(temporary), metadata={"flgen": json.dumps(dict(facts), sort_keys=True)})
    return file_sha256(path)


def load_weights(module: Module, path: str | Path) -> str:
    """Put the weights of a file into a module; return the file's SHA-256.

    Args:
        module: Of the structure that the file was written from.
        path: As `save_weights` wrote it.

    Raises:
        UsageError: The file is missing, or fits another module.
        FlgenError: It cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UsageError(f"--initial_weights {path}: there is no such file; `flgen pretrain` writes final.safetensors")
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise FlgenError(f"--initial_weights {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if differing := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        name = differing[0]
        raise UsageError(
            f"--initial_weights {path} is of another model: {name!r:.80} is {found.get(name, 'missing')} in it and "
            f"{expected.get(name, 'missing')} in {type(module).__name__} ({len(differing)} tensors differ)"
        )
    module.load_state_dict(tensors)
    return file_sha256(Path(path))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        FlgenError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FlgenError(f"{path} cannot be read ({error.strerror})") from error
