"""A budget: what it plans for, what it refuses, and what a private run that is continued must keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_methods import small_method, small_model

from flgen import Digits, FederatedTrainer, Shards, ThetaGaussian
from flgen.callbacks import Evaluation
from flgen.errors import UsageError
from flgen.privacy.budget import GaussianBudget
from flgen.privacy.gradient_privacy import GradientPrivacy
from flgen.privacy.update_privacy import UpdatePrivacy

SECTION = "method.privacy"
PRIVACY = {"Prism": ThetaGaussian, "DPFedAvgGAN": UpdatePrivacy, "GSWGAN": GradientPrivacy}


def begun(planned: int = 4, clients: int = 10, per_round: int | None = None, **options: Any) -> GaussianBudget:
    budget = GaussianBudget(SECTION, **{"epsilon": None, "delta": 1e-5, "noise_multiplier": 1.0, **options})
    budget.begin(0, planned, clients, per_round)
    return budget


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file with a secret."""
    path = tmp_path / "noise.key"
    path.write_bytes(bytes(range(32)))
    return path


class TestPlan:
    def test_what_the_accountant_cannot_count_is_said_before_the_run_with_the_options_as_they_are_typed(self) -> None:
        message = "--method.privacy.accountant: the prv accountant cannot follow 500 releases at this noise"
        for epsilon in (None, 1e6):
            with pytest.raises(UsageError, match=message):
                begun(500, epsilon=epsilon, noise_multiplier=0.05, accountant="prv")
        with pytest.raises(UsageError, match=r"^--method.privacy.epsilon is 0.05, .* at --method.privacy.delta 1e-05"):
            begun(epsilon=0.05, noise_multiplier=None, accountant="rdp")
        with pytest.raises(UsageError, match=r"^--method.privacy.accountant is moments: give exact, prv, rdp"):
            begun(accountant="moments")

    def test_an_accountant_is_asked_once_for_each_number_of_releases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from opacus.accountants import PRVAccountant

        asked: list[int] = []
        count = PRVAccountant.get_epsilon

        def overheard(accountant: Any, *arguments: Any, **options: Any) -> float:
            asked.append(accountant.history[0][2])
            return float(count(accountant, *arguments, **options))

        monkeypatch.setattr(PRVAccountant, "get_epsilon", overheard)
        budget = begun(3, noise_multiplier=4.321, accountant="prv")
        spent = [budget.spent(releases) for releases in (1, 2, 3, 3, 2, 1, 0)]
        assert spent[:3] == spent[5:2:-1] == sorted(spent[:3])
        assert sorted(asked) == [1, 2, 3]
        assert begun(3, noise_multiplier=4.321, accountant="prv").spent(3) == spent[2]  # as every rank begins anew
        assert len(asked) == 3

    def test_the_record_says_what_the_guarantee_rests_on_and_what_it_leaves_out(self) -> None:
        record = begun().record()
        assert record["covers"].startswith("this run alone")
        assert "same machine and device" in record["repeats"]
        for unprotected in ("train/loss", "train/distance", "privacy/clipped", "gradient diversity", "clients.csv"):
            assert unprotected in record["not_covered"]


class TestGoingOn:
    def test_noise_cohorts_and_secret_are_kept(self, key: Path) -> None:
        first = begun(4, per_round=3, epsilon=9.8, noise_multiplier=None, noise_key=str(key))
        state = first.state_dict()
        assert state["noise_multiplier"] == first.z
        assert (state["clients_per_round"], state["clients"]) == (3, 10)
        longer = begun(40, per_round=3, epsilon=9.8, noise_multiplier=None, noise_key=str(key))
        longer.load_state_dict(state)
        assert longer.z == first.z
        assert longer.exhausted(4, 4) == ""
        assert longer.exhausted(5, 5).startswith("round 5 would spend epsilon ")

    def test_a_digest_of_16_bytes_stands_for_the_secret(self, key: Path) -> None:
        digest = begun(noise_key=str(key)).state_dict()["secret"]
        assert len(bytes.fromhex(digest)) == 16
        assert digest not in key.read_bytes().hex()
        assert digest != begun().state_dict()["secret"]

    @pytest.mark.parametrize(("clients", "per_round"), [(10, 3), (10, None), (12, 2)])
    def test_other_cohorts_are_refused_as_the_past_is_counted_by_them(
        self, clients: int, per_round: int | None
    ) -> None:
        budget = begun(clients=clients, per_round=per_round)
        budget.load_state_dict(begun(clients=10, per_round=2).state_dict())
        asked = rf"gives {per_round or clients} of {clients} clients, but this private run began with 2 of 10"
        with pytest.raises(UsageError, match=asked):
            budget.exhausted(5, 5)

    def test_everybody_is_everybody_however_it_is_said(self) -> None:
        budget = begun(per_round=10)
        budget.load_state_dict(begun().state_dict())
        assert budget.exhausted(5, 5) == ""

    def test_a_budget_that_begins_anew_forgets_what_it_went_on_from(self) -> None:
        budget = begun(per_round=2)
        budget.load_state_dict(begun().state_dict())
        budget.begin(0, 4, 10, 2)
        assert budget.exhausted(1, 1) == ""


@pytest.mark.parametrize("method", PRIVACY)
class TestRun:
    """Whole runs of every method that is paid from such a budget."""

    def options(self, method: str, key: Path) -> dict[str, Any]:
        privacy = PRIVACY[method](epsilon=None, noise_multiplier=1.0, noise_key=str(key))
        return {"method": method, "method_options": {"privacy": privacy}}

    def test_it_is_continued_with_the_cohorts_and_the_secret_that_it_began_with(
        self, method: str, key: Path, fit_small: Any, tmp_path: Path
    ) -> None:
        options = self.options(method, key)
        fit_small(tmp_path / "run", rounds=1, **options)
        with pytest.raises(UsageError, match=r"--trainer.clients_per_round .* now gives 1 of 5 .* began with 5 of 5"):
            fit_small(tmp_path / "run", rounds=2, ckpt_path="last", clients_per_round=1, **options)
        secret = key.read_bytes()
        key.write_bytes(secret[::-1])
        with pytest.raises(UsageError, match=r"noise.key: is not the secret that the run began with, .* give the file"):
            fit_small(tmp_path / "run", rounds=2, ckpt_path="last", **options)
        key.write_bytes(secret)
        assert fit_small(tmp_path / "run", rounds=2, ckpt_path="last", **options).round == 2

    def test_without_its_secret_it_can_be_looked_at_but_neither_begun_nor_continued(
        self, method: str, key: Path, fit_small: Any, tmp_path: Path
    ) -> None:
        options = self.options(method, key)
        fit_small(tmp_path / "run", rounds=1, **options)
        key.unlink()
        trainer = FederatedTrainer(accelerator="cpu", devices=1, threads_per_rank=1, clients_per_round=2, callbacks=[])

        def what() -> tuple[Any, ...]:
            algorithm = small_method(method, **options["method_options"])
            return algorithm, small_model(method), Digits(), Shards(clients=5, shards_per_client=4)

        place = {"ckpt_path": tmp_path / "run" / "checkpoints" / "last", "seed_everything": 7}
        for images in trainer.samples(*what(), count=2, **place).values():
            assert len(images) == 2
        trainer.evaluate(*what(), evaluation=Evaluation(images=16, extractors=[]), **place)
        for run, begun_before in (("new", {}), ("run", {"ckpt_path": "last"})):
            with pytest.raises(UsageError, match=r"noise.key: cannot be read"):
                fit_small(tmp_path / run, rounds=2, **options, **begun_before)
