"""`flgen fit --sweep --index`, and runs that W&B's agent starts: which configuration, and in which folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_file import wandb_files

from flgen.commands.sections import federated_sections
from flgen.commands.sweep_run import SweepRuns, parse_fit
from flgen.errors import FlgenError, UsageError
from flgen.experiment.config import build_parser, parse
from flgen.experiment.sweep import read_sweep

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted(REPOSITORY.glob("configs/sweeps/*.yaml"))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep over methods, laid over an experiment, and rates; its command has options before and after."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    files = {
        "base.yaml": {"run_dir": "runs/base", "model": "SmallCNN", "method": "DPSGD", "trainer": {"rounds": 9}},
        "other.yaml": {"run_dir": "runs/other", "model": "SmallMLP", "method": "FedAvg"},
        "local.yaml": {"method": "Local", "trainer": {"rounds": 5}},
        "prox.yaml": {"method": {"class_path": "FedProx", "init_args": {"mu": 0.5}}},
        "sweep.yaml": {
            "name": "rates",
            "command": [
                "flgen",
                "fit",
                "--config",
                "base.yaml",
                "--trainer.min_clients=2",
                "${args}",
                "--seed_everything=4",
            ],
            "method": "grid",
            "parameters": {
                "model.learning_rate": {"values": [0.1, 0.2]},
                "config": {"values": ["local.yaml", "prox.yaml"]},
            },
        },
    }
    for name, content in files.items():
        Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    return "sweep.yaml"


def fit(*arguments: str) -> Any:
    return parse_fit(arguments, "").values


def test_an_index_is_a_run_of_its_own_in_a_folder_of_its_own(sweep: str) -> None:
    found = [fit("--sweep", sweep, "--index", str(index)) for index in range(4)]
    assert [values.run_dir for values in found] == [
        "runs/base/000-learning_rate=0.1,config=local",
        "runs/base/001-learning_rate=0.1,config=prox",
        "runs/base/002-learning_rate=0.2,config=local",
        "runs/base/003-learning_rate=0.2,config=prox",
    ]
    assert {values.ckpt_path for values in found} == {"auto"}
    last = found[-1]
    assert (last.method.class_path, last.method.init_args.mu) == ("flgen.FedProx", 0.5)
    assert (last.model.init_args.learning_rate, last.seed_everything, last.trainer.min_clients) == (0.2, 4, 2)
    assert [values.trainer.rounds for values in found] == [5, 9, 5, 9]  # an overlay comes after the experiment's file


def test_typed_options_are_the_strongest_and_typed_files_replace_those_of_the_command(sweep: str) -> None:
    typed = fit("--sweep", sweep, "--index=0", "--model.learning_rate", "0.7", "--trainer.rounds=2", "--run_dir", "x")
    assert (typed.model.init_args.learning_rate, typed.trainer.rounds) == (0.7, 2)
    assert typed.run_dir == "x/000-learning_rate=0.1,config=local"  # the sweep's own: it tells runs apart
    other = fit("--config", "other.yaml", "--sweep", sweep, "--index=1")
    assert other.model.class_path == "flgen.SmallMLP"
    assert (other.trainer.rounds, other.trainer.min_clients) == (20, 2)  # the rounds are the default
    assert other.run_dir.startswith("runs/other/001-")


def test_the_runs_of_a_sweep_are_one_group_at_wandb(sweep: str) -> None:
    loggers = fit("--sweep", sweep, "--index=0", "--loggers+=WandbLogger", "--loggers+=TensorBoardLogger").loggers
    assert loggers[0].init_args.group == "rates"
    own = fit("--sweep", sweep, "--index=0", "--loggers+=WandbLogger", "--loggers.group=mine").loggers
    assert own[0].init_args.group == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--index=4"], "--index is 4: sweep.yaml has 0 to 3"),
        (["--index=-1"], "--index is -1: sweep.yaml has 0 to 3"),
        (["--index=2", "--count=2"], "--index is 2: sweep.yaml has 0 to 1"),
        (["--index=0", "--count=0"], "--count is 0: give 1 or more"),
        (["--index=one"], "--index: one is not of type int"),
        ([], "--sweep sweep.yaml needs --index: `flgen sweep sweep.yaml --list` prints them"),
        (["--index=0", "--seeds=[1,2]"], "--seeds [1, 2] and --sweep: sweep over seed_everything"),
        (["--index=0", "--ckpt_path=last"], "--ckpt_path last and --sweep: it goes on from its own checkpoint"),
        (
            ["--index=0", "--trainer.rouns=3"],
            "--trainer.rouns: there is no such option; did you mean trainer.rounds?",
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], said: str, sweep: str) -> None:
    with pytest.raises(UsageError) as error:
        fit("--sweep", sweep, *arguments)
    assert said in str(error.value)


def test_options_of_a_sweep_need_one() -> None:
    with pytest.raises(UsageError, match=r"--index 3 is of a --sweep: give --sweep FILE$"):
        fit("--index=3")
    with pytest.raises(UsageError, match=r"give --sweep FILE; the seed of a run is --seed_everything"):
        fit("--seed", "3")


def test_the_folder_of_another_sweep_is_refused(sweep: str) -> None:
    Path("runs/base/002-learning_rate=0.2,config=local").mkdir(parents=True)
    assert fit("--sweep", sweep, "--index=2").run_dir == "runs/base/002-learning_rate=0.2,config=local"
    Path("runs/base/001-density=0.5").mkdir()
    with pytest.raises(FlgenError, match=r"001-density=0.5 is of another sweep, in which --index 1 was something else"):
        fit("--sweep", sweep, "--index=1")


def test_what_repeats_a_run_alone_has_all_that_was_typed(sweep: str) -> None:
    runs = SweepRuns(read_sweep(sweep), 3, 7, ("--trainer.rounds", "2"))
    assert runs.alone(2) == ["fit", "--sweep=sweep.yaml", "--index=2", "--count=3", "--seed=7", "--trainer.rounds", "2"]
    assert fit(*runs.alone(2)[1:]).run_dir == str(runs.run_dir(2))


@pytest.fixture
def agent(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")


def test_a_run_of_an_agent_has_a_folder_of_its_own_and_a_logger(agent: None) -> None:
    found = fit("--config=base.yaml")
    assert (found.run_dir, found.ckpt_path) == ("runs/base/r1", "auto")
    assert [logger.class_path for logger in found.loggers] == ["flgen.WandbLogger"]
    configured = ["--loggers+=TensorBoardLogger", "--loggers+=WandbLogger", "--loggers.project=p"]
    loggers = fit("--config=base.yaml", *configured).loggers
    assert [logger.class_path for logger in loggers] == ["flgen.TensorBoardLogger", "flgen.WandbLogger"]
    assert loggers[1].init_args.project == "p"


def test_a_run_of_an_agent_is_one_run(agent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--seeds \[1, 2\] and a run of W&B's agent: sweep over seed_everything"):
        fit("--config=base.yaml", "--seeds=[1,2]")
    monkeypatch.setenv("WANDB_RUN_ID", "../x")
    with pytest.raises(UsageError, match=r"WANDB_RUN_ID is '../x'"):
        fit("--config=base.yaml")


def one_at_a_time(runs: SweepRuns) -> list[int]:
    """Configurations that between them have every value once, or the first three of a random sweep."""
    if runs.sweep.method == "random":
        return [0, 1, 2]
    seen: set[tuple[str, str]] = set()
    chosen = []
    for index in range(len(runs)):
        new = {(name, repr(value)) for name, value in runs.values(index).items()} - seen
        seen |= new
        chosen += [index] if new else []
    return chosen


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_configurations_of_the_shipped_sweeps_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    runs = SweepRuns(read_sweep(path.relative_to(REPOSITORY)))
    assert runs.sweep.name == path.stem
    assert runs.folder == Path("runs/sweeps") / path.stem
    sections = federated_sections()
    parser = build_parser(sections, {}, "")
    for index in one_at_a_time(runs):
        values = parse(parser, runs.arguments(index), sections).values
        seed = runs.values(index).get("seed_everything", values.seed_everything)
        assert (values.seed_everything, values.trainer.devices) == (seed, 1)


QUICK = ["--trainer.rounds=1", "--trainer.threads_per_rank=1", "--evaluation.images=32"]


@pytest.mark.parametrize(
    ("name", "index", "quick"),
    [
        pytest.param("prism_digits", 0, ["--method.local_steps=1", "--model.width=8"], marks=pytest.mark.long),
        ("dispfl_digits", 0, ["--method.training.epochs=1", "--model.width=4"]),
        ("methods_digits", 6, ["--method.training.epochs=1", "--model.width=4"]),
        ("fedktl_digits", 21, []),
    ],
)
def test_the_metric_of_a_shipped_sweep_is_one_that_its_runs_log(
    name: str, index: int, quick: list[str], flgen: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    done = flgen("fit", "--sweep", f"configs/sweeps/{name}.yaml", f"--index={index}", *QUICK, *quick)
    assert done.returncode == 0, done.stderr
    metric = read_sweep(REPOSITORY / "configs" / "sweeps" / f"{name}.yaml").metric
    (table,) = tmp_path.glob(f"runs/sweeps/{name}/{index:03d}-*/metrics.csv")
    assert metric is not None
    assert metric.name in table.read_text().splitlines()[0].split(",")


def command_of_agent(sweep: dict[str, Any], values: dict[str, Any], run_id: str, monkeypatch: Any) -> tuple[Any, Any]:
    """Return the command line and the environment that W&B's own agent would start a run with."""
    from wandb import wandb_agent

    started: list[Any] = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **about: started.append(about) or type("Run", (), {})())
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sw1")
    agent._sweep_command = list(sweep["command"])
    arguments = {name: {"value": values[name]} for name in sorted(values)}
    agent._command_run({"run_id": run_id, "program": sweep["program"], "args": arguments})
    return started[0]["command"], started[0]["env"]


def test_what_the_agent_of_wandb_types_is_run(
    flgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_DIR": str(tmp_path),
        "WANDB_SWEEP_ID": "sw1",
        "WANDB_RUN_ID": "",
        "WANDB_PROJECT": "p",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    path = REPOSITORY / "configs" / "sweeps" / "methods_digits.yaml"
    values = {
        **SweepRuns(read_sweep(path)).values(7),  # FedAvg, laid over the experiment
        "method.training": {"epochs": 1, "batch_size": 16},
        "trainer.rounds": 2,
        "model.width": 4,
    }
    command, environment = command_of_agent(yaml.safe_load(path.read_text()), values, "run7", monkeypatch)
    assert command[:2] == ["flgen", "fit"]
    assert "--config=configs/baselines/fedavg.yaml" in command
    for _ in range(2):  # an agent that starts the same run again: it is there already
        done = flgen(*command[1:], **{name: environment[name] for name in environment if name.startswith("WANDB")})
        assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "runs" / "sweeps" / "methods_digits" / "run7"
    assert f"done before: {run_dir.relative_to(tmp_path)}" in done.stdout
    (file,) = wandb_files(run_dir)
    run = file.of_kind("run")[0]
    assert (run.run_id, run.run_group, run.sweep_id, run.project) == ("run7", "sw1", "sw1", "p")
    config = file.config
    grouped = {name: config[name] for name in ("method_name", "data_name", "partition_name", "clients", "seed")}
    assert grouped == {
        "method_name": "FedAvg",
        "data_name": "Digits",
        "partition_name": "ClientDirichlet",
        "clients": 10,
        "seed": values["seed_everything"],
    }
    assert config["config"] == "configs/baselines/fedavg.yaml"  # the sweep's parameters are there as it names them
    assert config["trainer.rounds"] == config["trainer"]["rounds"] == 2
    assert config["method"]["init_args"]["training"]["epochs"] == 1
    assert config["model"]["init_args"]["classes"] == 10  # which the data said
    assert [row["round"] for row in file.history] == [1, 2]
    assert file.summary["test/accuracy_trained"].keys() == {"max", "last"}
    assert file.exit_codes == [0]
