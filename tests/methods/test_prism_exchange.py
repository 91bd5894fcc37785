"""What PRISM sends: coded masks up, counts and lambda down, and the same run whatever travels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prism import run, small_job

from flgen import SecureAggregation, Star, ThetaGaussian
from flgen.experiment.checkpoints import find_checkpoint
from flgen.wire import codecs

FLOATS = {"uplink": "bits", "downlink": "scores"}
SHORT = {"uplink": "coded", "downlink": "counts"}


@pytest.mark.parametrize("options", [{}, {"mada_space": "score"}, {"mada": False}, {"alpha": 0.5}])
def test_counts_and_lambda_give_clients_the_very_scores_that_floats_would(options: dict[str, Any]) -> None:
    by_floats = run(small_job(**FLOATS, **options), rounds=4)
    by_counts = run(small_job(**SHORT, **options), rounds=4)
    for ours, theirs in zip(by_counts, by_floats, strict=True):
        assert torch.equal(ours, theirs)


def test_clients_take_the_step_from_what_they_hold() -> None:
    job = small_job(**SHORT)
    run(job, rounds=2)
    method = job.method
    assert not torch.equal(method.held, method.s_t)  # what they held in round 2 is not what the server has now
    message = codecs.encode_payload(method.download(3))
    received = method.take_up(codecs.decode_payload(message, method.coding_contexts()), 3)
    assert torch.equal(received["scores"], method.s_t)
    assert 8 * message.numel() < 4 * len(method.s_t)  # fewer than 4 bits per weight, headers and all


def test_the_first_download_is_empty_since_the_seed_says_it_all() -> None:
    job = small_job(**SHORT)
    run(job, rounds=0)
    assert job.method.download(1) == {}


def test_whoever_missed_a_round_is_sent_scores() -> None:
    from flgen.federation.clients import Federation

    whole, part = small_job(**SHORT), small_job(**SHORT)
    federation = part.federation
    part.federation = Federation(federation.clients, federation.streams, clients_per_round=2, rounds=4)
    run(whole, rounds=2)
    run(part, rounds=3)
    assert set(whole.method.download(3)) == {"counts", "K_and_lambda"}
    cohorts = [{client.id for client in part.federation.cohort(t)} for t in (3, 4)]
    assert cohorts[0] != cohorts[1]
    assert set(part.method.download(4)) == {"scores"}


@pytest.mark.parametrize("options", [{}, {"mada_distance": "sampled_hamming"}, {"alpha": 0.5}], ids=str)
def test_cohorts_that_change_and_clients_that_fail_change_no_bit_either(options: dict[str, Any]) -> None:
    from flgen.federation.clients import Federation

    scores, kinds = [], []
    for way in (FLOATS, SHORT):
        job = small_job(**way, **options)
        federation = job.federation
        job.federation = Federation(federation.clients, federation.streams, clients_per_round=3, rounds=8)
        method, step, offered = job.method, job.method.client_step, job.method.download

        def fail_once(client: Any, download: Any, t: int, step: Any = step, job: Any = job) -> Any:
            if t in (2, 6) and client.id == job.federation.cohort(t)[0].id:
                raise ValueError("a client that fails")
            return step(client, download, t)

        def noted(t: int, offered: Any = offered) -> Any:
            kinds.append(sorted(offered(t)))
            return offered(t)

        method.client_step, method.download = fail_once, noted
        scores.append(run(job, 8, on_client_error="skip"))
    for floats, counts in zip(*scores, strict=True):
        assert torch.equal(floats, counts)
    assert any("counts" in kind for kind in kinds)
    assert ["scores"] in kinds[8:]  # somebody had missed a round


def test_with_every_layer_sending_scores_there_is_no_mask_to_code() -> None:
    job = small_job(**SHORT, alpha=1.0)
    assert len(run(job, 2)) == 2
    assert job.method.download(3)["counts"].tensor.numel() == 0


def test_alpha_s_layers_travel_as_mean_scores() -> None:
    job = small_job(**SHORT, alpha=0.5)
    run(job)
    download = job.method.download(2)
    assert download["mean_scores"].tensor.numel() == len(job.method.s_t) - job.method.first_score


def test_masks_are_coded_below_one_bit_and_the_cost_is_logged() -> None:
    job = small_job(**SHORT)
    run(job)
    (client, *_) = job.federation.clients
    client.state = job.store.state_dict()[client.id]
    job.method.take_up({}, 1)
    upload = job.method.client_step(client, {"scores": job.method.held}, 1)
    coded = codecs.encode_payload({"mask": upload["mask"]}).numel()
    packed = codecs.encode_payload({"mask": codecs.bits(upload["mask"].tensor)}).numel()
    assert coded < packed
    assert 0 < client.metrics["mask/cross_entropy_bits"] < 1


def test_under_secure_aggregation_and_in_private_mode_b_the_counts_still_are_what_goes_down() -> None:
    star = Star(secure_aggregation=SecureAggregation())
    plain, hidden = run(small_job(**SHORT), 2), run(small_job(**SHORT, topology=star), 2)
    assert torch.equal(plain[-1], hidden[-1])
    private = small_job(**SHORT, privacy=ThetaGaussian(epsilon=None, noise_multiplier=0.1))
    run(private, 2)
    assert set(private.method.download(3)) == {"counts", "K_and_lambda"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_round_reports_bytes_as_sent_packed_and_by_the_authors_convention(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="Prism", rounds=2)
    for row in rows(tmp_path / "run" / "metrics.csv"):
        sent, packed, authors = (int(float(row[f"comm/up_bytes{kind}"])) for kind in ("", "_packed", "_authors"))
        assert sent < packed + 5 * 64
        assert authors > 8 * packed  # a byte per weight, and block convolutions twice
        assert float(row["comm/up_bits_per_scalar"]) == pytest.approx(8 * sent / float(row["comm/up_scalars/mask"]))


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.5}, {"privacy": ThetaGaussian(epsilon=None, noise_multiplier=0.01)}],
    ids=["masks", "alpha", "private"],
)
def test_a_run_that_goes_on_on_two_ranks_is_the_run_that_was_not_stopped(
    options: dict[str, Any], fit_small: Any, tmp_path: Path
) -> None:
    fit_small(tmp_path / "whole", method="Prism", rounds=3, method_options=options)
    fit_small(tmp_path / "parts", method="Prism", rounds=2, devices=2, method_options=options)
    fit_small(tmp_path / "parts", method="Prism", rounds=3, devices=2, method_options=options, ckpt_path="last")
    whole, parts = (
        find_checkpoint(tmp_path / run / "checkpoints" / "last").server_state()["method"] for run in ("whole", "parts")
    )
    assert torch.equal(whole["scores"], parts["scores"])
    left_out = ("time/", "comm/wire")
    for ours, theirs in zip(
        rows(tmp_path / "whole" / "metrics.csv"), rows(tmp_path / "parts" / "metrics.csv"), strict=True
    ):
        assert {name: value for name, value in ours.items() if not name.startswith(left_out)} == {
            name: value for name, value in theirs.items() if not name.startswith(left_out)
        }
