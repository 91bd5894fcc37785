"""A job on two hosts is the job on one; without the cable between them it ends, says why, and goes on later."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_commands import run_forked
from system_tools import require
from two_hosts import BIN, PORT, Ended, Running, TwoHosts

from flgen.experiment.checkpoints import find_checkpoint

pytestmark = pytest.mark.system

CONFIGS = Path(__file__).parents[2] / "configs"
PRISM = (
    f"--config={CONFIGS / 'prism_digits.yaml'}",
    "--method.local_steps=2",
    "--method.batch_size=8",
    "--method.recalibration_batches=2",
    "--model.latent=8",
    "--model.width=8",
    "--model.loss.real_batch=8",
    "--evaluation.every=1000",
    "--evaluation.images=32",
    "--evaluation.extractors=[]",
)
DISPFL = (f"--config={CONFIGS / 'dispfl_digits.yaml'}", "--method.training.epochs=1", "--model.width=8")
EVERY_ROUND = ("--trainer.checkpoint_every=1", "--run_dir=run")
LIMIT_S = 150
BOTH = "--trainer.num_nodes=2"


def of_one_host(options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return what the same run on this host alone, on two ranks, comes to."""
    folder.mkdir()
    done = run_forked(["fit", *options, "--trainer.devices=2", *EVERY_ROUND], folder, timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return result_of(folder / "run")


def result_of(run: Path) -> dict[str, Any]:
    """Return all that the last checkpoint of a run holds, but the seconds that it took."""
    checkpoint = find_checkpoint(run / "checkpoints" / "last")
    server = checkpoint.server_state()
    metrics = {name: value for name, value in server["metrics"].items() if not name.startswith("time/")}
    clients = {
        client: {name: tensor.clone() for name, tensor in state.items()}
        for client, state in checkpoint.client_states().items()
    }
    return {"round": checkpoint.round, "method": server["method"], "metrics": metrics, "clients": clients}


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Every number is the same bits, but for wire bytes: those depend on the number of processes."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            if name != "comm/wire_bytes":
                assert_equal(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (mine, its) in enumerate(zip(one, other, strict=True)):
            assert_equal(mine, its, f"{where}/{number}")
    else:
        assert one == other or (one != one and other != other), where


def by_hand(hosts: TwoHosts, options: Sequence[str], folders: Sequence[Path], per_node: int) -> list[Running]:
    """Start flgen on both hosts, and let it start the ranks there."""
    words = [BIN / "flgen", "fit", *options, BOTH, f"--trainer.devices={per_node}", *EVERY_ROUND]
    main = {"MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": str(PORT)}
    return [hosts.start(host, words, folders[host], {**main, "NODE_RANK": str(host)}) for host in (0, 1)]


def by_torchrun(hosts: TwoHosts, options: Sequence[str], folders: Sequence[Path], per_node: int) -> list[Running]:
    """Let torchrun start the ranks on both hosts."""
    words = ["fit", *options, BOTH, f"--trainer.devices={per_node}", *EVERY_ROUND]
    return hosts.torchrun(words, folders, per_node=per_node)


def wait_for_round(number: int, folder: Path, commands: list[Running]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (folder / "run" / "checkpoints" / f"round-{number:05d}").is_dir():
        assert time.monotonic() < deadline, f"round {number} did not come"
        assert all(command.is_alive for command in commands), commands[0].wait(1).output
        time.sleep(0.05)


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


def succeeded(commands: list[Running]) -> list[Ended]:
    ended = [command.wait(LIMIT_S) for command in commands]
    for host in ended:
        assert host.status == 0, host.output
    return ended


@pytest.mark.parametrize(
    ("start", "options", "per_node"),
    [(by_torchrun, PRISM, 2), (by_hand, PRISM, 1), (by_torchrun, DISPFL, 1), (by_hand, DISPFL, 2)],
    ids=["torchrun-prism-4-ranks", "by-hand-prism-2-ranks", "torchrun-dispfl-2-ranks", "by-hand-dispfl-4-ranks"],
)
def test_a_run_on_two_hosts_is_the_run_on_one(
    start: Callable[..., list[Running]], options: Sequence[str], per_node: int, hosts: TwoHosts, tmp_path: Path
) -> None:
    options = (*options, "--trainer.rounds=3")
    ended = succeeded(start(hosts, options, [tmp_path, tmp_path], per_node))
    # One process speaks for the job, although nobody said by which interface the hosts reach each other.
    assert ["run folder: run" in host.output for host in ended] == [True, False]
    (started,) = [event for event in events_of(tmp_path) if event["event"] == "start"]
    assert started["ranks"] == 2 * per_node
    assert_equal(result_of(tmp_path / "run"), of_one_host(options, tmp_path / "alone"))


def test_without_the_cable_both_hosts_say_so_and_end_within_a_minute_and_the_run_goes_on_later(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    options = (*PRISM, "--trainer.rounds=30")
    commands = by_torchrun(hosts, options, [tmp_path, tmp_path], 2)
    wait_for_round(3, tmp_path, commands)
    time.sleep(0.05)  # some way into a round
    hosts.cut()
    cut = time.monotonic()
    ended = [command.wait(60 - (time.monotonic() - cut)) for command in commands]
    for host, other in zip(ended, (1, 0), strict=True):
        assert host.status > 0, host.output
        (line,) = host.errors
        assert line.startswith(f"flgen: error: lost contact with node {other} (")
        assert line.endswith(") for 30 s; continue from the last checkpoint with --ckpt_path last")
    assert events_of(tmp_path)[-1]["event"] == "failed"
    stopped_at = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round
    assert 3 <= stopped_at < 30

    hosts.mend()
    succeeded(by_torchrun(hosts, (*options, "--ckpt_path=auto"), [tmp_path, tmp_path], 2))
    (resumed,) = [event for event in events_of(tmp_path) if event["event"] == "resume"]
    assert resumed["round"] == stopped_at + 1
    assert_equal(result_of(tmp_path / "run"), of_one_host(options, tmp_path / "alone"))


def test_a_rank_that_computes_hears_of_it_too(hosts: TwoHosts, tmp_path: Path) -> None:
    options = (*PRISM, "--method.local_steps=10000000", "--trainer.rounds=1", "--trainer.lost_after_s=6")
    commands = by_hand(hosts, options, [tmp_path, tmp_path], 1)
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "run" / "events.jsonl").exists() or not events_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    assert all(command.is_alive for command in commands)
    hosts.cut()
    for command, other in zip(commands, (1, 0), strict=True):
        host = command.wait(30)
        assert host.status == 1, host.output
        (line,) = host.errors
        assert f"lost contact with node {other} (" in line
        assert " for 6 s;" in line


def test_three_seconds_without_the_cable_change_nothing(hosts: TwoHosts, tmp_path: Path) -> None:
    options = (*DISPFL, "--trainer.rounds=6")
    commands = by_hand(hosts, options, [tmp_path, tmp_path], 1)
    wait_for_round(2, tmp_path, commands)
    hosts.cut()
    time.sleep(3)
    hosts.mend()
    assert [host.errors for host in succeeded(commands)] == [[], []]
    assert_equal(result_of(tmp_path / "run"), of_one_host(options, tmp_path / "alone"))


def test_a_run_folder_that_the_hosts_do_not_share_is_refused(hosts: TwoHosts, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    commands = by_torchrun(hosts, (*PRISM, "--trainer.rounds=1"), [tmp_path, elsewhere], 2)
    for host in [command.wait(LIMIT_S) for command in commands]:
        assert host.status > 0
        (line,) = host.errors
        assert line.startswith("flgen: error: run folder run is not the same on every node: ")
        assert "--run_dir" in line


def test_the_hosts_and_their_cable_are_gone_afterwards(tmp_path: Path) -> None:
    require("ip", root=True)
    with TwoHosts(tmp_path) as hosts:
        names = hosts.names
        sleeping = hosts.start(1, ["sleep", "100"], tmp_path)
        assert all((Path("/run/netns") / name).exists() for name in names)
    assert not sleeping.is_alive
    assert not any((Path("/run/netns") / name).exists() for name in names)
