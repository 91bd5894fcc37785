"""`flgen generator`: what it refuses before it trains; that it trains is shown by the whole of GPT-FL."""

from __future__ import annotations

from pathlib import Path

import pytest

from flgen.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=0"], "--steps is 0: give 1 or more"),
        (["--output=there"], "--output there exists already: give another name, or remove it"),
        (["--data=SpokenDigits"], "--data SpokenDigits holds recordings: the pipeline draws images"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(["generator", *arguments]) == 2
    assert capsys.readouterr().err == f"flgen: error: {message}\n"
    assert [path.name for path in Path().iterdir()] == ["there"]
