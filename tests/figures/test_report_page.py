"""The page of runs: one file that asks for nothing, holds what runs have, and shows what they say as text."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written_runs import config_of, write_run

from flgen.errors import FlgenError
from flgen.figures.report.page import check_output, write_report

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>%{y}&amp;"


class Page(HTMLParser):
    """The elements of a page as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._inside = ""
        self._kind = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside, self._kind = tag, dict(attrs).get("type") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append((self._kind, data))
        elif self._inside != "style":
            self.words.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def anchors(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.tags("section")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path, **runs: Path) -> Page:
    write_report({label: (run,) for label, run in runs.items()}, folder / "report.html")
    return Page((folder / "report.html").read_text())


def full_run(folder: Path, **about: object) -> Path:
    about = {"clients": {"test/accuracy": [[0.1, 0.2, 0.3, 0.4]] * 3}, "samples": (1, 3), "pairs": (2, 3), **about}
    metrics = {"test/accuracy": [0.1, 0.3, 0.5], "train/loss": [3.0, 2.0, 1.0], "privacy/epsilon": [1.0, 2.0, 3.0]}
    return write_run(folder, metrics, **about)  # type: ignore[arg-type]


def test_a_run_that_has_everything_has_every_section(tmp_path: Path) -> None:
    graph = {"class_path": "flgen.Ring", "init_args": {}}
    page = page_of(tmp_path, full=full_run(tmp_path / "full", config=config_of("DPSGD", topology=graph)))
    expected = "what-ran curves samples pairs clients partition topology communication privacy events"
    assert page.anchors == expected.split()
    assert [link["href"] for link in page.tags("a")[1:]] == [f"#{anchor}" for anchor in page.anchors]


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0, 0.5]}, ledger=False)
    (run / "partition.csv").unlink()
    (run / "events.jsonl").unlink()
    assert page_of(tmp_path, run=run).anchors == ["what-ran", "curves"]


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, run=write_run(tmp_path / "run", {}, events=[{"event": "start", "round": 1}]))
    assert page.anchors == ["what-ran", "partition", "events"]
    assert "no end recorded after round 0: still going, or killed" in page.text


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page = page_of(tmp_path, run=full_run(tmp_path / "run"))
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert tag != "link" or attributes["href"] == "data:,"
        assert tag != "a" or str(attributes["href"]).startswith("#")
    for uri in (uri for kind, text in page.scripts if kind for uri in re.findall(r'"(\w+:[^"]{0,20})', text)):
        assert uri.startswith("data:image/"), uri


def test_browsers_may_run_the_two_scripts_of_the_page_and_no_other(tmp_path: Path) -> None:
    page = page_of(tmp_path, run=full_run(tmp_path / "run"))
    (policy,) = [meta["content"] for meta in page.tags("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    scripts = [text for kind, text in page.scripts if not kind]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(digests) == 2
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'; ")


def hostile_run(folder: Path) -> Path:
    config = config_of()
    config["method"]["class_path"] = ATTACK
    config["data"]["init_args"] = {ATTACK: ATTACK}
    events = [
        {"time": ATTACK, "event": "start", "round": 1, "device": ATTACK, "ranks": ATTACK, "version": ATTACK},
        {"event": "provenance", "privacy": {ATTACK: ATTACK, "budget_epsilon": 4.0}},
        {"event": "client_error", "round": 1, "client": ATTACK, "error": ATTACK},
        {"event": ATTACK, ATTACK: [ATTACK]},
        {"event": "stopped", "signal": ATTACK},
    ]
    run = full_run(folder, config=config, events=events, class_names=(ATTACK, "1", "2"))
    cell = '"' + ATTACK.replace('"', '""') + '"'
    (run / "metrics.csv").write_text(f"round,test/accuracy,privacy/epsilon,{cell}\n1,0.5,1,2\n2,0.6,2,3\n")
    (run / "ledger.csv").write_text(f"round,phase,link,messages,bytes,wire_bytes\n1,{cell},{cell},1,1,1\n")
    (run / "clients.csv").write_text(f"round,client,{cell}\n1,0,1\n1,1,2\n")
    return run


def test_a_run_that_was_tampered_with_puts_no_element_into_the_page(tmp_path: Path) -> None:
    tame = page_of(tmp_path, **{"a b": full_run(tmp_path / "tame"), "c": full_run(tmp_path / "other")})
    wild = page_of(tmp_path, **{ATTACK: hostile_run(tmp_path / "wild"), "c": full_run(tmp_path / "other")})
    assert {tag for tag, _ in wild.elements} <= {tag for tag, _ in tame.elements} | {"details", "summary"}
    assert not [1 for _, attributes in wild.elements if any(name.startswith("on") for name in attributes)]
    assert len([1 for kind, _ in wild.scripts if not kind]) == 2
    assert ATTACK in wild.text
    data = [text for kind, text in wild.scripts if kind == "application/json"]
    assert len(data) > 10
    assert not [text for text in data if "<" in text or "&" in text]


def test_plots_show_names_as_text_and_not_as_html(tmp_path: Path) -> None:
    page = page_of(tmp_path, **{"<b>a</b>": full_run(tmp_path / "a"), "%{y}": full_run(tmp_path / "b")})
    figures = [json.loads(text) for kind, text in page.scripts if kind and '"layout"' in text]
    names = {trace.get("name", "") for figure in figures for trace in figure["data"]}
    assert {"&lt;b&gt;a&lt;/b&gt;", "% {y}"} <= names
    assert not [name for name in names if "<" in name]


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    page_of(tmp_path, run=run)
    page_of(tmp_path, run=run)
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<!doctype html>\n<title>Thesis</title>")
    with pytest.raises(FlgenError, match=r"thesis\.html is there and is no report of flgen: remove it"):
        write_report({"run": (run,)}, thesis)
    assert "Thesis" in thesis.read_text()
    with pytest.raises(FlgenError, match="is a folder: give a file"):
        check_output(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FlgenError, match="pipe is no file"):
        check_output(tmp_path / "pipe")


def test_what_is_written_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = full_run(tmp_path / "run")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FlgenError, match=r"cannot be written .*No space left on device.*choose another --output"):
        write_report({"run": (run,)}, tmp_path / "out" / "report.html")
    assert list((tmp_path / "out").iterdir()) == []
