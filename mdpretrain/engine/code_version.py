"""Which code a run uses: the package's version and, in a checkout, the commit and whether files differ from it."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def code_version() -> dict[str, str | bool | None]:
    """``{"version", "commit", "changed"}``; the last two are None where the code is not in a checkout of its own."""
    try:
        version = importlib.metadata.version("mdpretrain")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    inside = _git("rev-parse", "--show-toplevel")
    if inside is None or pathlib.Path(inside).resolve() != _ROOT:
        return {"version": version, "commit": None, "changed": None}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"version": version, "commit": _git("rev-parse", "HEAD"), "changed": bool(changed)}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(_ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
