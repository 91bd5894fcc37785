"""Isolated fine-tuning: a few clients, each alone with the initial model; what federation is measured against
(gptfl.md, section 7.6).

once:                               S_0 <- m clients, drawn at random ; w_k <- w_1
round t, each client k of S_0:      w_k <- E epochs of local SGD from w_k
result after round t:               1/m sum_k accuracy of w_k on the global test split
"""

from __future__ import annotations

from typing import ClassVar, Literal

from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.local import Local

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Client, Federation


class Isolated(Local):
    """Let a few clients train the initial model alone, and test each on the data set's whole test split.

    T rounds of E epochs are as many epochs as a client of a federation has that takes part in every round.
    `test/accuracy` is the mean over the participants; each one's own is in clients.csv. It is measured whatever
    --evaluation.personal says, which is about tests on clients' own data. Nothing is exchanged: that the participants
    have the initial weights is taken for granted, as for every method without a server.

    Args:
        training: How clients train.
        participants: Number of clients that train, m, drawn once.

    Raises:
        UsageError: There is to be no participant.
    """

    personal: ClassVar[bool] = False

    def __init__(self, training: LocalTraining = LocalTraining(), participants: int = 10) -> None:
        super().__init__(training)
        option_ranges.at_least("method", 1, participants=participants)
        self.participants = participants

    def check(self, federation: Federation) -> None:
        """Refuse more participants than there are clients."""
        super().check(federation)
        if self.participants > len(federation):
            raise UsageError(
                f"--method.participants is {self.participants}: give 1 to {len(federation)}, the number of clients "
                "(--partition.clients)"
            )

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the module's own initial weights as w_1, and draw S_0."""
        super().setup(federation, model, data, fabric)
        draws = federation.streams.numpy("participants")
        self.S_0 = {int(key) for key in draws.choice(len(federation), self.participants, replace=False)}

    def takes_part(self, client: Client) -> bool:
        """Whether a client is of S_0."""
        return client.key in self.S_0

    def expected_work(self, client: Client) -> float:
        """A participant's work is its number of samples, all others have none."""
        return client.samples if self.takes_part(client) else 0.0

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_1, for participants."""
        return super().initial_state(client) if self.takes_part(client) else {}

    def mix(self, client: Client, inbox: object, t: int) -> None:
        """w <- w_k, for participants."""
        if self.takes_part(client):
            super().mix(client, {}, t)

    def client_step(self, client: Client, t: int) -> None:
        """w_k <- E epochs of local SGD from w_k, for participants."""
        if self.takes_part(client):
            super().client_step(client, t)

    def report(self, client: Client, point: Literal["aggregated", "trained"]) -> None:
        """Test the resident module on the global test split, if this round is evaluated."""
        if self.evaluated:
            client.metrics.update(self.residents.of(client).test_split())

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test a participant's w_k on the global test split."""
        if not self.takes_part(client):
            return {}
        return self.residents.load(client).test_split()
