"""What ran: a line or a table of outcomes, facts, and options beside each other."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from flgen.errors import FlgenError
from flgen.figures.report import words
from flgen.figures.report.runs import (
    ReportedExperiment,
    ReportedRun,
    all_runs,
    class_name,
    option,
    typed_options,
)
from flgen.figures.report.section import Section
from flgen.metrics.over_rounds import final_and_best, headline
from flgen.metrics.over_seeds import over_seeds

FACTS_OF_OPTIONS = ("--method", "--model", "--data", "--partition", "--partition.clients", "--trainer.rounds")
PLACES = ("--seed_everything", "--run_dir", "--ckpt_path")
OUTCOMES = ("State", "Duration")  # facts that the table of outcomes has
LONGEST_CONFIG = 200_000  # characters


class Tile(NamedTuple):
    """One number that a reader looks for first.

    Args:
        name: What it is.
        value: It.
        note: More about it.
    """

    name: str
    value: str
    note: str


class Fact(NamedTuple):
    """A row of a table.

    Args:
        name: What the row is about.
        values: One text per experiment.
    """

    name: str
    values: tuple[str, ...]


def overview(experiments: Sequence[ReportedExperiment]) -> Section:
    """Return the section on what ran."""
    facts = _rows([_facts_of(experiment) for experiment in experiments])
    options = _rows([_options_of(experiment) for experiment in experiments])
    several = len(experiments) > 1
    compared = [row for row in _without(options, FACTS_OF_OPTIONS + PLACES) if len(set(filter(None, row.values))) > 1]
    of_some = [row for row in options if not all(row.values)]
    return Section(
        "what-ran",
        "What ran",
        "overview.html",
        {
            "experiments": experiments,
            "tiles": [] if several else tiles(experiments[0]),
            "outcomes": [outcome(experiment) for experiment in experiments] if several else [],
            "differing": [*filter(_differs, _without(facts, OUTCOMES)), *compared] if several else [],
            "of_some": several and of_some,
            "common": [row for row in facts if not (several and _differs(row))],
            "configurations": [_configuration(run) for run in all_runs(experiments) if run.config],
        },
    )


def tiles(experiment: ReportedExperiment) -> list[Tile]:
    """Return the numbers above everything else on the page of one experiment."""
    found = [Tile("state", *_state(experiment))]
    result = _headline(experiment)
    if result is not None:
        metric, last, best, at_round = result
        found.append(Tile(metric, last, f"best {best} in {experiment.runs[0].unit} {at_round}" if at_round else best))
    epsilons = [run.columns["privacy/epsilon"][1][-1] for run in experiment.runs if "privacy/epsilon" in run.columns]
    if epsilons:
        found.append(Tile("epsilon spent", words.number(max(epsilons)), "see Privacy"))
    carried = [sum(row["bytes"] for row in run.ledger) for run in experiment.runs if run.ledger]
    if carried:
        mean = sum(carried) / len(carried)
        found.append(Tile("communication", words.size(mean), "in all, encoded" if len(carried) == 1 else "per seed"))
    spent = [time for time in map(time_spent, experiment.runs) if time is not None]
    if spent:
        found.append(Tile("duration", words.duration(sum(spent)), "" if len(spent) == 1 else "all seeds together"))
    return found


class Outcome(NamedTuple):
    """What became of one experiment.

    Args:
        experiment: Which.
        state: How it ended.
        metric: What it is judged by.
        last: That metric's last value, over the seeds.
        best: Its best value.
        bytes: Encoded bytes in all, of the mean seed.
        duration: Of all seeds.
    """

    experiment: ReportedExperiment
    state: str
    metric: str
    last: str
    best: str
    bytes: str
    duration: str


def outcome(experiment: ReportedExperiment) -> Outcome:
    """Return the row of one experiment in the table of outcomes."""
    by_name = {tile.name: tile for tile in tiles(experiment)}
    result = _headline(experiment)
    metric, last, best, at_round = result if result is not None else ("", "", "", "")
    state = by_name["state"]
    return Outcome(
        experiment,
        f"{state.value}, {state.note}" if state.note else state.value,
        metric,
        last,
        f"{best} ({at_round})" if at_round else best,
        *(by_name[name].value if name in by_name else "" for name in ("communication", "duration")),
    )


def time_spent(run: ReportedRun) -> float | None:
    """Return the seconds from each start or resumption to the last event before the next one; None without events."""
    total, begun, last = timedelta(), None, None
    for event in run.events:
        time = words.moment(event)
        if time is None:
            continue
        if event.get("event") in ("start", "resume"):
            total += (last - begun) if begun is not None and last is not None else timedelta()
            begun = time
        last = time
    if begun is None or last is None:
        return None
    return max(0.0, (total + (last - begun)).total_seconds())


def state_of(run: ReportedRun) -> tuple[str, str]:
    """Return how a run ended, in one word or two, and more about it."""
    if not run.events:
        return "unknown", "it has no events"
    last, reached = run.events[-1], f"after {run.unit} {run.last_round}"
    name = last.get("event")
    if name == "end":
        budget = any(event.get("event") == "budget" for event in run.events[-3:])
        return "finished", f"{reached}, by its privacy budget" if budget else reached
    if name == "stopped":
        return "stopped", f"{reached}, by {words.signal_name(last.get('signal'))}"
    if name == "failed":
        return "failed", reached
    return "no end recorded", f"{reached}: still going, or killed"


def _state(experiment: ReportedExperiment) -> tuple[str, str]:
    states = [state_of(run) for run in experiment.runs]
    if len(states) == 1:
        return states[0]
    finished = sum(state == "finished" for state, _ in states)
    return f"{finished} of {len(states)} finished", "seeds"


def _headline(experiment: ReportedExperiment) -> tuple[str, str, str, str] | None:
    """Return the metric that an experiment is judged by, its last value, its best one, and the round of that."""
    metrics = [headline(run.metrics) for run in experiment.runs]
    metric = next((name for name in metrics if name is not None), None)
    if metric is None:
        return None
    found = []
    for run in experiment.runs:
        try:
            found.append(final_and_best(run.metrics, metric))
        except FlgenError:  # a seed that has not been measured yet
            continue
    if len(found) == 1:
        return metric, words.number(found[0].final), words.number(found[0].best), str(found[0].best_round)
    final, best = over_seeds([one.final for one in found]), over_seeds([one.best for one in found])
    return (
        metric,
        f"{words.number(final.mean)} ± {words.number(final.std)}",
        f"{words.number(best.mean)} ± {words.number(best.std)} over {len(found)} seeds, each at its best",
        "",
    )


def _facts_of(experiment: ReportedExperiment) -> dict[str, str]:
    found = [_facts(run) for run in experiment.runs]
    return {name: words.listed(facts[name] for facts in found) for name in found[0]}


def _facts(run: ReportedRun) -> dict[str, str]:
    start: Mapping[str, Any] = next((event for event in run.events if event.get("event") in ("start", "resume")), {})
    taken_up = sum(event.get("event") == "resume" for event in run.events)
    asked = option(run.config, "trainer", "rounds")
    spent = time_spent(run)
    place = [str(start["device"])] if start.get("device") else []
    place += [_counted(start[name], name) for name in ("ranks", "threads") if start.get(name)]
    facts = {
        "Method": class_name(run.config.get("method")) or "",
        "Model": class_name(run.config.get("model")) or "",
        "Data": _described(run.config.get("data")),
        "Partition": _described(run.config.get("partition"), "clients"),
        "Clients": "" if run.client_count is None else f"{run.client_count:,}",
        "Rounds": f"{run.last_round:,} of {asked:,}" if isinstance(asked, int) else f"{run.last_round:,}",
        "Seed": str(run.config.get("seed_everything", "")),
        "Version": f"flgen {start['version']}" if start.get("version") else "",
        "Device": ", ".join(place),
        "Start": words.at(words.moment(start)),
        "Duration": ("" if spent is None else words.duration(spent)) + (f", resumed {taken_up}×" if taken_up else ""),
        "State": ", ".join(state_of(run)),
    }
    return facts


def _counted(count: Any, plural: str) -> str:
    return f"{count} {plural.removesuffix('s') if count == 1 else plural}"


def _described(given: Any, *left_out: str) -> str:
    """Return a chosen class and its options that are not null."""
    name = class_name(given)
    if name is None:
        return ""
    options = option(given, "init_args")
    pairs = options.items() if isinstance(options, Mapping) else ()
    shown = [f"{key} {value}" for key, value in pairs if isinstance(value, (int, float, str)) and key not in left_out]
    return f"{name} ({', '.join(shown)})" if shown else name


def _options_of(experiment: ReportedExperiment) -> dict[str, str]:
    found = [typed_options(run.config) for run in experiment.runs]
    names = dict.fromkeys(name for options in found for name in options)
    return {name: words.listed(options.get(name, "") for options in found) for name in names}


def _rows(columns: Sequence[Mapping[str, str]]) -> list[Fact]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [Fact(name, tuple(column.get(name, "") for column in columns)) for name in names]
    return [row for row in rows if any(row.values)]


def _without(rows: Sequence[Fact], names: Container[str]) -> list[Fact]:
    return [row for row in rows if row.name not in names]


def _differs(row: Fact) -> bool:
    return len(set(row.values)) > 1


def _configuration(run: ReportedRun) -> tuple[str, str]:
    try:
        text = run.folder.config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FlgenError(f"{run.folder.config} cannot be read: choose a run that has one") from error
    return run.label, text if len(text) <= LONGEST_CONFIG else f"{text[:LONGEST_CONFIG]}\n… (cut: see the file)"
