"""`flgen synthesize`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flgen.commands.sections import parse_command, seed_section
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.experiment.config import Section

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from flgen.data import LabelledData
    from flgen.synthesis.samples import LabelledPrompt
    from flgen.synthesis.synthesis_job import SynthesisJob, SynthesisResult

log = logging.getLogger("flgen")

OPTIONS: dict[str, dict[str, Any]] = {
    "prompts": {
        "type": str | None,
        "help": "The file of `flgen prompts`; without it the prompts are the class names of --data.",
    },
    "per_class": {"type": int | None, "help": "Samples of each class."},
    "amount": {
        "type": float | None,
        "help": "Instead of it: how many times the training split of --data, spread evenly over the classes.",
    },
    "samples_per_shard": {"type": int, "default": 1000, "help": "Samples in each tar file."},
    "output": {"type": str, "default": "runs/synthetic", "help": "The folder; the same command goes on in it."},
}
SHEET_COLUMNS = 10


@dataclass(frozen=True)
class SynthesisProcesses:
    """The processes that generate samples, one per device.

    Args:
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: Processes per node, one per device, or "auto" (all GPUs; 1 on CPU).
        num_nodes: Number of nodes; all see the output folder.
        threads_per_rank: CPU threads of each process; None means OMP_NUM_THREADS, else a share of the cores.
        timeout_s: Limit of every exchange between processes, seconds.
        round_timeout_s: How long a process that is done waits for the slowest one, seconds.

    Raises:
        UsageError: A number is out of its range.
    """

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    threads_per_rank: int | None = None
    timeout_s: float = 120
    round_timeout_s: float = 3600

    def __post_init__(self) -> None:
        option_ranges.at_least(
            "trainer", 1, devices=self.devices, num_nodes=self.num_nodes, threads_per_rank=self.threads_per_rank
        )
        option_ranges.above_0("trainer", "seconds", timeout_s=self.timeout_s, round_timeout_s=self.round_timeout_s)


def _sections() -> list[Section]:
    from flgen.data import LabelledData
    from flgen.synthesis import Synthesizer

    return [
        seed_section(),
        Section("trainer", SynthesisProcesses, "options"),
        Section("data", LabelledData, "class", help="The data set that the samples are for."),
        Section("synthesizer", Synthesizer, "class", required=True, help="What makes the samples."),
    ]


def run(arguments: list[str]) -> int:
    """Generate labelled samples from prompts, on all devices; stopped at any moment, the same command goes on."""
    configuration = parse_command("synthesize", run.__doc__ or "", arguments, _sections(), OPTIONS)
    options = configuration.values
    if (options.per_class is None) == (options.amount is None):
        raise UsageError("say how many samples to make: either --per_class N, or --amount R with --data CLASS")
    if options.data is None and (options.prompts is None or options.amount is not None):
        needed = "--amount counts the training samples of" if options.amount is not None else "without --prompts give"
        raise UsageError(f"--data is missing: {needed} a data set")
    if options.samples_per_shard < 1:
        raise UsageError(f"--samples_per_shard is {options.samples_per_shard}: give 1 or more")
    built = configuration.build()
    job = _job(built)
    job.synthesizer.check(job.requests)
    identity = job.identity()
    if job.is_complete(job.check_folder(identity)):
        print(f"all {len(job.requests)} samples are there: {job.folder}")
        return 0
    result, said_by_this_process = _launch(job, identity, built.trainer)
    if result.signal_number:
        if said_by_this_process:
            log.warning("stopped with %d of %d samples; the same command goes on", result.kept, len(job.requests))
        return 128 + result.signal_number
    if said_by_this_process:
        sheet = _contact_sheet(job)
        cost = getattr(job.synthesizer, "summary", str)()
        print(f"{result.kept} samples of {len(job.class_names)} classes{cost and '; ' + cost}: {job.folder}")
        if sheet is not None:
            print(f"contact sheet: {sheet}")
    return 0


def _job(built: Namespace) -> SynthesisJob:
    from flgen.synthesis.samples import plan_samples, samples_per_class
    from flgen.synthesis.synthesis_job import SynthesisJob

    prompts, class_names = _prompts(built.prompts, built.data)
    per_class = built.per_class
    if per_class is None:
        built.data.prepare_data()
        built.data.setup()
        per_class = samples_per_class(built.amount, len(built.data.train), len(class_names))
    return SynthesisJob(
        folder=Path(built.output),
        synthesizer=built.synthesizer,
        class_names=class_names,
        prompts=prompts,
        requests=plan_samples(
            class_names, prompts, per_class, seed=built.seed_everything, guidance=built.synthesizer.guidance
        ),
        seed=built.seed_everything,
        samples_per_shard=built.samples_per_shard,
    )


def _prompts(file: str | None, data: LabelledData | None) -> tuple[Sequence[LabelledPrompt], list[str]]:
    """Return the prompts and the classes, in the order of the prompts' class ids."""
    from flgen.synthesis.samples import BareLabel

    if file is None:
        assert data is not None, "checked by run"
        names = list(data.class_names)
        return [BareLabel(f"{number}-label", number, name) for number, name in enumerate(names)], names
    from flgen.privacy.label_table import canonical
    from flgen.synthesis.prompt_file import read_prompt_file

    prompts = read_prompt_file(file)
    if not prompts:
        raise UsageError(f"--prompts {file} has no prompts: write some with `flgen prompts`")
    label_of_class = {prompt.class_id: prompt.label for prompt in prompts}
    missing = next((number for number in range(len(label_of_class)) if number not in label_of_class), None)
    if missing is not None:
        raise UsageError(f"--prompts {file} has no prompt of class {missing}: class ids go from 0, with no gap")
    names = [label_of_class[number] for number in range(len(label_of_class))]
    if data is not None and {canonical(name) for name in names} != {canonical(name) for name in data.class_names}:
        raise UsageError(
            f"--prompts {file} and --data have different labels ({', '.join(names[:3])}, ... and "
            f"{', '.join(data.class_names[:3])}, ...); write prompts for the labels of this data set"
        )
    return prompts, names


def _launch(job: SynthesisJob, identity: dict[str, Any], processes: SynthesisProcesses) -> tuple[SynthesisResult, bool]:
    """Make what is missing on all ranks; return how it ended, and whether this process speaks for them."""
    import torch

    from flgen.callbacks.sample_progress import SampleProgress
    from flgen.federation.launch import build_fabric, launch, share_of_cores
    from flgen.federation.launchers import check_launcher
    from flgen.topology.channel import Channel

    if job.synthesizer.remote and (processes.devices not in (1, "auto") or processes.num_nodes > 1):
        raise UsageError(
            f"--trainer.devices {processes.devices}: the work is done elsewhere, and one process keeps to its limits; "
            "give 1, and raise --synthesizer.endpoint.concurrency"
        )
    check_launcher(processes.devices, processes.num_nodes)
    fabric = build_fabric(
        accelerator=processes.accelerator,
        devices=1 if job.synthesizer.remote else processes.devices,
        num_nodes=processes.num_nodes,
        precision="32-true",
        timeout_s=processes.timeout_s,
        callbacks=[],
    )

    def on_rank(stop: Any) -> SynthesisResult:
        torch.set_num_threads(processes.threads_per_rank or share_of_cores(fabric.world_size // processes.num_nodes))
        job.synthesizer.device = fabric.device
        channel = Channel(
            fabric.global_rank, fabric.world_size, fabric.device, processes.timeout_s, processes.round_timeout_s
        )
        progress = SampleProgress(shown=fabric.is_global_zero, processes=fabric.world_size)
        return job.run(identity, channel, stop, progress)

    return launch(fabric, on_rank), fabric.is_global_zero


def _contact_sheet(job: SynthesisJob) -> Path | None:
    """Draw some samples of each class; return the picture, None for texts."""
    if job.synthesizer.modality == "text":
        return None
    from flgen.figures.contact_sheet import draw_contact_sheet, picture_of
    from flgen.synthesis.sample_store import read_manifest, read_sample

    chosen = {request.id for request in job.requests[: SHEET_COLUMNS * len(job.class_names)]}
    places = {entry["id"]: entry["shard"] for entry in read_manifest(job.folder) if entry["id"] in chosen}
    rows: dict[str, list[Any]] = {name: [] for name in job.class_names}
    for id in sorted(places):
        stored = read_sample(job.folder / places[id], id)
        rows[job.class_names[stored.facts["class_id"]]].append(picture_of(stored.content, stored.extension))
    path = job.folder / "contact-sheet.png"
    draw_contact_sheet(rows, path)
    return path
