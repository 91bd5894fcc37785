"""`flgen report`: which folders it takes, where it writes, and what it refuses in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from written_runs import config_of, write_run

from flgen.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(path: Path, seed: int = 0) -> Path:
    return write_run(path, {"test/accuracy": [0.1, 0.2 + seed / 10]}, config=config_of(seed=seed))


def names_on(page: Path) -> list[str]:
    """Return the experiments of a page, by the buttons that hide them, or by its heading."""
    text = page.read_text().partition("<script>")[0]
    buttons = re.findall(r'data-number="\d+"><svg.*?</svg>\s*(.*?)</button>', text, flags=re.DOTALL)
    return list(dict.fromkeys(name.strip() for name in buttons)) or re.findall(r"<h1>(.*?)</h1>", text)


def test_the_page_of_one_run_lies_in_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(here / "runs" / "a")
    assert main(["report", "runs/a"]) == 0
    assert capsys.readouterr().out == "report: runs/a/report.html\n"
    assert names_on(here / "runs" / "a" / "report.html") == ["a"]
    assert main(["report", "runs/a"]) == 0  # a report is replaced by a newer one


def test_the_page_of_several_runs_lies_in_the_working_folder(here: Path) -> None:
    for name in ("a", "b"):
        made(here / "runs" / name)
    assert main(["report", "runs/a", "runs/b", "--labels", "first", "second"]) == 0
    assert names_on(here / "report.html") == ["first", "second"]
    assert main(["report", "runs/a", "--output", "deep/er/page.html", "runs/b"]) == 0
    assert names_on(here / "deep" / "er" / "page.html") == ["a", "b"]


def test_a_folder_of_seeds_is_one_experiment(here: Path) -> None:
    for seed in (0, 1):
        made(here / "runs" / "a" / f"seed-{seed}", seed)
    assert main(["report", "runs/a"]) == 0
    page = here / "runs" / "a" / "report.html"
    assert names_on(page) == ["a"]
    assert "the band reaches from the smallest to the largest" in page.read_text()


def test_a_folder_of_a_sweep_stands_for_its_runs_in_their_order(here: Path) -> None:
    for name in ("10", "2", "1"):
        made(here / "sweep" / name)
    made(here / "sweep" / "11" / "seed-0")
    (here / "sweep" / "logs").mkdir()
    assert main(["report", "sweep"]) == 0
    assert names_on(here / "sweep" / "report.html") == ["1", "2", "10", "11"]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ([], 2, "flgen report: the following arguments are required: RUN"),
        (["a", "--outptu", "x"], 2, "flgen report: --outptu: there is no such option; did you mean --output?"),
        (["nowhere"], 1, "nowhere: there is no such folder; give a run folder, such as runs/default"),
        (["empty"], 1, "empty is no run folder (it has neither config.yaml nor metrics.csv)"),
        (["a", "a"], 2, "a is named twice: name every run once"),
        (["a", "--labels", "x", "y"], 2, "--labels has 2 of the 1 names that are needed"),
        (["a", "--output", "notes.txt"], 1, "--output notes.txt is there and is no report of flgen: remove it"),
        (["a", "--output", "empty"], 1, "--output empty is a folder: give a file, such as empty/report.html"),
        (["a", "--output", "notes.txt/x.html"], 1, "--output notes.txt/x.html cannot be read (Not a directory)"),
    ],
)
def test_what_it_refuses_is_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, line: str
) -> None:
    made(here / "a")
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("notes")
    assert main(["report", *arguments]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"flgen: error: {line}")
    assert (here / "notes.txt").read_text() == "notes"
