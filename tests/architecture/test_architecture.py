"""The house keeps its shape: file length, empty __init__ files, directions between rooms, recipes and docs that point at real things."""

from __future__ import annotations

import ast
import configparser
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = sorted(p for package in ("mdpretrain", "data_shards", "launch", "benchmarks") for p in (ROOT / package).rglob("*.py"))
MAXIMUM_LINES = 400


def imported_modules(path: pathlib.Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file (lazy imports count as arrows too)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction; write the full name"
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def layers() -> list[set[str]]:
    """The layers contract of setup.cfg, top first; each entry is a set of sibling packages."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["importlinter:contract:layers"]["layers"].strip().splitlines()
    return [{name.strip() for name in line.split("|")} for line in lines]


def room_of(module: str, rooms: set[str]) -> str | None:
    return next((room for room in rooms if module == room or module.startswith(room + ".")), None)


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_files_are_one_idea_long() -> None:
    too_long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > MAXIMUM_LINES}
    assert not too_long, f"over {MAXIMUM_LINES} lines, so two ideas: {too_long}"


def test_init_files_are_empty() -> None:
    filled = [str(p.relative_to(ROOT)) for p in SOURCES if p.name == "__init__.py" and p.read_text().strip()]
    assert not filled


def test_no_file_is_named_utils() -> None:
    assert not [p for p in SOURCES if p.stem in ("utils", "util", "helpers", "misc")]


def test_imports_only_point_down_the_house() -> None:
    order = layers()
    rooms = set().union(*order)
    rank = {room: index for index, siblings in enumerate(order) for room in siblings}
    wrong = []
    for path in SOURCES:
        here = room_of(module_name(path), rooms)
        if here is None:
            continue
        for target in imported_modules(path):
            there = room_of(target, rooms)
            if there is not None and there != here and rank[there] <= rank[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, wrong


def test_shards_need_no_gpu_stack() -> None:
    heavy = ("torch", "lightning", "timm", "mdpretrain")
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "data_shards")
        for target in imported_modules(path)
        if target.split(".")[0] in heavy
    ]
    assert not wrong, wrong


def test_network_families_do_not_import_each_other() -> None:
    folder = ROOT / "mdpretrain" / "networks"
    families = {f"mdpretrain.networks.{name}" for name in ("any_depth", "metric_anything", "point_map")}
    for family in families:
        path = folder / (family.rsplit(".", 1)[1] + ".py")
        assert not imported_modules(path) & (families - {family}), f"{path.name} imports another family"


LINTER = shutil.which("lint-imports", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(LINTER is None, reason="import-linter is not installed; the test above holds the same contract")
def test_import_linter_agrees() -> None:
    result = subprocess.run([LINTER, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
