"""The project's rules, checked on the sources (docs/architecture.md)."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_overloads

import pytest

from lens_magic import api

PACKAGE = Path(__file__).parent.parent / "lens_magic"
MOST_LINES = 400

ALLOWED = {
    "mpi4py": ("ranks/",),
    "deepspeed": ("model/shard.py", "model/linear.py", "ranks/"),
    "triton": ("gpu/",),
    "IPython": ("magics.py", "steer_magics.py", "steer_panel.py", "showing.py", "view/", "kernel.py"),
    "ipykernel": ("kernel.py",),
    "ipywidgets": ("steer_panel.py", "view/"),
    "anywidget": ("view/",),
}

BASE = ("errors", "words", "paths", "options", "reading", "writing", "netcdf", "tables", "importing")
EDGES = {
    "base": "model*",
    "ranks": "base",
    "model": "base ranks gpu demo*",
    "steer": "base ranks model demo view*",
    "lens": "base ranks model gpu steer view*",
    "view": "base model steer lens",
}
"""What each folder imports; with a * in functions only. The modules of ``BASE`` are for all, gpu and demo import nothing."""


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if "demo/make" not in path.as_posix()]


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_where_it_belongs(package: str) -> None:
    for path in modules():
        place = path.relative_to(PACKAGE).as_posix()
        if package in {name.split(".")[0] for name in imported(path)}:
            assert place.startswith(ALLOWED[package]), f"{place} imports {package}"


def edges() -> dict[str, set[str]]:
    """For each folder, the folders, and modules beside them, that its files import; with a * if only within functions."""
    found: dict[str, dict[str, bool]] = {}  # whether it is imported at the top of a file
    for path in modules():
        inside = path.relative_to(PACKAGE).parent.parts
        here = _part((*inside, path.stem))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        later = {id(node) for made in ast.walk(tree) if isinstance(made, ast.FunctionDef) for node in ast.walk(made)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                module = (*inside[: len(inside) - node.level + 1], *filter(None, (node.module or "").split(".")))
                for there in {_part(module or (alias.name,)) for alias in node.names} - {here}:
                    at_top = found.setdefault(here, {})
                    at_top[there] = at_top.get(there, False) or id(node) not in later
    return {here: {there + "*" * (not at_top) for there, at_top in of.items()} for here, of in found.items()}


def _part(module: tuple[str, ...]) -> str:
    return "base" if module[0] in BASE else module[0]


def test_folders_import_only_what_they_stand_on() -> None:
    """Nothing below the session knows of it; kernels know of tensors alone; the lens stands above the model and steering."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {here: there for here, there in edges().items() if here in {*folders, "base"}} == {
        here: set(there.split()) for here, there in EDGES.items()
    }


def test_files_are_small() -> None:
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, f"{path.relative_to(PACKAGE)} has {lines} lines"


@pytest.mark.parametrize(
    "module", ["lens_magic", "lens_magic.magics", "lens_magic.steer_magics", "lens_magic.cli", "lens_magic.kernel"]
)
def test_nothing_heavy_is_imported_before_it_is_needed(module: str) -> None:
    code = (
        f"import sys, {module}; print(*[m for m in ('torch', 'transformers', 'deepspeed', 'mpi4py.MPI') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_there_is_one_place_where_activations_are_hooked() -> None:
    hooked = [p.relative_to(PACKAGE).as_posix() for p in modules() if "register_forward" in p.read_text(encoding="utf-8")]
    assert hooked == ["model/sites.py"]


def test_there_is_one_place_where_home_folders_are_written_out() -> None:
    """It refuses in one line what is no path."""
    used = [p.relative_to(PACKAGE).as_posix() for p in modules() if "expanduser" in p.read_text(encoding="utf-8")]
    assert used == ["paths.py"]


def test_public_names_are_there() -> None:
    import lens_magic as lens

    for name in lens.__all__:
        assert getattr(lens, name).__doc__, name


def test_no_module_hides_a_public_name() -> None:
    """Importing ``lens_magic.status`` would put a module where ``lens.status()`` is looked up."""
    import lens_magic as lens

    assert not {path.stem for path in PACKAGE.glob("*")} & set(lens.__all__)


@pytest.mark.parametrize(("name", "options"), [("run", api.RunOptions), ("generate", api.GenerationOptions)])
def test_one_prompt_gives_one_result_and_several_a_list(name: str, options: type) -> None:
    """The overloads that a type checker reads take what the function takes, each option of the same type."""
    function = getattr(api, name)
    taken = {option.name: option.annotation for option in inspect.signature(function).parameters.values()}
    by_name = {of: str(told.__forward_arg__) for of, told in options.__annotations__.items()}
    one, several = (inspect.signature(overload) for overload in get_overloads(function))
    for overload, prompt in ((one, "Prompt"), (several, "Sequence[Prompt]")):
        told = {option.name: option.annotation for option in overload.parameters.values()}
        assert told.pop("options") == f"Unpack[{options.__name__}]"
        assert {**told, **by_name} == {**taken, "prompt": prompt}
    assert several.return_annotation == f"list[{one.return_annotation}]"
