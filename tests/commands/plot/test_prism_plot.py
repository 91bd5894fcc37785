"""`flgen plot prism`: four figures of generators; a run is left out of those that it has nothing for, with a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from figure_tables import read_csv
from matplotlib.figure import Figure
from PIL import Image

from flgen.cli import main
from flgen.experiment.records import MetricsTable

FIGURES = ("prism_fid_bytes", "prism_drift", "prism_density", "prism_samples")
PRISM = {"class_path": "flgen.Prism", "init_args": {"mada": True}}


def run_of(
    folder: Path | str,
    columns: Mapping[str, Sequence[float | None]],
    *,
    method: Mapping[str, object] = PRISM,
    samples: Sequence[int] = (),
) -> Path:
    """Write what `flgen fit` leaves behind, as far as the figures read it: a row of metrics.csv per round."""
    folder = Path(folder)
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": dict(method)}))
    metrics = MetricsTable(folder / "metrics.csv")
    for t in range(1, 1 + len(next(iter(columns.values())))):
        row = {name: values[t - 1] for name, values in columns.items()}
        metrics.write(t, {name: value for name, value in row.items() if value is not None})
    for t in samples:
        Image.new("L", (20, 20), t).save(folder / "samples" / f"round-{t:05d}.png")
    return folder


def prism_run(
    folder: Path | str, fid: float = 8.0, drift: float = 0.25, density: float = 0.5, mada: bool = True
) -> Path:
    columns = {
        "comm/up_bytes": [1000, 1000, 1000],
        "fid/digits": [2 * fid, None, fid],
        "mask/drift": [2 * drift, drift, drift],
        "mask/density/first": [None, None, density],
        "mask/density/blocks.0.conv1": [None, None, density / 2],
    }
    return run_of(folder, columns, method={**PRISM, "init_args": {"mada": mada}}, samples=(1, 3))


def gan_run(folder: Path | str) -> Path:
    columns = {"comm/up_bytes": [9000] * 3, "fid/digits": [80, 60, 40]}
    return run_of(folder, columns, method={"class_path": "flgen.FedGAN", "init_args": {}}, samples=(3,))


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the files of figures empty, where a test looks at what lies beside them."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: path.touch())


def test_four_figures_of_runs_with_masks(here, capfd) -> None:
    prism_run("a")
    prism_run("b", fid=6, mada=False)
    assert main(["plot", "prism", "a", "b", "--output", "figures/new"]) == 0
    lines = capfd.readouterr().out.splitlines()
    endings = [("png", "svg", "csv")] * 3 + [("png", "svg")]
    assert lines == [
        f"{ending}: figures/new/{name}.{ending}" for name, some in zip(FIGURES, endings, strict=True) for ending in some
    ]
    for line in lines:
        assert Path(line.partition(": ")[2]).stat().st_size > 0
    words = {name: Path(f"figures/new/{name}.svg").read_text() for name in FIGURES}
    assert all(f">{label}</text>" in words["prism_fid_bytes"] for label in ("a", "b", "FID (digits)"))
    assert all(f">{label}</text>" in words["prism_drift"] for label in ("a", "b (no MADA)"))
    assert all(f">{label}</text>" in words["prism_density"] for label in ("a", "b", "first", "blocks.0.conv1"))
    assert all(f">{label}</text>" in words["prism_samples"] for label in ("a", "b", "round 3, FID (digits) 6"))


def test_bytes_are_those_of_all_rounds_so_far(here, unsaved) -> None:
    prism_run("a")
    assert main(["plot", "prism", "a"]) == 0
    rows = read_csv("prism_fid_bytes.csv")
    assert [(row["run"], float(row["uplink_bytes"]), float(row["mean"])) for row in rows] == [
        ("a", 1000, 16),
        ("a", 3000, 8),
    ]


def test_seeds_of_a_folder_and_runs_of_one_label_are_averaged(here) -> None:
    for seed, fid in enumerate((6, 8, 10)):
        prism_run(f"mada/seed-{seed}", fid=fid, drift=0.1 * (1 + seed), density=0.2 * (1 + seed))
    prism_run("x", fid=3)
    prism_run("y", fid=5)
    assert main(["plot", "prism", "mada", "x", "y", "--labels", "MADA", "two", "two"]) == 0
    last = {row["run"]: row for row in read_csv("prism_fid_bytes.csv") if float(row["uplink_bytes"]) == 3000}
    assert {label: (float(row["mean"]), int(row["seeds"])) for label, row in last.items()} == {
        "MADA": (8, 3),
        "two": (4, 2),
    }
    assert float(last["MADA"]["std"]) == 2
    drift = [row for row in read_csv("prism_drift.csv") if row["metric"] == "mask/drift" and row["run"] == "MADA"]
    assert [float(row["mean"]) for row in drift] == pytest.approx([0.4, 0.2, 0.2])
    assert float(drift[-1]["std"]) == pytest.approx(0.1)
    density = [row for row in read_csv("prism_density.csv") if row["run"] == "MADA"]
    assert [row["layer"] for row in density] == ["first", "blocks.0.conv1"]
    assert [float(row["mean"]) for row in density] == pytest.approx([0.4, 0.2])
    assert ">seed-0, round 3, FID (digits) 6</text>" in Path("prism_samples.svg").read_text()


def test_a_run_without_masks_is_in_the_first_figure_and_the_last(here, capfd) -> None:
    gan_run("gan")
    prism_run("prism")
    assert main(["plot", "prism", "gan", "prism"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[:2] == [
        "prism_drift leaves out gan: gan/metrics.csv has no mask/drift: only runs of methods that exchange masks, such "
        "as Prism, have it",
        "prism_density leaves out gan: gan/metrics.csv has no mask/density/<layer>: only runs of methods that exchange "
        "masks, such as Prism, have it",
    ]
    assert len(out) == 2 + 11
    words = {name: Path(f"{name}.svg").read_text() for name in FIGURES}
    assert [">gan</text>" in words[name] for name in FIGURES] == [True, False, False, True]
    assert all(">prism</text>" in words[name] for name in FIGURES)


def test_a_run_has_the_same_hue_in_all_figures_whatever_stands_before_it(here, unsaved, monkeypatch) -> None:
    from flgen.commands.plot import prism

    seen: dict[str, list[str]] = {}

    def remember(runs, output, **options):
        seen["bytes"] = [run.label for run in runs]
        return ()

    monkeypatch.setattr(prism, "draw_fid_bytes", remember)
    gan_run("gan")
    prism_run("a")
    prism_run("b")
    assert main(["plot", "prism", "gan", "b", "a"]) == 0
    assert seen == {"bytes": ["b", "a", "gan"]}


def test_a_figure_that_no_run_has_anything_for_is_left_out(here, unsaved, capfd) -> None:
    gan_run("gan")
    assert main(["plot", "prism", "gan"]) == 0
    files = [line for line in capfd.readouterr().out.splitlines() if "leaves out" not in line]
    assert [Path(line.partition(": ")[2]).stem for line in files] == ["prism_fid_bytes"] * 3 + ["prism_samples"] * 2
    assert not Path("prism_drift.png").exists()


def test_other_counts_of_the_bytes_are_drawn_where_a_run_has_them(here, unsaved, monkeypatch) -> None:
    from flgen.commands.plot import prism

    counts = {}

    def remember(runs, output, **options):
        counts.update({run.label: dict(run.counts) for run in runs})
        return ()

    monkeypatch.setattr(prism, "draw_fid_bytes", remember)
    base = {"comm/up_bytes": [1e6, 1e6], "fid/x": [9, 8]}
    run_of("coded", {**base, "comm/up_bytes_packed": [2e6, 2e6], "comm/up_bytes_authors": [3e6, 3e6]})
    run_of("half", {**base, "comm/up_bytes_packed": [None, 2e6]})
    assert main(["plot", "prism", "coded", "half"]) == 0
    assert counts == {"coded": {"one bit per weight": 4.0, "as the authors count": 6.0}, "half": {}}


def test_the_fid_is_one_that_most_runs_have_unless_a_metric_is_named(here, capfd) -> None:
    columns = {"comm/up_bytes": [1000], "fid/inception": [30], "fid/digits": [9], "kid/digits": [0.5]}
    run_of("a", columns)
    run_of("b", {name: column for name, column in columns.items() if name != "fid/inception"})
    assert main(["plot", "prism", "a", "b"]) == 0
    assert [float(row["mean"]) for row in read_csv("prism_fid_bytes.csv")] == [9, 9]
    assert main(["plot", "prism", "a", "b", "--metric", "fid/inception"]) == 0
    assert [float(row["mean"]) for row in read_csv("prism_fid_bytes.csv")] == [30]
    assert "prism_fid_bytes leaves out b: b/metrics.csv has no fid/inception: choose runs that were evaluated" in (
        capfd.readouterr().out
    )
    assert main(["plot", "prism", "a", "b", "--metric", "kid/digits"]) == 0
    assert ">kid digits</text>" in Path("prism_fid_bytes.svg").read_text()


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"comm/up_bytes": [5], "fid/x": [math.nan]}, "odd: its fid/x is nan after round 1: there is no place for it"),
        ({"comm/up_bytes": [0], "fid/x": [3]}, "odd: odd has sent nothing up by round 1: there is no place for it"),
        ({"fid/x": [3]}, "odd: odd/metrics.csv has no comm/up_bytes: choose runs of a method with a server"),
        ({"comm/up_bytes": [5]}, "odd: odd/metrics.csv has no fid/x: choose runs that were evaluated"),
    ],
)
def test_a_run_that_has_no_place_among_bytes_is_left_out_with_a_line(here, unsaved, capfd, columns, line) -> None:
    run_of("good", {"comm/up_bytes": [5], "fid/x": [3]})
    run_of("odd", columns)
    assert main(["plot", "prism", "good", "odd"]) == 0
    assert f"prism_fid_bytes leaves out {line}" in capfd.readouterr().out
    assert [row["run"] for row in read_csv("prism_fid_bytes.csv")] == ["good"]


def test_seeds_of_different_lengths_are_not_averaged(here, unsaved, capfd) -> None:
    prism_run("a/seed-0")
    columns = {"comm/up_bytes": [1000], "fid/digits": [9], "mask/drift": [0.2], "mask/density/first": [0.5]}
    run_of("a/seed-1", columns)
    assert main(["plot", "prism", "a"]) == 0
    out = capfd.readouterr().out
    assert "prism_fid_bytes leaves out a: a/seed-1 has fid/digits up to round 1, another seed up to round 3" in out
    assert "prism_density leaves out a: its seeds have mask/density/<layer> up to rounds 1 and 3" in out


def test_a_damaged_grid_is_left_out(here, unsaved, capfd) -> None:
    prism_run("a")
    (prism_run("b") / "samples" / "round-00003.png").write_bytes(b"torn")
    assert main(["plot", "prism", "a", "b"]) == 0
    assert "prism_samples leaves out b: b/samples/round-00003.png cannot be read" in capfd.readouterr().out


def test_the_newest_grid_is_shown(here, monkeypatch) -> None:
    from flgen.commands.plot import prism

    seen = []
    monkeypatch.setattr(prism, "draw_samples_side_by_side", lambda sheets, output: seen.extend(sheets) or [output])
    run_of("a", {"train/loss": [1.0] * 12}, samples=(2, 10, 12))
    run_of("b", {"fid/digits": [9.0, 4.125]}, samples=(2,))
    run_of("c", {"train/loss": [1.0]}, samples=(100000,))
    assert main(["plot", "prism", "a", "b", "c"]) == 0
    assert [(sheet.label, sheet.path.name, sheet.note) for sheet in seen] == [
        ("a", "round-00012.png", "round 12"),
        ("b", "round-00002.png", "round 2, FID (digits) 4.125"),
        ("c", "round-100000.png", "round 100000"),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["bare"],
            1,
            "none of the figures can be drawn: prism_fid_bytes leaves out bare: bare/metrics.csv has no fid/",
        ),
        (["nowhere"], 1, "nowhere: there is no such folder"),
        (["a", "a"], 2, "a is named twice: name every run once"),
        (["a", "--labels", "x", "y"], 2, "--labels has 2 of the 1 names that are needed"),
        (["a", "--output", "x.png"], 2, "--output x.png: there are several figures; give the folder that they go to"),
        (["a", "--output", "file"], 2, "--output file: there are several figures; give the folder that they go to"),
        (["a", "--outptu", "x"], 2, "flgen plot prism: --outptu: there is no such option; did you mean --output?"),
        ([], 2, "flgen plot prism: the following arguments are required: RUN"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, arguments, status, line) -> None:
    prism_run("a")
    run_of("bare", {"train/loss": [1.0]})
    Path("file").touch()
    assert refusal("prism", *arguments, status=status).startswith(line)
    assert list(here.rglob("prism_*")) == []
