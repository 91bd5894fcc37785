"""The real command line, in real processes: what a user types, what is printed, what the run folder holds."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked_commands import run_forked
from small_runs import CONFIGS, DIGITS, QUICK, Flgen

from flgen.commands.pipeline import OUTPUTS
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events, read_ledger, read_metrics
from flgen.experiment.stages import read_stages


def test_a_fit_leaves_the_run_folder_of_the_documentation(finished: Path) -> None:
    rows = read_metrics(finished / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2]
    for kind in ("stochastic", "sampled_once", "threshold"):
        for metric in ("fid", "kid", "prdc/precision", "prdc/recall", "prdc/density", "prdc/coverage"):
            assert isinstance(rows[-1][f"test/{kind}/{metric}/digits"], float)
    assert rows[-1]["fid/digits"] == rows[-1]["test/sampled_once/fid/digits"]
    phases = [(row["round"], row["phase"], row["link"]) for row in read_ledger(finished / "ledger.csv")]
    assert phases == [
        (t, phase, link)
        for t in (1, 2)
        for phase, link in (("download", "server->client"), ("upload", "client->server"))
    ]
    assert [event["event"] for event in read_events(finished / "events.jsonl")] == ["start", "checkpoint", "end"]
    assert {path.name for path in (finished / "samples").iterdir()} == {"round-00001.png", "round-00002.png"}
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"round-00002"}
    assert not list(finished.glob(".*"))


def test_the_written_configuration_repeats_the_run(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    text = (finished / "config.yaml").read_text()
    assert "mada_distance: expected_hamming" in text  # presets are spelt out
    again = flgen("fit", "--config", str(finished / "config.yaml"), "--run_dir", "again", "--trainer.devices", "1")
    assert again.returncode == 0, again.stderr
    states = [
        find_checkpoint(run / "checkpoints" / "last").server_state()["method"]["scores"]
        for run in (finished, tmp_path / "again")
    ]
    assert torch.equal(*states)


def test_evaluate_measures_the_checkpoint_as_the_fit_did(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    done = flgen("evaluate", "--ckpt_path", str(finished / "checkpoints" / "last"), "--output", "metrics.json")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "metrics.json").read_text())
    logged = read_metrics(finished / "metrics.csv")[-1]
    assert measured["fid/digits"] == logged["fid/digits"]
    assert f"fid/digits {measured['fid/digits']:.6g}" in done.stdout


def test_an_existing_run_folder_is_not_overwritten(finished: Path, flgen: Flgen) -> None:
    before = (finished / "metrics.csv").read_bytes()
    done = flgen("fit", "--config", DIGITS, *QUICK, "--run_dir", str(finished))
    assert done.returncode == 1
    assert done.stderr == (
        f"flgen: error: run folder {finished} already exists: continue it with --ckpt_path last, or choose another "
        "--run_dir\n"
    )
    assert (finished / "metrics.csv").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_by_last(
    finished: Path, flgen: Flgen, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    server = run / "checkpoints" / "round-00002" / "server.pt"
    server.write_bytes(server.read_bytes()[:-100])
    for name, message in (("round-00002", "is damaged: server.pt"), ("last", "no usable checkpoint")):
        done = flgen("sample", "--ckpt_path", str(run / "checkpoints" / name))
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]


def test_sample_draws_a_grid_of_any_kind(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    from PIL import Image

    for extra in ((), ("--kind", "threshold")):
        checkpoint = str(finished / "checkpoints" / "round-00002")
        done = flgen("sample", "--ckpt_path", checkpoint, "--num", "10", "--output", "out/grid.png", *extra)
        assert done.returncode == 0, done.stderr
        assert Image.open(tmp_path / "out" / "grid.png").size >= (256, 100)
    wrong = flgen("sample", "--ckpt_path", checkpoint, "--kind", "soft")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "flgen: error: --kind soft: this method draws sampled_once, stochastic, threshold\n",
    )


def test_partition_writes_shards_that_fit_reads_with_the_same_result(flgen: Flgen, tmp_path: Path) -> None:
    stored = flgen("partition", "--config", DIGITS, "--output", "shards", "--plot", "chart.png")
    assert stored.returncode == 0, stored.stderr
    assert (tmp_path / "shards" / "index.json").is_file()
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    runs = {
        "direct": (),
        "stored": ("--data=ClientShards", "--data.root=shards", "--partition=AsStored"),
    }
    for name, data in runs.items():
        done = flgen("fit", "--config", DIGITS, *QUICK, *data, "--run_dir", name, "--trainer.devices=1")
        assert done.returncode == 0, done.stderr
    direct, again = (find_checkpoint(tmp_path / name / "checkpoints" / "last").server_state() for name in runs)
    assert torch.equal(direct["method"]["scores"], again["method"]["scores"])
    refused = flgen("partition", "--config", DIGITS, "--output", "shards")
    assert refused.returncode == 1  # a folder that is there is never overwritten
    assert refused.stderr.count("\n") == 1
    assert "shards" in refused.stderr


def test_loggers_get_metrics_and_images_without_a_network(flgen: Flgen, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = ("--loggers+=WandbLogger", "--loggers.init_args.offline=true", "--loggers+=TensorBoardLogger")
    done = flgen("fit", "--config", DIGITS, *QUICK, *loggers, "--run_dir", "run", WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    (wandb_run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(list(wandb_run.rglob("samples*.png"))) == 2
    (wandb_file,) = wandb_run.glob("*.wandb")
    deadline = time.monotonic() + 20  # a process of W&B's own writes it
    while wandb_file.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert wandb_file.stat().st_size > 1000
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("fid/digits")]
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [step for step, _ in logged] == [1, 2]
    assert logged[-1][1] == pytest.approx(rows[-1]["fid/digits"])
    assert [image.step for image in events.Images("samples")] == [1, 2]


def test_the_vgg_loss_trains_from_a_file_of_weights(flgen: Flgen, tmp_path: Path) -> None:
    from torchvision.models import vgg19_bn

    torch.save(vgg19_bn(num_classes=2).state_dict(), tmp_path / "vgg.pth")
    loss = ("--model.loss=VggMoments", "--model.loss.weights=vgg.pth", "--model.loss.mode=train")
    small = [option for option in QUICK if "real_batch" not in option and "rounds" not in option]
    sizes = ("--data.image_size=16", "--partition.clients=2", "--trainer.rounds=1", "--evaluation.extractors=[]")
    done = flgen("fit", "--config", DIGITS, *small, *loss, *sizes, "--run_dir", "run")
    assert done.returncode == 0, done.stderr
    (state, _) = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").client_states().values()
    assert int(state["v_step"]) == 2  # the moving average took its two steps and stays with the client
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["train/distance"] > 0


PIPELINES = sorted(path.name for path in CONFIGS.glob("*.yaml") if "\nstages:" in path.read_text())
SINGLE_RUNS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.name not in PIPELINES and path.parent.name != "sweeps"
)


@pytest.mark.parametrize("config", PIPELINES)
def test_every_stage_of_a_shipped_pipeline_parses(config: str, flgen: Flgen, tmp_path: Path) -> None:
    stages = read_stages(yaml.safe_load((CONFIGS / config).read_text())["stages"], 0, OUTPUTS)
    for stage in stages.values():
        options = {**stage.resolved(lambda name: f"stage/{name}"), OUTPUTS[stage.command].option: "there"}
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(options))
        shown = flgen(stage.command, "--config", "stage.yaml", "--print_config")
        assert shown.returncode == 0, (stage.name, shown.stderr)


def family(overlay: Path) -> str:
    """Whose experiments an overlay's comment says that it is laid over."""
    about = overlay.read_text().replace("\n# ", " ")
    return next(family for family in ("dispfl", "fedktl", "prism") if f"over a {family}_" in about)


@pytest.mark.parametrize("config", SINGLE_RUNS)
def test_every_shipped_configuration_parses(config: str, flgen: Flgen) -> None:
    files = [CONFIGS / config]
    if "/" in config:
        files.insert(0, CONFIGS / f"{family(files[0])}_digits.yaml")
    shown = flgen("fit", *(part for file in files for part in ("--config", str(file))), "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert "run_dir: runs/" + files[0].stem in shown.stdout


START = """
import json, sys
from flgen.commands.sections import federated_sections
from flgen.experiment.config import build_parser, parse
from flgen.federation.model_group import as_one_module
from flgen.job import prepare_job
from flgen.methods import FedKTL
from flgen.methods.own_networks import OwnNetworks

sections = federated_sections()
parser = build_parser(sections, {}, "")
files = [[argument for file in run for argument in ("--config", file)] for run in json.loads(sys.argv[1])]
for configuration in [parse(parser, arguments, sections) for arguments in files]:
    built = configuration.build()
    method, data, trainer = built.method, built.data, built.trainer
    data.setup()
    model = method.own_model(as_one_module(built.model))
    job = prepare_job(
        method, model, data, built.partition, 0, 2, trainer.clients_per_round, trainer.rounds, split=built.split
    )
    if isinstance(method, OwnNetworks) and not isinstance(method, FedKTL):  # whose generator nobody has trained here
        method.prepare(model, job.data)
    print(type(method).__name__, len(job.federation))
"""


def started(runs: list[list[Path]], folder: Path) -> list[str]:
    """Prepare runs of these configurations, all in one process; return the method and the number of clients of each.

    What a fit refuses before its first round, it refuses here.
    """
    (folder / "start.py").write_text(START)
    asked = json.dumps([[str(path) for path in files] for files in runs])
    done = run_forked(["start.py", asked], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_baseline_starts_on_the_digits_experiment(tmp_path: Path) -> None:
    overlays = sorted((CONFIGS / "baselines").glob("*.yaml"))
    baselines = [[CONFIGS / "dispfl_digits.yaml", path] for path in overlays if family(path) == "dispfl"]
    methods = [
        "DisPFL",
        "Ditto",
        "DPSGD",
        "DSFL",
        "DynaFed",
        "FedAvg",
        "FedAvg",
        "FedDF",
        "FedET",
        "FedFOMO",
        "FedGen",
        "FedOpt",
        "FedProx",
        "Isolated",
        "Local",
        "My1",
        "My2",
        "Scaffold",
        "SubFedAvg",
    ]
    assert started(baselines, tmp_path) == [f"{method} 10" for method in methods]


def test_every_method_for_different_networks_starts_on_the_digits_experiment_of_fedktl(tmp_path: Path) -> None:
    baselines, generators = (sorted((CONFIGS / folder).glob("*.yaml")) for folder in ("baselines", "generators"))
    overlays = [path for path in [*baselines, *generators] if family(path) == "fedktl"]
    digits = CONFIGS / "fedktl_digits.yaml"
    runs = [[digits], *([digits, path] for path in overlays)]
    methods = [
        "FedKTL",
        "FedDistill",
        "FedGenHeads",
        "FedGH",
        "FedKD",
        "FedProto",
        "FedTGP",
        "FML",
        "LGFedAvg",
        "Local",
    ]
    assert started(runs, tmp_path) == [f"{method} 10" for method in [*methods, *["FedKTL"] * len(generators)]]


def test_every_rival_of_prism_starts_on_its_digits_experiment(tmp_path: Path) -> None:
    overlays = [path for path in sorted((CONFIGS / "baselines").glob("*.yaml")) if family(path) == "prism"]
    methods = [yaml.safe_load(path.read_text())["method"]["class_path"] for path in overlays]
    assert {"FedAvgGenerator", "DPFedAvgGAN"} <= set(methods)
    runs = [[CONFIGS / "prism_digits.yaml", path] for path in overlays]
    assert started(runs, tmp_path) == [f"{name} 10" for name in methods]
