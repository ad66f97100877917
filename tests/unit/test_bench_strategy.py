"""`mdpretrain bench strategy`: its table, its advice, what it says about failures, and one real run of two processes."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from training_runs import recipe, write_recipe

from data_shards.mix import plan
from data_shards.mixture import MixtureSource
from data_shards.recipe import Run
from mdpretrain.cli import main
from mdpretrain.planning.bench_strategy import Measured, reason, recommendation, table
from mdpretrain.planning.made_up_shards import SAMPLES, write_made_up_shards


def rows(**rates: float | str) -> list[Measured]:
    """Rows of given samples per second, or of a failure; memory falls with the stage."""
    memory = {"ddp": 4e9, "zero1": 3.9e9, "zero2": 2e9, "zero3": 1e9}
    return [
        Measured(name, failure=rate) if isinstance(rate, str) else Measured(name, 1 / rate, rate, memory[name])
        for name, rate in rates.items()
    ]


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (rows(ddp=10.0, zero1=8.0), "Use DDP: it is the fastest, 1.25 times ZeRO-1's rate."),
        (rows(ddp=9.7, zero1=8.0, zero2=10.0), "Use DDP: it is within 3.0 % of the fastest (ZeRO-2) and simpler to save and resume."),
        (rows(ddp=9.0, zero2=10.0), "Use ZeRO-2: it is the fastest, 1.11 times DDP's rate."),
        (rows(ddp="out of memory", zero3=2.0), "Use ZeRO-3: it is the only one that ran. Not measured: DDP."),
        (rows(ddp="out of memory", zero1="too", zero2=5.0, zero3=2.0), "Use ZeRO-2: it is the fastest, 2.50 times ZeRO-3's rate."),
    ],
)
def test_the_simplest_of_the_fastest_is_recommended_with_the_reason(measured, sentence):
    assert recommendation(measured).startswith(sentence)


def test_memory_that_another_strategy_saves_and_failures_are_said():
    text = recommendation(rows(ddp=10.0, zero2=8.0, zero3="RuntimeError: no"))
    assert "ZeRO-2 takes 50 % less memory, if it runs out." in text and text.endswith("Not measured: ZeRO-3.")
    assert "less memory" not in recommendation(rows(ddp=10.0, zero1=8.0))
    assert "No strategy ran" in recommendation(rows(ddp="x", zero1="y"))
    lines = table(rows(ddp=10.0, zero1="RuntimeError: no"))
    assert lines[1].split() == ["DDP", "0.1", "s", "10.00", "4", "GB"] and lines[2].split() == ["ZeRO-1", "-", "-", "-"]
    assert lines[3] == "ZeRO-1 failed: RuntimeError: no"


def test_the_first_error_of_a_log_is_its_reason():
    log = (
        "step 0/5\nTraceback (most recent call last):\n  File 'x', line 1\n[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \nValueError: later\n"
    )
    assert reason(log, 1) == "torch.OutOfMemoryError: CUDA out of memory. Tried"
    assert reason("ValueError: the batch\nKeyError: 3", 1) == "ValueError: the batch"
    assert reason("nothing to read", 3) == "ended with code 3" and "out of memory" in reason("Signal 9 (SIGKILL)", 1)


def test_made_up_shards_are_whole(tmp_path: pathlib.Path):
    write_made_up_shards(tmp_path / "made_up", 70, 90)
    whole = plan(Run((MixtureSource(str(tmp_path / "made_up")),), 4, 4, -1, 1, None), quiet=True)
    assert whole.sources[0].samples == SAMPLES
    assert main_lint(tmp_path / "made_up") == 0


def main_lint(folder: pathlib.Path) -> int:
    from data_shards.cli import main as shards_main

    return shards_main(["verify", str(folder)])


@pytest.mark.slow
def test_a_strategy_is_measured_and_another_recipes_failure_is_a_row(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]):
    """On made-up data, since the recipe's folders are not there; the second recipe's loss has no meaning for its network."""
    good = write_recipe(tmp_path / "good.yaml", recipe(tmp_path / "nowhere"))
    options = ["--devices", "2", "--steps", "2", "--images-per-device", "2", "--strategies", "ddp"]
    assert main(["bench", "strategy", good, *options, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capfd.readouterr()
    assert "made-up data, since the recipe's is not here" in printed.err and "Use DDP: it is the only one that ran." in printed.out
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["failure"] is None and figures["samples_per_s"] == pytest.approx(4 / figures["step_s"])
    assert 50e6 < figures["peak_bytes"] < 100e9

    content = yaml.safe_load(pathlib.Path(good).read_text())
    content["model"]["init_args"]["loss"]["init_args"]["terms"] = {"default": [{"name": "relative_l1"}]}
    bad = write_recipe(tmp_path / "bad.yaml", content)
    assert main(["bench", "strategy", bad, *options, "--devices", "1"]) == 1
    printed = capfd.readouterr()
    assert "DDP failed: ValueError: loss 'relative_l1' has no meaning" in printed.out and "No strategy ran" in printed.out


def test_mistakes_of_bench_are_sentences(capsys: pytest.CaptureFixture[str], repository: pathlib.Path):
    debug = str(repository / "recipes/debug/student_depthmap.yaml")
    for arguments, sentence in (
        (["stratgy", debug], "nothing called 'stratgy'"),
        (["strategy", debug, "--strategies", "ddp,zero4"], "--strategies zero4: there are ddp"),
        (["strategy", debug, "--devices", "0"], "--devices and --steps must be at least 1"),
        (["strategy", debug, "--set", "data.batchsize=1"], "batchsize"),
    ):
        assert main(["bench", *arguments]) == 2
        assert sentence in capsys.readouterr().err
