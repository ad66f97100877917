"""The benchmark's command runs on a small size, and its checks can fail."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("scale_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its processes find what they run by this name
    spec.loader.exec_module(module)
    return module


def test_exactness_is_checked_on_every_layout(benchmark, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESUME_STEP", 300)
    size = benchmark.Size(samples=6000, shards=30, sources=4, batch=48, workers=3)
    figures = benchmark.check(benchmark.make_folders(tmp_path, size), size, [4, 16])
    assert figures["4 ranks: samples per reader, least and most"] == "192 192"
    assert figures["16 ranks: positions of 48 steps, each by one reader"] == 48 * 48
    assert figures["samples in whole passes, each exactly once"] > 11_000


def test_an_order_that_is_not_exact_is_refused(benchmark, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESUME_STEP", 20)
    size = benchmark.Size(samples=2000, shards=10, sources=2, batch=8, workers=2)
    rows = benchmark.make_folders(tmp_path, size)
    honest = benchmark.GlobalOrder.run

    def shifted(self, first: int, count: int):
        sources, indices = honest(self, first, count)
        return sources, np.roll(indices, 1)

    monkeypatch.setattr(benchmark.GlobalOrder, "run", shifted)
    with pytest.raises(SystemExit, match=r"NOT EXACT: position \d+ drawn alone is another sample"):
        benchmark.check(rows, size, [2])
    monkeypatch.setattr(benchmark.GlobalOrder, "run", honest)
    own_part = benchmark.Share.positions
    monkeypatch.setattr(benchmark.Share, "positions", lambda self, step: own_part(dataclasses.replace(self, rank=0), step))
    with pytest.raises(SystemExit, match="2 ranks: a position is taken by no reader or by two"):
        benchmark.check(rows, size, [2])
