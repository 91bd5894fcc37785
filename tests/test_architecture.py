"""The floors of the package: imports go downwards only, never in a circle, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flgen

PACKAGE = Path(flgen.__file__).parent

FLOORS = {
    "flgen.errors": 0,
    "flgen.deferred": 0,
    "flgen.wire": 1,
    "flgen.data": 1,
    "flgen.metrics": 1,
    "flgen.experiment": 1,
    "flgen.topology": 2,
    "flgen.privacy": 2,
    "flgen.masks": 2,
    "flgen.synthesis": 2,
    "flgen.federation": 2,
    "flgen.models": 3,
    "flgen.callbacks": 3,
    "flgen.figures": 3,
    "flgen.methods": 4,
    "flgen.trainer": 5,
    "flgen.fit_loop": 5,
    "flgen.job": 5,
    "flgen.measurement": 5,
    "flgen.client_turns": 5,
    "flgen.peer_round": 5,
    "flgen.star_round": 5,
    "flgen.server_trainer": 5,
    "flgen.server_loop": 5,
    "flgen.commands": 6,
    "flgen.cli": 6,
    "flgen": 6,  # the package itself gathers the names that users import
}

HEAVY = ("torch", "torchvision", "lightning", "torchmetrics", "torch_fidelity", "sklearn", "scipy", "matplotlib")
HEAVY += ("webdataset", "wandb", "tensorboard", "PIL", "pandas")


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("flgen", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, bool]]:
    """Yield the modules of the package that one imports at run time, and whether at the top of its file."""
    tree = ast.parse(MODULES[name].read_text())
    yield from _imports_of(tree.body, name, at_top=True)


def _imports_of(nodes: list[ast.stmt] | list[ast.AST], name: str, *, at_top: bool) -> Iterator[tuple[str, bool]]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imports_of(node.orelse, name, at_top=at_top)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names if alias.name.split(".")[0] == "flgen")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written in full"
            if node.module is not None and node.module.split(".")[0] == "flgen":
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    yield (submodule if submodule in MODULES else node.module), at_top
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "deferred_module":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), f"{name}: deferred_module is given a name"
            if str(argument.value).split(".")[0] == "flgen":
                yield str(argument.value), False
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _imports_of(list(ast.iter_child_nodes(node)), name, at_top=at_top and not inside)


def floor_of(name: str) -> int:
    parts = name.split(".")
    key = ".".join(parts[:2])
    assert key in FLOORS, f"{name} is on no floor: give {key} one"
    return FLOORS[key]


def test_the_walk_finds_imports_of_every_kind() -> None:
    # A law is worth what its check sees: these are known to be there.
    assert ("flgen.errors", True) in set(imported("flgen.federation.launch"))
    assert ("flgen.wire.codecs", False) in set(imported("flgen.topology.star"))
    assert ("flgen.trainer", False) in set(imported("flgen.commands.sections"))
    assert "flgen.trainer" not in {target for target, _ in imported("flgen.callbacks.base")}
    assert len(MODULES) > 50


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downwards_only(name: str) -> None:
    upwards = [target for target, _ in imported(name) if floor_of(target) > floor_of(name)]
    assert upwards == []


@pytest.mark.parametrize("name", MODULES)
def test_what_is_imported_exists(name: str) -> None:
    assert [target for target, _ in imported(name) if target not in MODULES] == []


def test_no_circle() -> None:
    """Importing a module runs its packages' `__init__` too; a circle through one of those counts."""
    needs = {name: {target for target, at_top in imported(name) if at_top and target != name} for name in MODULES}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for target in sorted(needs[name]):
                visit(target, (*path, name))
            finished.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_circle_even_through_deferred_and_local_imports() -> None:
    """Packages on one floor may use each other, but not both ways."""
    uses: dict[str, set[str]] = {}
    for name in MODULES:
        package = ".".join(name.split(".")[:2])
        for target, _ in imported(name):
            other = ".".join(target.split(".")[:2])
            if "flgen" not in (package, other) and other != package:
                uses.setdefault(package, set()).add(other)
    finished: set[str] = set()

    def visit(package: str, path: tuple[str, ...]) -> None:
        assert package not in path, " -> ".join((*path[path.index(package) :], package))
        if package not in finished:
            for other in sorted(uses.get(package, ())):
                visit(other, (*path, package))
            finished.add(package)

    for package in list(uses):
        visit(package, ())


@pytest.mark.parametrize("name", MODULES)
def test_type_checking_imports_come_from_deferred_where_the_parser_looks(name: str) -> None:
    # The parser runs the type-checking imports of a module that takes the name from typing.
    tree = ast.parse(MODULES[name].read_text())
    from_typing = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "typing"
        for alias in node.names
    ]
    assert name == "flgen.deferred" or "TYPE_CHECKING" not in from_typing


def loaded_after(code: str) -> set[str]:
    """Return the top-level names of all modules that a fresh interpreter has loaded after running some code."""
    tail = "\nimport sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import flgen",
        "import flgen.cli",
        "from flgen.cli import main; main(['--help'])",
        *(
            f"from flgen.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
            for arguments in (
                ["fit", "--help"],
                ["evaluate", "--help"],
                ["sample", "--help"],
                ["partition", "--help"],
                ["labels", "--help"],
                ["privacy", "--help"],
                ["fit", "--model.help=ResnetGenerator"],
                ["fit", "--model=ResnetGenerator", "--method=Prism", "--print_config"],
            )
        ),
    ],
)
def test_the_command_line_starts_without_heavy_packages(code: str) -> None:
    assert loaded_after(code).isdisjoint(HEAVY)


def test_a_mistake_is_found_without_heavy_packages() -> None:
    code = "from flgen.cli import main; assert main(['fit', '--trainer.rouns=3']) == 2"
    assert loaded_after(code).isdisjoint(HEAVY)
