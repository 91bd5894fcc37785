"""The uploads of one round under secure aggregation: each is one vector of residues, and the server sees their sum.

    upload entries  ->  q (fixed point, or integers as they are)  ->  mod R  ->  + masks  ->  sum  ->  - masks  ->  sums

An entry that was downloaded under the same name, shape and type travels as its difference to the download, which the
server adds back: weights then lie well inside the fixed point's range.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.federation.streams import RandomStreams
from flgen.privacy.secure_aggregation import OPTION
from flgen.privacy.secure_sum import SecureSum
from flgen.topology.star import SERVER_RANK, Collection, Star, Uploads
from flgen.wire import codecs, residues
from flgen.wire.residues import Residues
from flgen.wire.sums import Summand

if TYPE_CHECKING:
    from flgen.privacy.secure_aggregation import SecureAggregation

log = logging.getLogger("flgen")

COUNTERS = 2
"""Numbers that follow the entries: samples n_k, and clipped coordinates."""


class SecureCollector:
    """Takes the uploads of this rank's clients one by one and brings their sum to the server; as `Collector` does.

    Args:
        star: The topology, open.
        options: Its secure aggregation.
        round: The round.
        collection: "sum" or "sample_weighted_sum".
        samples: Number of training samples of each client of the cohort, by id.
        rank_of: The rank that runs each client, by id.
        download: What every client received.
        streams: The run's random streams.

    Raises:
        UsageError: The method wants single uploads.
    """

    def __init__(
        self,
        star: Star,
        options: SecureAggregation,
        round: int,
        collection: Collection,
        samples: Mapping[int, int],
        rank_of: Mapping[int, int],
        download: Mapping[str, Tensor],
        streams: RandomStreams,
    ) -> None:
        if collection == "gather":
            raise UsageError(f"{OPTION}: single uploads cannot be had under secure aggregation; remove it")
        self._star = star
        self._round = round
        self._collection: Collection = collection
        self._download = download
        self._code = options.code
        self._cohort_size = len(samples)
        self._most_samples = max(samples.values())  # n_cap, public
        self._modulus = 2**options.modulus_bits
        self._sum = SecureSum(
            star.channel,
            star.ledger,
            options,
            modulus=self._modulus,
            round=round,
            purpose="uploads",
            streams=streams,
            server_rank=SERVER_RANK,
        )
        self._sum.open(list(samples), rank_of)
        self._layout: dict[str, Summand] = {}
        self._clients: list[int] = []
        self._messages: dict[int, Tensor] = {}
        self._total: Residues | None = None

    def add(self, client: int, samples: int, payload: codecs.Payload) -> None:
        """Encode and mask one client's upload, enter it in the ledger, and keep it or add it to this rank's sum.

        Raises:
            FlgenError: An entry does not fit those of other clients, is not finite, or is an integer whose sum could
                wrap.
        """
        upload = codecs.decode_payload(codecs.encode_payload(payload))  # what its own codecs leave of it
        for name, tensor in upload.items():
            _note(self._layout, name, Summand(tuple(tensor.shape), tensor.dtype))
        x = self._encode(client, samples, upload)
        y = self._sum.mask(client, x)
        message = codecs.encode_payload({"masked": codecs.dense(residues.as_words(y))})
        self._star.ledger.record(self._round, "upload", "client->server", messages=1, bytes=message.numel())
        self._clients.append(client)
        if self._star.transport == "messages":
            self._messages[client] = message
        elif self._total is None:
            self._total = y
        else:
            residues.add(self._total, y, self._modulus)

    def roll_call(self) -> dict:
        """Return what the other ranks must know about this rank's uploads."""
        return {
            "clients": self._clients,
            "sizes": {client: message.numel() for client, message in self._messages.items()},
            "layout": self._layout,
        }

    def collect(self, roll_calls: Sequence[dict]) -> Uploads | None:
        """Run the collectives of the upload; returns the sums on the server and None elsewhere.

        Args:
            roll_calls: Every rank's `roll_call`, by rank; the same list on every rank.

        Raises:
            FlgenError: Too few clients are left to remove the masks.
        """
        for call in roll_calls:
            for name, summand in call["layout"].items():
                _note(self._layout, name, summand)
        arrived = sorted(client for call in roll_calls for client in call["clients"])
        if self._star.transport == "messages":
            total = self._carry_messages(roll_calls)
        else:
            mine = residues.zeros(self._length(), self._modulus) if self._total is None else self._total
            total = self._sum.sum_over_ranks(mine)
        clear = self._sum.unmask(total, arrived)
        return None if clear is None else self._uploads(arrived, clear)

    def _encode(self, client: int, samples: int, upload: Mapping[str, Tensor]) -> np.ndarray:
        """Return x_k: the entries by name, n_k, and how many coordinates were clipped, as residues, uint64 (d,)."""
        weighted = self._collection == "sample_weighted_sum"
        weight = samples / self._most_samples if weighted else 1.0  # w_k = n_k / n_cap
        parts, clipped = [], 0
        for name in sorted(upload):
            tensor = upload[name]
            if tensor.is_floating_point():
                try:
                    q, outside = self._code.encode(tensor, self._base(name), weight)
                except FlgenError as error:
                    raise FlgenError(f"{name!r} of client {client} cannot be summed: {error}") from None
                clipped += outside
            else:
                q = self._integers(name, tensor).mul_(samples if weighted else 1)
            parts.append(q)
        most = (self._modulus // 2 - 1) // self._cohort_size
        parts.append(torch.tensor([samples, min(clipped, most)], device=parts[0].device if parts else None))
        return self._code.to_residues(torch.cat(parts)).cpu().numpy().view(np.uint64)

    def _integers(self, name: str, tensor: Tensor) -> Tensor:
        whole = tensor.reshape(-1).to(torch.int64, copy=True)
        largest = max(abs(int(bound)) for bound in whole.aminmax()) if whole.numel() else 0
        heaviest = self._most_samples if self._collection == "sample_weighted_sum" else 1
        if not self._code.fits(largest * heaviest * self._cohort_size):
            raise FlgenError(
                f"the secure sum of {name!r} could wrap: an integer of size {largest} from {self._cohort_size} clients "
                f"with weights up to {heaviest}; raise {OPTION}.modulus_bits"
            )
        return whole

    def _base(self, name: str) -> Tensor | None:
        """Return the download that an entry is the difference to, if it has one."""
        base, summand = self._download.get(name), self._layout[name]
        return base if base is not None and Summand(tuple(base.shape), base.dtype) == summand else None

    def _length(self) -> int:
        return sum(int(np.prod(summand.shape)) for summand in self._layout.values()) + COUNTERS

    def _carry_messages(self, roll_calls: Sequence[dict]) -> Residues | None:
        each = self._star.carry_messages(self._round, self._messages, roll_calls)
        if not self._star.is_server:
            return None
        total = residues.zeros(self._length(), self._modulus)
        for client in sorted(each):
            with codecs.sent_by(f"round {self._round}, the upload of client {client}"):
                masked = codecs.decode_payload(each[client])["masked"]
            residues.add(total, residues.from_words(masked, self._modulus), self._modulus)
        return total

    def _uploads(self, arrived: Sequence[int], clear: Residues) -> Uploads:
        z = torch.from_numpy(clear.astype(np.uint64).view(np.int64)).to(self._star.channel.device)
        signed = self._code.from_residues(z)
        samples, clipped = (int(number) for number in signed[-COUNTERS:])
        weighted = self._collection == "sample_weighted_sum"
        sums: dict[str, Tensor] = {}
        floats = start = 0
        for name in sorted(self._layout):
            summand = self._layout[name]
            end = start + int(np.prod(summand.shape))
            part = signed[start:end].view(summand.shape)
            start = end
            if summand.dtype.is_floating_point:
                floats += part.numel()
                part = self._code.decode(part).mul_(self._most_samples if weighted else 1)
                base = self._base(name)
                if base is not None:
                    part.add_(base.double(), alpha=samples if weighted else len(arrived))
            sums[name] = part
        share = clipped / max(floats * len(arrived), 1)
        self._star.report_clipping(self._round, share)
        metrics = {"privacy/clipped_fraction": share}
        return Uploads(tuple(arrived), samples, self._collection, sums, None, metrics)


def _note(layout: dict[str, Summand], name: str, summand: Summand) -> None:
    known = layout.setdefault(name, summand)
    if known != summand:
        raise FlgenError(
            f"uploads cannot be summed: {name!r} is {known.dtype} {known.shape} from one client and "
            f"{summand.dtype} {summand.shape} from another"
        )
