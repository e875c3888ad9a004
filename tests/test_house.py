"""The house: imports run one way, no floor too many, every module has a test that is found from its name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "gmem", "storage")
FLOORS = 8
COVERED = dict(
    line.split(": ", 1)
    for line in (Path(__file__).parent / "covered_elsewhere.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
"""Module -> the test file that covers it, where that is not its mirror."""


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = modules()


def _statements(node: ast.AST, deferred: bool) -> Iterator[ast.ImportFrom | ast.Import]:
    """Imports that run; with `deferred` also those in functions, but never those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom | ast.Import):
            yield child
        if deferred or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, deferred)


def imports(name: str, deferred: bool) -> set[str]:
    """Modules of the project that a module imports."""
    named: set[str] = set()
    for statement in _statements(ast.parse(MODULES[name].read_text()), deferred):
        if isinstance(statement, ast.Import):
            named |= {alias.name for alias in statement.names}
        elif statement.module:
            below = {f"{statement.module}.{alias.name}" for alias in statement.names}
            named |= {each if each in MODULES else statement.module for each in below}
    return {each for each in named if each in MODULES} - {name}


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """1 for what imports nothing, else one more than the highest that is imported; fails on a circle."""
    known: dict[str, int] = {}

    def floor(name: str, below: tuple[str, ...]) -> int:
        assert name not in below, "a circle: " + " -> ".join((*below[below.index(name) :], name))
        if name not in known:
            known[name] = 1 + max((floor(each, (*below, name)) for each in graph.get(name, ())), default=0)
        return known[name]

    for name in graph:
        floor(name, ())
    return known


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def rooms_of_flows(deferred: bool) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        if name.startswith("flows."):
            others = {room(each) for each in imports(name, deferred) if each.startswith("flows.")}
            graph.setdefault(room(name), set()).update(others - {room(name)})
    return graph


def test_no_module_imports_itself_by_a_detour() -> None:
    assert floors({name: imports(name, deferred=False) for name in MODULES})


def test_flows_has_few_floors() -> None:
    by_room = floors(rooms_of_flows(deferred=False))
    assert max(by_room.values()) <= FLOORS, by_room


def test_no_room_imports_back_up_even_inside_a_function() -> None:
    assert floors(rooms_of_flows(deferred=True))


@pytest.mark.parametrize(("package", "others"), [("gmem", {"flows", "storage"}), ("storage", {"flows", "gmem"})])
def test_science_and_storage_know_nobody(package: str, others: set[str]) -> None:
    for name in MODULES:
        if name.partition(".")[0] == package:
            assert not {each.partition(".")[0] for each in imports(name, deferred=True)} & others, name


def mirror(name: str) -> Path:
    path = MODULES[name].relative_to(ROOT)
    path = path.parent.with_suffix(".py") if path.name == "__init__.py" else path
    return ROOT / "tests" / path.parent / f"test_{path.name}"


def test_every_module_has_its_test() -> None:
    empty = {name for name, path in MODULES.items() if path.name == "__init__.py" and path.stat().st_size < 300}
    alone = {name for name in MODULES if name not in empty and not mirror(name).exists()}
    assert alone - COVERED.keys() == set(), "write its mirror, or name the test that covers it"
    assert COVERED.keys() - alone == set(), "these have a mirror, or are gone"
    assert [test for test in COVERED.values() if not (ROOT / "tests" / test).exists()] == []


HEAVY = ("torch", "ray", "prefect", "mlflow", "lance", "lancedb", "timm", "diffusers", "pandas")
LIGHT = {
    "flows.cli": (),
    "flows.recipe.files": (),
    "gmem.settings": (),
    "flows.stages.chain": (),
    "storage.checkpoints": (),
    "storage.retention.inventory": ("lance",),
    "storage.tracking.tracking": (),
    "storage.tables.bank": ("lance", "lancedb", "pandas"),
}
"""Module that answers people's questions -> what it may bring along."""


@pytest.mark.parametrize("name", LIGHT)
def test_what_answers_questions_imports_little(name: str) -> None:
    code = f"import sys, {name}; print(*({HEAVY!r} & sys.modules.keys()))".replace(repr(HEAVY), repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(LIGHT[name])


NODES_A_LINE = 11
"""Of syntax, in the mean of a package: more is read slowly (torchtitan and Dagster have 7 to 9)."""


def code_lines(source: str) -> int:
    """Lines without blank ones, comments and docstrings."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, described) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for at, line in lines if at not in told)


@pytest.mark.parametrize("package", PACKAGES)
def test_lines_are_not_packed(package: str) -> None:
    sources = [path.read_text() for name, path in MODULES.items() if name.partition(".")[0] == package]
    nodes = sum(1 for source in sources for _ in ast.walk(ast.parse(source)))
    assert nodes / sum(map(code_lines, sources)) < NODES_A_LINE
