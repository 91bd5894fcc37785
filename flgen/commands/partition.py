"""`flgen partition`."""

from __future__ import annotations

from typing import Any

from flgen.commands.sections import build, federated_sections, parse_command, writable
from flgen.errors import UsageError

OPTIONS: dict[str, dict[str, Any]] = {
    "output": {"type": str | None, "help": "Folder for one set of webdataset shards per client."},
    "plot": {
        "type": str | None,
        "nargs": "?",
        "const": "partition.png",
        "help": "PNG for the client-by-class chart (partition.png if no name is given).",
    },
}


def run(arguments: list[str]) -> int:
    """Divide a data set among clients, as shards or as a chart."""
    configuration = parse_command("partition", run.__doc__ or "", arguments, federated_sections(), OPTIONS)
    options = configuration.values
    if options.output is None and options.plot is None:
        raise UsageError("say what to make: --output DIR for shards, --plot FILE.png for a chart, or both")
    chart = None if options.plot is None else writable(options.plot)
    built = build(configuration)
    if options.output is not None and built.split.divides:
        raise UsageError(
            "--split divides what a client gets, but --output stores it whole, with common test samples: leave --split "
            "out, or --output"
        )
    from flgen.data.local_split import deal
    from flgen.federation.streams import RandomStreams

    data = built.data
    seed = options.seed_everything if options.partition_seed is None else options.partition_seed
    data.prepare_data()
    data.setup()
    streams = RandomStreams(seed)
    dealt = deal(data, built.partition, built.split, streams.numpy("partition"), streams.numpy)
    rows = [client.train for client in dealt.clients]
    if options.output is not None:
        from flgen.data.shards import write_client_shards

        rule = configuration.resolved()["partition"]
        write_client_shards(data, rows, options.output, seed=seed, partitioner=rule)
        print(f"{len(rows)} clients: {options.output}")
    if chart is not None:
        from flgen.figures.partition_chart import draw_partition_chart

        draw_partition_chart(dealt.data.label_table(rows), data.class_names, chart)
        print(f"chart: {chart}")
    return 0
