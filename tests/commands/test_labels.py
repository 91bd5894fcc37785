"""`flgen labels`: the clients' labels without who has them, as a file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flgen.commands.labels import Processes
from flgen.errors import UsageError
from flgen.privacy.label_union import LabelUnion

Flgen = Callable[..., subprocess.CompletedProcess[str]]

DIGITS = tuple("0123456789")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Six clients with two shards each: one or two of the ten digits, or a few more where a shard crosses a border."""
    (tmp_path / "c.yaml").write_text(
        "seed_everything: 5\n"
        "partition: {class_path: Shards, init_args: {clients: 6, shards_per_client: 2}}\n"
        "union: {capacity: 20, count_mode: clients}\n"
        "secure_aggregation: {threshold: 0.8}\n"
    )
    return "c.yaml"


def test_it_writes_the_labels_and_how_they_were_read(flgen: Flgen, tmp_path: Path, config: str) -> None:
    done = flgen("labels", "--config", config, "--output", "out/labels.json", "--trainer.devices", "2")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.json"]
    said, written = done.stdout, (tmp_path / "out" / "labels.json").read_text(encoding="utf-8")
    union = LabelUnion.from_json(written)
    assert union.labels == DIGITS
    assert union.clients is not None
    assert 12 <= sum(union.clients) <= 2 * 12  # 12 shards of one or two digits each
    assert (union.complete, union.k, union.capacity) == (True, 4, 20)
    assert said.startswith(f"10 labels of 6 clients in 1 attempt, {union.bytes_per_client} bytes of tables per client")
    assert said.endswith(": out/labels.json\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing: --union.capacity; give it here or in a --config"),
        (["--union.capacity=9", "--secure_aggregation.threshold=2"], "--secure_aggregation.threshold is 2.0: give"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    arguments: list[str], message: str, flgen: Flgen, tmp_path: Path
) -> None:
    done = flgen("labels", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("flgen: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "--method" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["devices", "num_nodes", "timeout_s", "round_timeout_s"])
def test_processes_out_of_range_are_named_as_they_are_typed(option: str) -> None:
    with pytest.raises(UsageError, match=f"--trainer.{option} is 0: give"):
        Processes(**{option: 0})
