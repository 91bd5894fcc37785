"""Weights as a file between stages."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from flgen.errors import FlgenError, UsageError
from flgen.experiment.weights import load_weights, save_weights


def module(width: int = 3) -> torch.nn.Module:
    torch.manual_seed(width)
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


def test_what_is_written_is_read_again_buffers_included(tmp_path) -> None:
    written, path = module(), tmp_path / "final.safetensors"
    written(torch.randn(8, 2))  # moves the running statistics and the batch counter
    sha256 = save_weights(written, path, {"init": "random"})
    read = module()
    assert load_weights(read, path) == sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in written.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["final.safetensors"]


def test_the_header_says_where_weights_come_from(tmp_path) -> None:
    from safetensors import safe_open

    save_weights(module(), tmp_path / "w.safetensors", {"init": "random", "epochs": "3"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert json.loads(file.metadata()["flgen"]) == {"init": "random", "epochs": "3"}


def test_the_same_weights_make_the_same_file(tmp_path) -> None:
    facts = {"init": "random", "epochs": "3", "data": "digits", "samples": "real"}
    assert len({save_weights(module(), tmp_path / f"{n}.safetensors", facts) for n in range(5)}) == 1


def test_weights_of_another_model_are_refused_by_name_and_shape(tmp_path) -> None:
    save_weights(module(3), tmp_path / "w.safetensors", {})
    with pytest.raises(UsageError, match=r"is of another model: '0.bias' is \(3,\) in it and \(4,\) in Sequential"):
        load_weights(module(4), tmp_path / "w.safetensors")


def test_a_missing_file_says_what_writes_it(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"there is no such file; `flgen pretrain` writes final\.safetensors"):
        load_weights(module(), tmp_path / "w.safetensors")


def test_a_damaged_file_is_one_line(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(module(), path, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FlgenError, match=r"^--initial_weights \S+ cannot be read: [^\n]+$"):
        load_weights(module(), path)
