"""A star brings the same uploads to the server, bit for bit, over any number of ranks and by either transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flgen.errors import FlgenError, UsageError
from flgen.federation.launch import RanksFailed
from flgen.federation.streams import RandomStreams
from flgen.topology import channel as channel_module
from flgen.topology.channel import Channel
from flgen.topology.star import Collection, Star
from flgen.wire.codecs import Payload, bits, dense, encode_payload
from flgen.wire.ledger import Ledger, LedgerRow, add_up

OnRanks = Callable[..., list[Any]]
TRANSPORTS = ("reduce", "messages")
SAMPLES = {0: 31, 1: 7, 2: 1000, 3: 12, 4: 58}


@dataclass(frozen=True)
class Round:
    """A round as one rank saw it: what it received, what it knows of the result, what it wrote down."""

    download: dict[str, Tensor]
    clients: tuple[int, ...] | None
    values: dict[str, Tensor] | dict[int, dict[str, Tensor]] | None
    mean: dict[str, Tensor] | None
    rows: list[LedgerRow]


def download() -> Payload:
    return {"model": dense(torch.randn(50, generator=torch.Generator().manual_seed(99)))}


def upload(client: int) -> Payload:
    draws = torch.Generator().manual_seed(client)
    return {
        "mask": bits(torch.rand(1001, generator=draws) < 0.3),
        "weights": dense(torch.randn(17, 3, generator=draws)),
        "tiny": dense(1e-6 * torch.randn(5, generator=draws)),  # rounded by a sum in fixed point
        "narrow": dense(torch.randn(9, generator=draws), torch.bfloat16),
        "counts": dense(torch.randint(-5, 5, (4,), generator=draws)),
    }


def open_round(star: Star, collection: Collection, host: dict[int, int], received: dict[str, Tensor]) -> Any:
    samples = {client: SAMPLES[client] for client in host}
    return star.open_round(1, collection, samples=samples, rank_of=host, download=received, streams=RandomStreams(7))


def play(
    channel: Channel,
    host: dict[int, int],
    *,
    transport: str = "reduce",
    collection: Collection = "sum",
    failed: tuple[int, ...] = (),
    make_upload: Callable[[int], Payload] = upload,
) -> Round:
    """Play one round with the clients that `host` places."""
    star = Star(transport=transport)  # type: ignore[arg-type]
    star.open(channel, Ledger())
    received = star.send_down(1, download() if star.is_server else None, len(host))
    collector = open_round(star, collection, host, received)
    for client, rank in host.items():
        if rank == channel.rank and client not in failed:
            collector.add(client, SAMPLES[client], make_upload(client))
    uploads = collector.collect(channel.agree(collector.roll_call()))
    rows = star.ledger.take()
    if uploads is None:
        return Round(received, None, None, None, rows)
    if collection == "gather":
        return Round(received, uploads.clients, uploads.gather(), None, rows)
    return Round(received, uploads.clients, uploads.sum(), uploads.mean(), rows)


def alone(**options: Any) -> Round:
    return play(Channel(0, 1, torch.device("cpu"), 1, 1), dict.fromkeys(SAMPLES, 0), **options)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


PLACES = [
    pytest.param(2, {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}, id="2 ranks"),
    pytest.param(3, {0: 2, 1: 0, 2: 1, 3: 1, 4: 2}, id="3 ranks"),
    pytest.param(2, {0: 0, 1: 0, 2: 0, 3: 0, 4: 0}, id="a rank with no client"),
    pytest.param(2, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}, id="a server with no client"),
]


@pytest.mark.parametrize("collection", ["sum", "sample_weighted_sum", "gather"])
@pytest.mark.parametrize(("ranks", "host"), PLACES)
def test_ranks_and_transports_do_not_change_a_bit(
    ranks: int, host: dict[int, int], collection: Collection, on_ranks: OnRanks
) -> None:
    expected = alone(collection=collection)

    def work(channel: Channel) -> list[Round]:
        return [play(channel, host, transport=transport, collection=collection) for transport in TRANSPORTS]

    server, *others = on_ranks(ranks, work)
    for seen in server:
        assert seen.clients == expected.clients == (0, 1, 2, 3, 4)
        assert_same(seen.values, expected.values)
        if collection != "gather":
            assert_same(seen.mean, expected.mean)
    for rank in (server, *others):
        for seen in rank:
            assert_same(seen.download, {"model": download()["model"].tensor})
    assert all(seen.values is None for rank in others for seen in rank)


def test_sums_and_means_are_those_of_the_uploads() -> None:
    uniform, weighted, each = (alone(collection=name) for name in ("sum", "sample_weighted_sum", "gather"))
    masks = torch.stack([upload(client)["mask"].tensor.long() for client in SAMPLES])
    weights = torch.stack([upload(client)["weights"].tensor.double() for client in SAMPLES])
    n = torch.tensor(list(SAMPLES.values()), dtype=torch.float64)
    assert torch.equal(uniform.values["mask"].long(), masks.sum(0))
    assert torch.allclose(uniform.mean["mask"], masks.double().mean(0), rtol=1e-15)
    assert torch.allclose(uniform.mean["weights"], weights.mean(0), rtol=0, atol=2**-33)
    assert torch.equal(weighted.values["mask"].long(), (masks * n.long()[:, None]).sum(0))
    true_mean = (weights * n[:, None, None]).sum(0) / n.sum()
    assert torch.allclose(weighted.mean["weights"], true_mean, rtol=0, atol=2**-33)
    for client in SAMPLES:
        assert_same(each.values[client]["weights"], upload(client)["weights"].tensor)
        assert_same(each.values[client]["mask"], upload(client)["mask"].tensor)
        assert_same(each.values[client]["narrow"], upload(client)["narrow"].tensor.bfloat16())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("collection", ["sum", "sample_weighted_sum"])
@pytest.mark.parametrize("hosting_rank", [0, 1])
def test_one_client_alone_is_its_own_mean_without_rounding(
    transport: str, collection: Collection, hosting_rank: int, on_ranks: OnRanks
) -> None:
    tiny = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 1e-6
    huge = torch.full((3,), 1e30)

    def make_upload(client: int) -> Payload:
        return {"tiny": dense(tiny), "huge": dense(huge), "mask": bits(tiny > 0)}

    def work(channel: Channel) -> Round:
        host = {2: hosting_rank}
        return play(channel, host, transport=transport, collection=collection, make_upload=make_upload)

    mean = on_ranks(2, work)[0].mean
    assert torch.equal(mean["tiny"].float(), tiny)
    assert torch.equal(mean["huge"].float(), huge)
    assert torch.equal(mean["mask"], (tiny > 0).double())


def test_clients_that_failed_are_out_of_sum_and_mean(on_ranks: OnRanks) -> None:
    failed = (0, 1, 2, 4)  # one upload is left, by either transport with the rounding of an ordinary sum

    def work(channel: Channel) -> list[Round]:
        host = {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
        return [
            play(channel, host, transport=transport, collection="sample_weighted_sum", failed=failed)
            for transport in TRANSPORTS
        ]

    reduced, carried = on_ranks(2, work)[0]
    assert reduced.clients == carried.clients == (3,)
    assert_same(reduced.mean, carried.mean)
    assert torch.equal(reduced.mean["mask"], upload(3)["mask"].tensor.double())
    assert torch.allclose(reduced.mean["weights"], upload(3)["weights"].tensor.double(), rtol=0, atol=2**-33)


def test_the_protocols_bytes_do_not_depend_on_ranks_or_transport(on_ranks: OnRanks) -> None:
    down = encode_payload(download()).numel()
    up = sum(encode_payload(upload(client)).numel() for client in SAMPLES)
    expected = [
        (1, "download", "server->client", 5, 5 * down),
        (1, "upload", "client->server", 5, up),
    ]

    def work(channel: Channel) -> list[Round]:
        return [play(channel, {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}, transport=transport) for transport in TRANSPORTS]

    ranks = on_ranks(2, work)
    for rows in (alone().rows, *(add_up([rank[i].rows for rank in ranks]) for i in range(2))):
        assert [(row.round, row.phase, row.link, row.messages, row.bytes) for row in rows] == expected
    assert sum(row.wire_bytes for row in alone().rows) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("ranks", "host"), PLACES)
def test_wire_bytes_are_those_handed_to_the_process_group(
    ranks: int, host: dict[int, int], transport: str, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = {"download": 0, "upload": 0}

    def broadcast(tensor: Tensor, source: int, **options: Any) -> Any:
        handed["download"] += (dist.get_world_size() - 1) * tensor.nbytes if dist.get_rank() == source else 0
        return real_broadcast(tensor, source, **options)

    def reduce(tensor: Tensor, destination: int, **options: Any) -> Any:
        handed["upload"] += tensor.nbytes if dist.get_rank() != destination else 0
        return real_reduce(tensor, destination, **options)

    def exchange(operations: list[dist.P2POp]) -> Any:
        handed["upload"] += sum(each.tensor.nbytes for each in operations if each.op is dist.isend)
        return real_exchange(operations)

    real_broadcast, real_reduce, real_exchange = dist.broadcast, dist.reduce, dist.batch_isend_irecv
    monkeypatch.setattr(channel_module.dist, "broadcast", broadcast)
    monkeypatch.setattr(channel_module.dist, "reduce", reduce)
    monkeypatch.setattr(channel_module.dist, "batch_isend_irecv", exchange)

    seen = on_ranks(ranks, lambda channel: (play(channel, host, transport=transport).rows, handed))
    rows = {row.phase: row for row in add_up([rows for rows, _ in seen])}
    for phase in ("download", "upload"):
        assert rows[phase].wire_bytes == sum(counts[phase] for _, counts in seen)
    moved = [upload(client) for client, rank in host.items() if rank != 0]
    if transport == "messages":
        assert rows["upload"].wire_bytes == sum(encode_payload(payload).numel() for payload in moved)
    else:  # a byte per mask bit, eight per float or integer, from every rank but the server's
        assert rows["upload"].wire_bytes == (ranks - 1) * (1001 + 8 * (17 * 3 + 5 + 9 + 4))
    assert rows["download"].wire_bytes == (ranks - 1) * encode_payload(download()).numel()


def test_an_overflow_ends_the_job_with_one_line_and_no_hang(on_ranks: OnRanks, capfd: Any) -> None:
    def make_upload(client: int) -> Payload:
        return {"weights": dense(torch.full((3,), 1e12 if client == 3 else 1.0))}

    with pytest.raises(RanksFailed):
        on_ranks(2, lambda channel: play(channel, {0: 0, 3: 1}, make_upload=make_upload))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flgen: error:")]
    assert len(lines) == 1
    assert "'weights' would overflow: an element of size 1e+12" in lines[0]


def test_shapes_that_differ_between_ranks_are_refused_before_they_meet(on_ranks: OnRanks, capfd: Any) -> None:
    def make_upload(client: int) -> Payload:
        return {"weights": dense(torch.zeros(3 + client))}

    with pytest.raises(RanksFailed):
        on_ranks(2, lambda channel: play(channel, {0: 0, 1: 1}, make_upload=make_upload))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flgen: error:")]
    assert "uploads cannot be summed: 'weights' is torch.float32" in line
    assert "(3,)" in line
    assert "(4,)" in line


def test_what_was_not_collected_cannot_be_had() -> None:
    cpu = Channel(0, 1, torch.device("cpu"), 1, 1)
    results = {}
    for collection in ("sum", "gather"):
        star = Star()
        star.open(cpu, Ledger())
        collector = open_round(star, collection, {0: 0, 1: 0}, {})
        for client in (0, 1):
            collector.add(client, 10, upload(client))
        results[collection] = collector.collect([collector.roll_call()])
    assert len(results["sum"]) == len(results["gather"]) == 2
    with pytest.raises(UsageError, match="collection"):
        results["sum"].gather()
    for request in (results["gather"].sum, results["gather"].mean):
        with pytest.raises(UsageError, match="there is no sum"):
            request()


@pytest.mark.parametrize("fraction_bits", [0, 61, -3])
def test_impossible_fixed_point_is_refused(fraction_bits: int) -> None:
    with pytest.raises(UsageError, match=f"--method.topology.fraction_bits is {fraction_bits}: give 1 to 60"):
        Star(fraction_bits=fraction_bits)


def test_a_damaged_message_is_an_error_of_the_run_not_of_the_program() -> None:
    class Noisy(Channel):
        def broadcast(self, message: Tensor | None, source: int) -> Tensor:
            assert message is not None
            return message[:-1]

    star = Star()
    star.open(Noisy(0, 1, torch.device("cpu"), 1, 1), Ledger())
    with pytest.raises(FlgenError, match="announced"):
        star.send_down(1, download(), 1)
