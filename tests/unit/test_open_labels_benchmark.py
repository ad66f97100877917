"""benchmarks/open_labels.py at a small size: every process knows the row, and a group that fails is no figure."""

from __future__ import annotations

import pathlib
import runpy

import pytest

from mdpretrain.data.source_reader import SourceReader

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "open_labels.py"


def test_it_opens_the_row_in_groups_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["--samples", "2300", "--processes", "1", "3"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[1]) for row in rows] == [1, 3] and all(float(row[2]) > 0 for row in rows)


def test_its_row_is_what_it_says_and_a_damaged_one_is_no_figure(tmp_path: pathlib.Path) -> None:
    names = runpy.run_path(str(SCRIPT))
    row = names["make_row"](tmp_path, 1100)
    reader = SourceReader(row)
    assert (len(reader), reader.unlabelled) == (1045, 55) and len(reader.folder.shards) == 2
    index = tmp_path / "labels" / "shard-000001.index.json"
    index.write_bytes(index.read_bytes()[:-3])
    with pytest.raises(SystemExit, match="exit code 1"):
        names["opened_in"](row, 2, tmp_path)
