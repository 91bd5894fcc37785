"""What each way to be private does to an upload, and what it promises (prism.md, section 6; checks 10 and 11)."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flgen import CentralGaussian, ReferenceBug, StatisticsGaussian, ThetaGaussian
from flgen.errors import FlgenError, UsageError
from flgen.federation.clients import Federation
from flgen.topology.star import Star


class Crowd(Federation):
    """A federation that is asked for its rounds and cohorts alone."""

    def __init__(self, clients: int = 10, rounds: int = 500, per_round: int | None = None, seed: int = 0) -> None:
        from flgen.federation.clients import Client
        from flgen.federation.streams import RandomStreams

        streams = RandomStreams(seed)
        members = [Client(id=k, samples=100, streams=streams, key=k, open_data=lambda: None) for k in range(clients)]
        super().__init__(members, streams, clients_per_round=per_round, rounds=rounds)


def begun(privacy: Any, **federation: Any) -> Any:
    privacy.begin(Crowd(**federation))
    return privacy


def test_check_11_the_upload_really_is_noisy() -> None:
    # theta_t + u = .62 and sigma = z 2 C = .8: E clamp(.62 + N(0, .64), .1, .9) = .545793.
    theta_t, c = torch.tensor([0.5]), 0.1
    s = torch.logit(torch.tensor([0.62]))
    uploads = []
    for seed in (1, 2):
        privacy = begun(ThetaGaussian(epsilon=None, noise_multiplier=0.4, update_clip=1.0, theta_clip=c), seed=seed)
        draws = torch.Generator().manual_seed(seed)
        probabilities = torch.cat([privacy.protect(s, theta_t, t, 0)[0] for t in range(10_000)])
        assert probabilities.min() >= c - 1e-6
        assert probabilities.max() <= 1 - c + 1e-6
        uploads.append(torch.bernoulli(probabilities, generator=draws))
    expected = 0.545793
    for mask in uploads:
        assert abs(float(mask.mean()) - expected) < 4 * math.sqrt(expected * (1 - expected) / len(mask))
    assert not torch.equal(*uploads)


def test_check_11_the_authors_code_clamps_scores_and_promises_nothing() -> None:
    s = torch.tensor([-2, 0, 0.05, 0.5, 2])
    privacy = begun(ReferenceBug(theta_clip=0.1))
    p, sent = privacy.protect(s, torch.full((5,), 0.5), 1, 0)
    torch.testing.assert_close(p, torch.tensor([0.1, 0.1, 0.1, 0.5, 0.9]))
    assert torch.equal(sent, s)
    assert privacy.epsilon_after(1) == privacy.epsilon_after(500) == math.inf
    assert privacy.record()["epsilon"] == "inf"
    assert not privacy.exhausted(10**6)
    correct = begun(ThetaGaussian(epsilon=None, noise_multiplier=1e-12, update_clip=1e6)).protect(s, s * 0 + 0.5, 1, 0)
    torch.testing.assert_close(correct[0], torch.tensor([0.119203, 0.5, 0.512497, 0.622459, 0.880797]))


def test_a_client_never_moves_farther_than_the_clip() -> None:
    privacy = begun(ThetaGaussian(update_clip=0.3))
    draws = torch.Generator().manual_seed(0)
    theta_t = torch.rand(1000, generator=draws)
    far = privacy.update(10 * torch.randn(1000, generator=draws), theta_t)
    assert float(far.norm()) == pytest.approx(0.3)
    near = privacy.update(torch.logit(theta_t.double().clamp(0.1, 0.9)) + 1e-3, theta_t.double().clamp(0.1, 0.9))
    assert 0 < float(near.norm()) < 0.01


def test_noise_is_that_of_the_clip_the_round_and_the_client() -> None:
    privacy = begun(ThetaGaussian(epsilon=None, noise_multiplier=1e-4, update_clip=2.0))
    s = torch.zeros(200_000)
    theta_t = torch.full((200_000,), 0.5)
    first, again, other_round, other_client = (
        privacy.protect(s, theta_t, t, k)[0] for t, k in ((1, 0),) * 2 + ((2, 0), (1, 1))
    )
    assert torch.equal(first, again)  # a round that is repeated releases nothing new
    assert not torch.equal(first, other_round)
    assert not torch.equal(first, other_client)
    moved = privacy.protect(s + 1e-3, theta_t, 1, 0)[0]  # other data, the same secret: what is between is not the noise
    assert float((moved - first).std()) == pytest.approx(2**0.5 * 1e-4 * 2 * 2.0, rel=0.02)
    assert float((first - 0.5).std()) == pytest.approx(1e-4 * 2 * 2.0, rel=0.01)


def test_scores_that_are_no_numbers_are_not_clipped_by_nothing() -> None:
    scores = torch.full((1000,), 5.0)
    scores[3] = math.nan
    with pytest.raises(FlgenError, match="scores of a client are not finite"):
        begun(ThetaGaussian()).update(scores, torch.full((1000,), 0.5))


def test_alpha_s_layers_send_the_logit_of_the_same_noisy_probabilities() -> None:
    privacy = begun(ThetaGaussian())
    p, sent = privacy.protect(torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.full((50,), 0.5), 1, 0)
    torch.testing.assert_close(torch.sigmoid(sent), p)


def test_the_noise_of_500_rounds_is_that_of_section_6_3() -> None:
    assert begun(ThetaGaussian()).budget.z == pytest.approx(11.3629, rel=1e-5)
    assert begun(ThetaGaussian(), rounds=1).budget.z == pytest.approx(0.508162, rel=1e-5)
    assert begun(ThetaGaussian(accountant="rdp"), rounds=100).budget.z == pytest.approx(5.3856, rel=1e-2)


def test_statistics_are_released_once_however_many_rounds_follow() -> None:
    privacy = begun(StatisticsGaussian())
    assert privacy.budget.z == pytest.approx(0.508162, rel=1e-5)
    assert privacy.epsilon_after(1) == privacy.epsilon_after(500) == pytest.approx(9.8, rel=1e-4)
    assert privacy.record()["unit"] == "record"
    assert privacy.release().noise_multiplier == privacy.budget.z


def test_rounds_that_a_client_misses_are_not_charged_to_it() -> None:
    crowd = Crowd(clients=10, per_round=2, rounds=50)
    seen = [sum(client.id == k for t in range(1, 51) for client in crowd.cohort(t)) for k in range(10)]
    privacy = ThetaGaussian()
    privacy.begin(crowd)
    assert privacy.releases(50) == max(seen) < 50
    assert privacy.budget.z == pytest.approx(0.508162 * math.sqrt(max(seen)), rel=1e-5)


def test_the_budget_lasts_for_the_planned_rounds_and_not_for_one_more() -> None:
    privacy = begun(ThetaGaussian(), rounds=7)
    assert not privacy.exhausted(7)
    assert "round 8 would spend epsilon" in privacy.exhausted(8)
    assert privacy.epsilon_after(3) < privacy.epsilon_after(7) <= 9.8 * (1 + 1e-6)


def test_a_run_that_is_given_more_rounds_keeps_its_noise() -> None:
    privacy = begun(ThetaGaussian(), rounds=7)
    continued = begun(ThetaGaussian(), rounds=100)
    continued.load_state_dict(privacy.state_dict())
    assert continued.budget.z == privacy.budget.z
    assert continued.exhausted(8)


def test_noise_that_one_round_overspends_is_refused() -> None:
    with pytest.raises(UsageError, match=r"first release would spend epsilon .*--method.privacy.noise_multiplier"):
        begun(ThetaGaussian(epsilon=1.0, noise_multiplier=0.1))


def test_a_secret_file_names_other_noise_than_the_seed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    s, theta_t = torch.zeros(8), torch.full((8,), 0.5)
    drawn = [begun(ThetaGaussian(noise_key=key)).protect(s, theta_t, 1, 0)[0] for key in (None, str(secret))]
    assert not torch.equal(*drawn)
    assert begun(ThetaGaussian()).record()["noise_from"] == "the run's seed (simulation)"
    assert begun(ThetaGaussian(noise_key=str(secret))).record()["noise_from"] == "a secret file"
    secret.write_bytes(b"short")
    privacy = begun(ThetaGaussian(noise_key=str(secret)))
    for released in (privacy.check_secret, lambda: privacy.exhausted(1), lambda: privacy.protect(s, theta_t, 1, 0)):
        with pytest.raises(UsageError, match="has 5 bytes, 16 are the least"):
            released()


def test_a_run_is_not_continued_with_cohorts_by_which_its_past_would_be_counted_too_low() -> None:
    options: dict[str, Any] = {"epsilon": 9.8, "noise_multiplier": 1.0}
    privacy = begun(ThetaGaussian(**options), rounds=3)
    continued = begun(ThetaGaussian(**options), rounds=8, per_round=1)
    continued.load_state_dict(privacy.state_dict())
    with pytest.raises(UsageError, match=r"now gives 1 of 10 clients, but this private run began with 10 of 10"):
        continued.exhausted(4)


def test_mechanism_a_may_be_looked_at_without_its_secret(tmp_path: Path) -> None:
    privacy = begun(StatisticsGaussian(noise_key=str(tmp_path / "missing")))
    release = privacy.release()
    with pytest.raises(UsageError, match="missing: cannot be read"):
        release.release(torch.zeros(2, 3, dtype=torch.float64), records=200, client=0)


def test_the_server_s_noise_has_the_sensitivity_of_the_rounded_sum() -> None:
    from flgen import SecureAggregation

    privacy = begun(CentralGaussian(epsilon=None, noise_multiplier=2.0, update_clip=0.5))
    privacy.check(Star(secure_aggregation=SecureAggregation(fraction_bits=10)))
    d = 100_000
    assert privacy.sensitivity(d) == pytest.approx(0.5 + math.sqrt(d) * 2**-11)
    noisy = privacy.noisy_sum(torch.zeros(d), 1)
    assert float(noisy.std()) == pytest.approx(2.0 * privacy.sensitivity(d), rel=0.02)


def test_unprotected_changes_need_secure_aggregation() -> None:
    with pytest.raises(UsageError, match=r"add --method.topology.secure_aggregation '\{\}'"):
        begun(CentralGaussian()).check(Star())


@pytest.mark.parametrize("kind", [StatisticsGaussian, ThetaGaussian, CentralGaussian])
def test_the_options_of_a_mechanism_are_in_the_record_of_the_run(kind: Any) -> None:
    from flgen.experiment.config import describe

    given = {"epsilon": 3.0, "delta": 1e-6, "noise_multiplier": 7.0, "noise_key": "a/file"}
    described = describe(kind(**given))["init_args"]
    assert {name: described[name] for name in given} == given
    assert set(described) == set(inspect.signature(kind).parameters)


def test_a_private_run_goes_on_with_its_own_options_wherever_its_secret_lies(fit_small: Any, tmp_path: Path) -> None:
    def private(key: Path, noise_multiplier: float) -> dict[str, Any]:
        return {"privacy": ThetaGaussian(epsilon=None, noise_multiplier=noise_multiplier, noise_key=str(key))}

    for place in ("here", "there"):
        (tmp_path / place).write_bytes(bytes(range(16)))
    fit_small(tmp_path / "run", method_options=private(tmp_path / "here", 1.0), rounds=1)
    with pytest.raises(UsageError, match=r"--method.privacy.noise_multiplier is 9.0, but .* trained with 1.0"):
        fit_small(tmp_path / "run", method_options=private(tmp_path / "here", 9.0), rounds=2, ckpt_path="last")
    went_on = fit_small(tmp_path / "run", method_options=private(tmp_path / "there", 1.0), rounds=2, ckpt_path="last")
    assert went_on.round == 2


def test_a_continuation_that_is_refused_leaves_the_record_of_the_run_as_it_was(fit_small: Any, tmp_path: Path) -> None:
    options = {"privacy": ThetaGaussian(epsilon=None, noise_multiplier=1.0)}
    fit_small(tmp_path / "run", method_options=options, rounds=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    with pytest.raises(UsageError, match="clients_per_round"):
        fit_small(tmp_path / "run", method_options=options, rounds=2, ckpt_path="last", clients_per_round=3)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_a_mechanism_is_given_and_not_its_name_or_class() -> None:
    from flgen import Prism

    for wrong in ("ThetaGaussian", ThetaGaussian):
        with pytest.raises(UsageError, match="give a mechanism, such as StatisticsGaussian"):
            Prism(privacy=wrong)  # type: ignore[arg-type]


def test_alpha_has_no_meaning_where_every_layer_sends_changes() -> None:
    from test_prism import small_job

    with pytest.raises(UsageError, match=r"every layer sends changes of probabilities: leave --method.alpha out"):
        small_job(privacy=CentralGaussian(), alpha=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": None}, r"give .epsilon \(a budget\), .noise_multiplier, or both"),
        ({"epsilon": -1.0}, "--method.privacy.epsilon is -1.0"),
        ({"delta": 1.0}, "--method.privacy.delta is 1.0"),
        ({"noise_multiplier": 0.0}, "--method.privacy.noise_multiplier is 0.0"),
        ({"update_clip": 0.0}, "--method.privacy.update_clip is 0.0"),
        ({"theta_clip": 0.5}, "--method.privacy.theta_clip is 0.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ThetaGaussian(**options)
