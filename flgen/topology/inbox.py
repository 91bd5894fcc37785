"""What a client of a peer topology finds when it looks: the payloads of those it reads from, decoded on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from flgen.wire.codecs import decode_payload, sent_by


class OpenedMessages:
    """The encoded messages that a rank holds in one round, each decoded once while the decoded ones fit a budget.

    Args:
        messages: Encoded payload, uint8 (bytes,), by sender; one whose decoded form is kept is taken out.
        budget_bytes: Decoded tensors that may be kept; a message beyond it is decoded at every use.
    """

    def __init__(self, messages: dict[int, Tensor], budget_bytes: float) -> None:
        self._messages = messages
        self._room = budget_bytes
        self._kept: dict[int, dict[str, Tensor]] = {}

    def open(self, sender: int) -> dict[str, Tensor]:
        """Return the tensors that a sender sent, by name; they are shared, so nobody may change them.

        Raises:
            WireError: The message is damaged.
        """
        if sender in self._kept:
            return self._kept[sender]
        with sent_by(f"what client {sender} sent"):
            tensors = decode_payload(self._messages[sender])
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._room:
            self._room -= size
            self._kept[sender] = tensors
            del self._messages[sender]
        return tensors


class Inbox(Mapping[int, dict[str, Tensor]]):
    """Payloads by sender for one client; they come in an order that does not depend on how clients are numbered.

    Args:
        senders: Whom the client hears this round, itself included.
        opened: The rank's messages.
    """

    def __init__(self, senders: Sequence[int], opened: OpenedMessages) -> None:
        self._senders = senders
        self._opened = opened

    def __getitem__(self, sender: int) -> dict[str, Tensor]:
        if sender not in self._senders:
            raise KeyError(sender)
        return self._opened.open(sender)

    def __iter__(self) -> Iterator[int]:
        return iter(self._senders)

    def __len__(self) -> int:
        return len(self._senders)
