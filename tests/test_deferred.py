"""Names before their import: a class can be listed and inspected without torch, and its instances are Lightning's."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from forked_commands import run_forked

from flgen.data import Digits
from flgen.deferred import LightningDataModule, LightningModule, deferred_module


class Net(LightningModule):
    """A module of the package, as its files write them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WideNet(Net):
    """A subclass of it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)


class Numbers(LightningDataModule):
    """A data module of the package."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.count = count


class Users(lightning.LightningModule):
    """A user's module, which knows nothing of deferral."""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_module_is_imported_when_one_of_its_names_is_used() -> None:
    printed = python(
        "import sys; from flgen.deferred import deferred_module; json = deferred_module('xml.dom.minidom');"
        "before = 'xml.dom.minidom' in sys.modules; json.parseString;"
        "print(before, 'xml.dom.minidom' in sys.modules)"
    )
    assert printed == "False True"


def test_a_deferred_module_has_the_names_of_the_real_one() -> None:
    stand_in = deferred_module("torch")
    assert stand_in.Tensor is torch.Tensor
    with pytest.raises(AttributeError, match="no_such_name"):
        stand_in.no_such_name  # noqa: B018


def test_looking_at_a_deferred_module_imports_nothing() -> None:
    with pytest.raises(AttributeError):
        deferred_module("no.such.module").__wrapped__  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        deferred_module("no.such.module").anything  # noqa: B018


def test_a_class_is_inspected_without_lightning() -> None:
    printed = python(
        "import sys, inspect\n"
        "from flgen.deferred import LightningModule\n"
        "class Net(LightningModule):\n"
        "    def __init__(self, width: int = 4) -> None: pass\n"
        "print(inspect.signature(Net.__init__), issubclass(Net, LightningModule), Net.__subclasses__(),"
        " 'torch' in sys.modules, 'lightning' in sys.modules)"
    )
    assert printed == "(self, width: int = 4) -> None True [] False False"


def test_instances_are_ordinary_lightning_objects() -> None:
    net, numbers = Net(), Numbers(5)
    for kind in (Net, LightningModule, lightning.LightningModule, torch.nn.Module):
        assert isinstance(net, kind)
    for kind in (Numbers, LightningDataModule, lightning.LightningDataModule):
        assert isinstance(numbers, kind)
    assert not isinstance(net, LightningDataModule)
    assert numbers.count == 5
    assert sum(parameter.numel() for parameter in net.parameters()) == 4 * 4 + 4
    assert isinstance(net.configure_optimizers(), torch.optim.SGD)
    assert net.to(torch.float64).layer.weight.dtype == torch.float64


def test_the_class_of_an_instance_has_the_name_of_its_file() -> None:
    kind = type(Net())
    assert (kind.__name__, kind.__module__, kind.__doc__) == ("Net", __name__, Net.__doc__)
    assert type(Net()) is kind


def test_a_class_that_has_instances_still_has_the_subclasses_that_it_was_written_with() -> None:
    # The parser finds a class by its short name among subclasses: one name, one class.
    Net(), WideNet()
    assert Net.__subclasses__() == [WideNet]
    assert WideNet.__subclasses__() == []


def test_subclasses_keep_to_their_own_constructor() -> None:
    wide = WideNet()
    assert wide.layer.in_features == 16
    assert isinstance(wide, Net)
    assert isinstance(wide, lightning.LightningModule)
    assert not isinstance(Net(), WideNet)
    assert inspect.signature(WideNet.__init__).parameters["width"].default == 16


def test_a_users_module_counts_as_one_of_ours() -> None:
    assert isinstance(Users(), LightningModule)
    assert issubclass(Users, LightningModule)
    assert not issubclass(Users, LightningDataModule)
    assert not issubclass(torch.nn.Module, LightningModule)
    assert not isinstance(3, LightningModule)
    assert not isinstance(Users(), Net)


def test_instances_can_be_copied() -> None:
    net = Net()
    twin = copy.deepcopy(net)
    assert torch.equal(twin.layer.weight, net.layer.weight)
    assert twin.layer.weight is not net.layer.weight
    assert isinstance(twin, Net)


def test_instances_and_classes_can_be_pickled() -> None:
    net = Net()
    twin = pickle.loads(pickle.dumps(net))
    assert type(twin) is type(net)
    assert torch.equal(twin.layer.weight, net.layer.weight)
    for kind in (Net, type(net), WideNet, Users):
        assert pickle.loads(pickle.dumps(kind)) is kind


def test_a_process_without_an_instance_can_read_one(tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(pickle.dumps(Digits(part="public")))
    (tmp_path / "read.py").write_text(
        "import pathlib, pickle; print(pickle.loads(pathlib.Path('digits').read_bytes()).part)"
    )
    done = run_forked(["read.py"], tmp_path)  # from a process that has made none
    assert done.stdout.strip() == "public", done.stderr
