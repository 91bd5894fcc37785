"""`flgen privacy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flgen.commands.sections import parse_command
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.privacy import accounting
from flgen.privacy.accounting import Accountant, AccountantLimit
from flgen.privacy.random_bits import bit_epsilon

if TYPE_CHECKING:
    from jsonargparse import Namespace

OPTIONS: dict[str, dict[str, Any]] = {
    "epsilon": {"type": float | None, "help": "The budget: how much noise keeps it?"},
    "noise_multiplier": {
        "type": float | None,
        "help": "In place of --epsilon, the noise: standard deviation over sensitivity. What does it keep?",
    },
    "delta": {"type": float, "default": 1e-5, "help": "Below one over the number of records or clients."},
    "rounds": {"type": int, "default": 1, "help": "Number of releases that are paid from the budget."},
    "sampling_rate": {
        "type": float,
        "default": 1.0,
        "help": "Chance of each client to take part in a round, by a coin of its own that the server hides.",
    },
    "records": {
        "type": int | None,
        "help": "Images of a client: print the noise of one release of their feature statistics (StatisticsGaussian).",
    },
    "clip": {"type": float | None, "help": "With --records, bound of the norm of an image's features; null is 1."},
    "mask_clamp": {
        "type": float | None,
        "help": "Probabilities of a mask stay between this and one minus this: print what its random bits keep.",
    },
}


def run(arguments: list[str]) -> int:
    """Print how much noise a privacy budget takes, or what epsilon some noise keeps."""
    options = parse_command("privacy", run.__doc__ or "", arguments, [], OPTIONS).values
    given = [name for name in ("epsilon", "noise_multiplier") if options[name] is not None]
    if len(given) == 2:
        raise UsageError("--epsilon and --noise_multiplier are both given: one follows from the other, give one")
    if not given and (options.mask_clamp is None or options.records is not None):
        raise UsageError("--epsilon is missing: give a budget such as 9.8, or a --noise_multiplier")
    if options.rounds < 1:
        raise UsageError(f"--rounds is {options.rounds}: give 1 or more")
    if options.records is not None:
        lines = _statistics_release(options)
    elif options.clip is not None:
        raise UsageError("--clip is given without --records: it bounds the features of a client's records, give both")
    elif given:
        lines = _rounds(options)
    else:
        _check_bits_alone(options)
        lines = []
    if options.mask_clamp is not None:
        lines.append(_random_bits(options))
    print("\n".join(lines))
    return 0


def _rounds(options: Namespace) -> list[str]:
    """Return the table of accountants."""
    delta, rounds, q = options.delta, options.rounds, options.sampling_rate
    solve = options.epsilon is not None
    spent = f"after {_times(rounds)} of {'everybody' if q == 1 else f'a random {q:g} of the clients'}"
    title = f"noise multiplier for epsilon {options.epsilon:g}" if solve else f"epsilon at {options.noise_multiplier:g}"
    exact_column = "epsilon (exact)" if q == 1 else "epsilon (exact) if all took part"

    def row(accountant: Accountant) -> list[str]:
        if not solve:
            return [f"{accounting.epsilon_spent(options.noise_multiplier, delta, rounds, q, accountant):.4f}"]
        z = accounting.noise_multiplier(options.epsilon, delta, rounds, q, accountant)
        return [f"{z:.4f}", f"{accounting.epsilon_spent(z, delta, rounds):.4f}"]

    accountants: list[Accountant] = ["exact", "prv", "rdp"] if q == 1 else ["prv", "rdp"]
    rows, beyond = _answered(accountants, row)
    header = ["accountant", "noise multiplier", exact_column] if solve else ["accountant", "epsilon"]
    lines = [f"{title}, delta {delta:g}, {spent}:", *_aligned([header, *rows]), *beyond]
    if q < 1:
        lines.append(
            "only for Poisson sampling that the server hides, and for data with or without one client: in every round "
            f"each client tosses a coin of its own ({q:g}), and nobody learns who took part; not for a cohort of fixed "
            "size, nor for one that the server draws"
        )
    return lines


def _answered(
    accountants: Sequence[Accountant], row: Callable[[Accountant], list[str]]
) -> tuple[list[list[str]], list[str]]:
    """Return the rows of the accountants that have an answer, and why the others have none."""
    rows: list[list[str]] = []
    beyond = []
    for accountant in accountants:
        try:
            rows.append([accountant, *row(accountant)])
        except AccountantLimit as limit:
            beyond.append(f"{accountant}: {limit}")
    return rows, beyond


def _aligned(rows: Sequence[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _statistics_release(options: Namespace) -> list[str]:
    """Return the noise of mechanism A: one release of the means of a client's bounded features."""
    clip = 1.0 if options.clip is None else options.clip
    if options.records < 1:
        raise UsageError(f"--records is {options.records}: give 1 or more")
    if not 0 < clip < float("inf"):
        raise UsageError(f"--clip is {clip:g}: give a number above 0")
    if options.sampling_rate != 1:
        raise UsageError("--sampling_rate is given with --records: that release is of all records, leave it out")
    z, epsilon = options.noise_multiplier, options.epsilon
    if z is None:
        z = accounting.noise_multiplier(epsilon, options.delta, 1)
    else:
        epsilon = accounting.epsilon_spent(z, options.delta, 1)
    return [
        f"feature statistics of {options.records} records, released once: epsilon {epsilon:.6g}, delta "
        f"{options.delta:g} for each record, for any number of rounds:",
        *_aligned(
            [
                ["noise multiplier z", f"{z:.6f}"],
                ["sensitivity 2 C / n", f"{2 * clip / options.records:.6g}"],
                ["standard deviation per coordinate", f"{z * 2 * clip / options.records:.6g}"],
            ],
        ),
    ]


def _check_bits_alone(options: Namespace) -> None:
    """Refuse options that say nothing about random bits, which alone are asked for."""
    for name in ("delta", "sampling_rate"):
        if options[name] != OPTIONS[name]["default"]:
            raise UsageError(
                f"--{name} is given with --mask_clamp alone: what random bits keep does not depend on it, leave it out"
            )


def _random_bits(options: Namespace) -> str:
    c, rounds = options.mask_clamp, options.rounds
    epsilon = bit_epsilon(c)
    return (
        f"random bits by themselves, probabilities in [{c:g}, {1 - c:g}]: epsilon {epsilon:.6f} per bit, times d T for "
        f"d weights and T rounds: {epsilon * rounds:.6g} d after {_times(rounds)}"
    )


def _times(rounds: int) -> str:
    return f"{rounds} {'round' if rounds == 1 else 'rounds'}"
