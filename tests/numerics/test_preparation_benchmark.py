"""The benchmark's command runs, and its brute force is the same alignment as the one it is measured against."""

import importlib.util
import pathlib

import pytest
import torch

from mdpretrain.prompts.alignment import local_knn_align
from mdpretrain.prompts.neighbours import nearest_points, prompt_points

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "prompt_preparation.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("prompt_preparation_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_brute_force_is_the_reference_of_what_is_measured(benchmark) -> None:
    prior, prompt = benchmark.make_inputs(1, 40, 50, 60, "cpu")
    expected = benchmark.brute_force(prior, prompt).view(1, 1, 40, 50)
    found = local_knn_align(prior, prompt, ridge=0.0, neighbour_margin=None, inverse_depth_range=(1e-9, 1e9))
    same = torch.isclose(found, expected, rtol=1e-2, atol=1e-3)
    assert same.float().mean() > 0.85  # the rest: ill-conditioned pixels, and which of equally near points is taken


def test_quick_prints_one_line_per_configuration(benchmark, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (benchmark.alignment, benchmark.neighbours):
        monkeypatch.setattr(module, "COMPILED", module.COMPILED)  # the command chooses between the ways; put back afterwards
    threads = torch.get_num_threads()
    assert benchmark.main(["--quick", "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:4]] == ["200", "100"]
    assert all(float(cell) >= 0 for row in rows[2:4] for cell in row[2:])
    algorithms = {row[0]: row for row in rows[6:]}
    assert list(algorithms) == list(benchmark.ALGORITHMS)
    assert all(float(cell) >= 0 for row in algorithms.values() for cell in row[3:6])
    assert all(row[6] == "0.000%" for name, row in algorithms.items() if name != "jump flooding")


def test_every_algorithm_finds_the_same_neighbours(benchmark) -> None:
    points = prompt_points(benchmark.make_inputs(1, 40, 48, 60, "cpu")[1])
    exact = nearest_points(points, 5)
    for name, search in benchmark.SEARCHES.items():
        found = search(points)
        same = (found.squared_distance == exact.squared_distance).all(dim=1).float().mean()
        assert same == 1 or (name == "jump flooding" and same > 0.9), name
        width = points.size[1]
        pixel, own = points.pixel[0][found.point[0]], torch.arange(40 * width)
        squared = (pixel // width - own // width).square() + (pixel % width - own % width).square()
        assert torch.equal(squared[found.valid[0]], found.squared_distance[0][found.valid[0]].long()), name
        assert (found.point[0].sort(dim=0).values.diff(dim=0) > 0).all(), name
