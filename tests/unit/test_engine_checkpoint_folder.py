"""A half-written checkpoint is never the newest, and a CSV log survives kill and resume."""

from __future__ import annotations

import pathlib

import pytest

from mdpretrain.engine.callbacks import duration
from mdpretrain.engine.checkpoint_folder import clear_partial, prune, publish
from mdpretrain.engine.csv_log import CsvLog
from mdpretrain.networks.checkpoint_files import checkpoint_name, find_checkpoint, load_checkpoint, newest_checkpoint


def _write(folder: pathlib.Path, step: int, as_folder: bool) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (checkpoint_name(step) + ".partial")
    if as_folder:
        (partial / "checkpoint").mkdir(parents=True)
        (partial / "checkpoint" / "rank_0.pt").write_text(str(step))
    else:
        partial.write_text(str(step))
    return partial


@pytest.mark.parametrize("as_folder", [False, True])
def test_newest_is_the_newest_whole_one(tmp_path: pathlib.Path, as_folder: bool) -> None:
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 100, 20):
        publish(_write(folder, step, as_folder))
    _write(folder, 300, as_folder)  # its process died before the rename
    assert newest_checkpoint(tmp_path) == folder / "step_00000100.ckpt" == newest_checkpoint(folder) == find_checkpoint(tmp_path)
    assert (folder / "latest").read_text() == "step_00000020.ckpt\n"
    prune(folder, keep=2)
    clear_partial(folder)
    kept = [f"step_{step:08d}.{ending}" for step in (20, 100) for ending in ("ckpt", "manifest.json")]
    assert sorted(p.name for p in folder.iterdir()) == ["latest", *kept]


def test_publishing_a_step_again_replaces_it(tmp_path: pathlib.Path) -> None:
    for as_folder in (True, True):
        publish(_write(tmp_path, 1, as_folder))
    assert (tmp_path / "step_00000001.ckpt" / "checkpoint" / "rank_0.pt").read_text() == "1"


def test_errors_name_the_checkpoint(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        find_checkpoint(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no finished checkpoint"):
        find_checkpoint(tmp_path)
    damaged = tmp_path / "step_00000001.ckpt"
    damaged.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"step_00000001\.ckpt cannot be read"):
        load_checkpoint(tmp_path)
    damaged.unlink()
    (damaged / "checkpoint").mkdir(parents=True)
    with pytest.raises(ValueError, match="mdpretrain consolidate"):
        load_checkpoint(damaged)


def test_csv_log_continues_and_replaces_what_is_repeated(tmp_path: pathlib.Path) -> None:
    log = CsvLog(tmp_path)
    for step in range(4):
        log.log_metrics({"loss": 0.1 + step}, step)
        if step == 2:
            log.log_metrics({"val": 7.0}, step)
    log.save()
    with log.path.open("a") as file:
        file.write("4,0.")  # the line on which its process was killed
    resumed = CsvLog(tmp_path)
    resumed.log_metrics({"loss": 9.0}, 3)
    resumed.save()
    assert resumed.path.read_text().splitlines() == ["step,loss,val", "0,0.1,", "1,1.1,", "2,2.1,7.0", "3,9.0,"]
    owing = CsvLog(tmp_path)  # its checkpoint is of step 2, whose validation it repeats
    owing.log_metrics({"val": 8.0}, 2)
    owing.log_metrics({"loss": 5.0}, 3)
    owing.save()
    assert owing.path.read_text().splitlines() == ["step,loss,val", "0,0.1,", "1,1.1,", "2,2.1,8.0", "3,5.0,"]


def test_durations_read_like_clocks() -> None:
    assert [duration(s) for s in (0.0, 42.0, 725.0, 11400.0, -3.0)] == ["0:00", "0:42", "12:05", "3:10:00", "0:00"]
