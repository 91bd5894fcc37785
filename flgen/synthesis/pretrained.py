"""Loading pre-trained generators: from a folder or a model hub, with one clear line when they are not there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import torch
else:
    torch = deferred_module("torch")

Precision = Literal["auto", "32", "16", "bf16"]


def local_files(*checkpoints: str | None) -> list[Path]:
    """Return those of some checkpoints that are on this machine: a hub's model id is none."""
    paths = [Path(checkpoint).expanduser() for checkpoint in checkpoints if checkpoint]
    return [path for path in paths if path.exists()]


def place_of(checkpoint: str) -> str:
    """Return where a library finds a checkpoint: its path if it is on this machine, else the model id as it is."""
    found = local_files(checkpoint)
    return str(found[0]) if found else checkpoint


def check_local(option: str, checkpoint: str) -> None:
    """Refuse a checkpoint that can only be a path, and where nothing lies.

    Raises:
        FlgenError: If nothing is there.
    """
    path = Path(checkpoint).expanduser()
    looks_local = path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") > 1
    if looks_local and not path.exists():
        raise FlgenError(f"{option} {checkpoint}: there is no such folder; give one, or a model id such as owner/name")


@contextmanager
def loading(option: str, checkpoint: str) -> Iterator[None]:
    """Turn whatever a library says about weights that it cannot load into one line.

    Raises:
        FlgenError: If the block fails.
    """
    try:
        with quiet():
            import transformers

            transformers.utils.logging.set_verbosity_error()
            transformers.utils.logging.disable_progress_bar()
            yield
    except FlgenError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        what = (
            "cannot be loaded from this folder"
            if Path(checkpoint).expanduser().is_dir()
            else "is no folder, and no model of this id can be loaded"
        )
        raise FlgenError(
            f"{option} {checkpoint}: {what} ({reason}); give a folder that the library's save_pretrained wrote, or a "
            "model id and a way to the hub"
        ) from error


def pick_dtype(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Return the type of the weights; "auto" is 16 on a GPU and 32 elsewhere."""
    if precision == "auto":
        precision = "16" if torch.device(device).type == "cuda" else "32"
    return {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}[precision]


def revision_of(model: Any, revision: str | None) -> str | None:
    """Return the commit that a model was loaded from, as far as its library tells; else the one asked for."""
    return getattr(getattr(model, "config", None), "_commit_hash", None) or revision


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what libraries announce about their own future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*is deprecated and ignored")
        yield


@contextmanager
def seeded(seed: int, device: torch.device | str) -> Iterator[None]:
    """Seed torch's global generators inside the block, for libraries that draw from them, and give them back after."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
