"""`flgen synthesize` as it is typed: real processes, stopped and killed, and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ForkedCommand, run_forked
from PIL import Image

from flgen.cli import main
from flgen.synthesis.sample_store import read_index, read_manifest, read_shard

Flgen = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ("--synthesizer=Procedural", "--synthesizer.size=8", "--data=Digits", "--trainer.accelerator=cpu")

SLOW = '''
import time

from flgen.synthesis.procedural import Procedural


class Slow(Procedural):
    """As slow as a real model."""

    def make_batch(self, requests):
        time.sleep(0.05)
        return super().make_batch(requests)
'''


def contents(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in folder.glob("shard-*.tar"):
        for sample in read_shard(shard):
            assert sample.id not in found
            found[sample.id] = sample.content
    assert sorted(found) == sorted(entry["id"] for entry in read_manifest(folder))
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ForkedCommand]]:
    """Start a synthesis that would take long, and wait until some samples are there."""
    (tmp_path / "slow.py").write_text(SLOW)
    started: list[ForkedCommand] = []

    def begin(*arguments: str) -> ForkedCommand:
        process = ForkedCommand(["synthesize", *SMALL, "--synthesizer=slow.Slow", *arguments], tmp_path)
        started.append(process)
        deadline = time.monotonic() + 90
        while not len(list((tmp_path / "set" / "partial").glob("*.tar"))) > 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no sample in 90 s"
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set made by one process in one go, from a file of prompts."""
    folder = tmp_path_factory.mktemp("whole")
    prompts = [{"label": str(n), "class_id": n, "prompt": f"{word} {n}"} for n in range(10) for word in ("the", "a")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    command = ["synthesize", *SMALL, "--prompts=prompts.jsonl", "--per_class=6"]
    options = ["--samples_per_shard=25", "--output=set", "--trainer.devices=1"]
    done = run_forked([*command, *options], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "60 samples of 10 classes: set\ncontact sheet: set/contact-sheet.png\n"
    return folder


def test_the_folder_has_shards_a_manifest_an_index_and_a_contact_sheet(whole: Path) -> None:
    folder = whole / "set"
    assert sorted(path.name for path in folder.glob("shard-*")) == [f"shard-000-{n:05d}.tar" for n in range(3)]
    with tarfile.open(folder / "shard-000-00000.tar") as tar:
        names = tar.getnames()
        facts = json.load(tar.extractfile("00003-0000000.json"))  # type: ignore[arg-type]
        label = tar.extractfile("00003-0000000.cls").read()  # type: ignore[union-attr]
    assert {name.partition(".")[2] for name in names} == {"png", "cls", "json"}
    assert (label, facts["label"], facts["class_id"]) == (b"3", "3", 3)
    assert facts["prompt"] in ("the 3", "a 3")
    assert {"seed", "guidance", "model", "provider", "revision", "sha256", "prompt_id", "height", "width"} <= set(facts)
    index = read_index(folder)
    assert index is not None
    assert (index["complete"], index["samples"], index["per_class"], index["modality"]) == (True, 60, 6, "image")
    assert len(index["key"]) == 64
    with Image.open(folder / "contact-sheet.png") as sheet:
        sheet.verify()
    assert (folder / "contact-sheet.png").stat().st_size < 200_000


def test_two_processes_make_the_same_set_and_a_second_command_makes_nothing(
    whole: Path,
    flgen: Flgen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["synthesize", *SMALL, f"--prompts={whole / 'prompts.jsonl'}", "--per_class=6", "--output=set"]
    done = flgen(*command, "--trainer.devices=2", "--samples_per_shard=7")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "set") == contents(whole / "set")
    assert {path.name[:9] for path in (tmp_path / "set").glob("shard-*")} == {"shard-000", "shard-001"}
    other = flgen(*command, "--seed_everything=5")
    assert other.returncode == 2
    assert (
        "has samples of other options (seed_everything 0, now 5); take them back, or give a new folder" in other.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_command_that_is_ended_half_way_goes_on(
    number: signal.Signals,
    start: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--output=set", "--samples_per_shard=8")
    process = start(*options, "--per_class=500", "--trainer.devices=2")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, stderr
        assert "of 5000 samples; the same command goes on" in stderr
        assert "Traceback" not in stderr
    there = {path.stem for path in (tmp_path / "set" / "partial").glob("*.tar")}
    assert there
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    again = ["synthesize", *SMALL, "--synthesizer=slow.Slow", "--per_class=4", "--trainer.devices=1"]
    assert main([*again, *options]) == 0
    assert "of 40 samples are there already" in capsys.readouterr().err
    found = contents(tmp_path / "set")
    assert {f"{c:05d}-{n:07d}" for c in range(10) for n in range(4)} <= set(found)
    assert main([*again, "--output=fresh"]) == 0
    assert contents(tmp_path / "fresh").items() <= found.items()


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_tones_have_a_contact_sheet_and_sentences_have_none(
    modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_modality = (f"--synthesizer.modality={modality}", "--trainer.devices=1")
    assert main(["synthesize", *SMALL, *of_modality, "--per_class=2", "--output=set"]) == 0
    assert (tmp_path / "set" / "contact-sheet.png").exists() == (modality == "audio")
    assert {entry["file"].rpartition(".")[2] for entry in read_manifest(tmp_path / "set")} == {
        {"audio": "wav", "text": "txt"}[modality]
    }


MISTAKES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no amount": ((), 2, "either --per_class N, or --amount R with --data CLASS"),
    "two amounts": (("--per_class=1", "--amount=1"), 2, "either --per_class N, or --amount R"),
    "amount of nothing": (("--amount=1", "--prompts=p.jsonl"), 2, "--amount counts the training samples of a data set"),
    "no classes": (("--per_class=1",), 2, "--data is missing: without --prompts give a data set"),
    "no prompts": (("--per_class=1", "--prompts=p.jsonl"), 1, "p.jsonl cannot be read"),
    "empty prompts": (("--per_class=1", "--prompts=/dev/null"), 2, "/dev/null has no prompts: write some with"),
    "no such option": (("--per_class=1", "--synthesizer.siz=3"), 2, "did you mean size?"),
    "no such class": (("--per_class=1", "--synthesizer=Prozedural"), 2, "did you mean Procedural?"),
    "no shards": (("--per_class=1", "--data=Digits", "--samples_per_shard=0"), 2, "--samples_per_shard is 0"),
    "no processes": (("--per_class=1", "--data=Digits", "--trainer.devices=0"), 2, "--trainer.devices is 0"),
    "no weights": (
        ("--per_class=1", "--data=Digits", "--synthesizer=DiffusionImages", "--synthesizer.checkpoint=./none"),
        1,
        "--synthesizer.checkpoint ./none: there is no such folder",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, status, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    generator = (
        () if any(argument.startswith("--synthesizer=") for argument in arguments) else ("--synthesizer=Procedural",)
    )
    assert main(["synthesize", *generator, *arguments]) == status
    stderr = capsys.readouterr().err
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_an_amount_is_counted_from_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", *SMALL, "--trainer.devices=1", "--amount=0.03", "--output=set"]) == 0
    # 1,438 training images of 10 classes: ceil(0.03 * 1438 / 10) = 5
    assert capsys.readouterr().out.startswith("50 samples of 10 classes: set\n")
