"""The documentation as a reader tries it: page after page in one folder, every command and every program.

A reader has small configurations, so that a page takes seconds. What needs a GPU or a download stands in a block that
is marked `<!-- parsed only: why -->`; its commands must parse.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_commands import run_forked
from small_methods import small_method

from flgen.experiment.records import read_metrics

REPOSITORY = Path(__file__).parent.parent
README = "README.md"
PAGES = [README, *sorted(str(page.relative_to(REPOSITORY)) for page in REPOSITORY.glob("docs/**/*.md"))]
LINKED_PAGES = [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"]

SMALL: dict[str, dict[str, Any]] = {
    "trainer": {"rounds": 2, "checkpoint_every": 1},
    "method": {"local_steps": 2, "batch_size": 8, "recalibration_batches": 2},
    "model": {"latent": 8, "width": 8},
    "evaluation": {"every": 5, "images": 32},
}
ROUNDS = re.compile(r"(?<=\brounds[ =])\d+")
WORK = re.compile(r"(?<=\blocal_steps=)\d+|(?<=\bwidth=)\d+")
LEFT_TO_THE_READER = {"make", "pip", "python3", "."}  # installing, activating

FENCE = re.compile(
    r'^(?P<parsed_only><!-- parsed only: [^\n]+ -->\n)?```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    title: str | None
    text: str
    parsed_only: bool


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    return [
        Block(found["language"], found["title"], found["text"], found["parsed_only"] is not None)
        for found in FENCE.finditer(text_of(page))
    ]


def commands_of(text: str) -> Iterator[str]:
    """Yield the commands of a shell block, each on one line."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield " ".join(line.split())


def submitted(words: Sequence[str]) -> list[str]:
    """Return what the first task of `sbatch ... slurm/SCRIPT.sh ARGUMENTS` types after `flgen`."""
    (script,) = [number for number, word in enumerate(words) if re.fullmatch(r"slurm/\w+\.sh", word)]
    assert (REPOSITORY / words[script]).exists(), words[script]
    return ["fit", *words[script + 1 :], *(["--index=0"] if "--sweep" in words else [])]


class Reader:
    """Somebody who tries everything, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tried: set[str] = set()
        shutil.copytree(REPOSITORY / "configs", folder / "configs")
        with self._changed("prism_digits") as config:
            self._shrink_prism(config)
        with self._changed("fedktl_generator_digits") as config:
            self._shrink_prism(config)
            config["trainer"]["devices"] = 1
            config["evaluation"]["extractors"] = []
        with self._changed("dispfl_digits") as config:
            config["trainer"]["rounds"] = 2
            config["method"]["init_args"]["training"]["epochs"] = 1
        with self._changed("fedktl_digits") as config:
            config["trainer"].update({"rounds": 2, "devices": 1})

    @contextmanager
    def _changed(self, name: str) -> Iterator[dict[str, Any]]:
        """Let a configuration of the reader's be changed in place."""
        file = self.folder / "configs" / f"{name}.yaml"
        config = yaml.safe_load(file.read_text())
        yield config
        file.write_text(yaml.safe_dump(config))

    @staticmethod
    def _shrink_prism(config: dict[str, Any]) -> None:
        for section, options in SMALL.items():
            target = config[section]
            target.get("init_args", target).update(options)
        config["model"]["init_args"]["loss"]["init_args"] = {"real_batch": 8}

    def read(self, page: str) -> None:
        if page in self._tried:
            return
        self._tried.add(page)
        for block in blocks_of(page):
            if block.title:
                (self.folder / block.title).write_text(block.text)
            elif block.language == "python":
                self.run_program(block.text)
            elif block.language == "bash":
                for command in commands_of(block.text):
                    self._try_command(command, block.parsed_only)
            elif block.language == "console":
                self._check_session(block.text)

    def _try_command(self, command: str, parsed_only: bool) -> None:
        words = shlex.split(command, comments=True)
        if parsed_only:
            arguments = submitted(words) if words[0] == "sbatch" else words[words.index("flgen") + 1 :]
            status, output = self._fork({}, [*arguments, "--print_config"])
            assert status == 0, f"{command}\n{output}"
            return
        command = ROUNDS.sub("3", command)
        if words[0] in LEFT_TO_THE_READER or command in self._tried:
            return
        self._tried.add(command)
        status, output = self._run(command)
        assert status == 0, f"{command}\n{output}"

    def _check_session(self, text: str) -> None:
        """Compare a terminal session, `$ command` and what it prints, with what the command does print."""
        for exchange in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = exchange.partition("\n")
            status, output = self._run(command)
            assert output == expected, command
            assert (status != 0) == ("error: " in expected), command

    def _run(self, command: str) -> tuple[int, str]:
        words = shlex.split(command, comments=True)
        environment = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "flgen":
            return self._fork(environment, words[1:])
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def run_program(self, text: str) -> None:
        program = self.folder / "program.py"
        program.write_text(WORK.sub("4", ROUNDS.sub("3", text)))
        status, output = self._fork({}, [str(program)])
        assert status == 0, f"{text}\n{output}"

    def _fork(self, environment: dict[str, str], arguments: Sequence[str]) -> tuple[int, str]:
        done = run_forked(arguments, self.folder, environment)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody who has read the README."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    reader.read(README)
    return reader


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_works(page: str, reader: Reader) -> None:
    reader.read(page)


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_links_and_file_names_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", text_of(page))
    here = (REPOSITORY / page).parent
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = here / target if target else REPOSITORY / page
        assert file.is_file(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors_of(file), f"{page}: {link}"
    for name in re.findall(r"`((?:configs|docs|flgen|tests|\.ci)/[\w./-]+)`", text):
        assert (REPOSITORY / name).exists(), f"{page}: {name}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_of(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is `heading`, without heading and rule."""
    rows = text_of(page).partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_metrics_is_that_of_a_run(reader: Reader) -> None:
    written = {name for row in read_metrics(reader.folder / "runs/prism_digits/metrics.csv") for name in row} - {
        "round"
    }
    kinds = "(sampled_once|stochastic|threshold)"
    documented = [
        re.escape(row[0])
        .replace("<extractor>", "digits")
        .replace("<layer>", ".+")
        .replace("<kind>/\\.\\.\\.", f"{kinds}/.+")
        for row in table_of("docs/start-here.md", "metric")
    ]
    assert [name for name in written if not any(re.fullmatch(pattern, name) for pattern in documented)] == []
    assert [pattern for pattern in documented if not any(re.fullmatch(pattern, name) for name in written)] == []


def test_the_table_of_keys_is_that_of_a_configuration(reader: Reader) -> None:
    written = yaml.safe_load((reader.folder / "runs/prism_digits/config.yaml").read_text())
    assert {row[0] for row in table_of("docs/configuration.md", "key")} == set(written)


def test_the_table_of_presets_is_that_of_the_classes() -> None:
    from flgen.methods import Prism
    from flgen.models import VggMoments

    rows = table_of("docs/configuration.md", "option")
    for column, preset in enumerate(("reference", "paper", "fixed"), start=1):
        documented = {row[0]: row[column] for row in rows}
        values = {f"method.{option}": value for option, value in Prism.presets[preset].items()}
        values |= {f"model.loss.{option} (VggMoments)": value for option, value in VggMoments.presets[preset].items()}
        assert documented == values


def test_the_tables_of_dispfl_have_every_option() -> None:
    from flgen.masks.sparsity import Sparsity
    from flgen.methods import DisPFL

    for heading, owner in (("option of --method", DisPFL), ("option of --method.sparsity", Sparsity)):
        documented = {row[0] for row in table_of("docs/methods/dispfl.md", heading)}
        assert documented == set(inspect.signature(owner.__init__).parameters) - {"self"}


def test_the_tables_of_baselines_name_every_file_once() -> None:
    pages = [f"docs/methods/{method}.md" for method in ("dispfl", "gptfl", "fedktl", "prism")]
    documented = [row[0] for page in pages for row in table_of(page, "file in `configs/baselines/`")]
    assert sorted(documented) == sorted(path.name for path in (REPOSITORY / "configs" / "baselines").glob("*.yaml"))


def written_defaults(owner: type) -> dict[str, str]:
    """Return a constructor's options and their defaults as a file has them; nothing for those with options below."""
    options = dict(list(inspect.signature(owner.__init__).parameters.items())[1:])  # type: ignore[misc]
    yaml_words = {"None": "null", "True": "true", "False": "false"}
    return {
        name: "" if is_dataclass(option.default) else yaml_words.get(str(option.default), str(option.default))
        for name, option in options.items()
    }


GPTFL = ("FedAvg", "FedProx", "Scaffold", "FedOpt", "FedDF", "DSFL", "FedET", "FedGen", "DynaFed")


@pytest.mark.parametrize("method", GPTFL)
def test_the_tables_of_gptfl_have_every_option_and_its_default(method: str) -> None:
    import flgen

    page = "docs/methods/gptfl.md"
    own = table_of(page, f"option of {method}")
    if method in ("FedAvg", "FedProx", "FedOpt"):
        own += table_of(page, "option of FedAvg, FedProx and FedOpt")
    for_all = {row[0] for row in table_of(page, "option of every method")}
    options = written_defaults(getattr(flgen, method))
    assert for_all | {row[0] for row in own} == set(options)
    assert {option: default for option, default, _ in own} == {option: options[option] for option, *_ in own}


FEDKTL = ("FedKTL", "LGFedAvg", "FedGenHeads", "FedGH", "FML", "FedKD", "FedDistill", "FedProto", "FedTGP")


@pytest.mark.parametrize("method", FEDKTL)
def test_the_tables_of_fedktl_have_every_option_and_its_default(method: str) -> None:
    import flgen

    page = "docs/methods/fedktl.md"
    documented = table_of(page, "option of every method") + table_of(page, f"option of {method}")
    assert {option: default for option, default, _ in documented} == written_defaults(getattr(flgen, method))


def test_the_table_of_the_alignment_has_every_option_and_its_default() -> None:
    from flgen.methods.latent_alignment import AlignmentTraining

    rows = table_of("docs/methods/fedktl.md", "option of --method.alignment")
    assert {option: default for option, default, _ in rows} == written_defaults(AlignmentTraining)


def test_the_table_of_traffic_says_which_methods_run_under_secure_aggregation() -> None:
    from flgen import SecureAggregation, Star

    star = Star(secure_aggregation=SecureAggregation())
    documented = {row[0]: row[-1] for row in table_of("docs/methods/fedktl.md", "method")}
    assert documented == {
        name: "no" if small_method(name, topology=star).collection == "gather" else "yes" for name in FEDKTL
    }


def test_what_methods_for_different_networks_measure_is_on_their_page(reader: Reader) -> None:
    page = "docs/methods/fedktl.md"
    reader.read(page)
    own = ("train", "alignment", "generator", "prototypes", "head", "compression")
    rows = [row for run in sorted((reader.folder / "runs").glob("fed*/metrics.csv")) for row in read_metrics(run)]
    theirs = [row for row in rows if "comm/up_scalars_formula" in row]
    written = {name for row in theirs for name in row if name.partition("/")[0] in own}
    assert {"alignment/norm_ratio", "compression/ratio", "train/prototype_loss"} <= written
    assert [name for name in sorted(written) if f"`{name}`" not in text_of(page)] == []


def test_the_table_of_groups_has_every_network() -> None:
    import flgen
    from flgen.models.model_groups import PublishedGroup

    documented = {group: networks.split(", ") for group, networks in table_of("docs/methods/fedktl.md", "group")}
    assert set(documented) == {group.__name__ for group in PublishedGroup.__subclasses__()}
    for group, networks in documented.items():
        assert networks == [member.architecture for member in getattr(flgen, group).members]


def test_the_table_of_generators_has_the_numbers_of_the_files() -> None:
    rows = table_of("docs/methods/fedktl.md", "file in `configs/generators/`")
    files = {path.name: path for path in (REPOSITORY / "configs" / "generators").glob("*.yaml")}
    assert {row[0] for row in rows} == set(files)
    for file, *numbers in rows:
        options = yaml.safe_load(files[file].read_text())["method"]["init_args"]
        chosen = (options["mu"], options["alignment"]["learning_rate"], options["alignment"]["compactness"])
        assert chosen == tuple(float(number) for number in numbers)


def test_the_table_of_costs_says_what_methods_ask_for() -> None:
    import flgen

    documented = {row[0]: row[2:] for row in table_of("docs/methods/gptfl.md", "method")}
    assert documented == {
        name: [
            "yes" if "public_data" in inspect.signature(getattr(flgen, name).__init__).parameters else "no",
            "no" if getattr(flgen, name).collection == "gather" else "yes",
        ]
        for name in GPTFL
    }


def test_the_table_of_server_optimisers_has_their_defaults() -> None:
    from flgen.methods.fedopt import RATES

    rows = table_of("docs/methods/gptfl.md", "rule of FedOpt")
    names = ("server_learning_rate", "beta_1", "beta_2", "tau")
    documented = {
        rule: {name: float(cell) for name, cell in zip(names, cells, strict=True) if cell} for rule, _, *cells in rows
    }
    assert documented == RATES


def test_the_table_of_stages_is_that_of_the_pipeline() -> None:
    from flgen.commands.pipeline import OUTPUTS

    documented = {row[0]: row[1].rstrip("/") for row in table_of("docs/configuration.md", "`command` of a stage")}
    assert documented == {command: output.artefact for command, output in OUTPUTS.items()}


def test_the_program_for_tickets_draws_what_flgen_draws(reader: Reader) -> None:
    import numpy as np
    import torch

    from flgen import PrismGenerator
    from flgen.masks.ticket import read_ticket, write_ticket

    reader.read("docs/methods/prism.md")
    (program,) = [block.text for block in blocks_of("docs/methods/prism.md") if block.language == "python"]
    assert len(program.splitlines()) <= 60
    file = reader.folder / "digits.flgen"
    ticket = read_ticket(file)
    rare = torch.rand(len(ticket.mask), generator=torch.Generator().manual_seed(0)) < 0.1
    for mask, coding in ((ticket.mask, "packed"), (rare, "entropy")):
        assert write_ticket(file, replace(ticket, mask=mask)).coding == coding
        reader.run_program(program)
        generator = PrismGenerator(ticket=str(file))
        generator.load("cpu")
        drawn = generator.synthesize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
        np.testing.assert_allclose(np.load(reader.folder / "digits.npy"), drawn.numpy(), atol=1e-5)


def test_the_table_of_prism_has_every_option() -> None:
    from flgen.methods import Prism

    documented = [row[0] for row in table_of("docs/methods/prism.md", "option of --method")]
    options = set(inspect.signature(Prism.__init__).parameters) - {"self"}
    assert {option.removesuffix(" *") for option in documented} == options
    starred = {option.removesuffix(" *") for option in documented if option.endswith(" *")}
    assert starred == set(Prism.presets["fixed"])


PRISM_PRIVACY = {"A": "StatisticsGaussian", "B": "ThetaGaussian", "C": "CentralGaussian", "R": "ReferenceBug"}


@pytest.mark.parametrize("short", PRISM_PRIVACY)
def test_the_tables_of_privacy_have_every_mechanism_option_and_default(short: str) -> None:
    import flgen

    page = "docs/methods/prism.md"
    assert {row[1]: row[0] for row in table_of(page, "`--method.privacy`")} == PRISM_PRIVACY
    rows = table_of(page, "option of --method.privacy")
    documented = {option: default for option, default, of, _ in rows if short in of.split(", ")}
    assert documented == written_defaults(getattr(flgen, PRISM_PRIVACY[short]))


def test_the_table_of_flgen_privacy_has_every_option_and_its_default() -> None:
    from flgen.commands.privacy import OPTIONS

    documented = {option: default for option, default, _ in table_of("docs/privacy.md", "option of `flgen privacy`")}
    assert documented == {option: str(about.get("default", "null")) for option, about in OPTIONS.items()}


def test_the_threat_model_says_of_every_method_what_its_server_sees() -> None:
    import flgen.methods

    documented = [name for row in table_of("docs/privacy.md", "method") for name in row[0].split(", ")]
    exported = {name: getattr(flgen.methods, name) for name in flgen.methods.__all__}
    methods = [name for name, item in exported.items() if issubclass(item, flgen.methods.Method)]
    assert sorted(documented) == sorted(name for name in methods if not inspect.isabstract(exported[name]))


def test_what_a_private_run_records_is_on_the_page(reader: Reader) -> None:
    reader.read("docs/privacy.md")
    events = [json.loads(line) for line in (reader.folder / "runs/secret/events.jsonl").read_text().splitlines()]
    (record,) = [event["privacy"] for event in events if event["event"] == "provenance"]
    assert [name for name in record if f"`{name}`" not in text_of("docs/privacy.md")] == []
    assert record["noise_from"] == "a secret file"
