"""The documentation as a site: it builds strictly, asks nobody for anything, and its reference has every option."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import flgen
from flgen.cli import COMMANDS

REPOSITORY = Path(__file__).parent.parent


MAKE_REFERENCE = """
import json, sys
sys.path.insert(0, "docs_site")
from reference import reference_pages
print(json.dumps({page.title: page.text for page in reference_pages()}))
"""


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The pages of the reference by their titles, made in a process whose classes no test has added to."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE_REFERENCE], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    pages: dict[str, str] = json.loads(done.stdout)
    return pages


def entry(page: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one."""
    text = page.partition(f"\n## {heading}\n")[2]
    assert text, f"nothing is called {heading}"
    return text.partition("\n## ")[0]


def options_in(text: str) -> dict[str, str]:
    """Return the defaults of an entry's options by name, empty where a value must be given."""
    found = re.findall(r"^`([^`]+)` · .+ · (?:default `(.+)`|\*\*required\*\*)$", text, flags=re.MULTILINE)
    return dict(found)


KINDS = {
    "Methods": flgen.methods.Method,
    "Models": flgen.deferred.LightningModule,
    "Data sets": flgen.data.LabelledData,
    "Partitions": flgen.data.Partitioner,
    "Loggers": flgen.callbacks.RunLogger,
    "Losses of generators": flgen.models.Loss,
    "Topologies": flgen.topology.Topology,
    "Generators of a server": flgen.synthesis.LatentGenerator,
    "Sources of prompts": flgen.synthesis.PromptSource,
    "Synthesizers": flgen.synthesis.Synthesizer,
}


@pytest.mark.parametrize("title", KINDS)
def test_every_exported_class_of_a_kind_is_in_the_reference(title: str, reference: dict[str, str]) -> None:
    exported = {
        name: getattr(package, name)
        for package in (flgen, flgen.data, flgen.methods, flgen.models, flgen.synthesis, flgen.topology)
        for name in package.__all__
    }
    chosen = {name for name, item in exported.items() if isinstance(item, type) and issubclass(item, KINDS[title])}
    derived_from = {base.__name__ for item in exported.values() if isinstance(item, type) for base in item.__mro__[1:]}
    abstract = {name for name in chosen if name in derived_from and name not in flgen.__all__}
    written = set(re.findall(r"^## (\w+)$", reference[title], flags=re.MULTILINE))
    assert chosen - abstract - {"ServerMethod", "PeerMethod"} <= written
    assert not abstract & written


def test_the_privacy_of_every_method_is_in_the_reference(reference: dict[str, str]) -> None:
    for name in ("StatisticsGaussian", "ThetaGaussian", "CentralGaussian", "ReferenceBug", "SecureAggregation"):
        assert f"`flgen.{name}`" in entry(reference["Privacy"], name)


@pytest.mark.parametrize(("title", "name"), [("Methods", "Prism"), ("Models", "SmallCNN"), ("Partitions", "Dirichlet")])
def test_a_class_has_every_option_of_its_constructor_with_the_default(
    title: str, name: str, reference: dict[str, str]
) -> None:
    parameters = list(inspect.signature(getattr(flgen, name).__init__).parameters.values())[1:]
    words = {None: "null", True: "true", False: "false"}
    written = {
        parameter.name: ""
        if parameter.default is parameter.empty
        else words[parameter.default]
        if parameter.default is None or isinstance(parameter.default, bool)
        else str(parameter.default)
        for parameter in parameters
    }
    assert options_in(entry(reference[title], name)) == written


def test_options_of_options_are_written_with_their_dots(reference: dict[str, str]) -> None:
    text = entry(reference["Methods"], "DisPFL")
    assert options_in(text)["sparsity.density"] == "0.5"
    assert "Share of the weights that a client keeps, delta." in text
    assert "`search` · `random` or `gradient` or `none` · default `random`" in text


def test_every_command_is_in_the_reference_with_its_own_options(reference: dict[str, str]) -> None:
    text = reference["Commands"]
    headings = set(re.findall(r"^## flgen (\w+)", text, flags=re.MULTILINE))
    assert headings == set(COMMANDS)
    assert options_in(entry(text, "flgen fit"))["trainer.rounds"] == "20"
    assert options_in(entry(text, "flgen fit"))["method"] == ""
    assert options_in(entry(text, "flgen sample")) == {
        "num": "64",
        "output": "samples.png",
        "ticket": "null",
        "kind": "null",
    }
    assert "`method`, `data`" in entry(text, "flgen sample")
    assert options_in(entry(text, "flgen plot costs"))["RUN"] == ""


def test_a_type_leads_to_the_page_of_its_classes(reference: dict[str, str]) -> None:
    assert "`loss` · [one of losses of generators](losses-of-generators.md)" in entry(
        reference["Models"], "ResnetGenerator"
    )
    assert "`topology` · [Star](topologies.md#star) or `null`" in entry(reference["Methods"], "FedAvg")
    assert "Taken by `loss` of [DenseGenerator](models.md#densegenerator)" in reference["Losses of generators"]


# ---- the site ----------------------------------------------------------------------------------------------------


class Loads(HTMLParser):
    """What a page loads when it is opened; links that somebody may follow are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [values.get("src") or ""]
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses += [values.get("href") or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` makes it; a link that leads nowhere would fail here."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {
        str(page.relative_to(REPOSITORY / "docs").with_suffix(".html")) for page in REPOSITORY.glob("docs/**/*.md")
    }
    pages |= {"changes.html", "contributing.html", "reference/index.html", "reference/methods.html"}
    assert {page for page in pages if not (site / page).is_file()} == set()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert [address for address in loads.addresses if "//" in address] == [], page


def test_links_of_the_pages_at_the_root_lead_into_the_site(site: Path) -> None:
    assert 'href="write-your-own-method.html#the-laws"' in (site / "contributing.html").read_text()
    assert 'href="changes.html"' in (site / "contributing.html").read_text()
    assert 'href="privacy.html#threat-model"' in (site / "changes.html").read_text()


def test_search_finds_options(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = [entry["location"] for entry in index["docs"] if "prune rate of the first round" in entry["text"].lower()]
    assert "reference/methods.html#dispfl" in found
