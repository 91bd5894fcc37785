"""`flgen export`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any, Literal

from flgen.commands.sections import ckpt_path_section, parse_command, writable
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from flgen.methods.finished_prism import FinishedGenerator

FILES = {"ticket": "generator.flgen", "onnx": "generator.onnx"}
"""The file that is written where none is named, by format."""

NOUNS = {"ticket": "ticket", "onnx": "ONNX file"}

log = logging.getLogger("flgen")

OPTIONS: dict[str, dict[str, Any]] = {
    "format": {
        "type": Literal["ticket", "onnx"],
        "default": "ticket",
        "help": "ticket: seed, mask and statistics (PRISM); onnx: an ordinary network for programs without flgen.",
    },
    "ticket": {"type": str | None, "help": "A file that `flgen export` wrote, in place of --ckpt_path."},
    "output": {
        "type": str | None,
        "help": f"The file to write; it must be new. Null is {' or '.join(FILES.values())}, by format.",
    },
    "masks": {
        "type": Literal["sampled_once", "threshold"] | None,
        "help": "The mask: drawn from the probabilities, or what is kept more likely than not. Null is a ticket's own, "
        "of a checkpoint sampled_once.",
    },
    "coding": {
        "type": Literal["entropy", "packed"] | None,
        "help": "A ticket's mask: what the densities of its layers allow where that is shorter (null, too), or a bit "
        "per weight.",
    },
}


def run(arguments: list[str]) -> int:
    """Write the generator of a checkpoint of PRISM as one file that needs no run folder."""
    options = parse_command("export", run.__doc__ or "", arguments, [ckpt_path_section()], OPTIONS).values
    if options.ckpt_path is None and options.ticket is None:
        raise UsageError("--ckpt_path is missing: name a checkpoint, such as runs/x/checkpoints/last")
    if options.ckpt_path is not None and options.ticket is not None:
        raise UsageError("--ckpt_path and --ticket are both given: export one of them")
    output = writable(options.output or FILES[options.format])
    if output.exists():
        raise UsageError(f"--output {output} exists already: give another name, or remove it")
    if options.format == "onnx" and options.coding is not None:
        raise UsageError("--coding is how a ticket codes its mask, an ONNX file has none: leave it out")
    if options.format == "onnx":
        from flgen.models.onnx_file import require_onnx

        require_onnx()  # before the work

    from flgen.federation.launch import keep_to_one_thread
    from flgen.masks.ticket import write_ticket

    keep_to_one_thread()
    source = _source(options)
    ticket = source.ticket()
    if source.noise_of_seed:
        log.warning(
            "the run's privacy noise is that of its seed, which the file names: who has the file can take the noise "
            "away; to publish it, train with --method.privacy.noise_key"
        )
    try:
        if options.format == "onnx":
            from flgen.models.onnx_file import write_onnx

            sha256 = write_onnx(output, source.network, asdict(ticket.provenance))
        else:
            written = write_ticket(output, ticket, options.coding or "entropy")
            sha256 = written.sha256
    except FlgenError as error:
        raise FlgenError(f"{source.named} cannot become a file of --format {options.format}: {error}") from error
    weights, size, noun = len(ticket.mask), output.stat().st_size, NOUNS[options.format]
    print(f"surviving weights: {ticket.surviving:,} of {weights:,} ({ticket.surviving / weights:.1%})")
    print(f"dense equivalent: {ticket.dense_bytes:,} bytes, {ticket.dense_bytes / size:.1f} times the {noun}")
    if options.format == "ticket":
        print(f"mask: {written.coding}, {8 * written.mask_bytes / weights:.3f} bits per weight")
    print(f"{noun}: {output}, {size:,} bytes, sha256 {sha256}")
    return 0


def _source(options: Namespace) -> FinishedGenerator:
    """Return the generator to write."""
    from flgen.methods.finished_prism import CheckpointGenerator, TicketGenerator

    if options.ticket is None:
        return CheckpointGenerator("--ckpt_path", options.ckpt_path, options.masks or "sampled_once")
    source = TicketGenerator("--ticket", options.ticket)
    own = source.origin().masks
    if options.masks not in (None, own):
        raise UsageError(f"--masks {options.masks}: the mask of this ticket is {own}, leave the option out")
    return source
