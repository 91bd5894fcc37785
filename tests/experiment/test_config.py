"""The configuration: files and arguments compose, presets are spelt out, and every mistake is one clear line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from flgen.errors import UsageError
from flgen.experiment.config import Configuration, Section, build_parser, describe, parse, to_yaml


class Loss:
    """What a model may be given."""


class Mean(Loss):
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"scale": 3.0}, "fixed": {"scale": 1.0}}

    def __init__(self, scale: float | None = None, bandwidths: list[float] | None = None) -> None:
        self.scale = scale
        self.bandwidths = bandwidths


class Model:
    """What a model must be."""


class Net(Model):
    def __init__(
        self,
        width: int = 8,
        norm: Literal["batch", "group"] = "batch",
        image_size: int | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.width = width
        self.norm = norm
        self.image_size = image_size
        self.loss = loss


class Topology:
    def __init__(self, transport: Literal["reduce", "messages"] = "reduce", bits: int = 32) -> None:
        if bits > 60:
            raise UsageError(f"--method.topology.bits is {bits}: give at most 60")
        self.transport = transport
        self.bits = bits


class Method:
    """What a method must be."""


class Prune(Method):
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"space": "theta", "steps": 5},
        "fixed": {"space": "score", "steps": 7},
    }

    def __init__(
        self,
        preset: Literal["paper", "fixed"] = "fixed",
        rate: float = 0.1,
        steps: int | None = None,
        space: Literal["score", "theta"] | None = None,
        topology: Topology | None = None,
    ) -> None:
        if rate <= 0:
            raise UsageError(f"--method.rate is {rate}: give more than 0")
        self.preset = preset
        self.rate = rate
        self.steps = steps
        self.space = space
        self.topology = topology or Topology()


class Average(Method):
    def __init__(self, epochs: int = 1) -> None:
        self.epochs = epochs


@dataclass(frozen=True)
class Training:
    """Options that methods share."""

    epochs: int = 1
    clip_norm: float | None = None
    order: Literal["shuffled", "sorted"] = "shuffled"


class Personal(Method):
    def __init__(
        self, training: Training = Training(epochs=5, clip_norm=10.0), topology: Topology | None = None
    ) -> None:
        self.training = training
        self.topology = topology


class Lonely(Method):
    def __init__(self, training: Training = Training(), depth: int = 2) -> None:
        self.training = training
        self.depth = depth


class Data:
    """What a data set must be."""


class Squares(Data):
    def __init__(self, image_size: int = 16, root: str = "data") -> None:
        self.image_size = image_size
        self.root = root


class Logger:
    """What a logger must be."""


class Console(Logger):
    def __init__(self, every: int = 1) -> None:
        self.every = every


class Trainer:
    def __init__(
        self,
        rounds: int = 20,
        devices: int | Literal["auto"] = "auto",
        cohort: int | None = None,
        fast: bool = False,
    ) -> None:
        self.rounds = rounds
        self.devices = devices
        self.cohort = cohort
        self.fast = fast


SECTIONS = [
    Section("seed_everything", int, default=0, help="Seed."),
    Section("run_dir", str, default="runs/default", help="Run folder."),
    Section("trainer", Trainer, "options"),
    Section("model", Model, "class", required=True, help="Model."),
    Section("method", Method, "class", required=True, help="Method."),
    Section("data", Data, "class", default={"class_path": "Squares"}, help="Data."),
    Section("loggers", list[Logger], default=[], help="Loggers."),
    Section("ckpt_path", str | None, help="Checkpoint."),
]

BASE = """
trainer: {rounds: 3}
model: {class_path: Net, init_args: {width: 16, loss: {class_path: Mean}}}
method: {class_path: Prune}
"""

Parse = Callable[..., Configuration]


@pytest.fixture
def parsed(tmp_path: Path) -> Parse:
    """Return a function that parses arguments after a base file and, if given, one more file."""

    def run(*arguments: str, file: str | bytes | None = None, base: str | None = BASE) -> Configuration:
        files: list[str] = []
        for name, text in (("base.yaml", base), ("over.yaml", file)):
            if text is not None:
                content = text if isinstance(text, bytes) else text.encode()
                (tmp_path / name).write_bytes(content)
                files += ["--config", str(tmp_path / name)]
        parser = build_parser(SECTIONS, {"num": {"type": int, "default": 64, "help": "Number."}}, "Test.")
        return parse(parser, [*files, *arguments], SECTIONS)

    return run


# ---- what a configuration means ---------------------------------------------------------------------------------


def test_defaults_stand_where_nothing_is_said(parsed: Parse) -> None:
    built = parsed().build()
    assert built.seed_everything == 0
    assert built.run_dir == "runs/default"
    assert (built.trainer.rounds, built.trainer.devices, built.trainer.cohort) == (3, "auto", None)
    assert isinstance(built.data, Squares)
    assert (built.loggers, built.ckpt_path, built.num) == ([], None, 64)


def test_later_files_and_arguments_override_earlier_ones(parsed: Parse) -> None:
    file = "trainer: {cohort: 2}\nmodel: {class_path: Net, init_args: {norm: group}}\nseed_everything: 4\n"
    built = parsed("--seed_everything=5", "--model.loss.scale", "2.5", "--trainer.devices=2", file=file).build()
    assert (built.trainer.rounds, built.trainer.cohort, built.trainer.devices) == (3, 2, 2)
    assert (built.model.width, built.model.norm, built.model.loss.scale) == (16, "group", 2.5)
    assert built.seed_everything == 5


def test_another_class_drops_the_options_of_the_first(parsed: Parse) -> None:
    built = parsed("--method=Average", "--method.epochs=3").build()
    assert isinstance(built.method, Average)
    assert built.method.epochs == 3


def test_another_class_keeps_what_was_given_of_the_options_that_it_also_has(parsed: Parse) -> None:
    file = "method: {class_path: Personal, init_args: {training: {epochs: 7}, topology: {class_path: Topology}}}\n"
    built = parsed("--method=Lonely", "--method.training.order=sorted", file=file).build()
    assert isinstance(built.method, Lonely)
    assert built.method.training == Training(epochs=7, clip_norm=None, order="sorted")  # Personal's 10.0 was not given
    assert built.method.depth == 2


def test_shared_options_are_given_one_by_one_and_the_others_stay_the_methods_own(parsed: Parse) -> None:
    assert parsed("--method=Personal").build().method.training == Training(5, 10.0, "shuffled")
    one = parsed("--method=Personal", "--method.training.epochs=2").build().method.training
    assert one == Training(2, 10.0, "shuffled")
    several = parsed("--method=Personal", "--method.training={epochs: 3, order: sorted}").build().method.training
    assert several == Training(3, 10.0, "sorted")


@pytest.mark.parametrize("given", [("=null",), (" null",)])
def test_null_reaches_options_however_deep_they_are(given: tuple[str], parsed: Parse) -> None:
    def argument(option: str) -> list[str]:
        return (option + given[0]).split()

    built = parsed(
        "--method=Personal", *argument("--method.training.clip_norm"), *argument("--model.loss.scale")
    ).build()
    assert built.method.training == Training(5, None, "shuffled")
    assert built.model.loss.scale is None


def test_classes_go_by_their_short_or_their_full_name(parsed: Parse) -> None:
    for name in ("Average", f"{__name__}.Average"):
        assert parsed(f"--method={name}").values.method.class_path == f"{__name__}.Average"


def test_values_keep_their_types(parsed: Parse) -> None:
    built = parsed("--trainer.fast=true", "--method.rate=1e-3", "--model.loss.bandwidths=[1, 2.5]").build()
    assert built.trainer.fast is True
    assert built.method.rate == 0.001
    assert built.model.loss.bandwidths == [1.0, 2.5]
    logged = parsed(file="loggers: [{class_path: Console, init_args: {every: 5}}, {class_path: Console}]\n").build()
    assert [logger.every for logger in logged.loggers] == [5, 1]


def test_the_model_takes_its_shape_from_the_data_unless_it_is_given(parsed: Parse) -> None:
    assert parsed().build().model.image_size == 16
    assert parsed("--data.image_size=32").build().model.image_size == 32
    assert parsed("--model.image_size=8").build().model.image_size == 8


# ---- presets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "space", "steps", "scale"), [("paper", "theta", 5, 3.0), ("fixed", "score", 7, 1)])
def test_a_preset_fills_what_is_left_open_also_in_what_the_model_is_given(
    preset: str, space: str, steps: int, scale: float, parsed: Parse
) -> None:
    plain = parsed(f"--method.preset={preset}").resolved()
    assert plain["method"]["init_args"]["space"] == space
    assert plain["method"]["init_args"]["steps"] == steps
    assert plain["model"]["init_args"]["loss"]["init_args"]["scale"] == scale


def test_an_option_that_is_given_stands_against_the_preset(parsed: Parse) -> None:
    plain = parsed("--method.preset=paper", "--method.steps=1", "--model.loss.scale=9").resolved()
    assert plain["method"]["init_args"]["steps"] == 1
    assert plain["method"]["init_args"]["space"] == "theta"
    assert plain["model"]["init_args"]["loss"]["init_args"]["scale"] == 9.0


def test_a_method_without_presets_changes_nothing(parsed: Parse) -> None:
    plain = parsed("--method=Average").resolved()
    assert plain["method"]["init_args"] == {"epochs": 1}
    assert plain["model"]["init_args"]["loss"]["init_args"]["scale"] is None


# ---- config.yaml ------------------------------------------------------------------------------------------------


def test_the_resolved_configuration_repeats_itself(parsed: Parse) -> None:
    file = "loggers: [{class_path: Console}]\n"
    plain = parsed("--method.preset=paper", "--trainer.cohort=2", "--num=3", file=file).resolved()
    assert "config" not in plain
    again = parsed(base=to_yaml(plain)).resolved()
    assert again == plain
    assert list(again)[:3] == list(plain)[:3]


def test_what_objects_describe_is_the_configuration_that_makes_them(parsed: Parse) -> None:
    model = Net(width=4, loss=Mean(scale=2.0, bandwidths=[1.0, 3.0]))
    method = Prune(rate=0.5, steps=2, space="theta", topology=Topology("messages"))
    described = {
        "trainer": describe(Trainer(rounds=7, cohort=3))["init_args"],
        "model": describe(model),
        "method": describe(method),
        "loggers": describe([Console(3)]),
        "run_dir": describe(Path("runs") / "x"),
    }
    built = parsed(base=to_yaml(described)).build()
    assert (built.trainer.rounds, built.trainer.cohort, built.trainer.devices) == (7, 3, "auto")
    assert (built.model.width, built.model.loss.scale, built.model.loss.bandwidths) == (4, 2.0, [1.0, 3.0])
    assert (built.method.rate, built.method.steps, built.method.topology.transport) == (0.5, 2, "messages")
    assert built.loggers[0].every == 3
    assert built.run_dir == "runs/x"
    assert describe(built.model)["init_args"] == described["model"]["init_args"] | {"image_size": 16}
    assert describe(built.method) == described["method"]


def test_shared_options_describe_themselves_as_plain_values(parsed: Parse) -> None:
    method = Personal(Training(epochs=3, order="sorted"), Topology("messages"))
    described = describe(method)
    assert described["init_args"]["training"] == {"epochs": 3, "clip_norm": None, "order": "sorted"}
    built = parsed(base=to_yaml({"model": describe(Net()), "method": described})).build()
    assert built.method.training == method.training
    assert describe(built.method) == described
    again = parsed("--method=Personal").resolved()["method"]["init_args"]["training"]
    assert again == {"epochs": 5, "clip_norm": 10.0, "order": "shuffled"}


def test_an_option_that_an_object_does_not_keep_is_left_out() -> None:
    class Forgetful:
        def __init__(self, kept: int = 1, forgotten: int = 2) -> None:
            self.kept = kept

    globals()["Forgetful"] = Forgetful
    Forgetful.__qualname__ = "Forgetful"
    assert describe(Forgetful()) == {"class_path": f"{__name__}.Forgetful", "init_args": {"kept": 1}}


def test_the_text_is_yaml_in_the_order_given() -> None:
    text = to_yaml({"run_dir": "x", "a": {"class_path": "Net", "init_args": {"loss": None}}})
    assert text == "run_dir: x\na:\n  class_path: Net\n  init_args:\n    loss: null\n"
    assert yaml.safe_load(text)["run_dir"] == "x"


# ---- mistakes ---------------------------------------------------------------------------------------------------

ON_THE_LINE = {
    "unknown option": (["--trainer.rouns=3"], "--trainer.rouns: there is no such option; did you mean trainer.rounds?"),
    "value apart": (["--trainer.rouns", "3"], "--trainer.rouns: there is no such option; did you mean trainer.rounds?"),
    "unknown section": (["--run_dri=x"], "--run_dri: there is no such option; did you mean run_dir?"),
    "abbreviation": (["--trainer.round=3"], "--trainer.round: there is no such option; did you mean trainer.rounds?"),
    "no dashes": (["rounds"], "rounds: options are given as --NAME VALUE; this belongs to none"),
    "unknown init_arg": (["--model.widht=3"], "--model.widht: Net has no 'widht'; did you mean width?"),
    "spelt out": (["--model.init_args.widht=3"], "--model.widht: Net has no 'widht'; did you mean width?"),
    "unknown nested": (["--model.loss.scal=3"], "--model.loss.scal: Mean has no 'scal'; did you mean scale?"),
    "int": (["--trainer.rounds=many"], "--trainer.rounds: many is not of type int"),
    "not whole": (["--trainer.rounds=2.5"], "--trainer.rounds: 2.5 is not of type int"),
    "null": (["--trainer.rounds=null"], "--trainer.rounds: None is not of type int"),
    "bool": (["--trainer.fast=maybe"], "--trainer.fast: maybe is not of type bool"),
    "union": (["--trainer.devices=some"], "--trainer.devices: some is not of type int or 'auto'"),
    "optional": (["--trainer.cohort=some"], "--trainer.cohort: some is not of type int"),
    "init_arg type": (["--method.rate=fast"], "--method.rate: fast is not of type float"),
    "choice": (["--model.norm=layer"], "--model.norm: layer is not one of 'batch', 'group'"),
    "optional choice": (["--method.space=sore"], "--method.space: sore is not one of 'score', 'theta'"),
    "list element": (["--model.loss.bandwidths=[1,a]"], "--model.loss.bandwidths: a is not of type float"),
    "nested type": (["--model.loss.scale=big"], "--model.loss.scale: big is not of type float"),
    "nested choice": (
        ["--method.topology.transport=message"],
        "--method.topology.transport: message is not one of 'reduce', 'messages'",
    ),
    "list of one": (
        ["--model.loss.bandwidths=wide"],
        "--model.loss.bandwidths: wide is not of type list; write '[wide]'",
    ),
    "extra option": (["--num=x"], "--num: x is not of type int"),
    "class": (["--method=Prun"], "--method Prun: there is no such class; did you mean Prune?"),
    "nested class": (["--model.loss=Men"], "--model.loss Men: there is no such class; did you mean Mean?"),
    "class of another kind": (
        ["--method=Squares"],
        "--method Squares: there is no such class; valid names are Average, Lonely, Personal, Prune",
    ),
    "module": (["--method=nowhere.Prune"], "--method nowhere.Prune: No module named 'nowhere'"),
    "unknown shared option": (
        ["--method=Personal", "--method.training.epocs=3"],
        "--method.training.epocs: Training has no 'epocs'; did you mean epochs?",
    ),
    "abbreviated shared option": (
        ["--method=Personal", "--method.training.epoch", "3"],
        "--method.training.epoch: Training has no 'epoch'; did you mean epochs?",
    ),
    "abbreviated init_arg": (["--model.widt=3"], "--model.widt: Net has no 'widt'; did you mean width?"),
    "abbreviated group": (
        ["--method=Personal", "--method.train.epochs=3"],
        "--method.train.epochs: Personal has no 'train'; did you mean training?",
    ),
    "shared options of another method": (
        ["--method.training.epochs=3"],
        "--method.training.epochs: Prune has no 'training'; valid names are preset, rate, space, steps, topology",
    ),
    "shared option type": (
        ["--method=Personal", "--method.training.epochs=x"],
        "--method.training.epochs: x is not of type int",
    ),
    "shared option choice": (
        ["--method=Personal", "--method.training.order=any"],
        "--method.training.order: any is not one of 'shuffled', 'sorted'",
    ),
    "several shared options": (
        ["--method=Personal", "--method.training={epochs: 2, epocs: 3}"],
        "--method.training.epocs: Training has no 'epocs'; did you mean epochs?",
    ),
    "below a value": (
        ["--method=Personal", "--method.training.epochs.first=3"],
        "--method.training.epochs.first: there is no such option; --method.training.epochs is one value",
    ),
    "value for shared options": (
        ["--method=Personal", "--method.training=3"],
        "--method.training: 3 is no option; give --method.training.NAME VALUE",
    ),
    "null for shared options": (
        ["--method=Personal", "--method.training=null"],
        "--method.training: null is no option; give --method.training.NAME VALUE",
    ),
    "value for a section": (["--trainer=3"], "--trainer: 3 is no option; give --trainer.NAME VALUE"),
    "list for shared options": (
        ["--method=Personal", "--method.training=[3]"],
        "--method.training: [3] is no option; give --method.training.NAME VALUE",
    ),
    "missing value": (["--trainer.rounds"], "argument --trainer.rounds: expected one argument"),
    "missing file": (["--config=none.yaml"], r"--config \S*none.yaml: there is no such file"),
    "folder": (["--config=/tmp"], "--config /tmp: there is no such file"),
}


@pytest.mark.parametrize("name", ON_THE_LINE)
def test_a_mistake_on_the_line_is_one_line(name: str, parsed: Parse) -> None:
    arguments, expected = ON_THE_LINE[name]
    with pytest.raises(UsageError) as refusal:
        parsed(*arguments)
    pattern = expected if "\\S" in expected else re.escape(expected)
    assert re.fullmatch(pattern, str(refusal.value)), str(refusal.value)
    assert refusal.value.exit_status == 2


IN_A_FILE = {
    "unknown section": ("run_dri: x\n", "--run_dri: there is no such option; did you mean run_dir?"),
    "unknown option": (
        "trainer: {rouns: 3}\n",
        "--trainer.rouns: there is no such option; did you mean trainer.rounds?",
    ),
    "unknown init_arg": (
        "model: {class_path: Net, init_args: {widht: 3}}\n",
        "--model.widht: Net has no 'widht'; did you mean width?",
    ),
    "unknown nested": (
        "model: {class_path: Net, init_args: {loss: {class_path: Mean, init_args: {scal: 3}}}}\n",
        "--model.loss.scal: Mean has no 'scal'; did you mean scale?",
    ),
    "far from any": (
        "data: {class_path: Squares, init_args: {xyz: 3}}\n",
        "--data.xyz: Squares has no 'xyz'; valid names are image_size, root",
    ),
    "unknown shared option": (
        "method: {class_path: Personal, init_args: {training: {epocs: 3}}}\n",
        "--method.training.epocs: Training has no 'epocs'; did you mean epochs?",
    ),
    "unknown group": (
        "method: {class_path: Personal, init_args: {trainin: {epochs: 3}}}\n",
        "--method.trainin.epochs: Personal has no 'trainin'; did you mean training?",
    ),
    "value for shared options": (
        "method: {class_path: Personal, init_args: {training: 3}}\n",
        "--method.training: 3 is no option; give --method.training.NAME VALUE",
    ),
    "null for shared options": (
        "method: {class_path: Personal, init_args: {training: null}}\n",
        "--method.training: null is no option; give --method.training.NAME VALUE",
    ),
    "type": ("trainer: {rounds: many}\n", "--trainer.rounds: many is not of type int"),
    "init_arg type": (
        "method: {class_path: Prune, init_args: {steps: few}}\n",
        "--method.steps: few is not of type int",
    ),
    "nested type": (
        "model: {class_path: Net, init_args: {loss: {class_path: Mean, init_args: {scale: big}}}}\n",
        "--model.loss.scale: big is not of type float",
    ),
    "class": ("method: {class_path: Prun}\n", "--method Prun: there is no such class; did you mean Prune?"),
    "no class": (
        "method: 3\n",
        "--method 3: there is no such class; valid names are Average, Lonely, Personal, Prune",
    ),
    "list element class": (
        "loggers: [{class_path: Consol}]\n",
        "--loggers Consol: there is no such class; did you mean Console?",
    ),
    "list element option": (
        "loggers: [{class_path: Console, init_args: {evry: 3}}]\n",
        "--loggers.evry: Console has no 'evry'; did you mean every?",
    ),
    "no list": ("loggers: {class_path: Console}\n", "--loggers: {'class_path': 'Console'} is not of type list"),
    "no options": ("trainer: 3\n", "--trainer: 3 is no option; give --trainer.NAME VALUE"),
    "null class": ("method: null\n", "missing: --method; give it here or in a --config"),
}


@pytest.mark.parametrize("name", IN_A_FILE)
def test_a_mistake_in_a_file_is_the_same_line(name: str, parsed: Parse) -> None:
    file, expected = IN_A_FILE[name]
    with pytest.raises(UsageError) as refusal:
        parsed(file=file)
    assert str(refusal.value) == expected


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("trainer: {rounds: 3\nmodel: ]\n", "not valid YAML: .*line 2"),
        ("trainer:\n\trounds: 3\n", "not valid YAML: .*line 2"),
        (b"\xff\xfe\x00", "not valid YAML"),
        ("- 1\n- 2\n", "holds no options"),
        ("hello\n", "holds no options"),
        ("", "holds no options"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(
    file: str | bytes, complaint: str, parsed: Parse, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"^--config {tmp_path}/over.yaml: {complaint}") as refusal:
        parsed(file=file)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "missing"),
    [([], "--method, --model"), (["--model=Net"], "--method"), (["--method=Prune"], "--model")],
)
def test_what_must_be_given_is_named(given: list[str], missing: str, parsed: Parse) -> None:
    with pytest.raises(UsageError, match=f"^missing: {missing}; give it here or in a --config$"):
        parsed(*given, base=None)


def test_options_of_no_class_are_told_to_name_one(parsed: Parse) -> None:
    expected = "--model.width: name the class first, by --model CLASS or in a --config before it"
    with pytest.raises(UsageError, match=f"^{expected}$"):
        parsed("--model.width=3", base=None)


def test_options_may_stand_before_their_class(parsed: Parse) -> None:
    values = parsed("--model.width=3", "--method=Prune", "--model=Net", base=None).values
    assert values.model.init_args.width == 3


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--method.rate=-1", "--method.rate is -1.0: give more than 0"),
        ("--method.topology.bits=99", "--method.topology.bits is 99: give at most 60"),
    ],
)
def test_what_a_constructor_refuses_reaches_the_user_as_it_is(argument: str, expected: str, parsed: Parse) -> None:
    configuration = parsed(argument)
    with pytest.raises(UsageError) as refusal:
        configuration.build()
    assert str(refusal.value) == expected


def test_help_lists_the_options(parsed: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--trainer.rounds", "--method", "--num", "--config", "Run folder."):
        assert option in printed


# ---- the shipped files ------------------------------------------------------------------------------------------

CONFIGS = Path(__file__).parents[2] / "configs"

# A process of its own: once a model has been built, a short class name means two classes to the parser.
PARSE_ALL = """
import json, sys
from flgen.commands.sections import federated_sections
from flgen.experiment.config import build_parser, parse

sections = federated_sections()
parser = build_parser(sections, {}, "")
for files in json.load(sys.stdin):
    arguments = [argument for file in files for argument in ("--config", file)]
    print(json.dumps(parse(parser, arguments, sections).resolved()))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def overlaid() -> dict[tuple[str, str], dict[str, Any]]:
    """Every dispfl_*.yaml, by name and "", and every baseline over each of them, by both names."""
    bases = sorted(CONFIGS.glob("dispfl_*.yaml"))
    all_overlays = sorted((CONFIGS / "baselines").glob("*.yaml"))
    overlays = [None, *(path for path in all_overlays if "over a dispfl_" in path.read_text().replace("\n# ", " "))]
    pairs = [(base, overlay) for base in bases for overlay in overlays]
    asked = json.dumps([[str(file) for file in pair if file] for pair in pairs])
    done = subprocess.run([sys.executable, "-c", PARSE_ALL], input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.splitlines()
    return {
        (base.stem, overlay.stem if overlay else ""): json.loads(text)
        for (base, overlay), text in zip(pairs, texts, strict=True)
    }


def test_a_baseline_keeps_all_of_the_experiment_but_the_method(overlaid: Any) -> None:
    assert {overlay for _, overlay in overlaid} == set(METHODS)
    for (base, overlay), config in overlaid.items():
        experiment = overlaid[base, ""]
        if overlay == "scaffold":  # it needs plain SGD
            assert config["model"]["init_args"]["weight_decay"] == 0
            config, experiment = (
                {**each, "model": _without(each["model"], "weight_decay")} for each in (config, experiment)
            )
        for section in ("seed_everything", "model", "data", "partition", "evaluation"):
            assert config[section] == experiment[section], (base, overlay, section)
        kept = {**config["trainer"], "clients_per_round": None}
        assert kept == experiment["trainer"], (base, overlay)


def _without(part: dict[str, Any], option: str) -> dict[str, Any]:
    return {**part, "init_args": {name: value for name, value in part["init_args"].items() if name != option}}


def test_a_baseline_trains_as_the_experiment_does(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        expected = dict(overlaid[base, ""]["method"]["init_args"]["training"])
        if overlay == "ditto":
            expected["epochs"] = 2
        if overlay == "scaffold":
            expected["clip_norm"] = None
        assert config["method"]["init_args"]["training"] == expected, (base, overlay)
    assert overlaid["dispfl_digits", "local"]["method"]["init_args"]["training"]["batch_size"] == 16
    assert overlaid["dispfl_cifar10", "fedavg"]["method"]["init_args"]["training"] == {
        "epochs": 5,
        "batch_size": 128,
        "learning_rate_decay": 0.998,
        "clip_norm": 10.0,
        "augmentation": "crop_flip",
    }


METHODS = {
    "": "DisPFL",
    "dispfl_gradient": "DisPFL",
    "ditto": "Ditto",
    "dpsgd": "DPSGD",
    "dsfl": "DSFL",
    "dynafed": "DynaFed",
    "fedavg": "FedAvg",
    "fedavg_fine_tuned": "FedAvg",
    "feddf": "FedDF",
    "fedet": "FedET",
    "fedfomo": "FedFOMO",
    "fedgen": "FedGen",
    "fedopt": "FedOpt",
    "fedprox": "FedProx",
    "isolated": "Isolated",
    "local": "Local",
    "my1": "My1",
    "my2": "My2",
    "scaffold": "Scaffold",
    "subfedavg": "SubFedAvg",
}


def test_a_baseline_has_options_of_its_own_and_drops_those_that_it_lacks(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        method, dispfl = config["method"], overlaid[base, ""]["method"]["init_args"]
        options = method["init_args"]
        assert method["class_path"] == f"flgen.{METHODS[overlay]}", (base, overlay)
        sparse = METHODS[overlay] in ("DisPFL", "My1", "My2")
        assert options.get("sparsity") == (dispfl["sparsity"] if sparse else None), (base, overlay)
        if sparse or overlay == "dpsgd":
            assert options["topology"] == dispfl["topology"], (base, overlay)  # the same graphs
        elif overlay == "fedfomo":
            assert options["topology"]["class_path"] == "flgen.FullyConnected"
        else:
            assert options.get("topology") is None, (base, overlay)
        server = METHODS[overlay] in ("FedAvg", "FedProx", "Scaffold", "FedOpt", "Ditto", "SubFedAvg")
        server = server or METHODS[overlay] in ("FedDF", "DSFL", "FedET", "FedGen", "DynaFed")
        assert config["trainer"]["clients_per_round"] == (10 if server else None), (base, overlay)
    assert overlaid["dispfl_cifar10", "dispfl_gradient"]["method"]["init_args"]["search"] == "gradient"
    assert overlaid["dispfl_cifar10", "fedavg_fine_tuned"]["method"]["init_args"]["fine_tune"] == "annealed"
    assert overlaid["dispfl_cifar10", "fedavg"]["method"]["init_args"]["keep_personal"] is True


def test_the_published_experiments_have_the_numbers_of_the_specification(overlaid: Any) -> None:
    for (base, overlay), config in overlaid.items():
        if overlay or base in ("dispfl_digits", "dispfl_cifar10_reduced"):
            continue
        options = config["method"]["init_args"]
        assert (config["seed_everything"], config["trainer"]["rounds"]) == (2022, 500), base
        assert (options["sparsity"]["density"], options["search"]) == (0.5, "random"), base
        assert options["sparsity"]["initial_masks"] == "independent", base
        assert (config["model"]["init_args"]["learning_rate"], config["model"]["init_args"]["weight_decay"]) == (
            0.1,
            0.0005,
        )
        if base != "dispfl_cifar10":
            assert config["partition"]["init_args"]["clients"] == 100, base
            assert options["topology"]["init_args"]["degree"] == 10, base


@pytest.mark.parametrize(
    ("data", "size"), [("CIFAR10", 32), ("CIFAR100", 32), ("TinyImageNet", 64), ("ImageFolder", 32)]
)
def test_another_data_set_has_its_own_image_size_not_that_of_the_default_one(data, size) -> None:
    from flgen.commands.sections import federated_sections, parse_command

    configuration = parse_command(
        "fit", "", ["--method", "FedAvg", "--model", "SmallCNN", "--data", data], federated_sections()
    )
    assert configuration.resolved()["data"]["init_args"]["image_size"] == size
