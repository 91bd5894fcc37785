"""`flgen fit --seeds`: which runs are started, how each is told what it is, and what is said in the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flgen.commands import seeds
from flgen.commands.finished_runs import differing_options
from flgen.commands.sections import federated_sections, parse_command
from flgen.commands.seeds import OPTIONS, run_seeds, take_seed
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import Configuration, to_yaml
from flgen.experiment.records import EventLog, MetricsTable, read_events
from flgen.experiment.summary import read_summary

ACCURACY = {0: 0.801, 1: 0.810, 2: 0.804}
QUICK = ["--method=FedAvg", "--model=SmallCNN", "--trainer.rounds=2"]


def parsed(*arguments: str) -> Configuration:
    return parse_command("fit", "", [*QUICK, *arguments], federated_sections(), OPTIONS)


def finish(configuration: Configuration, rounds: int = 2) -> None:
    """Leave behind what a finished run of one seed does."""
    values, folder = configuration.values, Path(configuration.values.run_dir)
    (folder / "checkpoints" / f"round-{rounds:05d}").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(configuration.resolved()))
    for t in range(1, rounds + 1):
        MetricsTable(folder / "metrics.csv").write(
            t, {"test/accuracy": ACCURACY[values.seed_everything], "train/loss": 1 / t}
        )
    EventLog(folder / "events.jsonl").write("end", round=rounds)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let runs take no time; return what each of them was told."""
    told: list[dict[str, Any]] = []

    def child(arguments: list[str]) -> int:
        configuration = parse_command("fit", "", arguments[1:], federated_sections(), OPTIONS)
        assert take_seed(configuration)
        values = configuration.values
        told.append({name: values[name] for name in ("seed_everything", "partition_seed", "ckpt_path", "run_dir")})
        finish(configuration)
        return 0

    monkeypatch.setattr(seeds, "run_flgen", child)
    return told


Fit = Callable[..., int]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Return a function that runs `flgen fit --seeds` in an empty folder."""

    def run(*arguments: str) -> int:
        given = [*QUICK, f"--run_dir={tmp_path}/runs", *arguments]
        return run_seeds(parse_command("fit", "", given, federated_sections(), OPTIONS), given)

    return run


def test_every_seed_is_a_run_of_its_own_on_one_partition(
    fit: Fit, started: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--seeds=[0,1,2]") == 0
    assert started == [
        {"seed_everything": seed, "partition_seed": 0, "ckpt_path": "auto", "run_dir": f"{tmp_path}/runs/seed-{seed}"}
        for seed in (0, 1, 2)
    ]
    # gptfl.md, section 10, check 12
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [
        "test/accuracy 80.50 +- 0.46 (3 seeds)",
        "test/accuracy 80.50 +- 0.46 (3 seeds, the best round of each)",
        f"summary of all metrics: {tmp_path}/runs/summary.csv",
    ]
    (loss,) = [row for row in read_summary(tmp_path / "runs" / "summary.csv") if row[:2] == ("train/loss", "final")]
    assert (loss.mean, loss.std, loss.n) == (0.5, 0.0, 3)


def test_what_is_finished_is_not_repeated_and_what_was_stopped_goes_on(
    fit: Fit, started: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--seeds=[1,0]")
    events = tmp_path / "runs" / "seed-0" / "events.jsonl"
    events.unlink()
    (tmp_path / "runs" / "seed-0" / "metrics.csv").unlink()
    started.clear()
    assert fit("--seeds=[1,0,2]") == 0
    assert f"seed 1: done before ({tmp_path}/runs/seed-1)" in capsys.readouterr().out
    assert [(told["seed_everything"], told["ckpt_path"]) for told in started] == [(0, "auto"), (2, "auto")]
    assert {told["partition_seed"] for told in started} == {1}  # the first seed's
    started.clear()
    fit("--seeds=[1,0,2]")
    assert started == []


def test_a_finished_run_that_was_taken_up_from_an_earlier_round_is_not_finished(
    fit: Fit, started: list[dict[str, Any]], tmp_path: Path
) -> None:
    fit("--seeds=[0]")
    events = EventLog(tmp_path / "runs" / "seed-0" / "events.jsonl")
    events.write("resume", round=2)
    events.write("stopped", round=1)
    started.clear()
    fit("--seeds=[0]", "--ckpt_path=auto")
    assert [told["run_dir"] for told in started] == [f"{tmp_path}/runs/seed-0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method=DPFedAvgGAN", "--seeds=[0,1,2]"], "flgen: --seeds [0, 1, 2]: 3 runs release what the same records"),
        (["--method=Prism", "--method.privacy=StatisticsGaussian", "--seeds=[0,1]"], "flgen: --seeds [0, 1]: 2 runs"),
        (["--method=DPFedAvgGAN", "--method.privacy=null", "--seeds=[0,1]"], ""),
        (["--method=DPFedAvgGAN", "--seeds=[0]"], ""),
        (["--seeds=[0,1]"], ""),
    ],
)
def test_private_runs_of_several_seeds_add_up_and_it_is_said(
    arguments: list[str], said: str, fit: Fit, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*arguments) == 0
    errors = capsys.readouterr().err
    assert errors.startswith(said)
    assert errors.count("\n") == bool(said)


def test_more_rounds_go_on_with_all_seeds(fit: Fit, started: list[dict[str, Any]]) -> None:
    fit("--seeds=[0]")
    with pytest.raises(FlgenError, match=r"seed-0 has 2 rounds, --trainer.rounds is 1: runs of different lengths"):
        fit("--seeds=[0]", "--trainer.rounds=1")
    started.clear()
    with pytest.raises(FlgenError, match=r"has 2 rounds, --trainer.rounds is 3"):  # here runs always end after two
        fit("--seeds=[0]", "--trainer.rounds=3")
    assert [told["ckpt_path"] for told in started] == ["auto"]


def end_by_budget(configuration: Configuration, rounds: int) -> None:
    """Leave behind what a run does that its privacy budget has ended early."""
    finish(configuration, rounds)
    events = Path(configuration.values.run_dir) / "events.jsonl"
    events.unlink()
    for event in ("start", "budget", "checkpoint", "end"):
        EventLog(events).write(event, round=rounds)


def run_by_budget(monkeypatch: pytest.MonkeyPatch, paid: dict[int, int]) -> list[int]:
    """Let the budget of each seed's run pay for so many rounds; return the seeds that are started."""
    started: list[int] = []

    def child(arguments: list[str]) -> int:
        configuration = parse_command("fit", "", arguments[1:], federated_sections(), OPTIONS)
        assert take_seed(configuration)
        started.append(configuration.values.seed_everything)
        end_by_budget(configuration, paid[started[-1]])
        return 0

    monkeypatch.setattr(seeds, "run_flgen", child)
    return started


def test_runs_that_their_budget_ended_are_finished_and_summarised(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = run_by_budget(monkeypatch, {0: 3, 1: 3})
    for _ in range(2):
        assert fit("--seeds=[0,1]", "--trainer.rounds=9") == 0
        assert "every seed ended with its privacy budget, after round 3 of 9\n" in capsys.readouterr().out
    assert started == [0, 1]
    rows = read_summary(tmp_path / "runs" / "summary.csv")
    (loss,) = [row for row in rows if row[:2] == ("train/loss", "final")]
    assert (loss.mean, loss.n) == (pytest.approx(1 / 3), 2)


def test_budgets_that_ended_runs_in_different_rounds_have_no_common_mean(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_by_budget(monkeypatch, {0: 3, 1: 4})
    with pytest.raises(FlgenError, match=r"seed-1 has 4 rounds, the privacy budget of .*seed-0 ended it after 3: runs"):
        fit("--seeds=[0,1]", "--trainer.rounds=9")


def test_a_run_that_was_taken_up_again_after_its_budgets_end_is_not_finished(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = run_by_budget(monkeypatch, {0: 3})
    fit("--seeds=[0]", "--trainer.rounds=9")
    EventLog(tmp_path / "runs" / "seed-0" / "events.jsonl").write("resume", round=4)
    fit("--seeds=[0]", "--trainer.rounds=9")
    assert started == [0, 0]


def test_a_run_that_fails_ends_the_command_with_its_status(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(seeds, "run_flgen", lambda arguments: asked.append(arguments) or 143)
    assert fit("--seeds=[0,1]") == 143
    assert len(asked) == 1
    assert asked[0][0] == "fit"
    assert asked[0][-1] == "--seed_index=0"
    assert capsys.readouterr().err == "flgen: seed 0 ended with exit status 143; the same command goes on\n"
    assert not (tmp_path / "runs" / "summary.csv").exists()


def test_one_of_the_seeds_can_be_run_by_itself(tmp_path: Path) -> None:
    configuration = parsed("--seeds=[4,1]", "--seed_index=1", f"--run_dir={tmp_path}/runs")
    assert take_seed(configuration)
    values = configuration.values
    assert (values.seed_everything, values.partition_seed, values.run_dir) == (1, 4, f"{tmp_path}/runs/seed-1")
    assert (values.seeds, values.seed_index) == (None, None)
    finish(configuration)
    assert not take_seed(parsed("--seeds=[4,1]", "--seed_index=1", f"--run_dir={tmp_path}/runs"))


def test_a_partition_seed_that_is_given_is_taken() -> None:
    configuration = parsed("--seeds=[4,1]", "--seed_index=0", "--partition_seed=9")
    assert take_seed(configuration)
    assert configuration.values.partition_seed == 9


def test_runs_of_another_experiment_are_not_mixed_in(fit: Fit, started: list[dict[str, Any]]) -> None:
    fit("--seeds=[0,1]")
    more = ["--trainer.devices=2", "--trainer.checkpoint_every=5", "--evaluation.every=1"]
    assert fit("--seeds=[0,1]", *more) == 0
    for option, name in {
        "--method.training.epochs=3": "method.init_args.training.epochs",
        "--model.learning_rate=0.5": "model.init_args.learning_rate",
        "--partition.clients=7": "partition.init_args.clients",
        "--trainer.clients_per_round=3": "trainer.clients_per_round",
        "--partition_seed=5": "partition_seed",
        "--initial_weights=x.safetensors": "initial_weights",
        "--method=FedProx": "method.class_path, method.init_args.mu",
    }.items():
        with pytest.raises(FlgenError, match=rf"is of another experiment \(different {re.escape(name)}\): choose anot"):
            fit("--seeds=[0,1]", option)


def test_sizes_that_the_data_set_gave_and_a_run_without_seeds_are_the_same_experiment() -> None:
    asked = parsed("--seed_everything=3").resolved()
    written = parsed("--model.image_size=8", "--seed_everything=3").resolved()
    assert list(differing_options(written, asked)) == []
    assert list(differing_options({**written, "seed_everything": 4}, asked)) == ["seed_everything", "partition_seed"]


def test_another_division_of_clients_or_sampling_ratio_is_another_experiment() -> None:
    written = {**parsed().resolved(), "partition_seed": 3}
    older = {name: value for name, value in written.items() if name != "split"}
    older["trainer"] = {name: value for name, value in written["trainer"].items() if name != "participation"}
    for run in (written, older):  # before there was a choice, test samples were common ones
        assert list(differing_options(run, written)) == []
        own = {**parsed("--split.test=own", "--trainer.participation=0.5").resolved(), "partition_seed": 3}
        assert list(differing_options(run, own)) == ["split.test", "trainer.participation"]


def test_what_validation_samples_choose_is_said_between_the_last_and_the_best_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "seed-4"
    run.mkdir(parents=True)
    for t, (val, test) in enumerate(((0.9, 0.5), (0.1, 0.8), (0.2, 0.6)), start=1):
        MetricsTable(run / "metrics.csv").write(t, {"val/pooled/accuracy_trained": val, "test/accuracy_trained": test})
    seeds._summarise(parsed("--seeds=[4]", "--trainer.rounds=3"), tmp_path / "runs")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "test/accuracy_trained 60.00 (1 seed)",
        "test/accuracy_trained 50.00 (1 seed, the round of each that validation samples choose)",
        "test/accuracy_trained 80.00 (1 seed, the best round of each)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=[]"], r"--seeds is \[\]: give one seed or more"),
        (["--seeds=[1,2,1]"], r"--seeds is \[1, 2, 1\]: give one seed or more, each once"),
        (["--seeds=[1,2]", "--ckpt_path=last"], "--ckpt_path last: with --seeds every run goes on from its own"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, fit: Fit, started: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=message):
        fit(*arguments)
    assert started == []


@pytest.mark.parametrize("index", ["-1", "2"])
def test_an_index_must_be_a_place_in_the_list(index: str) -> None:
    with pytest.raises(UsageError, match=rf"--seed_index is {index}: give 0 to 1, a place in --seeds"):
        take_seed(parsed("--seeds=[4,1]", f"--seed_index={index}"))
    with pytest.raises(UsageError, match=rf"--seed_index {index} needs --seeds"):
        take_seed(parsed(f"--seed_index={index}"))


@pytest.mark.parametrize(
    "environment", [{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}]
)
def test_several_processes_do_not_each_start_all_runs(
    environment: dict[str, str], fit: Fit, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="but 2 processes were started for it: give each job one seed"):
        fit("--seeds=[0,1]")
    assert started == []


def test_the_command_does_it_all(flgen: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "seeds: [5, 3]\n"
        "trainer: {rounds: 1, accelerator: cpu, callbacks: [], threads_per_rank: 1}\n"
        "model: {class_path: SmallCNN, init_args: {width: 2}}\n"
        "method: FedAvg\n"
        "partition: {class_path: Dirichlet, init_args: {clients: 3, alpha: 0.5}}\n"
        "evaluation: {extractors: [], personal: false}\n"
    )
    done = flgen("fit", "--config", "c.yaml", "--run_dir", "runs")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^test/accuracy \d+\.\d\d \+- \d+\.\d\d \(2 seeds\)$", done.stdout, re.MULTILINE)
    five, three = (tmp_path / "runs" / f"seed-{seed}" for seed in (5, 3))
    assert (five / "partition.csv").read_text() == (three / "partition.csv").read_text()
    assert (five / "metrics.csv").read_text() != (three / "metrics.csv").read_text()
    assert read_events(three / "events.jsonl")[-1]["event"] == "end"
    measured = flgen("evaluate", "--ckpt_path", "runs/seed-3/checkpoints/last")  # whose partition is seed 5's
    assert measured.returncode == 0, measured.stderr
