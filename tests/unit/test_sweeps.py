"""Sweep files, commands, figures, locks and curves, without training: ``start`` writes what a run would leave."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from training_runs import recipe

from launch.pipeline_file import fingerprints, load_pipeline
from mdpretrain.sweeps import running, runs
from mdpretrain.sweeps.command import sweep_command
from mdpretrain.sweeps.curve import draw, make_curve, record, table
from mdpretrain.sweeps.measure import Result, evaluated_value
from mdpretrain.sweeps.running import Outcome, locked, start_process
from mdpretrain.sweeps.runs import resolved, runs_of
from mdpretrain.sweeps.sweep_file import Measure, Point, Sweep, Vary, filled, load_sweep
from mdpretrain.training_cli import RecipeParser

STEPS = 5
Written = Callable[..., pathlib.Path]


@functools.lru_cache
def recipe_text(arguments: tuple[str, ...]) -> str:
    return RecipeParser(list(arguments)).recipe_text()


class RememberedParser:
    """The command line's parser, asked once for the same command: each call takes half a second, and these tests repeat themselves."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = tuple(arguments)

    def recipe_text(self) -> str:
        return recipe_text(self.arguments)


@pytest.fixture(autouse=True)
def _remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RecipeParser", RememberedParser)


@pytest.fixture
def sweep_file(tmp_path: pathlib.Path) -> Written:
    """Writes a sweep over ``data.fraction`` with these changes."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path, trainer={"max_steps": STEPS})))

    def write(**changes: Any) -> pathlib.Path:
        content = {
            "name": "made",
            "folder": str(tmp_path / "sweep"),
            "recipes": [str(tmp_path / "recipe.yaml")],
            "vary": {"x": "share", "values": [0.25, 0.5, 1.0], "settings": {"data.fraction": "{x}"}},
            "measure": {"figure": "val/loss"},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def leave_a_run(folder: pathlib.Path, value: float, step: int, config: str) -> None:
    """What ``mdpretrain fit`` leaves, as far as a sweep looks at it."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / f"step_{step:08d}.ckpt").write_bytes(b"")
    (folder / "csv").mkdir(exist_ok=True)
    (folder / "csv" / "metrics.csv").write_text(f"step,train/loss,val/loss\n0,9.0,{2 * value}\n1,8.0,\n{step - 1},7.0,{value!r}\n")
    (folder / "config.yaml").write_text(config)


class Pretended:
    """A ``start`` that leaves runs whose loss is a function of the fraction and the seed, and remembers what was asked for."""

    def __init__(self, fail_at: int | None = None, stop_at: int | None = None) -> None:
        self.asked: list[dict[str, str]] = []
        self.fail_at, self.stop_at = fail_at, stop_at

    def __call__(self, arguments: list[str], held: int) -> int:
        assert arguments[0] == "fit" and arguments[-1] == "--resume" and os.fstat(held)
        options = dict(zip(arguments[1:-1:2], arguments[2:-1:2]))
        self.asked.append(options)
        if len(self.asked) - 1 == self.fail_at:
            return 1
        text = recipe_text(tuple(arguments[:-1]))
        config = yaml.safe_load(text)
        value = 0.3 * config["data"]["fraction"] ** -0.5 + 0.1 + 0.001 * config["data"]["seed"]
        step = 2 if len(self.asked) - 1 == self.stop_at else STEPS
        leave_a_run(pathlib.Path(options["--run_dir"]), value, step, text)
        return 0


def test_runs_are_carried_out_once_and_the_curve_is_theirs(sweep_file: Written, tmp_path: pathlib.Path, capsys: Any) -> None:
    path = sweep_file(seeds=[0, 4], fit="power_law")
    start = Pretended()
    assert sweep_command([str(path)], start) == 0
    seeds = [(asked["--seed_everything"], asked["--data.seed"]) for asked in start.asked]
    assert seeds == [("0", "0")] * 3 + [("4", "4")] * 3
    assert [asked["--data.fraction"] for asked in start.asked] == ["0.25", "0.5", "1.0"] * 2
    curve = json.loads((tmp_path / "sweep/curve.json").read_text())
    assert [(p["x"], p["seed"], p["step"]) for p in curve["points"]] == [(x, seed, STEPS) for seed in (0, 4) for x in (0.25, 0.5, 1.0)]
    assert [p["y"] for p in curve["points"]] == pytest.approx([0.7, 0.3 * 2**0.5 + 0.1, 0.4, 0.704, 0.3 * 2**0.5 + 0.104, 0.404])
    assert (curve["missing"], curve["unfit"]) == ([], None)
    assert curve["fit"]["b"] == pytest.approx(0.5, abs=0.05) and curve["fit"]["intervals"]["b"][0] < 0.5 < curve["fit"]["intervals"]["b"][1]
    assert (tmp_path / "sweep/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "power law: y = " in capsys.readouterr().out
    before = (tmp_path / "sweep/curve.json").read_bytes()
    assert sweep_command([str(path)], start) == 0 and len(start.asked) == 6  # nothing again
    assert (tmp_path / "sweep/curve.json").read_bytes() == before
    # another figure of the same runs is measured without training
    assert sweep_command([str(sweep_file(seeds=[0, 4], measure={"figure": "val/loss", "at": "lowest"}))], start) == 0
    assert sweep_command([str(sweep_file(seeds=[0, 4], measure={"figure": "train/loss"}))], start) == 0 and len(start.asked) == 6
    assert {p["y"] for p in json.loads((tmp_path / "sweep/curve.json").read_text())["points"]} == {7.0}
    with pytest.raises(ValueError, match=r"measure\.figure: .*has no 'val/los'; it has train/loss, val/loss"):
        sweep_command([str(sweep_file(measure={"figure": "val/los"}))], start)


def test_a_failed_run_ends_the_sweep_and_the_same_command_goes_on(sweep_file: Written, capsys: Any) -> None:
    path, start = sweep_file(), Pretended(fail_at=1)
    with pytest.raises(ValueError, match=r"run 1 \(0\.5, seed 0\) ended with exit code 1"):
        sweep_command([str(path)], start)
    assert sweep_command([str(path)], start) == 0
    assert [asked["--data.fraction"] for asked in start.asked] == ["0.25", "0.5", "0.5", "1.0"]
    patient = Pretended(fail_at=0)
    capsys.readouterr()
    assert sweep_command([str(sweep_file(folder=str(path.parent / "other"))), "--keep-going"], patient) == 1
    assert len(patient.asked) == 3 and "missing: run 0 (0.25, seed 0): failed" in capsys.readouterr().out


def test_a_stopped_run_stops_the_sweep_and_is_resumed(sweep_file: Written, capsys: Any) -> None:
    path, start = sweep_file(), Pretended(stop_at=1)
    assert sweep_command([str(path)], start) == 1
    out = capsys.readouterr().out
    assert "run 1 (0.5, seed 0): stopped after step 2 of 5" in out and "run 2 (1.0, seed 0): not begun" in out
    assert sweep_command([str(path), "--dry-run"], start) == 0
    out = capsys.readouterr().out
    assert "run 0 (0.25, seed 0): x = 0.25, done" in out and "x = 0.5, at step 2" in out and "x = 1.0, missing" in out
    assert sweep_command([str(path)], start) == 0
    assert [asked["--data.fraction"] for asked in start.asked] == ["0.25", "0.5", "0.5", "1.0"]


def test_one_run_each_and_collecting(sweep_file: Written, tmp_path: pathlib.Path, capsys: Any) -> None:
    path, start = sweep_file(), Pretended()
    assert sweep_command([str(path), "--index", "2"], start) == 0
    assert "run 2 (1.0, seed 0): 0.4 after step 5" in capsys.readouterr().out and not (tmp_path / "sweep/curve.json").exists()
    assert sweep_command([str(path), "--collect"], start) == 1
    assert "missing: run 0 (0.25, seed 0): not begun" in capsys.readouterr().out
    for index in "01":
        assert sweep_command([str(path), "--index", index], start) == 0
    assert sweep_command([str(path), "--collect"], start) == 0 and len(start.asked) == 3
    with pytest.raises(ValueError, match=r"--index 3: .* has runs 0 to 2"):
        sweep_command([str(path), "--index", "3"], start)


def evaluated(**options: Any) -> dict[str, Any]:
    return {"measure": {"figure": "abs_rel", "evaluate": {"shards": ["a"], **options}}}


def test_a_folder_of_another_recipe_is_refused_before_anything_runs(sweep_file: Written) -> None:
    start = Pretended()
    sweep_command([str(sweep_file())], start)
    changed = sweep_file(settings={"model.init_args.optimizer.lr": 0.5})
    with pytest.raises(
        ValueError, match=r"sweep/0\.25/seed_0 holds a run of another recipe: model\.init_args\.optimizer\.lr = 0\.001, but"
    ):
        sweep_command([str(changed)], start)
    elsewhere = sweep_file(settings={"data.num_workers": 3, "trainer.devices": 2, "ledger": False})
    assert sweep_command([str(elsewhere)], start) == 0 and len(start.asked) == 3  # where it runs is no other recipe


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sede": [1]}, "sweep.yaml: unknown key 'sede'; do you mean 'seeds'"),
        ({"settings": {"trainer.max_stepz": 4}}, r"run 0 \(0\.25, seed 0\): .*max_stepz"),
        ({"settings": {"trainer.max_steps": -1}}, r"run 0 .* trainer\.max_steps is -1; the runs of a sweep need a last step"),
        ({"settings": {"model.init_args.network.init_args.features": "wide"}}, "run 0 .*features"),
        ({"settings": {"run_dir": "x"}}, "settings: run_dir is set by the sweep itself"),
        ({"recipes": ["no.yaml"]}, "there is no recipe no.yaml"),
        ({"vary": {"x": "s", "values": [0.5, 1.5], "settings": {"data.fractoin": "{x}"}}}, "run 0 .*fractoin"),
        ({"vary": {"x": "s", "values": [1, "1e-3"]}}, "x is '1e-3'; it must be a number"),
        ({"vary": {"x": "s", "values": [1, 1]}}, "two points are called '1'"),
        ({"vary": {"x": "s"}}, "give either values or points"),
        ({"vary": {"x": "s", "points": [{"x": 1, "sittings": {}}]}}, "unknown key 'sittings'; do you mean 'settings'"),
        ({"fit": "power_law", "vary": {"x": "s", "values": [0, 1, 2, 3]}}, "a power law needs x > 0, and there is 0"),
        ({"fit": "power_law"}, "at least three different x and four runs"),
        ({"fit": "exponential"}, "fit is 'exponential'; it can be none, power_law"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"confidence": 1}, "confidence is 1.0; it must lie in"),
        ({"measure": {"figure": "abs_rell", "evaluate": {"shards": ["a"], "image_size": [1, 1]}}}, "figure 'abs_rell' is no metric"),
        ({"measure": {"figure": "abs_rel", "evaluate": {"shards": ["a"]}}}, "evaluate: image_size is missing"),
        ({"measure": {"figure": "abs_rel", "evaluate": {"shards": ["a"], "image_sice": 1}}}, "evaluate: unknown key 'image_sice'"),
        (evaluated(image_size=[8, 8]) | {"settings": {"trainer.strategy": "deepspeed_stage_2"}}, "measure.evaluate: .*by DeepSpeed"),
        (evaluated(image_size=[8]), "evaluate: image_size: expected 2 arguments"),
        (evaluated(image_size=[8, 8], batch_size="many"), "evaluate: batch_size: invalid int value: 'many'"),
        (evaluated(image_size=[8, 8], prompt_count=["{x}", "{x}"]), r"evaluate: prompt_count: invalid int value: '0\.25'"),
        (evaluated(image_size=[8, 8], prompt_count=[9, 5]), "evaluate: .*low <= high"),
        (evaluated(image_size=[8, 8], count_prompt_pixels=True), "evaluate: --count-prompt-pixels goes with"),
        (evaluated(image_size=[8, 8], long_side=64), "evaluate: --image-size and --long-side"),
        (evaluated(prompt_protocol="points_500"), "evaluate: .*no image size of its own"),
        (evaluated(prompt_protocol=["nyu_500", "nyu_200"]), "evaluate: prompt_protocol has 2 names"),
        (evaluated(prompt_protocol="nyu_501"), "evaluate: unknown prompt protocol 'nyu_501'"),
        ({"measure": {**evaluated(prompt_protocol="nyu_500")["measure"], "protocol": "nyu"}}, "leave protocol out, or write nyu_500@nyu"),
        ({"measure": {"figure": "abs_rel", "evaluate": {"shards": ["no/val"], "image_size": [8, 8]}}}, "there is no folder no/val"),
    ],
)
def test_mistakes_are_named_before_the_first_run(sweep_file: Written, tmp_path: pathlib.Path, changes: dict, sentence: str) -> None:
    start = Pretended()
    with pytest.raises(ValueError, match=sentence):
        sweep_command([str(sweep_file(**changes))], start)
    assert not start.asked and not (tmp_path / "sweep").exists()


def test_values_are_put_in_as_numbers() -> None:
    assert filled({"a": ["{x}", 1], "b": {"c": "p{x}"}, "d": None}, 500) == {"a": [500, 1], "b": {"c": "p500"}, "d": None}


def test_the_pipeline_is_what_launch_slurm_takes(sweep_file: Written, tmp_path: pathlib.Path, capsys: Any) -> None:
    path = sweep_file(seeds=[0, 1], settings={"model.init_args.schedule.kind": "constant"})
    assert sweep_command([str(path), "--pipeline", str(tmp_path / "p.yaml")]) == 0
    pipeline = load_pipeline(tmp_path / "p.yaml")
    assert len(fingerprints(pipeline)) == 7 and list(pipeline.stages)[-1] == "collect"
    assert pipeline.stages["collect"].command == f"mdpretrain sweep {path} --collect"
    for run in runs_of(load_sweep(path)):
        stage = pipeline.stages[f"run-{run.index}"]
        words = [word for recipe_path in stage.fit for word in ("--config", recipe_path)]
        assert stage.run_dir == str(run.folder)
        theirs = RecipeParser(["fit", *words, "--run_dir", stage.run_dir, *stage.options]).recipe_text()
        assert yaml.safe_load(theirs) == resolved(run)


def _sweep_in_turns(path: str, log: str, late_s: float) -> None:
    """One of two processes: its runs take a moment and are written down."""
    start = Pretended()

    def slow(arguments: list[str], held: int) -> int:
        with open(log, "a") as file:
            file.write(f"{arguments[arguments.index('--run_dir') + 1]}\n")
        time.sleep(0.3)
        return start(arguments, held)

    time.sleep(late_s)
    sweep_command([path], slow)


def test_two_processes_share_the_runs_out(sweep_file: Written, tmp_path: pathlib.Path) -> None:
    path, log = sweep_file(seeds=[0, 1]), tmp_path / "log"
    assert sweep_command([str(path), "--dry-run"]) == 0  # both remember the recipes, and begin at once
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_sweep_in_turns, args=(str(path), str(log), late)) for late in (0.0, 0.1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    asked = log.read_text().splitlines()
    assert len(asked) == len(set(asked)) == 6
    assert sweep_command([str(path), "--collect"], Pretended()) == 0


def test_the_lock_lasts_as_long_as_the_training_that_was_started(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The started process leaves a child behind that still trains, as after the death of the sweep."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nwhile [ ! -e {tmp_path}/end ]; do sleep 0.05; done & \nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with locked(tmp_path) as held:
        assert held is not None
        assert start_process(["fit"], held) == 7
        with locked(tmp_path) as second:
            assert second is None
    with locked(tmp_path) as third:
        assert third is None  # this process has let go, the one left behind has not
    (tmp_path / "end").touch()
    deadline = time.monotonic() + 60
    free = False
    while not free and time.monotonic() < deadline:
        with locked(tmp_path) as fourth:
            free = fourth is not None
        time.sleep(0.05)
    assert free


def test_a_file_system_without_locks_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(running.fcntl, "flock", no_locks)
    with pytest.raises(ValueError, match=r"has no locks \(Operation not supported\)"), locked(tmp_path):
        pass


def test_the_command_itself_runs_and_its_exit_code_comes_back(tmp_path: pathlib.Path) -> None:
    with locked(tmp_path) as held:
        assert held is not None
        assert start_process(["--help"], held) == 0
        assert start_process(["no-such-verb"], held) == 2


def test_options_of_an_evaluation_become_words() -> None:
    options = {
        "shards": ["a/val", "b/val"],
        "image_size": [96, 128],
        "prompt_count": [20, 20],
        "batch_size": 4,
    }
    measure = Measure("abs_rel", evaluate=options, protocol="nyu+disparity")
    words = measure.command(pathlib.Path("run"), pathlib.Path("out"))
    assert " ".join(words) == (
        "evaluate --teacher run --output out --protocol nyu+disparity --shards a/val b/val --image-size 96 128 --prompt-count 20 20 "
        "--batch-size 4"
    )
    named = {"shards": ["a/val"], "prompt_protocol": "nyu_50@nyu", "count_prompt_pixels": True}
    assert " ".join(Measure("abs_rel", evaluate=named).command(pathlib.Path("run"), pathlib.Path("out"))) == (
        "evaluate --teacher run --output out --shards a/val --prompt-protocol nyu_50@nyu --count-prompt-pixels"
    )


@pytest.mark.parametrize("names", ["nyu_50", ["nyu_50"], "nyu_{x}"])
def test_a_prompt_protocols_row_is_read_by_its_name(tmp_path: pathlib.Path, names: Any) -> None:
    measure = Measure("abs_rel", evaluate={"shards": ["a/val"], "prompt_protocol": names}).at_point(Point(50))

    def start(words: list[str]) -> int:
        assert "--protocol" not in words and words[words.index("--prompt-protocol") + 1] == "nyu_50"
        row = {"model": "teacher", "source": "all", "protocol": "nyu_50", "abs_rel": 0.25}
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation/metrics.json").write_text(json.dumps({"rows": [row]}))
        return 0

    assert evaluated_value(tmp_path, measure, start) == 0.25 and measure.described() == "abs_rel, nyu_50"


def outcomes(values: dict[float, list[float]], **changes: Any) -> tuple[Sweep, list[Outcome]]:
    sweep = Sweep("s", "f", ["r.yaml"], Vary("x", list(values)), Measure("val/loss"), seeds=[0, 1, 2], **changes)
    made = [Outcome(run, Result({}, values[run.point.x][run.seed], 9)) for run in runs_of(sweep)]
    return sweep, made


def test_means_have_students_interval(capsys: Any) -> None:
    """The oracle is scipy's own interval."""
    values = {0.0: [0.3, 0.31, 0.35], 0.2: [0.2, 0.2, 0.2], 0.4: [0.25, 0.2, 0.4]}
    sweep, made = outcomes(values, confidence=0.9)
    curve = make_curve(sweep, made)
    for mean in curve.means:
        own = values[mean.x]
        assert mean.mean == pytest.approx(np.mean(own)) and mean.runs == 3
        if len(set(own)) > 1:
            low, high = stats.t.interval(0.9, 2, np.mean(own), stats.sem(own))
            assert (mean.low, mean.high) == pytest.approx((low, high))
        else:
            assert mean.low is None
    assert record(curve)["fit"] is None and "90 % interval" in table(curve)
    assert draw(curve)[:4] == b"\x89PNG"


def test_a_run_that_came_to_nothing_is_missing() -> None:
    values = {1.0: [0.3, math.nan, 0.3], 2.0: [0.2, 0.2, 0.2], 4.0: [0.15, 0.15, math.inf]}
    sweep, made = outcomes(values, fit="power_law")
    curve = make_curve(sweep, made)
    assert len(curve.points) == 7 and [mean.runs for mean in curve.means] == [2, 3, 2] and curve.band is not None
    assert curve.missing == ["run 3 (1.0, seed 1): its val/loss is nan", "run 8 (4.0, seed 2): its val/loss is inf"]
    assert json.dumps(record(curve), allow_nan=False) and draw(curve)


def test_too_few_runs_for_a_law_are_drawn_without_one() -> None:
    values = {1.0: [0.3] * 3, 2.0: [0.2] * 3, 4.0: [math.nan] * 3}
    curve = make_curve(*outcomes(values, fit="power_law"))
    assert curve.band is None and curve.unfit is not None and "at least three different x, there are 2" in curve.unfit
    assert "no power law" in table(curve) and draw(curve)
