"""The page: sections in their order, laid out by templates into one HTML file that asks for nothing from anywhere.

A run folder may come from somebody else. Every text of it is escaped where it stands (in HTML by the templates, in
scripts and plots by `flgen.figures.report.plots`), and the page's own policy forbids browsers to run any script but
those whose digests it names, and to fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flgen.errors import FlgenError
from flgen.figures.paper import make_folder, writing
from flgen.figures.report import words
from flgen.figures.report.clients import clients
from flgen.figures.report.curves import curves
from flgen.figures.report.events import events
from flgen.figures.report.films import films
from flgen.figures.report.overview import overview
from flgen.figures.report.partition import partition
from flgen.figures.report.plots import dash, hue
from flgen.figures.report.privacy import privacy
from flgen.figures.report.runs import ReportedExperiment, all_runs, class_name, read_experiments
from flgen.figures.report.section import Section
from flgen.figures.report.topology import topology
from flgen.figures.report.traffic import traffic

TEMPLATES = Path(__file__).parent / "template"
MARK = b"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="flgen report">
"""
"""How every page begins; a file that begins otherwise is never replaced by one."""

SVG_DASHES = {"solid": "", "dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3"}


def write_report(folders: Mapping[str, Sequence[Path]], output: Path) -> None:
    """Write the page of some runs.

    Args:
        folders: By the name that an experiment has on the page, its run folder, or one per seed.
        output: The file; its folder is made, and the file takes its name only when it is whole.

    Raises:
        FlgenError: A run is damaged, `output` holds something else than such a page, or it cannot be written.
    """
    check_output(output)
    page = render(read_experiments(folders))
    make_folder(output.parent)
    with writing(output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def check_output(output: Path) -> None:
    """Refuse to replace what is no report.

    Raises:
        FlgenError: There is a folder, or a file that does not begin as a report does.
    """
    if output.is_dir():
        raise FlgenError(f"--output {output} is a folder: give a file, such as {output / 'report.html'}")
    if output.exists() and not output.is_file():  # a pipe would be waited for
        raise FlgenError(f"--output {output} is no file: choose another --output")
    try:
        with open(output, "rb") as file:
            begins = file.read(len(MARK))
    except FileNotFoundError:
        return
    except OSError as error:
        raise FlgenError(f"--output {output} cannot be read ({error.strerror}): choose another --output") from error
    if begins != MARK:
        raise FlgenError(f"--output {output} is there and is no report of flgen: remove it, or choose another --output")


def render(experiments: Sequence[ReportedExperiment]) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), (TEMPLATES / "page.js").read_text(encoding="utf-8")]
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    sections = sections_of(experiments)
    return environment.get_template("page.html").render(
        title=_title(experiments),
        subtitle=_subtitle(experiments),
        written=words.at(datetime.now(UTC)),
        sections=[
            (section, Markup(environment.get_template(section.template).render(section.content, **_drawn_names())))
            for section in sections
        ],
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def sections_of(experiments: Sequence[ReportedExperiment]) -> list[Section]:
    """Return the sections that the runs have something for, in the order of the page."""
    found = [
        overview(experiments),
        curves(experiments),
        *films(experiments),
        clients(experiments),
        partition(experiments),
        topology(experiments),
        traffic(experiments),
        privacy(experiments),
        events(experiments),
    ]
    return [section for section in found if section is not None]


def _drawn_names() -> dict[str, Any]:
    """Return what templates call to show an experiment's colour and dashes."""
    return {"hue": hue, "dashes": lambda number: SVG_DASHES[dash(number)]}


def _title(experiments: Sequence[ReportedExperiment]) -> str:
    if len(experiments) == 1:
        return experiments[0].label
    names = [experiment.label for experiment in experiments]
    return ", ".join(names) if sum(map(len, names)) < 50 else f"{len(names)} experiments"


def _subtitle(experiments: Sequence[ReportedExperiment]) -> str:
    runs = all_runs(experiments)
    what = [words.listed(class_name(run.config.get(key)) or "" for run in runs) for key in ("method", "data")]
    return " on ".join(text for text in what if text)


def _policy(scripts: Sequence[str]) -> str:
    """Return what browsers may do with the page: run these scripts, show pictures that it holds, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
