"""A sum that nobody can take apart: secure aggregation over the ranks of one channel (gptfl.md, section 2.6).

The server is honest but curious: it follows the protocol and reads all it gets. So the consistency round with its
signatures, which binds a server that lies about who arrived, is left out; a client never gives both kinds of shares.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.federation.streams import RandomStreams
from flgen.privacy import shamir
from flgen.privacy.key_agreement import KEY_BYTES, private_key, public_key
from flgen.privacy.mask_stream import MaskStream
from flgen.privacy.pairing_graph import is_connected, pairing_graph
from flgen.privacy.participant import (
    KEYS_BYTES,
    SEALED_BYTES,
    Participant,
    pair_mask_key,
    pair_sign,
    self_mask_key,
)
from flgen.privacy.secure_aggregation import OPTION, SecureAggregation
from flgen.privacy.shamir import SHARE_BYTES
from flgen.wire import residues
from flgen.wire.residues import Residues

if TYPE_CHECKING:
    from flgen.topology.channel import Channel
    from flgen.wire.ledger import Ledger, Link

RUN_BYTES = 16


class SecureSum:
    """One run of the protocol. Every rank makes one, and calls `open`, `sum_over_ranks` and `unmask` with the others.

    Between them each rank masks the vectors of its clients and adds them up:

        total = residues.zeros(d, modulus)
        residues.add(total, secure_sum.mask(client, x), modulus)

    Args:
        channel: Joins the ranks.
        ledger: Counts the messages of the phases "keys", "shares" and "unmask".
        options: Threshold, neighbours, fewest participants.
        modulus: R: 2^k, or any number up to 2^63.
        round: Names the round, in the ledger and in every derived key.
        purpose: What is summed; another purpose is another run with keys of its own.
        streams: Public randomness of the graph.
        server_rank: The rank that plays the server.
    """

    def __init__(
        self,
        channel: Channel,
        ledger: Ledger,
        options: SecureAggregation,
        *,
        modulus: int,
        round: int,
        purpose: str,
        streams: RandomStreams = RandomStreams(0),
        server_rank: int = 0,
    ) -> None:
        self.channel = channel
        self.ledger = ledger
        self.options = options
        self.modulus = modulus
        self.round = round
        self.purpose = purpose
        self.streams = streams
        self.server_rank = server_rank
        self.is_server = channel.rank == server_rank

    def open(self, cohort: Sequence[int], rank_of: Mapping[int, int]) -> None:
        """Rounds 0 and 1: every client of the cohort gets its neighbours' keys, and a share of their secrets.

        Args:
            cohort: Ids of the clients, U1 = U2.
            rank_of: The rank that plays each client, by id.
        """
        self.cohort = tuple(sorted(cohort))
        self.rank_of = rank_of
        neighbours = pairing_graph(self.cohort, self.options.degree(len(self.cohort)), self.streams, self.round)
        self.neighbourhood = {u: tuple(sorted((u, *neighbours[u]))) for u in self.cohort}
        self.threshold = {u: self.options.needed(len(self.neighbourhood[u])) for u in self.cohort}
        self.participants = {
            u: Participant(u, self.neighbourhood[u], self.threshold[u], self.options.min_participants, self.modulus)
            for u in self.cohort
            if rank_of[u] == self.channel.rank
        }

        advertised = {u: participant.advertise() for u, participant in self.participants.items()}
        nonce = secrets.token_bytes(RUN_BYTES) if self.is_server else b""
        self._record("keys", "client->server", len(advertised), KEYS_BYTES * len(advertised), relayed=True)
        self._record_from_server("keys", {u: RUN_BYTES + KEYS_BYTES * len(neighbours[u]) for u in self.cohort})
        said = self.channel.agree((nonce, advertised))
        self.run = f"{self.purpose}/{self.round}/{said[self.server_rank][0].hex()}"
        self.keys: dict[int, bytes] = {u: key for _, keys in said for u, key in keys.items()}

        sealed = {
            u: participant.share(self.run, {v: self.keys[v] for v in neighbours[u]})
            for u, participant in self.participants.items()
        }
        sent = sum(SEALED_BYTES * len(shares) for shares in sealed.values())
        self._record("shares", "client->server", len(sealed), sent, relayed=True)
        self._record_from_server("shares", {u: SEALED_BYTES * len(neighbours[u]) for u in self.cohort})
        from_everyone = {u: shares for shared in self.channel.agree(sealed) for u, shares in shared.items()}
        for u, participant in self.participants.items():
            participant.receive({v: from_everyone[v][u] for v in neighbours[u]})

    def mask(self, client: int, x: np.ndarray) -> Residues:
        """Round 2: return a client's masked vector, uniform mod R for whoever lacks the shares; once per client.

        Args:
            client: One of this rank's.
            x: Residues mod R, unsigned (d,).
        """
        return self.participants[client].mask(x)

    def sum_over_ranks(self, total: Residues) -> Residues | None:
        """Return the sum of every rank's total mod R on the server, None elsewhere; all ranks call it.

        Args:
            total: Sum of the masked vectors of this rank's clients, zeros if it has none; it may be overwritten.
        """
        if self.channel.world_size == 1:
            return total
        if not self.is_server:
            self.ledger.record(self.round, "upload", "client->server", wire_bytes=total.nbytes)
        words = residues.as_words(total)
        if residues.is_power_of_two(self.modulus):  # 2^k divides 2^32 or 2^64: words that overflow are right mod 2^k
            words = words.to(self.channel.device)
            self.channel.reduce(words, self.server_rank)
            return residues.from_words(words, self.modulus) if self.is_server else None
        parts = self.channel.gather_tensors(words, self.server_rank)
        if not self.is_server:
            return None
        summed = residues.zeros(len(total), self.modulus)
        for part in parts:
            residues.add(summed, residues.from_words(part, self.modulus), self.modulus)
        return summed

    def unmask(self, total: Residues | None, arrived: Collection[int], silent: Collection[int] = ()) -> Residues | None:
        """Round 4: return sum_{u in U3} x_u mod R on the server, None elsewhere; all ranks call it.

        Args:
            total: On the server, the sum of the masked vectors of U3; it is not changed.
            arrived: Ids of U3; the others of the cohort dropped out after they had shared their secrets.
            silent: Ids of those of U3 who dropped out when their vector had arrived: it counts, they do not answer.

        Raises:
            FlgenError: Too few clients answered.
        """
        U3 = frozenset(arrived)
        dropped = [v for v in self.cohort if v not in U3 and not U3.isdisjoint(self.neighbourhood[v])]
        answering = U3.difference(silent)
        self._check_enough(U3, dropped, answering)

        answers = {
            v: torch.frombuffer(bytearray(self.participants[v].answer(U3)), dtype=torch.uint8)
            for v in answering.intersection(self.participants)
        }
        self._record_from_server("unmask", dict.fromkeys(U3, -(-len(self.cohort) // 8)))  # U3, one bit per client
        self._record("unmask", "client->server", len(answers), sum(answer.numel() for answer in answers.values()))
        plan = [(v, self.rank_of[v], SHARE_BYTES * len(self.neighbourhood[v])) for v in sorted(answering)]
        received = self.channel.gather_messages(answers, plan, self.server_rank)
        if not self.is_server:
            return None
        assert total is not None
        shares = self._sort_shares({v: message.cpu().numpy().tobytes() for v, message in received.items()})

        z = total.copy()
        for u in U3:
            b_u = self._rebuild(u, shares[u])
            MaskStream(self_mask_key(b_u, self.run, u), self.modulus).add_to(z, -1)
        for v in dropped:
            s_v = private_key(self._rebuild(v, shares[v]))
            if public_key(s_v) != self.keys[v][KEY_BYTES:]:
                raise FlgenError(f"{self._where}: the shares of client {v} do not give the key it had shared")
            for u in U3.intersection(self.neighbourhood[v]):
                s_uv = pair_mask_key(s_v, self.keys[u][KEY_BYTES:], self.run, u, v)
                MaskStream(s_uv, self.modulus).add_to(z, -pair_sign(u, v))
        return z

    @property
    def _where(self) -> str:
        return f"round {self.round}: secure aggregation of {self.purpose}"

    def _check_enough(self, U3: Collection[int], dropped: Sequence[int], answering: Collection[int]) -> None:
        if len(U3) < self.options.min_participants:
            raise FlgenError(
                f"{self._where}: {len(U3)} of {len(self.cohort)} clients are left, {OPTION}.min_participants asks for "
                f"{self.options.min_participants}"
            )
        for u in (*sorted(U3), *dropped):
            holders = sum(v in answering for v in self.neighbourhood[u])
            if holders < self.threshold[u]:
                raise FlgenError(
                    f"{self._where}: {holders} of the {len(self.neighbourhood[u])} clients that hold shares of "
                    f"client {u} answered, {self.threshold[u]} are needed to remove its masks; raise "
                    f"{OPTION}.neighbours or lower .threshold"
                )
        if not is_connected(self.neighbourhood, U3):  # the masks of each part would cancel by themselves
            raise FlgenError(
                f"{self._where}: the {len(U3)} of {len(self.cohort)} clients that are left fall into groups with no "
                f"masks between them, and the server would see the sum of each; raise {OPTION}.neighbours"
            )

    def _sort_shares(self, answers: Mapping[int, bytes]) -> dict[int, dict[int, int]]:
        """Return the shares of each client's secret by their points, from what the holders answered."""
        shares: dict[int, dict[int, int]] = {u: {} for u in self.cohort}
        for v, answer in answers.items():
            for position, u in enumerate(self.neighbourhood[v]):
                share = int.from_bytes(answer[SHARE_BYTES * position : SHARE_BYTES * (position + 1)], "big")
                shares[u][self.neighbourhood[u].index(v) + 1] = share
        return shares

    def _rebuild(self, u: int, shares: Mapping[int, int]) -> bytes:
        secret = shamir.rebuild(shares, self.threshold[u])
        if secret >= 2 ** (8 * KEY_BYTES):
            raise FlgenError(f"{self._where}: the shares of client {u} do not belong together")
        return secret.to_bytes(KEY_BYTES, "big")

    def _record(self, phase: str, link: Link, messages: int, bytes: int, *, relayed: bool = False) -> None:
        """Count what this rank's clients send; what they have relayed to each other goes to every other rank."""
        copies = self.channel.world_size - 1 if relayed else int(not self.is_server)
        self.ledger.record(self.round, phase, link, messages=messages, bytes=bytes, wire_bytes=copies * bytes)

    def _record_from_server(self, phase: str, sizes: Mapping[int, int]) -> None:
        """Count what the server sends to each client, by its size; between ranks it has travelled with its parts."""
        if self.is_server:
            self.ledger.record(self.round, phase, "server->client", messages=len(sizes), bytes=sum(sizes.values()))
