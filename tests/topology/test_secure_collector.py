"""Under secure aggregation a star brings the right sums to the server, which sees nothing but noise besides."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor

from flgen.errors import FlgenError, UsageError
from flgen.federation.streams import RandomStreams
from flgen.privacy import SecureAggregation
from flgen.topology import channel as channel_module
from flgen.topology.channel import Channel
from flgen.topology.star import Collection, Star, Uploads
from flgen.wire.codecs import Payload, bits, decode_payload, dense, encode_payload, sparse
from flgen.wire.ledger import Ledger, LedgerRow, add_up

OnRanks = Callable[..., list[Any]]
TRANSPORTS = ("reduce", "messages")
SAMPLES = {0: 31, 1: 7, 2: 1000, 3: 12, 4: 58, 6: 100}
ONE_RANK = dict.fromkeys(SAMPLES, 0)
STEP = 2.0**-21  # most that one float is off, with 20 binary places


def download() -> Payload:
    return {"model": dense(40 * torch.randn(50, generator=torch.Generator().manual_seed(99)))}


def upload(client: int) -> Payload:
    draws = torch.Generator().manual_seed(client)
    mask = torch.rand(1001, generator=draws) < 0.3
    return {
        "mask": bits(mask),
        "model": dense(download()["model"].tensor + torch.randn(50, generator=draws) / 2),
        "gradient": dense(torch.randn(17, 3, generator=draws) / 2),
        "narrow": dense(torch.randn(9, generator=draws), torch.bfloat16),
        "pruned": sparse(torch.randn(1001, generator=draws) / 2, mask),
        "counts": dense(torch.randint(-5, 5, (4,), generator=draws)),
        "none": dense(torch.zeros(0)),
    }


def decoded(client: int) -> dict[str, Tensor]:
    return decode_payload(encode_payload(upload(client)))


class Inbox(Channel):
    """A channel that keeps what it brings to the server, by phase of its arrival."""

    def __init__(self) -> None:
        super().__init__(0, 1, torch.device("cpu"), 1, 1)
        self.inbox: list[dict[int, Tensor]] = []

    def gather_messages(
        self, messages: Mapping[int, Tensor], plan: Sequence[tuple[int, int, int]], destination: int
    ) -> dict[int, Tensor]:
        arrived = super().gather_messages(messages, plan, destination)
        self.inbox.append({key: message.clone() for key, message in arrived.items()})
        return arrived


@dataclass(frozen=True)
class Round:
    """A round as one rank saw it."""

    uploads: Uploads | None
    rows: list[LedgerRow]


def play(
    channel: Channel,
    host: dict[int, int] = ONE_RANK,
    *,
    transport: str = "reduce",
    collection: Collection = "sum",
    failed: tuple[int, ...] = (),
    make_upload: Callable[[int], Payload] = upload,
    **options: Any,
) -> Round:
    """Play one round with the clients that `host` places."""
    star = Star(transport=transport, secure_aggregation=SecureAggregation(**options))  # type: ignore[arg-type]
    star.open(channel, Ledger())
    received = star.send_down(1, download() if star.is_server else None, len(host))
    samples = {client: SAMPLES[client] for client in host}
    collector = star.open_round(
        1, collection, samples=samples, rank_of=host, download=received, streams=RandomStreams(7)
    )
    for client, rank in host.items():
        if rank == channel.rank and client not in failed:
            collector.add(client, SAMPLES[client], make_upload(client))
    uploads = collector.collect(channel.agree(collector.roll_call()))
    return Round(uploads, star.ledger.take())


def result(*arguments: Any, **options: Any) -> Uploads:
    uploads = play(*arguments, **options).uploads
    assert uploads is not None
    return uploads


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("failed", [(), (2,)])
def test_sums_and_means_are_those_of_the_uploads_that_arrived(transport: str, failed: tuple[int, ...]) -> None:
    there = [client for client in SAMPLES if client not in failed]
    each = {client: decoded(client) for client in there}
    uniform = result(Inbox(), transport=transport, failed=failed)
    weighted = result(Inbox(), transport=transport, failed=failed, collection="sample_weighted_sum")
    n = sum(SAMPLES[client] for client in there)
    for uploads in (uniform, weighted):
        assert uploads.clients == tuple(there)
        assert uploads.samples == n
        assert uploads.metrics == {"privacy/clipped_fraction": 0.0}
        assert uploads.sum().keys() == each[0].keys()
    for name, example in each[0].items():
        straight = sum(each[client][name].double() for client in there)
        by_samples = sum(SAMPLES[client] * each[client][name].double() for client in there)
        assert uniform.sum()[name].shape == weighted.sum()[name].shape == example.shape
        if example.is_floating_point():
            assert torch.allclose(uniform.sum()[name], straight, rtol=0, atol=len(there) * STEP)
            bound = len(there) * STEP * 1000 / n  # n 2^-(f + 1) / sum of n_k / n_cap
            assert torch.allclose(weighted.mean()[name], by_samples / n, rtol=0, atol=bound)
        else:
            assert torch.equal(uniform.sum()[name].double(), straight)
            assert torch.equal(weighted.sum()[name].double(), by_samples)


def test_without_the_difference_to_the_download_weights_would_be_clipped() -> None:
    assert float(download()["model"].tensor.abs().max()) > 4
    renamed = result(Inbox(), make_upload=lambda client: {"other": upload(client)["model"]})
    assert renamed.metrics["privacy/clipped_fraction"] > 0.5


PLACES = [
    pytest.param(2, {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 6: 1}, id="2 ranks"),
    pytest.param(3, {0: 2, 1: 0, 2: 1, 3: 1, 4: 2, 6: 0}, id="3 ranks"),
    pytest.param(2, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 6: 1}, id="a server with no client"),
    pytest.param(2, dict.fromkeys(SAMPLES, 0), id="a rank with no client"),
]


@pytest.mark.parametrize(("ranks", "host"), PLACES)
def test_ranks_and_transports_do_not_change_a_bit(ranks: int, host: dict[int, int], on_ranks: OnRanks) -> None:
    ways = [
        {"collection": collection, "failed": failed, "modulus_bits": modulus_bits}
        for collection in ("sum", "sample_weighted_sum")
        for failed, modulus_bits in (((), 32), ((1,), 62))
    ]
    expected = [play(Inbox(), **way) for way in ways]

    def work(channel: Channel) -> list[Round]:
        return [play(channel, host, transport=transport, **way) for way in ways for transport in TRANSPORTS]

    server, *others = on_ranks(ranks, work)
    assert all(seen.uploads is None for rank in others for seen in rank)
    for number, seen in enumerate(server):
        alone = expected[number // 2]
        assert seen.uploads.clients == alone.uploads.clients
        assert seen.uploads.samples == alone.uploads.samples
        for name, total in alone.uploads.sum().items():
            assert torch.equal(seen.uploads.sum()[name], total)
        rows = [row for row in add_up([rank[number].rows for rank in (server, *others)]) if row.messages]
        protocol = [(row.phase, row.link, row.messages, row.bytes) for row in rows]
        assert protocol == [(row.phase, row.link, row.messages, row.bytes) for row in alone.rows]


def chi_square_p(words: np.ndarray) -> float:
    """Return how likely uniform words would fill 256 equal parts of their range at least this unevenly."""
    parts = words.view(np.uint32) >> np.uint32(24)
    return float(stats.chisquare(np.bincount(parts, minlength=256)).pvalue)


def test_the_inbox_of_the_server_is_noise_but_for_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(20170831)  # the same noise in every run of the test
    monkeypatch.setattr(secrets, "token_bytes", draws.randbytes)
    monkeypatch.setattr(secrets, "randbelow", draws.randrange)
    big = 20_000

    def make_upload(client: int) -> Payload:
        return {"gradient": dense(torch.full((big,), 0.5)), "mask": bits(torch.ones(big))}

    channel = Inbox()
    uploads = result(channel, transport="messages", make_upload=make_upload, min_participants=3)
    masked, answers = channel.inbox
    assert len(masked) == len(answers) == len(SAMPLES)
    noise = {client: decode_payload(message)["masked"].numpy() for client, message in masked.items()}
    for client, y in noise.items():
        assert y.nbytes == 4 * (2 * big + 2)
        assert chi_square_p(y) > 1e-3
        for other in range(client):
            if other in noise:
                assert chi_square_p(y - noise[other]) > 1e-3
    assert chi_square_p(np.full(2 * big, 2**19, dtype=np.uint32)) == 0
    # Shares are of a field of 2^521: their 520 lower bits are noise as well.
    answered = np.concatenate([message.numpy().reshape(-1, 66)[:, 2:].reshape(-1) for message in answers.values()])
    assert stats.chisquare(np.bincount(answered, minlength=256)).pvalue > 1e-3
    assert torch.equal(uploads.sum()["gradient"], torch.full((big,), 3.0, dtype=torch.float64))
    assert torch.equal(uploads.sum()["mask"], torch.full((big,), 6))


def test_the_ledger_counts_the_masked_vectors_and_the_phases() -> None:
    seen = play(Inbox())
    length = sum(tensor.numel() for tensor in decoded(0).values()) + 2
    header = 20 + 8 + len("masked")
    rows = {(row.phase, row.link): (row.messages, row.bytes) for row in seen.rows}
    assert rows["upload", "client->server"] == (6, 6 * (4 * length + header))
    assert {phase for phase, _ in rows} == {"download", "keys", "shares", "upload", "unmask"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_wire_bytes_are_those_handed_to_the_process_group(
    transport: str, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = {"bytes": 0}

    def reduce(tensor: Tensor, destination: int, **options: Any) -> Any:
        handed["bytes"] += tensor.nbytes if dist.get_rank() != destination else 0
        return real_reduce(tensor, destination, **options)

    def exchange(operations: list[dist.P2POp]) -> Any:
        handed["bytes"] += sum(each.tensor.nbytes for each in operations if each.op is dist.isend)
        return real_exchange(operations)

    real_reduce, real_exchange = dist.reduce, dist.batch_isend_irecv
    monkeypatch.setattr(channel_module.dist, "reduce", reduce)
    monkeypatch.setattr(channel_module.dist, "batch_isend_irecv", exchange)
    host = {0: 0, 1: 1, 2: 0, 3: 1, 4: 2, 6: 1}
    seen = on_ranks(3, lambda channel: (play(channel, host, transport=transport).rows, handed["bytes"]))
    rows = {(row.phase, row.link): row for row in add_up([rows for rows, _ in seen])}
    through_the_group = sum(rows[phase, "client->server"].wire_bytes for phase in ("upload", "unmask"))
    assert through_the_group == sum(count for _, count in seen) > 0
    # Keys and shares are told to every other rank in an agreement.
    for phase in ("keys", "shares"):
        up = rows[phase, "client->server"]
        assert up.wire_bytes == 2 * up.bytes


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_client_alone_is_masked_too(transport: str) -> None:
    channel = Inbox()
    payload = {"mask": bits(torch.ones(5)), "gradient": dense(torch.full((3,), 2.0**-22))}
    uploads = result(channel, {2: 0}, transport=transport, make_upload=lambda _: payload, min_participants=1)
    assert uploads.sum()["mask"].tolist() == [1] * 5
    assert uploads.sum()["gradient"].tolist() == [0.0] * 3  # rounded as any other upload
    if transport == "messages":
        assert decode_payload(channel.inbox[0][2])["masked"].tolist()[:5] != [1] * 5


def test_clipping_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    star = Star(secure_aggregation=SecureAggregation(clip=1.0))
    star.open(Inbox(), Ledger())

    def play_round(t: int, size: float) -> Uploads:
        rest = {"samples": {0: 5, 1: 5}, "rank_of": {0: 0, 1: 0}, "download": {}, "streams": RandomStreams(7)}
        collector = star.open_round(t, "sum", **rest)  # type: ignore[arg-type]
        for client in (0, 1):
            collector.add(client, 5, {"x": dense(torch.tensor([size, 0.5, -size, 0.1])), "m": bits(torch.ones(9))})
        uploads = collector.collect([collector.roll_call()])
        assert uploads is not None
        return uploads

    with caplog.at_level(logging.WARNING, logger="flgen"):
        assert play_round(1, 0.9).metrics == {"privacy/clipped_fraction": 0.0}
        assert caplog.messages == []
        clipped = play_round(2, 3.0)
        assert play_round(3, 3.0).metrics == clipped.metrics == {"privacy/clipped_fraction": 0.5}
    assert clipped.sum()["x"].tolist() == pytest.approx([2.0, 1.0, -2.0, 0.2], abs=1e-6)
    (line,) = caplog.messages
    assert line.startswith("round 2: 50 % of the coordinates were cut to --method.topology.secure_aggregation.clip")


def test_too_few_answers_end_the_round_with_one_line() -> None:
    with pytest.raises(
        FlgenError, match=r"round 1: secure aggregation of uploads: 4 of the 6 clients that hold shares"
    ):
        play(Inbox(), failed=(0, 1))


def test_an_integer_sum_that_could_wrap_is_refused() -> None:
    def make_upload(client: int) -> Payload:
        return {"counts": dense(torch.tensor([2**31 // 6 + 1]))}

    with pytest.raises(
        FlgenError, match=r"secure sum of 'counts' could wrap: .* 357913942 from 6 clients.*modulus_bits"
    ):
        play(Inbox(), make_upload=make_upload)
    assert result(Inbox(), make_upload=make_upload, modulus_bits=40).sum()["counts"].tolist() == [6 * 357913942]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_number_that_its_codec_made_infinite_is_not_clipped_in_silence(transport: str) -> None:
    def make_upload(client: int) -> Payload:
        return {"x": dense(torch.tensor([1.0, 1e6 if client == 3 else 1.0]), torch.float16)}

    with pytest.raises(FlgenError, match="'x' of client 3 cannot be summed: NaN and infinity have no fixed point"):
        play(Inbox(), transport=transport, make_upload=make_upload)


@pytest.mark.parametrize("modulus_bits", [32, 62])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_counts_that_are_taken_do_not_wrap(modulus_bits: int, sign: int) -> None:
    largest = (2 ** (modulus_bits - 1) - 1) // len(SAMPLES)
    taken = sign * torch.tensor([largest, 1, 0])
    uploads = result(Inbox(), make_upload=lambda _: {"counts": dense(taken)}, modulus_bits=modulus_bits)
    assert uploads.sum()["counts"].tolist() == [sign * 6 * largest, sign * 6, 0]
    for refused in (taken + sign, torch.tensor([sign * 2**62, 0]), torch.tensor([-(2**63)])):
        with pytest.raises(FlgenError, match="the secure sum of 'counts' could wrap"):
            play(Inbox(), make_upload=lambda _, x=refused: {"counts": dense(x)}, modulus_bits=modulus_bits)


def test_single_uploads_cannot_be_had() -> None:
    with pytest.raises(UsageError, match="single uploads cannot be had under secure aggregation"):
        play(Inbox(), collection="gather")


def test_uploads_of_different_shapes_are_refused() -> None:
    with pytest.raises(FlgenError, match=r"uploads cannot be summed: 'x' is torch.float32 \(3,\) from one client"):
        play(Inbox(), make_upload=lambda client: {"x": dense(torch.zeros(3 + client))})
