"""Configurations from somebody else: classes where an option takes them and nothing more, or one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import TIMES, altered, bomb_that_works, damaged, outcome, refusal, tried
from hypothesis import given

from flgen.commands.pipeline import OUTPUTS
from flgen.commands.sections import federated_sections, parse_command, with_run_config
from flgen.experiment.config import Configuration
from flgen.experiment.stages import read_stages

BASE: dict[str, Any] = {
    "trainer": {"rounds": 2, "accelerator": "cpu", "callbacks": [{"class_path": "RoundProgress", "init_args": {}}]},
    "model": {"class_path": "SmallCNN", "init_args": {"width": 4}},
    "method": {"class_path": "DisPFL", "init_args": {"topology": {"class_path": "Ring", "init_args": {}}}},
    "data": {"class_path": "Digits", "init_args": {}},
    "loggers": [],
    "run_dir": "runs/x",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a configuration, in the folder that one works in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "x.yaml"


def parsed(path: Path) -> Configuration:
    return parse_command("fit", "", ["--config", str(path)], federated_sections())


def built(path: Path) -> Any:
    return parsed(path).build()


def written(path: Path, changes: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def calls(command: str) -> list[dict[str, Any]]:
    """Ways to have a command run, by classes and functions of Python's own library and of others."""
    return [
        {"class_path": "os.system", "init_args": {"command": command}},
        {"class_path": "posix.system", "init_args": {"command": command}},
        {"class_path": "subprocess.Popen", "init_args": {"args": command, "shell": True}},
        {"class_path": "subprocess.run", "init_args": {"args": command, "shell": True}},
        {"class_path": "flgen.cli.os.system", "init_args": {"command": command}},
        {"class_path": "flgen.commands.child_process.subprocess.Popen", "init_args": {"args": command, "shell": True}},
        {"class_path": "torch.os.system", "init_args": {"command": command}},
        {"class_path": "builtins.eval", "init_args": {"source": f"__import__('os').system({command!r})"}},
        {"class_path": "functools.partial", "init_args": {"func": "os.system"}},
        {"class_path": "jsonargparse.set_parsing_settings", "init_args": {"import_path_allowlist": ["os"]}},
        {"class_path": "flgen.commands.child_process.run_flgen", "init_args": {"arguments": ["--version"]}},
    ]


PLACES = {
    "method": lambda call: {"method": call},
    "model": lambda call: {"model": call},
    "data": lambda call: {"data": call},
    "partition": lambda call: {"partition": call},
    "a list of models": lambda call: {"model": [BASE["model"], call]},
    "loggers": lambda call: {"loggers": [call]},
    "callbacks": lambda call: {"trainer": {**BASE["trainer"], "callbacks": [call]}},
    "a topology": lambda call: {"method": {"class_path": "DisPFL", "init_args": {"topology": call}}},
    "any value": lambda call: {
        "method": {
            "class_path": "DisPFL",
            "init_args": {"topology": {"class_path": "FixedGraph", "init_args": {"graph": call}}},
        }
    },
    "a list in any value": lambda call: {
        "method": {
            "class_path": "DisPFL",
            "init_args": {"topology": {"class_path": "FixedGraph", "init_args": {"graph": {"a": [call]}}}},
        }
    },
    "a loss": lambda call: {"model": {"class_path": "ResnetGenerator", "init_args": {"loss": call}}},
    "a number": lambda call: {"trainer": {"rounds": call}},
    "an unknown option": lambda call: {"model": {"class_path": "SmallCNN", "init_args": {"width": 4, "x": call}}},
    "dict_kwargs": lambda call: {"model": {"class_path": "SmallCNN", "dict_kwargs": {"x": call}}},
    "the name of a class": lambda call: {"model": call["class_path"]},
}


@pytest.mark.parametrize("place", PLACES)
def test_no_function_and_no_class_of_another_kind_is_called(place: str, file: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for call in calls(f"touch '{canary}'"):
        outcome(lambda call=call: built(written(file, PLACES[place](call))))
        assert not canary.exists(), call


def test_a_function_that_returns_what_is_wanted_is_no_class(file: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "somebodys.py").write_text(
        "from flgen.models import SmallCNN\n\n\ndef make() -> SmallCNN:\n"
        f"    open({str(canary)!r}, 'w').close()\n    return SmallCNN()\n"
    )
    sys.path.append("")
    try:
        said = refusal(lambda: built(written(file, {"model": "somebodys.make"})))
    finally:
        sys.path.remove("")
    assert said == "--model somebodys.make: this is no class; give one"
    assert not canary.exists()


@pytest.fixture
def unimported() -> Iterator[None]:
    """Modules of Python's own whose import does something."""
    names = ("this", "antigravity", "idlelib.idle")
    assert not sys.modules.keys() & set(names)
    yield
    assert not sys.modules.keys() & set(names)


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize("name", ["this.X", "antigravity.X", "idlelib.idle.X"])
def test_a_module_of_pythons_own_is_not_even_imported(name: str, file: Path) -> None:
    for place in PLACES:
        said = outcome(lambda place=place: parsed(written(file, PLACES[place]({"class_path": name}))))
        if place not in ("a list in any value", "a number", "an unknown option", "dict_kwargs"):
            assert name in str(said)
    for option in ("--model", "--method.topology", "--model.help", "--data.help"):
        outcome(lambda option=option: parse_command("fit", "", [option, name], federated_sections()))


def test_the_refusal_says_which_option_named_what(file: Path) -> None:
    said = refusal(lambda: parsed(written(file, {"model": {"class_path": "os.system"}})))
    assert said.startswith("--model os.system: this belongs to Python's own library")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_tags_of_yaml_make_nothing(tag: str, file: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    command = f"['touch {canary}']" if "name" not in tag else "''"
    for text in (f"model: {tag} {command}", f'model: "{tag} {command}"', f"data: {{class_path: {tag} {command}}}"):
        file.write_text(text + "\nmethod: FedAvg\n")
        refusal(lambda: built(file))
        assert not canary.exists()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "model: *a9\n",
        "model: '{" + LAUGHS.replace("\n", ",") + "z: *a9}'\n",
        "model: " + "[" * 100_000,
        "model: '" + "[" * 900 + "]" * 900 + "'\n",
        "model: &m {class_path: *m}\n",
        "seed_everything: " + "9" * 5000,
        "seed_everything: '" + "9" * 5000 + "'",
        "seed_everything: !!timestamp x",
        "model: !!binary x",
        "seed_everything: .nan",
        "seed_everything: 1e999",
        'model: "a\\0b"',
        'model: "a\\nb\\e[2J"',
        "? [a]\n: b",
        "1: 2",
        "model: {1: 2}",
        "model: {class_path: 5}",
        "model: {class_path: [SmallCNN]}",
        "model: {init_args: 5}",
        "trainer: 5",
        "trainer: {callbacks: {a: b}}",
        "config: x.yaml",
        "run_dir: [a]",
        "__path__: /etc/passwd",
        "model: {__path__: /etc/passwd, class_path: SmallCNN}",
        "",
        "\ufeff",
    ],
    ids=range(27),
)
def test_a_text_made_to_exhaust_or_to_confuse_is_one_line(text: str, file: Path) -> None:
    file.write_text(text if "method" in text else text + "\nmethod: FedAvg\n")
    outcome(lambda: parsed(file))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", bytes(range(256)), b"\x00" * 100, b"\xef\xbb\xbf"])
def test_what_is_no_text_is_one_line(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert str(file) in refusal(lambda: parsed(file))


def test_a_folder_is_one_line(file: Path) -> None:
    file.mkdir()
    assert str(file) in refusal(lambda: parsed(file))


def test_a_long_value_makes_no_long_line(file: Path) -> None:
    for changes in ({"model": "x" * 10**6}, {"trainer": {"rounds": "y" * 10**6}}, {"z" * 10**5: 1}):
        assert len(refusal(lambda changes=changes: parsed(written(file, changes)))) < 3000


@TIMES
def test_any_bytes_in_place_of_a_configuration(times: int, file: Path) -> None:
    @tried(25 * times)
    @given(damaged(yaml.safe_dump(BASE).encode()))
    def holds(content: bytes) -> None:
        file.write_bytes(content)
        found = outcome(lambda: parsed(file))
        assert not isinstance(found, Configuration) or isinstance(found.resolved(), dict)
        assert [path.name for path in file.parent.iterdir()] == ["x.yaml"]

    holds()


@TIMES
def test_any_values_in_a_configuration(times: int, file: Path) -> None:
    @tried(40 * times)
    @given(altered(BASE))
    def holds(changed: Any) -> None:
        file.write_text(yaml.safe_dump(changed))
        found = outcome(lambda: parsed(file))
        assert not isinstance(found, Configuration) or isinstance(found.resolved(), dict)
        assert [path.name for path in file.parent.iterdir()] == ["x.yaml"]

    holds()


@TIMES
def test_any_stages_of_a_pipeline(times: int, tmp_path: Path) -> None:
    stages = {
        "labels": {"command": "labels", "config": {"x": "y"}},
        "fit": {"command": "fit", "config": {"initial_weights": "${labels}"}, "configs": []},
    }

    @tried(60 * times)
    @given(altered(stages))
    def holds(changed: Any) -> None:
        if not isinstance(changed, dict) or not all(isinstance(name, str) for name in changed):
            return  # the parser of options takes no other
        found = outcome(lambda: read_stages(changed, 0, OUTPUTS))
        for stage in found.values() if isinstance(found, dict) else ():
            assert Path(stage.folder).name == stage.folder

    holds()


def test_a_chain_of_stages_has_an_end() -> None:
    stages = {f"s{n}": {"command": "fit", "config": {"x": f"${{s{n + 1}}}"}} for n in range(5000)}
    assert refusal(lambda: read_stages(stages, 0, OUTPUTS)).startswith("--stages has 5000 stages")


def test_the_configuration_of_a_run_says_nothing_about_the_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    arguments = ["--ckpt_path", str(run / "checkpoints" / "last")]
    for name, value in {"output": "/etc/x", "config": "y.yaml", "num": 3, "ticket": "x", "print_config": ""}.items():
        (run / "config.yaml").write_text(yaml.safe_dump({**BASE, name: value}))
        assert f"config.yaml has {name}, which no run writes into it" in refusal(lambda: with_run_config(arguments))
    (run / "config.yaml").write_text(yaml.safe_dump(BASE))
    assert with_run_config(arguments) == ["--config", str(run / "config.yaml"), *arguments]


def test_the_bomb_of_these_tests_works(tmp_path: Path) -> None:
    assert bomb_that_works(tmp_path / "canary")
