"""The code of a job, as it was when the job was submitted: a copy in the run folder, so that editing goes on while jobs wait."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

NEVER = (".venv", "__pycache__", ".git", "runs")


@dataclasses.dataclass(frozen=True)
class CodeVersion:
    """``name`` is the commit, with a hash of the content where it is not what was committed."""

    root: Path
    name: str
    dirty: bool


def code_version(root: Path, allow_dirty: bool) -> CodeVersion:
    """What would be copied from ``root``.

    Raises:
        ValueError: there are changes that are in no commit (or no git at all), and ``allow_dirty`` is not given.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        if not allow_dirty:
            raise ValueError(f"{root} is not a git checkout, so nobody could say later what ran; --allow-dirty copies it as it is")
        return CodeVersion(root, f"copy-{_content_hash(root)}", True)
    changed = (_git(root, "status", "--porcelain") or b"").decode().splitlines()
    short = commit.decode().strip()[:12]
    if not changed:
        return CodeVersion(root, short, False)
    if not allow_dirty:
        shown = ", ".join(line[3:] for line in changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(f"the working tree has changes that are in no commit ({shown}): commit them, or give --allow-dirty")
    return CodeVersion(root, f"{short}-dirty-{_content_hash(root)}", True)


def take_snapshot(version: CodeVersion, folder: Path) -> Path:
    """Copy the code into ``folder/NAME``; one that is there already is used again."""
    target = folder / version.name
    if target.is_dir():
        return target
    aside = folder / f"{version.name}.partial-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if version.dirty:
        for name in _files(version.root):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(version.root / name, aside / name)
    else:
        archive = _git(version.root, "archive", "--format=tar", "HEAD")
        assert archive is not None
        with tarfile.open(fileobj=io.BytesIO(archive)) as content:
            content.extractall(aside, filter="data")
    os.replace(aside, target)
    return target


def _files(root: Path) -> list[str]:
    """Files of a working tree, those that git ignores left out; relative, sorted."""
    listed = _git(root, "ls-files", "-co", "--exclude-standard", "-z")
    if listed is not None:
        return sorted(name for name in listed.decode().split("\0") if name and (root / name).is_file())
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not set(path.parts) & set(NEVER))


def _content_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for name in _files(root):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
