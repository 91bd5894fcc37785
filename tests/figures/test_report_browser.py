"""The page in a browser: plots are drawn, sliders move pictures, nothing is wider than a phone, paper is light."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait
from system_tools import require
from written_runs import CLIENTS, config_of, write_run

from flgen.cli import main

pytestmark = pytest.mark.system

WAIT_S = 20
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


class Browser:
    """A headless Chromium that looks at one page and reports what it does wrong."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        self.driver.get(page.as_uri())
        self.until(lambda: self.run("return document.readyState") == "complete")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def tell(self, command: str, **about: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, about)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def until(self, holds: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: holds())

    def see_everything(self) -> None:
        """Scroll through the page, and wait until every plot that is not hidden is drawn."""
        height = self.run("return document.documentElement.scrollHeight")
        for y in range(0, height, 400):
            self.run("scrollTo(0, arguments[0])", y)
            time.sleep(0.05)
        waiting = (
            "return [...document.querySelectorAll('.plot')].filter(e => e.offsetParent && !e.dataset.drawn).length"
        )
        self.until(lambda: self.run(waiting) == 0)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for, itself and what it holds left out."""
        logged = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in logged if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "file:", "blob:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    require("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("profile")
    plain = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
    for argument in (*plain, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def desktop(browser: Browser) -> Iterator[Browser]:
    """The browser without what another test has emulated; after the test it has complained about nothing."""
    browser.tell("Emulation.clearDeviceMetricsOverride")
    browser.tell("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.complaints()
    browser.requests()
    yield browser
    assert browser.complaints() == []
    assert browser.requests() == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs: one that draws, on a star, and one between peers."""
    folder = tmp_path_factory.mktemp("runs")
    rounds = range(1, 13)
    accuracies = [[t / 20 + k / 10 for k in range(CLIENTS)] for t in rounds]
    metrics = {
        "test/accuracy": [0.05 * t for t in rounds],
        "privacy/epsilon": [0.5 * t for t in rounds],
        "train/loss": [1.0 / t for t in rounds],
        **{f"mask/m{n}": [t * n for t in rounds] for n in range(1, 10)},
    }
    about: dict[str, Any] = {"clients": {"test/accuracy": accuracies, "train/loss": accuracies}}
    write_run(folder / "star", metrics, samples=(10, 80, 240), pairs=(10, 240), **about)
    ring = {"class_path": "flgen.RandomGraph", "init_args": {"degree": 2}}
    metrics["graph/edges"] = [8] * 12
    log = [{"event": "start", "round": 1}, {"event": "client_error", "round": 2, "client": 1, "error": "ValueError: x"}]
    write_run(folder / "peers", metrics, samples=(12,), config=config_of("DisPFL", topology=ring), events=log, **about)
    output = folder / "report.html"
    assert main(["report", str(folder / "star"), str(folder / "peers"), "--output", str(output)]) == 0
    return output


def test_every_plot_is_drawn(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    desktop.see_everything()
    assert len(desktop.all(".plot[data-drawn]")) >= 10
    assert len(desktop.all(".scatterlayer .trace.scatter")) > 20
    assert len(desktop.all("#partition .heatmaplayer image")) == 1
    assert len(desktop.all("#clients .barlayer .trace.bars")) == 2
    assert len(desktop.all("#topology .graph-plot .scatterlayer .textpoint")) == CLIENTS


def brightness(browser: Browser) -> int:
    """Return how bright the first pixel of the first sample grid is, which of a written run is its round."""
    return browser.run(
        "const image = document.querySelector('#samples img'), canvas = document.createElement('canvas');"
        "canvas.getContext('2d').drawImage(image, 0, 0);"
        "return canvas.getContext('2d').getImageData(0, 0, 1, 1).data[0]"
    )


def test_the_slider_changes_the_picture_and_says_the_round(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    slider, label = desktop.one("#samples-0"), desktop.one("label[for=samples-0]")
    image = desktop.one("#samples img")
    desktop.until(lambda: brightness(desktop) == 240)
    for key, round in ((Keys.HOME, 10), (Keys.ARROW_RIGHT, 80), (Keys.ARROW_RIGHT, 240), (Keys.ARROW_LEFT, 80)):
        slider.send_keys(key)
        desktop.until(lambda round=round: brightness(desktop) == round)
        assert label.text == f"Samples after round {round}"
        assert slider.get_attribute("aria-valuetext") == f"round {round}"
        assert image.get_attribute("alt") == f"Samples of star after round {round}"


def test_class_pictures_follow_their_slider(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    row = "return getComputedStyle(document.querySelector('#pairs .row')).getPropertyValue('--pictures')"
    late = desktop.run(row)
    desktop.one("#pairs-0").send_keys(Keys.HOME)
    desktop.until(lambda: desktop.run(row) != late)
    assert desktop.one("#pairs .row").get_attribute("aria-label").endswith("after round 10")
    assert [cell.text for cell in desktop.all("#pairs .cell")] == ["zero", "one", "two"]


def test_the_graph_follows_its_slider(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    desktop.see_everything()
    edges = "return document.querySelector('#topology .graph-plot > div').data[0].x.join()"
    seen = {desktop.run(edges)}
    for round in range(2, 6):
        desktop.one("#graph-0").send_keys(Keys.ARROW_RIGHT)
        desktop.until(lambda round=round: desktop.one("label[for=graph-0]").text == f"Graph of round {round}")
        seen.add(desktop.run(edges))
    assert len(seen) > 2


def test_a_group_of_metrics_is_drawn_when_it_is_chosen(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    desktop.see_everything()
    hidden = desktop.all("#curves .panel[hidden] .plot")
    assert len(hidden) > 9
    assert not [plot for plot in hidden if plot.get_attribute("data-drawn")]
    chip = next(label for label in desktop.all("#curves .chips label") if label.text.startswith("mask"))
    desktop.run("arguments[0].scrollIntoView({block: 'center'})", chip)
    chip.click()
    open_plots = "return document.querySelectorAll('#curves .panel:not([hidden]) .plot[data-drawn]').length"
    desktop.until(lambda: desktop.run(open_plots) == 6)
    desktop.run("document.querySelector('#curves .panel:not([hidden]) summary').click()")
    desktop.see_everything()
    desktop.until(lambda: desktop.run(open_plots) == 9)


def test_a_run_can_be_hidden_and_an_axis_made_logarithmic(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    desktop.see_everything()
    first = "const chart = document.querySelector('#curves .plot > div'); return "
    assert desktop.run(first + "chart.data.map(trace => trace.visible !== false)") == [True, True]
    desktop.run("document.querySelector('.toggle').click(); document.getElementById('logarithmic').click()")
    desktop.until(lambda: desktop.run(first + "chart.data.map(trace => trace.visible !== false)") == [False, True])
    assert desktop.run(first + "chart._fullLayout.yaxis.type") == "log"
    assert desktop.one(".toggle").get_attribute("aria-pressed") == "false"


def test_another_metric_of_clients_can_be_chosen(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    Select(desktop.one("#clients select")).select_by_visible_text("train/loss")
    desktop.see_everything()
    assert [panel.text.splitlines()[0] for panel in desktop.all("#clients .panel:not([hidden])")] == ["train/loss"]


def test_errors_stand_out(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    (row,) = desktop.all("#events tr.error")
    assert "client 1: ValueError: x" in row.text
    background = "return getComputedStyle(arguments[0].querySelector('td')).backgroundColor"
    assert desktop.run(background, row) == "rgb(253, 236, 234)"


def test_on_a_phone_nothing_scrolls_sideways_and_there_is_one_column(desktop: Browser, page: Path) -> None:
    desktop.tell("Emulation.setDeviceMetricsOverride", **PHONE)
    desktop.open(page)
    desktop.see_everything()
    assert desktop.run("return innerWidth") == 390
    assert desktop.run("return document.documentElement.scrollWidth") == 390
    desktop.run("scrollTo(500, 0)")
    assert desktop.run("return scrollX") == 0
    lefts = "return [...document.querySelectorAll('#curves .panel:not([hidden]) .plot')].map(e => e.offsetLeft)"
    assert len(set(desktop.run(lefts))) == 1
    wide = "return [...document.querySelectorAll('.plot > div')].filter(e => e.layout.width > 390).length"
    assert desktop.run(wide) == 0


def test_plots_follow_light_and_dark(desktop: Browser, page: Path) -> None:
    desktop.open(page)
    desktop.see_everything()
    ink = "return document.querySelector('.plot[data-drawn] > div')._fullLayout.font.color"
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    assert (desktop.run(ink), desktop.run(ground)) == ("#1b2430", "rgb(245, 246, 248)")
    desktop.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    desktop.until(lambda: desktop.run(ink) == "#e4e8ee")
    assert desktop.run(ground) == "rgb(16, 20, 26)"


def test_paper_is_light_has_every_open_plot_and_no_controls(desktop: Browser, page: Path) -> None:
    desktop.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    desktop.open(page)
    desktop.see_everything()
    desktop.run(
        """addEventListener('beforeprint', () => {
            const shown = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.offsetParent);
            window.onPaper = {
                undrawn: shown('.plot').filter((one) => !one.querySelector('svg')).length,
                ink: document.querySelector('.plot[data-drawn] > div')._fullLayout.font.color,
                widest: Math.max(...shown('.plot > div').map((one) => one.layout.width)),
                controls: shown('nav, input[type=range], select, .chips').length,
            };
        })"""
    )
    pdf = base64.b64decode(desktop.tell("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF-")
    seen = desktop.run("return window.onPaper")
    assert seen == {"undrawn": 0, "ink": "#1b2430", "widest": seen["widest"], "controls": 0}
    assert 300 < seen["widest"] <= 680
    # Afterwards the screen is as it was.
    desktop.until(lambda: desktop.run("return document.documentElement.className") == "")
    ink = "return document.querySelector('.plot[data-drawn] > div')._fullLayout.font.color"
    desktop.until(lambda: desktop.run(ink) == "#e4e8ee")


def test_a_run_that_was_tampered_with_runs_nothing(desktop: Browser, tmp_path: Path) -> None:
    attack = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2><a href='javascript:window.hit=3'>"
    run = write_run(
        tmp_path / "run",
        {"test/accuracy": [0.1, 0.2], f"test/{attack}": [1, 2]},
        class_names=(attack, attack, "c"),
        clients={attack: [[1, 2, 3, 4]] * 2},
        events=[{"event": "client_error", "client": attack, "error": attack}, {"event": attack}],
        pairs=(1, 2),
        config={**config_of(), attack: {"class_path": attack}},
    )
    assert main(["report", str(run), "--labels", attack, "--output", str(tmp_path / "page.html")]) == 0
    desktop.open(tmp_path / "page.html")
    for input in desktop.all("#curves input[type=radio]"):
        desktop.run("arguments[0].click()", input)
        desktop.see_everything()
    assert desktop.run("return window.hit") is None
    assert desktop.all("svg a, img[src=x], a[href^=javascript]") == []
    assert attack[:20] in desktop.one("h1").text
