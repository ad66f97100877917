"""What is written aside: what killed writers left, while other processes tidy up, too; files and folders that get their name when whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_shards.atomic import aside_of, remove_temporary_files, written_aside


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


def test_what_is_written_aside_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Two writers of one name do not meet."""
    path = tmp_path / "new" / "a.pt"
    with written_aside(path) as one, written_aside(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert not path.exists()
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]  # the outer block ended last
    with written_aside(tmp_path / "folder") as aside:
        aside.mkdir()
        (aside / "part").write_text("x")
    assert (tmp_path / "folder" / "part").read_text() == "x"


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_fails_leaves_nothing_and_the_old_file_as_it_was(tmp_path: Path, as_folder: bool) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "a") as aside:
        if as_folder:
            aside.mkdir()
        (aside / "part" if as_folder else aside).write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), written_aside(tmp_path / "b"):
        raise ZeroDivisionError  # before anything was written
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and (tmp_path / "a").read_text() == "old"


def test_what_a_killed_writer_left_is_tidied_up_file_or_folder(tmp_path: Path) -> None:
    file, folder = aside_of(tmp_path / "a.pt"), aside_of(tmp_path / "model")
    file.write_text("half")
    folder.mkdir()
    (folder / "part").write_text("half")
    (tmp_path / "kept").write_text("whole")
    assert set(remove_temporary_files(tmp_path)) == {file, folder}
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_a_file_system_that_refuses_is_one_sentence_with_the_final_name(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"/a\.pt: cannot be written \(No space left on device\); free space"),
        written_aside(tmp_path / "a.pt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/a\.pt: cannot be written"), written_aside(tmp_path / "file" / "a.pt"):
        raise AssertionError("there is no folder to write in")
