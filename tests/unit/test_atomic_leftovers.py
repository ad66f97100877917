"""What killed writers left, while other processes tidy up, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.atomic import remove_temporary_files


def test_a_leftover_that_another_process_removes_first_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, several workers that start together look at the same files."""
    old, gone = tmp_path / "a.tar.tmp-1-x", tmp_path / "b.tar.tmp-2-y"
    for path in (old, gone):
        path.write_bytes(b"")
    glob = Path.glob

    def then_gone(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        gone.unlink()
        return found

    monkeypatch.setattr(Path, "glob", then_gone)
    assert remove_temporary_files(tmp_path, older_than_s=-1.0) == [old]
    assert not old.exists()
