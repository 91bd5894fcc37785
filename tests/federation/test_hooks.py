"""Hooks are called as Fabric calls them, with what each of them takes."""

from __future__ import annotations

from typing import Any

from lightning.fabric import Fabric

from flgen.federation.hooks import HookingFabric


class Everything:
    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def on_step(self, **about: Any) -> None:
        self.said.append(about)


class StepOnly:
    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def on_step(self, step: int, unknown: str = "default") -> None:
        self.said.append((step, unknown))


class Nothing:
    on_step = None


class Positional:
    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def on_step(self, first: int, *, step: int) -> None:
        self.said.append((first, step))


def called(fabric_class: type[Fabric], kinds: list[type], *args: Any) -> list[Any]:
    said: list[Any] = []
    callbacks = [kind() if kind is Nothing else kind(said) for kind in kinds]
    fabric = fabric_class(accelerator="cpu", devices=1, callbacks=callbacks)
    for step in (1, 2):
        fabric.call("on_step", *args, step=step, client=5)
    fabric.call("on_something_else", step=1)
    return said


def test_every_callback_gets_what_it_takes_and_is_left_out_where_it_has_no_hook() -> None:
    said = called(HookingFabric, [Everything, Nothing, StepOnly])
    assert said == [{"step": 1, "client": 5}, (1, "default"), {"step": 2, "client": 5}, (2, "default")]


def test_calls_are_those_of_fabric_itself() -> None:
    assert called(HookingFabric, [Everything, StepOnly]) == called(Fabric, [Everything, StepOnly])
    assert called(HookingFabric, [Positional], 7) == called(Fabric, [Positional], 7) == [(7, 1), (7, 2)]
