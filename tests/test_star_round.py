"""What a round on a star measures besides what the server gets."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Labels, OneClassEach, Pull, Remembering, Trial, row
from torch import Tensor

from flgen import ConvNet, Evaluation, FedAvg, LocalTraining, Scaffold, SecureAggregation, Star
from flgen.client_turns import ErrorPolicy
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.experiment.records import read_ledger, read_metrics
from flgen.federation.interruption import StopRequest
from flgen.metrics.communication import communication_to_target
from flgen.wire import codecs

DIVERSITY = ("diversity/gradient", "diversity/times_cohort", "diversity/cosine")


def diversity_of(outcome: Any) -> dict[str, float]:
    return {name: value for name, value in outcome.metrics.items() if name.startswith("diversity/")}


def test_diversity_is_that_of_the_clients_updates() -> None:
    # One step at rate 1 ends on the target: the updates are (1, 0), (0, 2), (1, -1).
    model = Pull([5, 7], [[6, 7], [5, 9], [6, 6]], learning_rate=1.0)
    outcome = Trial(FedAvg(ONE_STEP), model, (1, 2, 3)).round(1, gradient_diversity=True)
    assert diversity_of(outcome) == {
        "diversity/gradient": pytest.approx(1.4, abs=1e-6),
        "diversity/times_cohort": pytest.approx(4.2, abs=1e-6),
        "diversity/cosine": pytest.approx(0.0, abs=1e-6),
    }


def test_buffers_do_not_count() -> None:
    counting = Remembering([0], [[1], [1]], learning_rate=1.0)  # its buffer moves by 1 on one, by 2 on the other
    outcome = Trial(FedAvg(ONE_STEP), counting, (1, 1)).round(1, gradient_diversity=True)
    assert diversity_of(outcome)["diversity/gradient"] == pytest.approx(0.5)
    assert diversity_of(outcome)["diversity/cosine"] == pytest.approx(1)


def test_it_is_measured_on_demand_only() -> None:
    assert diversity_of(Trial(FedAvg(ONE_STEP), Pull([0], [[1], [2]])).round(1)) == {}


def test_scalars_are_the_numbers_of_all_payloads_up_and_down() -> None:
    outcome = Trial(FedAvg(ONE_STEP), Pull([0.0] * 7, [[1.0] * 7] * 3), (1, 1, 1)).round(1)
    assert outcome.metrics["comm/scalars"] == 2 * 3 * 7


class TenPhotos(Labels):
    """One black photo of CIFAR-10's size for each of ten clients."""

    def layout(self) -> ImageLayout:
        return ImageLayout("photos", tuple("abcdefghij"), channels=3, image_size=32)

    def load(self) -> tuple[ImageSet, ImageSet]:
        photos = ImageSet(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
        return photos, photos


@pytest.mark.parametrize(("method", "scalars"), [(FedAvg(ONE_STEP), 6_400_200), (Scaffold(ONE_STEP), 12_800_400)])
def test_ten_clients_of_the_published_convnet_exchange_the_published_number_of_scalars(
    method: Any, scalars: int
) -> None:
    # gptfl.md, section 10, check 12; SCAFFOLD's control variates double it (section 7.3).
    model = ConvNet(momentum=0.0, weight_decay=0.0)
    outcome = Trial(method, model, data=TenPhotos([1] * 10), partition=OneClassEach(10)).round(1)
    assert outcome.metrics["comm/scalars"] == scalars
    spent = communication_to_target(
        [{"round": t, "test/accuracy": t / 500, **outcome.metrics} for t in range(1, 501)], [], 1.0
    )
    assert spent.scalars == 500 * scalars


@pytest.mark.parametrize("method", ["FedAvg", "Scaffold", "FedGen"])
def test_ranks_transports_and_secure_aggregation_do_not_change_it_nor_does_it_change_the_run(
    method: str, fit_small: Any, tmp_path: Path
) -> None:
    def fit(name: str, gradient_diversity: bool = True, **options: Any) -> list[dict[str, float]]:
        evaluation = Evaluation(every=2, extractors=[], gradient_diversity=gradient_diversity)
        fit_small(tmp_path / name, method=method, evaluation=evaluation, **options)
        rows = read_metrics(tmp_path / name / "metrics.csv")
        return [
            {key: value for key, value in row.items() if not key.startswith(("time/", "comm/wire"))} for row in rows
        ]

    alone = fit("alone")
    assert all(name in row for row in alone for name in DIVERSITY)
    assert all(row["diversity/times_cohort"] > 1 for row in alone)
    assert fit("two", devices=2) == alone
    assert fit("messages", transport="messages", devices=3) == alone
    without = fit("without", gradient_diversity=False)
    assert without == [{key: value for key, value in row.items() if key not in DIVERSITY} for row in alone]
    assert read_ledger(tmp_path / "without" / "ledger.csv") == read_ledger(tmp_path / "alone" / "ledger.csv")
    if method == "FedAvg":
        (first, _) = fit("secure", method_options={"topology": Star(secure_aggregation=SecureAggregation())})
        assert {name: first[name] for name in DIVERSITY} == {name: alone[0][name] for name in DIVERSITY}
        assert first["comm/scalars"] == alone[0]["comm/scalars"]
        assert first["comm/bytes"] > alone[0]["comm/bytes"]


def test_equal_clients_are_as_little_diverse_as_can_be() -> None:
    training = LocalTraining(epochs=3, batch_size=1000)
    trial = Trial(FedAvg(training), Pull([0, 0], [[3, 4]] * 4), (1, 1, 1, 1))
    for t in (1, 2):
        assert diversity_of(trial.round(t, gradient_diversity=True))["diversity/times_cohort"] == pytest.approx(1)


@pytest.mark.parametrize("method", ["Prism", "DSFL", "SubFedAvg", "DisPFL", "Isolated"])
def test_methods_without_updates_are_refused_before_anything_starts(
    method: str, fit_small: Any, tmp_path: Path
) -> None:
    refusal = re.escape(
        f"--evaluation.gradient_diversity true compares weights that clients send to a server, but {method} sends none"
    )
    with pytest.raises(UsageError, match=refusal):
        fit_small(tmp_path / "run", method=method, evaluation=Evaluation(extractors=[], gradient_diversity=True))
    assert not (tmp_path / "run").exists()


class Asking(FedAvg):
    """Lets its clients say which of two candidates is nearer to their target."""

    validates = True

    def candidates(self, t: int) -> Any:
        return {"candidates": codecs.dense(torch.stack([self.w_t, self.w_t + 1]))}

    def judge(self, client: Any, candidates: dict[str, Tensor], t: int) -> Any:
        distance = (candidates["candidates"] - self.model.targets[client.id]).square().sum(dim=1)
        return {"distance": codecs.dense(distance)}

    def settle(self, t: int, judgements: Any) -> None:
        self.w_t = self.w_t + int(judgements.sum()["distance"].argmin())


def test_clients_of_the_round_judge_candidates_where_a_method_wants_it() -> None:
    trial = Trial(Asking(ONE_STEP, weighting="uniform"), Pull([0], [[10], [20]]))
    outcome = trial.round(1)  # to 1 and 2
    assert torch.allclose(trial.method.w_t, row(2.5))
    assert outcome.metrics["comm/scalars"] == 2 * (1 + 1) + 2 * (2 + 2)
    assert outcome.clients.keys() == {0, 1}


def test_a_method_without_candidates_says_so() -> None:
    method: Any = FedAvg()
    for call in (method.candidates, lambda t: method.judge(None, {}, t), lambda t: method.settle(t, None)):
        with pytest.raises(TypeError, match="FedAvg has no candidates"):
            call(1)


def test_candidates_are_not_judged_under_secure_aggregation() -> None:
    with pytest.raises(UsageError, match=r"Asking cannot run under .* \(there are keys for one upload per client"):
        Trial(Asking(ONE_STEP, topology=Star(secure_aggregation=SecureAggregation())), Pull([0], [[1]] * 5), [1] * 5)


def test_a_method_that_says_so_has_updates() -> None:
    from small_methods import SERVER_METHODS, small_method

    from flgen.methods.own_networks import OwnNetworks

    methods = {name: small_method(name) for name in SERVER_METHODS}
    keep_networks = {name for name, method in methods.items() if isinstance(method, OwnNetworks)}
    has = {name for name, method in methods.items() if method.has_updates}
    assert has == set(SERVER_METHODS) - {"Prism", "DSFL", "SubFedAvg", "MDGAN", "UAGAN", "GSWGAN"} - keep_networks
    with pytest.raises(TypeError, match="Prism has no updates"):
        small_method("Prism").update_of({}, {"x": torch.zeros(1)})


TARGETS = [[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0], [2.0, -2.0], [0.5, 0.5]]
KEEPING = {
    "FedAvg": lambda star: FedAvg(ONE_STEP, keep_personal=True, topology=star),
    "Scaffold": lambda star: Scaffold(ONE_STEP, topology=star),
}


class Failing(Pull):
    """Its loss raises, or is no number, on the data of the client `failing`."""

    failing: int | None = None
    how = "raise"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch[1][0] == self.failing:
            if self.how == "raise":
                raise RuntimeError("no power")
            return loss * torch.nan
        return loss


def secure_trial(method: str) -> Trial:
    """Five clients that keep state, under secure aggregation, after a first round."""
    star = Star(secure_aggregation=SecureAggregation())
    trial = Trial(KEEPING[method](star), Failing([0, 0], TARGETS), (1, 2, 3, 1, 1))
    trial.round(1)
    return trial


def everything(trial: Trial) -> dict[str, list[float]]:
    """Return the server's tensors and every client's state."""
    kept = {f"client {k} {name}": value for k in range(5) for name, value in trial.state(k).items()}
    server = {name: value for name, value in trial.method.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.flatten().tolist() for name, value in {**server, **kept}.items()}


@pytest.mark.parametrize("method", ["FedAvg", "Scaffold"])
@pytest.mark.parametrize(("hook", "client"), [("on_client_start", 0), ("on_local_step", 2), ("on_client_end", 4)])
def test_a_stop_between_the_keys_and_the_shares_that_unmask_leaves_no_trace(
    hook: str, client: int, method: str
) -> None:
    whole, stopped = secure_trial(method), secure_trial(method)
    before = everything(stopped)
    expected = whole.round(2)
    stop = StopRequest()

    def call(name: str, **about: int) -> None:
        if (name, about["client"]) == (hook, client):
            stop.receive(signal.SIGTERM)

    outcome = stopped.round(2, stop=stop, call=call)
    assert (outcome.stop, outcome.ledger, outcome.metrics) == (signal.SIGTERM, [], {})
    assert stopped.method.topology.ledger.rows == {}
    assert everything(stopped) == before

    # The round again, with keys of its own: the run goes on bit for bit, and its traffic is counted once.
    assert stopped.round(2).ledger == expected.ledger
    assert everything(stopped) == everything(whole) != before


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("method", ["FedAvg", "Scaffold"])
def test_a_client_whose_upload_is_lost_keeps_the_state_it_had(method: str, how: str) -> None:
    trial = secure_trial(method)
    before = everything(trial)
    trial.job.model.failing, trial.job.model.how = 2, how  # type: ignore[assignment]
    outcome = trial.round(2, policy=ErrorPolicy("skip", min_clients=1))
    assert outcome.failures.keys() == {2}
    after = everything(trial)
    changed = {name for name in after if after[name] != before[name]}
    assert not {name for name in changed if name.startswith("client 2")}
    assert {name[:8] for name in changed if name.startswith("client")} == {f"client {k}" for k in (0, 1, 3, 4)}
    if method == "Scaffold":  # c moves by what the others say, over all five
        moves = [
            [
                (new - old) / 5
                for old, new in zip(before[f"client {k} control"], after[f"client {k} control"], strict=True)
            ]
            for k in (0, 1, 3, 4)
        ]
        expected = [old + sum(parts) for old, *parts in zip(before["control"], *moves, strict=True)]
        assert after["control"] == pytest.approx(expected, abs=1e-5)
