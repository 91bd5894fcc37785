"""`flgen plot`: figures of runs, made by hand here, and of a configuration's graphs; every mistake is one line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_architecture import HEAVY, loaded_after

from flgen.cli import main
from flgen.experiment.checkpoints import finish_checkpoint, start_checkpoint, write_state
from flgen.experiment.records import MetricsTable, write_partition
from flgen.federation.streams import RandomStreams
from flgen.topology.graph_facts import graph_facts
from flgen.topology.peers import RandomGraph

REPOSITORY = Path(__file__).parents[3]
DIGITS = str(REPOSITORY / "configs" / "dispfl_digits.yaml")

LAYERS = [("a", 4), ("b", 6)]
MASKS = torch.tensor(
    [
        [1, 1, 0, 0, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 1, 1, 1],
    ]
).bool()
DISTANCES = [[0, 2, 10], [2, 0, 8], [10, 8, 0]]
COUNTS = np.array([[10, 0, 0], [6, 8, 0], [0, 0, 5]])


def accuracy_run(folder: Path, rows: dict[int, dict[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    table = MetricsTable(folder / "metrics.csv")
    for t, metrics in rows.items():
        table.write(t, {"train/loss": 1 / t, **{f"test/accuracy_{point}": value for point, value in metrics.items()}})
    return folder


def mask_run(
    folder: Path,
    states: dict[int, dict[str, torch.Tensor]] | None = None,
    method: dict[str, Any] | None = None,
    counts: np.ndarray = COUNTS,
    round: int = 4,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    write_partition(folder / "partition.csv", counts, [str(label) for label in range(counts.shape[1])])
    if states is None:
        states = {client: {"weights": torch.zeros(20), "mask": mask} for client, mask in enumerate(MASKS)}
    if method is None:
        method = {"layers": LAYERS, "parameters": 20}
    partial = start_checkpoint(folder / "checkpoints", round)
    ranks = [{k: state for k, state in states.items() if k % 2 == rank} for rank in (1, 0)]
    files = [write_state(partial, f"clients-{rank:05d}.pt", part) for rank, part in enumerate(ranks)]
    files.append(write_state(partial, "server.pt", {"method": method, "metrics": {}}))
    finish_checkpoint(partial, round, {"seed": 0}, files)
    return folder


def read_table(path: Path) -> list[list[float]]:
    return [[float(cell) for cell in line.split(",")] for line in path.read_text().splitlines()]


def test_accuracy_of_runs_by_the_names_of_their_folders(here, capfd) -> None:
    accuracy_run(here / "runs" / "dispfl", {1: {"aggregated": 0.1, "trained": 0.4}, 2: {}, 3: {"aggregated": 0.5}})
    accuracy_run(here / "runs" / "local", {1: {"trained": 0.3}})
    assert main(["plot", "accuracy", "runs/dispfl/", "runs/local"]) == 0
    assert capfd.readouterr().out == "png: accuracy.png\nsvg: accuracy.svg\n"
    with Image.open("accuracy.png") as image:
        assert image.format == "PNG"
        assert image.width == 1020
    svg = Path("accuracy.svg").read_text()
    for text in ("dispfl", "local", "communication round", "Accuracy (on local data)"):
        assert f">{text}</text>" in svg


def test_accuracy_takes_labels_and_an_output(here, capfd) -> None:
    run = str(accuracy_run(here / "a", {1: {"aggregated": 0.1}}))
    assert main(["plot", "accuracy", run, run, "--labels", "DisPFL", "My-1", "--output", "figures/five"]) == 0
    assert capfd.readouterr().out == "png: figures/five.png\nsvg: figures/five.svg\n"
    svg = Path("figures/five.svg").read_text()
    assert ">DisPFL</text>" in svg
    assert ">My-1</text>" in svg


def test_options_may_stand_between_runs(here, monkeypatch) -> None:
    from flgen.figures import accuracy_curves

    drawn: list[Any] = []
    monkeypatch.setattr(
        accuracy_curves, "draw_accuracy_curves", lambda curves, output: drawn.append((len(curves), output)) or ()
    )
    for name in ("a", "b"):
        accuracy_run(here / name, {1: {"aggregated": 0.1}})
    assert main(["plot", "accuracy", "a", "--output", "x.png", "b"]) == 0
    assert drawn == [(2, "x.png")]


def test_the_curves_are_the_cells_of_metrics_csv(here, monkeypatch) -> None:
    from flgen.figures import accuracy_curves

    drawn: list[Any] = []
    monkeypatch.setattr(accuracy_curves, "draw_accuracy_curves", lambda curves, output: drawn.extend(curves) or ())
    accuracy_run(here / "a", {1: {"aggregated": 0.1, "trained": 0.4}, 2: {}, 3: {"trained": 0.5}})
    assert main(["plot", "accuracy", "a"]) == 0
    assert drawn == [accuracy_curves.AccuracyCurves("a", {1: 0.1}, {1: 0.4, 3: 0.5})]


@pytest.mark.parametrize(
    ("arguments", "status", "pattern"),
    [
        (["nowhere"], 1, r"^nowhere: there is no such folder; give a run folder, such as runs/default$"),
        (["empty"], 1, r"^empty is no run folder \(it has neither config.yaml nor metrics.csv\): give one"),
        (["no_rounds"], 1, r"^no_rounds/metrics.csv has no test/accuracy_aggregated and no test/accuracy_trained: "),
        (["untested"], 1, r"^untested/metrics.csv has no test/accuracy_aggregated and .*: choose a run whose method"),
        (["good", "untested"], 1, r"^untested/metrics.csv has no"),
        (["damaged"], 1, r"^damaged/metrics.csv is damaged: row 1 "),
        ([], 2, r"^flgen plot accuracy: the following arguments are required: RUN$"),
        (["good", "--labels", "A", "B"], 2, r"^--labels has 2 of the 1 names that are needed: give one per RUN$"),
        (["good", "--output", "a.pdf"], 2, r"^--output a.pdf: a figure is saved as PNG and SVG; .*figure.png$"),
        (["good", "--output"], 2, r"^flgen plot accuracy: argument --output: expected one argument$"),
        (["good", "--ouput=a"], 2, r"^flgen plot accuracy: --ouput: there is no such option; did you mean --output\?$"),
        (["good", "--zzz"], 2, r"--zzz: there is no such option; there are --help, --labels, --output$"),
        (["good", "--out", "a"], 2, r"--out: there is no such option"),
        (
            ["good", "--output", "good/config.yaml/a"],
            1,
            r"good/config.yaml cannot be made .*: choose another --output$",
        ),
    ],
)
def test_a_mistake_about_accuracy_is_one_line(here, refusal, arguments, status, pattern) -> None:
    (here / "empty").mkdir()
    (here / "no_rounds").mkdir()
    (here / "no_rounds" / "config.yaml").write_text("")
    accuracy_run(here / "good", {1: {"aggregated": 0.1}})
    accuracy_run(here / "untested", {1: {}})
    (here / "damaged").mkdir()
    (here / "damaged" / "metrics.csv").write_text("round,train/loss\n1\n")
    assert re.search(pattern, refusal("accuracy", *arguments, status=status))
    assert list(here.glob("**/*.png")) == []


def test_masks_with_numbers_and_tables(here, capfd) -> None:
    mask_run(here / "run")
    assert main(["plot", "masks", "run"]) == 0
    out = capfd.readouterr().out.splitlines()
    # C: 0.6, 0, 0 and D: 2, 10, 8. Ranks 3, 1.5, 1.5 against 3, 1, 2: 1.5 / sqrt(1.5 * 2).
    # Independent masks: 2 * 2 * (1 - 2/4) + 2 * 3 * (1 - 3/6) = 5 of 20 weights, dense ones included.
    assert out == [
        f"Spearman correlation of label cosine and mask closeness (-D) {math.sqrt(0.75):.4f}",
        "mean D/d 0.333333",
        "independent masks D/d 0.250000",
        "png: masks.png",
        "svg: masks.svg",
        "csv: masks-distance.csv",
        "csv: masks-similarity.csv",
    ]
    assert Path("masks-distance.csv").read_text() == "0,2,10\n2,0,8\n10,8,0\n"
    assert read_table(Path("masks-similarity.csv")) == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    with Image.open("masks.png") as image:
        assert image.width == 2100
    assert (
        ">rank correlation 0.87 of label cosine and mask closeness, mean D/d 0.333 (independent masks 0.250)</text>"
        in Path("masks.svg").read_text()
    )


def test_clients_of_different_capacity_have_a_reference_of_their_own(here, capfd) -> None:
    states = {0: {"mask": torch.tensor([1, 0, 0, 0]).bool()}, 1: {"mask": torch.tensor([1, 1, 1, 1]).bool()}}
    mask_run(here / "run", states, {"layers": [("a", 4)], "parameters": 8})
    assert main(["plot", "masks", "run"]) == 0
    # 1/4 against 1: p (1 - q) + q (1 - p) = 3/4 of 4 positions, and 8 weights in all.
    assert capfd.readouterr().out.splitlines()[:3] == [
        "Spearman correlation of label cosine and mask closeness (-D) undefined",
        "mean D/d 0.375000",
        "independent masks D/d 0.375000",
    ]


def test_masks_without_layers_are_one_layer_and_clients_may_be_missing(here, capfd) -> None:
    # SubFedAvg's checkpoint: the server's weights, and masks of the clients that have taken part.
    states = {client: {"mask": MASKS[place]} for place, client in enumerate((0, 2, 5))}
    counts = np.zeros((7, 3), dtype=np.int64)
    counts[[0, 2, 5]] = COUNTS
    mask_run(here / "run", states, {"weights": torch.zeros(10)}, counts)
    assert main(["plot", "masks", "run", "--output", "out/sub.svg"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == f"Spearman correlation of label cosine and mask closeness (-D) {math.sqrt(0.75):.4f}"
    assert out[1:3] == ["mean D/d 0.666667", "independent masks D/d 0.500000"]
    assert read_table(Path("out/sub-distance.csv")) == DISTANCES
    assert ">5</text>" in Path("out/sub.svg").read_text()


def test_masks_of_the_newest_checkpoint_or_of_the_one_that_is_named(here, capfd) -> None:
    mask_run(here / "run", round=2)
    swapped = {client: {"mask": MASKS[2 - client]} for client in range(3)}
    mask_run(here / "run", swapped, round=3)
    tables = []
    for arguments in ([], ["--ckpt_path", "run/checkpoints/round-00002"], ["--ckpt_path", "run/checkpoints/last"]):
        assert main(["plot", "masks", "run", *arguments]) == 0
        tables.append(read_table(Path("masks-distance.csv")))
    assert tables[0] == tables[2] == [[0, 8, 10], [8, 0, 2], [10, 2, 0]]
    assert tables[1] == DISTANCES


def test_the_masks_of_another_run_are_not_shown_with_this_ones_classes(here, refusal) -> None:
    mask_run(here / "run")
    mask_run(here / "other")
    line = refusal("masks", "run", "--ckpt_path", "other/checkpoints/last", status=2)
    assert line.startswith("--ckpt_path other/checkpoints/last is of another run than run: name that run")


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no masks": ({"states": {0: {"weights": torch.zeros(2)}}}, r"round-00004 holds no masks: choose a run of a method"),
    "no clients": ({"states": {}}, r"round-00004 holds no masks"),
    "one client": ({"states": {0: {"mask": MASKS[0]}}}, r"holds the mask of one client: distances need two$"),
    "all dense": (
        {"states": {k: {"mask": MASKS[k, :0]} for k in range(3)}, "method": {"layers": [], "parameters": 9}},
        r"the masks of .*round-00004 are empty, as every layer is dense: choose a sparser run$",
    ),
    "other partition": ({"counts": COUNTS[:2]}, r"run/partition.csv lacks client 2 of .*: it is of another run$"),
    "other layers": ({"method": {"layers": [("a", 4)], "parameters": 20}}, r"do not fit its layers: repeat the run$"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_without_the_masks_is_one_line(here, refusal, name) -> None:
    settings, pattern = DAMAGE[name]
    mask_run(here / "run", **settings)
    assert re.search(pattern, refusal("masks", "run", status=1))
    assert list(here.glob("masks*")) == []


@pytest.mark.parametrize(
    ("arguments", "status", "pattern"),
    [
        ([], 2, r"^flgen plot masks: the following arguments are required: RUN$"),
        (["run", "run"], 2, r"^flgen plot masks: run: there is one RUN for this figure$"),
        (["nowhere"], 1, r"^nowhere: there is no such folder"),
        (["run"], 1, r"^no usable checkpoint in run/checkpoints"),
        (["run", "--ckpt_path", "run"], 1, r"^run is not a checkpoint \(no manifest.json\)"),
        (["run", "--output", "a.jpg"], 2, r"^--output a.jpg: a figure is saved as PNG and SVG"),
        (["run", "--labels", "a"], 2, r"--labels: there is no such option; there are --help, --ckpt_path, --output$"),
    ],
)
def test_a_mistake_about_masks_is_one_line(here, refusal, arguments, status, pattern) -> None:
    accuracy_run(here / "run", {1: {}})
    assert re.search(pattern, refusal("masks", *arguments, status=status))


def test_a_run_without_its_partition_is_one_line(here, refusal) -> None:
    (mask_run(here / "run") / "partition.csv").unlink()
    assert re.search(r"^run/partition.csv is missing or empty", refusal("masks", "run", status=1))


def test_the_graphs_are_those_of_a_fit(here, capfd, monkeypatch) -> None:
    from flgen.figures import topology_rounds

    drawn: dict[str, Any] = {}
    draw = topology_rounds.draw_topology_rounds

    def remember(graphs, facts, output, title):
        drawn.update(graphs=graphs, facts=facts, title=title)
        return draw(graphs, facts, output, title)

    monkeypatch.setattr(topology_rounds, "draw_topology_rounds", remember)
    options = ["--method.topology.degree=4", "--partition.clients=12", "--seed_everything=3", "--rounds=2"]
    assert main(["plot", "topology", "--config", DIGITS, *options]) == 0
    assert capfd.readouterr().out == "png: topology.png\nsvg: topology.svg\n"
    topology = RandomGraph(degree=4)
    assert drawn["graphs"] == {t: topology.sources(t, 12, RandomStreams(3)) for t in (1, 2)}
    assert drawn["facts"] == {t: graph_facts(graph) for t, graph in drawn["graphs"].items()}
    assert drawn["title"] == "RandomGraph, 12 clients; arrows lead to the reader"
    svg = Path("topology.svg").read_text()
    assert ">round 1</text>" in svg
    assert ">round 2</text>" in svg
    assert ">round 3</text>" not in svg
    assert ">48 edges, 4 sources on average</text>" in svg
    with Image.open("topology.png") as image:
        assert image.width == 1400


def test_a_method_without_edges_has_a_figure_too(here) -> None:
    local = str(REPOSITORY / "configs" / "baselines" / "local.yaml")
    assert main(["plot", "topology", "--config", DIGITS, "--config", local, "--rounds=1", "--output=a"]) == 0
    assert ">NoEdges, 10 clients; arrows lead to the reader</text>" in Path("a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--method=FedAvg"], r"^--method FedAvg has a server: there is no graph of clients to draw$"),
        (["--partition=AsStored"], r"^--partition AsStored takes its clients from stored data: give another partition"),
        (["--partition.clients=0"], r"^`--partition.clients` is 0; at least 1 client is needed$"),
        (["--partition.clients=3"], r"^--method.topology.degree is 3, but 3 clients have at most 2 others"),
        (["--method.topology.degree=0"], r"^--method.topology.degree is 0: give 1 or more"),
        (
            ["--method.topology.degre=3"],
            r"^--method.topology.degre: RandomGraph has no 'degre'; did you mean degree\?$",
        ),
        (["--method.topology=Rign"], r"^--method.topology Rign: there is no such class; did you mean Ring\?$"),
        (["--rounds=0"], r"^--rounds is 0: give 1 to 60$"),
        (["--rounds=61"], r"^--rounds is 61: give 1 to 60$"),
        (["--rounds=x"], r"^--rounds: x is not of type int$"),
        (["--output=a.pdf"], r"^--output a.pdf: a figure is saved as PNG and SVG"),
        (["--outptu=a"], r"^--outptu: there is no such option; did you mean output\?$"),
    ],
)
def test_a_mistake_about_topologies_is_one_line(here, refusal, arguments, pattern) -> None:
    assert re.search(pattern, refusal("topology", "--config", DIGITS, *arguments, status=2))
    assert list(here.iterdir()) == []


def test_a_topology_needs_a_configuration(here, refusal) -> None:
    assert refusal("topology", status=2).startswith("missing: --model, --method; give it here or in a --config")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("acuracy", "flgen plot acuracy: there is no such figure; did you mean accuracy?"),
        (
            "xyz",
            "flgen plot xyz: there is no such figure; there are accuracy, amount, communication, comparison, "
            "costs, diversity, masks, pairs, participants, prism, topology",
        ),
    ],
)
def test_an_unknown_kind_names_the_nearest(refusal, kind, message) -> None:
    assert refusal(kind, status=2) == message


def test_help_lists_the_kinds_and_each_kind_its_options(capfd) -> None:
    assert main(["plot", "--help"]) == 0
    overview = capfd.readouterr().out
    assert main(["plot"]) == 2
    assert capfd.readouterr().out == overview
    assert "usage: flgen plot KIND" in overview
    expected = {
        "accuracy": ["RUN [RUN ...]", "--labels", "--output"],
        "amount": ["RUN [RUN ...]", "--real", "--metric", "--output"],
        "communication": ["RUN [RUN ...]", "--target", "--label_union", "--labels", "--metric", "--output"],
        "comparison": ["RUN [RUN ...]", "--labels", "--metric", "--output"],
        "diversity": ["RUN [RUN ...]", "--labels", "--output"],
        "masks": ["RUN", "--ckpt_path", "--output"],
        "participants": ["RUN [RUN ...]", "--round", "--labels", "--metric", "--output"],
        "prism": ["RUN [RUN ...]", "--labels", "--metric", "--paths", "--output"],
        "topology": ["--config", "--rounds", "--output", "--method"],
    }
    for kind, options in expected.items():
        assert f"  {kind} " in overview
        with pytest.raises(SystemExit) as end:
            main(["plot", kind, "--help"])
        assert end.value.code == 0
        text = capfd.readouterr().out
        assert text.startswith(f"usage: flgen plot {kind} ")
        assert all(option in text for option in options)


def test_help_and_mistakes_need_no_heavy_packages() -> None:
    code = "from flgen.cli import main; assert main(['plot', 'accuracy', '--lables']) == 2"
    for kind in ("amount", "communication", "comparison", "diversity", "participants", "prism"):
        code += f"; assert main(['plot', '{kind}', 'nowhere']) == 1"
    code += "\nfor rest in ['--help'], ['accuracy', '--help'], ['masks', '--help'], ['topology', '--help']:"
    code += "\n    try: main(['plot', *rest])\n    except SystemExit: pass"
    assert loaded_after(code).isdisjoint(HEAVY)


def test_a_topology_is_drawn_without_torch(tmp_path) -> None:
    arguments = ["plot", "topology", "--config", DIGITS, "--rounds=1", f"--output={tmp_path}/topology"]
    loaded = loaded_after(f"from flgen.cli import main; assert main({arguments}) == 0")
    assert "matplotlib" in loaded
    assert loaded.isdisjoint({"torch", "lightning", "torchvision"})
    assert (tmp_path / "topology.svg").is_file()
