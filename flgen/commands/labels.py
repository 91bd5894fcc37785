"""`flgen labels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flgen.commands.sections import (
    build,
    data_section,
    parse_command,
    partition_section,
    partition_seed_section,
    seed_section,
    writable,
)
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.experiment.config import Configuration, Section

if TYPE_CHECKING:
    from jsonargparse import Namespace

OPTIONS: dict[str, dict[str, Any]] = {
    "output": {"type": str, "default": "labels.json", "help": "The JSON file for the labels and how they were read."},
}


@dataclass(frozen=True)
class Processes:
    """The processes that play the clients, all on CPUs.

    Args:
        devices: Processes per node.
        num_nodes: Number of nodes.
        timeout_s: Limit of every exchange between processes, seconds.
        round_timeout_s: How long a fast process waits for the slowest one, seconds.

    Raises:
        UsageError: A number is out of its range.
    """

    devices: int = 1
    num_nodes: int = 1
    timeout_s: float = 120
    round_timeout_s: float = 600

    def __post_init__(self) -> None:
        option_ranges.at_least("trainer", 1, devices=self.devices, num_nodes=self.num_nodes)
        option_ranges.above_0("trainer", "seconds", timeout_s=self.timeout_s, round_timeout_s=self.round_timeout_s)


def _sections() -> list[Section]:
    from flgen.privacy.label_union import LabelUnionOptions
    from flgen.privacy.secure_aggregation import SecureAggregation

    return [
        seed_section(),
        partition_seed_section(),
        Section("trainer", Processes, "options"),
        data_section(),
        partition_section(),
        Section("union", LabelUnionOptions, "options"),
        Section("secure_aggregation", SecureAggregation, "options"),
    ]


def _build(configuration: Configuration) -> Namespace:
    """Return the objects of the configuration; what is wrong with an option is said of it as this command has it."""
    from flgen.privacy.secure_aggregation import OPTION

    try:
        return build(configuration)
    except UsageError as error:
        raise UsageError(str(error).replace(OPTION, "--secure_aggregation")) from None


def run(arguments: list[str]) -> int:
    """Find out which labels the clients have, and not who has them."""
    configuration = parse_command("labels", run.__doc__ or "", arguments, _sections(), OPTIONS)
    options = configuration.values
    output = writable(options.output)
    built = _build(configuration)
    import numpy as np

    from flgen.experiment.records import atomic_replace
    from flgen.federation.clients import place
    from flgen.federation.launch import build_fabric, launch
    from flgen.federation.launchers import check_launcher
    from flgen.federation.streams import RandomStreams
    from flgen.privacy.label_union import label_union
    from flgen.topology.channel import Channel
    from flgen.wire.ledger import Ledger, add_up

    data, processes, streams = built.data, built.trainer, RandomStreams(options.seed_everything)
    data.prepare_data()
    data.setup()
    divided = streams if options.partition_seed is None else RandomStreams(options.partition_seed)
    counts = data.label_table(data.split_clients(built.partition, divided.numpy("partition")))  # (clients, classes)
    check_launcher(processes.devices, processes.num_nodes)
    fabric = build_fabric(
        accelerator="cpu",
        devices=processes.devices,
        num_nodes=processes.num_nodes,
        precision="32-true",
        timeout_s=processes.timeout_s,
        callbacks=[],
    )
    rank_of = dict(enumerate(place([1.0] * len(counts), fabric.world_size)))

    def on_rank(stop: Any) -> str:
        channel = Channel(
            fabric.global_rank, fabric.world_size, fabric.device, processes.timeout_s, processes.round_timeout_s
        )
        ledger = Ledger()
        hosted = {
            client: [data.class_names[number] for number in np.flatnonzero(counts[client])]
            for client, rank in rank_of.items()
            if rank == channel.rank
        }
        union = label_union(hosted, rank_of, channel, ledger, streams, built.union, built.secure_aggregation)
        rows = add_up(channel.agree(ledger.take()))
        if fabric.is_global_zero:
            with atomic_replace(output) as temporary:
                temporary.write_text(union.to_json(), encoding="utf-8")
        sent = sum(row.bytes for row in rows if row.link == "client->server")
        return (
            f"{len(union.labels)} labels of {len(rank_of)} clients in {union.attempts} "
            f"attempt{'s' if union.attempts > 1 else ''}, {union.bytes_per_client} bytes of tables per client "
            f"({round(sent / len(rank_of))} with keys and shares): {output}"
        )

    said = launch(fabric, on_rank)
    if fabric.is_global_zero:  # under torchrun or srun every rank comes here
        print(said)
    return 0
