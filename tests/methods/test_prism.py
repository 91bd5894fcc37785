"""PRISM's server side against the numbers of the specification (prism.md, section 10), and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flgen import Digits, KernelMMD, Prism, ResnetGenerator, Shards
from flgen.errors import UsageError
from flgen.job import prepare_job
from flgen.methods.mada import aggregate_masks, moving_average
from flgen.methods.prism_layers import first_score_sent


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def test_check_3_counts_of_four_masks_become_probabilities_and_scores() -> None:
    masks = torch.tensor([[int(bit) for bit in mask] for mask in ("10110", "10010", "11010", "10100")])
    theta = aggregate_masks(masks.sum(0), 4, 0.01)
    close(theta, tensor(0.99, 0.255, 0.5, 0.745, 0.01))
    close(torch.logit(theta), tensor(4.595120, -1.072121, 0, 1.072121, -4.595120))


def test_check_3_ten_clients_give_eleven_probabilities_of_odd_symmetry() -> None:
    theta = aggregate_masks(torch.arange(11), 10, 0.01)
    scores = torch.logit(theta)
    close(theta[:6], tensor(0.01, 0.108, 0.206, 0.304, 0.402, 0.5))
    close(scores[:6], tensor(-4.595120, -2.111335, -1.349207, -0.828322, -0.397139, 0))
    close(scores, -scores.flip(0))


S_T = tensor(0, 1, -2, 4.59511985)
THETA_AGG = tensor(0.99, 0.5, 0.255, 0.01)


def test_check_5_mada_in_score_space() -> None:
    s = moving_average(S_T, torch.logit(THETA_AGG), 0.25, "score", 0.01)
    close(s, tensor(1.148780, 0.75, -1.768030, 2.297560))
    close(torch.sigmoid(s), tensor(0.759288, 0.679179, 0.145787, 0.908675))


def test_check_5_mada_in_theta_space() -> None:
    s = moving_average(S_T, torch.logit(THETA_AGG), 0.25, "theta", 0.01)
    close(torch.sigmoid(s), tensor(0.6225, 0.673294, 0.153152, 0.745))
    close(s, tensor(0.500173, 0.723121, -1.710089, 1.072121))


@pytest.mark.parametrize("space", ["score", "theta"])
def test_mada_with_lambda_1_is_plain_aggregation_and_with_0_the_old_model(space: Any) -> None:
    s_agg = torch.logit(THETA_AGG)
    close(moving_average(S_T, s_agg, 1.0, space, 0.01), s_agg)
    close(moving_average(S_T, s_agg, 0.0, space, 0.01), S_T)


def test_probabilities_stay_inside_the_clamp_when_they_are_averaged() -> None:
    s = moving_average(tensor(9.0, -9.0), tensor(4.5, -4.5), 0.1, "theta", 0.01)
    close(torch.sigmoid(s), tensor(0.99, 0.01))


@pytest.fixture
def generator() -> Any:
    return ResnetGenerator(image_size=32, channels=1)


def test_alpha_by_layers_sends_scores_of_the_last_layers(generator: Any) -> None:
    # 11 layers; int(8.8) = 8: block 0's bypass and everything after it.
    first_conv, block_0 = 1_048_576, 1_179_648 + 589_824
    assert first_score_sent(generator, 0.8, "layers") == first_conv + block_0
    assert first_score_sent(generator, 0.0, "layers") == 3_543_616
    assert first_score_sent(generator, 1.0, "layers") == 0


def test_alpha_as_the_reference_counts_sends_bits_of_the_first_layer_only(generator: Any) -> None:
    first = first_score_sent(generator, 0.8, "reference")
    assert first == 1_048_576
    assert 3_543_616 - first == 2_495_040  # the score entries of PRISM* in section 7


def small_job(data: Any = None, **options: Any) -> Any:
    data = data or Digits()
    data.setup()
    method = Prism(**{"local_steps": 2, "batch_size": 8, "recalibration_batches": 2, **options})
    model = ResnetGenerator(image_size=8, latent=8, width=8, loss=KernelMMD(real_batch=8))
    return prepare_job(method, model, data, Shards(clients=4), 3, 1, None)


def run(job: Any, rounds: int = 1, on_client_error: Any = "raise") -> list[torch.Tensor]:
    """Run rounds on this process and return the server's scores after each."""
    from pathlib import Path

    from flgen.client_turns import ErrorPolicy
    from flgen.federation.interruption import StopRequest
    from flgen.federation.launch import build_fabric
    from flgen.federation.state_store import ClientStateStore
    from flgen.star_round import run_star_round
    from flgen.topology.channel import Channel
    from flgen.wire.ledger import Ledger

    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=60, callbacks=[])
    job.set_up_method(fabric)
    job.method.topology.open(Channel(0, 1, fabric.device, 60, 60), Ledger())
    store = ClientStateStore(fabric.device, 4, 100, Path("unused"))
    scores = []
    for t in range(1, rounds + 1):
        run_star_round(
            job.method,
            job.federation,
            store,
            t,
            stop=StopRequest(),
            policy=ErrorPolicy(on_client_error, 1),
            call=lambda *_, **__: None,
        )
        scores.append(job.method.s_t.clone())
    job.store = store
    return scores


def test_scores_take_only_the_k_plus_1_values_of_an_aggregate_without_mada() -> None:
    (scores,) = run(small_job(mada=False))
    allowed = torch.logit(aggregate_masks(torch.arange(5), 4, 0.01)).float()
    assert set(scores.unique().tolist()) <= set(allowed.tolist())


def test_the_distance_starts_where_section_5_4_says() -> None:
    # s ~ N(0, 1) against the aggregate of its own clients after two small steps: 0.41 within sampling error.
    for distance in ("expected_hamming", "sampled_hamming"):
        job = small_job(mada_distance=distance)
        run(job)
        assert 0.38 < job.method.lambda_t < 0.44


def test_reference_counts_move_lambda_towards_the_block_convolutions() -> None:
    once, twice = (small_job(mada_counts=counts, mada=False) for counts in ("once", "reference"))
    for job, times_in_blocks in ((once, 1), (twice, 2)):
        (new,) = run(job)
        p, q = torch.sigmoid(job.method.step["from"].double()), torch.sigmoid(new.double())
        times = torch.ones_like(p)
        for name, place in job.method.scores.slices.items():
            times[place] = times_in_blocks if name.startswith("blocks.") else 1
        apart = p * (1 - q) + q * (1 - p)
        assert job.method.lambda_t == pytest.approx(float((times * apart).sum() / times.sum()))
    assert once.method.lambda_t != twice.method.lambda_t


def test_adam_moments_stay_with_the_client_from_round_to_round() -> None:
    job = small_job()
    run(job, rounds=2)
    for state in job.store.state_dict().values():
        assert int(state["optimizer.step"]) == 4  # two rounds of two steps
        assert state["optimizer.exp_avg"].abs().sum() > 0


def test_prism_alpha_mixes_bits_and_scores_in_one_upload() -> None:
    job = small_job(alpha=0.5, mada=False)
    (scores,) = run(job)
    first = job.method.first_score
    assert 0 < first < len(scores)
    allowed = torch.logit(aggregate_masks(torch.arange(5), 4, 0.01)).float()
    assert set(scores[:first].unique().tolist()) <= set(allowed.tolist())
    assert len(scores[first:].unique()) > 100  # real numbers, not counts


def test_a_preset_fills_every_switch_and_any_field_overrides_it() -> None:
    reference = Prism(preset="reference", mada_space="theta")
    assert (reference.straight_through, reference.mada_space, reference.mada_distance) == (
        "scaled_p",
        "theta",
        "sampled_hamming",
    )
    fixed = Prism()
    assert (fixed.straight_through, fixed.mada_space, fixed.evaluation_norm) == ("identity", "theta", "recalibrated")
    assert {frozenset(values) for values in Prism.presets.values()} == {frozenset(Prism.presets["fixed"])}


def test_samples_come_by_kind_of_mask_with_the_headline_first() -> None:
    job = small_job(evaluated_mask="threshold")
    run(job)
    drawn = job.method.samples(20, 1)
    assert list(drawn) == ["threshold", "stochastic", "sampled_once"]
    assert all(images.shape == (20, 1, 8, 8) and images.dtype == torch.uint8 for images in drawn.values())
    assert not torch.equal(drawn["threshold"], drawn["stochastic"])
    again = job.method.samples(20, 1)
    assert all(torch.equal(drawn[kind], again[kind]) for kind in drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "--method.local_steps is 0"),
        ({"mask_clamp": 0.5}, "--method.mask_clamp is 0.5"),
        ({"alpha": 1.5}, "--method.alpha is 1.5"),
        ({"learning_rate": 0}, "--method.learning_rate is 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prism(**options)


def test_a_model_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match="--model draws images of 1 x 8 x 8, --data has 1 x 16 x 16"):
        run(small_job(data=Digits(image_size=16)))


def test_a_module_without_masks_is_refused() -> None:
    from flgen import SmallCNN

    data = Digits()
    data.setup()
    with pytest.raises(UsageError, match="--model SmallCNN cannot be trained by Prism"):
        run(prepare_job(Prism(), SmallCNN(image_size=8), data, Shards(clients=4), 3, 1, None))


def test_a_checkpoint_that_does_not_say_what_clients_hold_is_refused() -> None:
    job = small_job()
    run(job)
    state = job.method.state_dict()
    del state["step"]
    with pytest.raises(UsageError, match=r"of an earlier flgen, .*: start anew without --ckpt_path"):
        job.method.load_state_dict(state)


def test_a_run_goes_on_with_the_loss_that_it_began_with(fit_small: Any, tmp_path: Any) -> None:
    def model(bandwidth: float) -> Any:
        return ResnetGenerator(image_size=8, latent=8, width=8, loss=KernelMMD([bandwidth], real_batch=8))

    fit_small(tmp_path / "run", model=model(0.3), rounds=1)
    with pytest.raises(UsageError, match=r"different loss"):
        fit_small(tmp_path / "run", model=model(0.6), rounds=2, ckpt_path="last")
    assert fit_small(tmp_path / "run", model=model(0.3), rounds=2, ckpt_path="last").round == 2
