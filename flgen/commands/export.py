"""`flgen export`."""

from __future__ import annotations

from typing import Any, Literal

from flgen.commands.sections import ckpt_path_section, parse_command, writable
from flgen.errors import FlgenError, UsageError

OPTIONS: dict[str, dict[str, Any]] = {
    "format": {"type": Literal["ticket"], "default": "ticket", "help": "ticket: seed, mask and statistics (PRISM)."},
    "output": {"type": str, "default": "generator.flgen", "help": "The file to write; it must be new."},
    "masks": {
        "type": Literal["sampled_once", "threshold"],
        "default": "sampled_once",
        "help": "The mask: drawn from the probabilities, or what is kept more likely than not.",
    },
}


def run(arguments: list[str]) -> int:
    """Write the generator of a checkpoint of PRISM as one small file that needs no weights and no run folder."""
    options = parse_command("export", run.__doc__ or "", arguments, [ckpt_path_section()], OPTIONS).values
    if options.ckpt_path is None:
        raise UsageError("--ckpt_path is missing: name a checkpoint, such as runs/x/checkpoints/last")
    output = writable(options.output)
    if output.exists():
        raise UsageError(f"--output {output} exists already: give another name, or remove it")

    from flgen.federation.launch import keep_to_one_thread
    from flgen.masks.ticket import write_ticket
    from flgen.methods.finished_prism import CheckpointGenerator

    keep_to_one_thread()
    ticket = CheckpointGenerator("--ckpt_path", options.ckpt_path, options.masks).ticket()
    try:
        sha256 = write_ticket(output, ticket)
    except FlgenError as error:
        raise FlgenError(f"--ckpt_path {options.ckpt_path} cannot become a ticket: {error}") from error
    weights, size = len(ticket.mask), output.stat().st_size
    print(f"surviving weights: {ticket.surviving:,} of {weights:,} ({ticket.surviving / weights:.1%})")
    print(f"dense equivalent: {ticket.dense_bytes:,} bytes, {ticket.dense_bytes / size:.1f} times the ticket")
    print(f"ticket: {output}, {size:,} bytes, sha256 {sha256}")
    return 0
