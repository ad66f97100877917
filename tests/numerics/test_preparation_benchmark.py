"""The benchmark's command runs, and its brute force is the same alignment as the one it is measured against."""

import importlib.util
import pathlib

import pytest
import torch

from mdpretrain.prompts.alignment import local_knn_align

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


def test_quick_prints_one_line_per_configuration(benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert benchmark.main(["--quick", "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["200", "100"]
    assert all(float(cell) >= 0 for row in rows for cell in row[2:])
