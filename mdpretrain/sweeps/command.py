"""``mdpretrain sweep SWEEP.yaml``: carry out what is missing, then collect and draw; or print, do one run, or hand it all to SLURM."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import yaml

from data_shards.atomic import write_atomically
from mdpretrain.sweeps.curve import make_curve, table, write_curve
from mdpretrain.sweeps.measure import RunFailed, read_result
from mdpretrain.sweeps.running import ELSEWHERE, Outcome, StartHolding, carry_out, collect, start_process
from mdpretrain.sweeps.runs import SweepRun, refuse_another_recipe, resolved, runs_of, steps_done
from mdpretrain.sweeps.sweep_file import Sweep, load_sweep


def sweep_command(argv: list[str], start: StartHolding = start_process) -> int:
    """Do what was asked; 0 when that is complete, 1 when runs are missing.

    Args:
        argv: the arguments after the verb.
        start: runs one command of mdpretrain; a test puts its own here.

    Raises:
        ValueError: a mistake in the sweep file or in any run's recipe, before the first run; a run that failed.
    """
    options = _parser().parse_args(argv)
    sweep = load_sweep(options.sweep)
    runs = runs_of(sweep)
    if options.index is not None:
        if not 0 <= options.index < len(runs):
            raise ValueError(f"--index {options.index}: {options.sweep} has runs 0 to {len(runs) - 1}")
        runs = [runs[options.index]]
    recipes = {run.index: resolved(run) for run in runs}
    for run in runs:
        refuse_another_recipe(run, recipes[run.index])
        _check_checkpoints_can_be_evaluated(sweep, recipes[run.index])
    if options.dry_run:
        print(_listing(runs))
        return 0
    if options.pipeline is not None:
        write_atomically(options.pipeline, _pipeline(sweep, options.sweep, runs).encode())
        print(f"wrote {options.pipeline}: launch/slurm.py pipeline {options.pipeline} --cluster launch/clusters/NAME.yaml")
        return 0
    _check_evaluation_shards(sweep)
    if options.collect:
        outcomes = [collect(run, recipes[run.index], sweep.measure.at_point(run.point), start) for run in runs]
    else:
        outcomes = _carry_out_all(sweep, runs, recipes, options.keep_going, start)
    if options.index is not None:
        return _say(outcomes[0])
    curve = make_curve(sweep, outcomes)
    written = write_curve(curve, Path(sweep.folder))
    print("\n".join([table(curve), *(f"wrote {path}" for path in written)]))
    return 1 if curve.missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdpretrain sweep", description="One recipe at several values, over seeds, as a curve.")
    parser.add_argument("sweep", type=Path, help="a file like recipes/sweeps/prompt_density.yaml (docs/sweeps.md)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--dry-run", action="store_true", help="check everything and print the runs; train and write nothing")
    choice.add_argument("--index", type=int, help="only this run, e.g. $SLURM_ARRAY_TASK_ID; --collect afterwards draws the curve")
    choice.add_argument("--collect", action="store_true", help="train nothing: measure and draw the runs that are finished")
    choice.add_argument("--pipeline", type=Path, metavar="FILE", help="write the runs as stages for launch/slurm.py pipeline")
    parser.add_argument("--keep-going", action="store_true", help="after a run that failed, go on with the others")
    return parser


def _carry_out_all(sweep: Sweep, runs: list[SweepRun], recipes: dict[int, dict], keep_going: bool, start: StartHolding) -> list[Outcome]:
    """One after the other; a run that another process carries out is left to it, and a stop ends the sweep."""
    outcomes: list[Outcome] = []
    for run in runs:
        if outcomes and outcomes[-1].stopped:
            outcomes.append(Outcome(run, None, "not begun" if not steps_done(run) else f"at step {steps_done(run)}", stopped=True))
            continue
        try:
            outcomes.append(carry_out(run, recipes[run.index], sweep.measure.at_point(run.point), start))
        except RunFailed as error:
            if not keep_going:
                raise
            print(error, file=sys.stderr, flush=True)
            outcomes.append(Outcome(run, None, "failed"))
    # the process that ends last finds what the others have made meanwhile
    return [
        collect(outcome.run, recipes[outcome.run.index], sweep.measure.at_point(outcome.run.point), start)
        if outcome.why == ELSEWHERE
        else outcome
        for outcome in outcomes
    ]


def _say(outcome: Outcome) -> int:
    if outcome.result is None:
        print(f"{outcome.run.called}: {outcome.why}")
        return 1
    print(f"{outcome.run.called}: {outcome.result.value:.6g} after step {outcome.result.step}")
    return 0


def _listing(runs: list[SweepRun]) -> str:
    lines = []
    for run in runs:
        state = "done" if read_result(run.folder) else f"at step {done}" if (done := steps_done(run)) else "missing"
        lines += [f"{run.called}: x = {run.point.x}, {state}", f"    mdpretrain fit {shlex.join(run.arguments)} --resume"]
    return "\n".join(lines)


def _pipeline(sweep: Sweep, path: Path, runs: list[SweepRun]) -> str:
    """A training stage for every run and one that collects, as launch/slurm.py takes them (docs/slurm.md)."""
    stages = {
        f"run-{run.index}": {"fit": run.recipes, "run_dir": str(run.folder), "options": _without_run_dir(run.options)} for run in runs
    }
    last = {"command": f"mdpretrain sweep {shlex.quote(str(path))} --collect", "needs": list(stages), "inputs": [str(path)]}
    content = {"name": sweep.name, "folder": sweep.folder, "stages": stages | {"collect": last}}
    return f"# The runs of {path}, as written by `mdpretrain sweep --pipeline`.\n" + yaml.safe_dump(content, sort_keys=False)


def _without_run_dir(options: list[str]) -> list[str]:
    pairs = zip(options[::2], options[1::2])
    return [word for key, value in pairs if key != "--run_dir" for word in (key, value)]


def _check_checkpoints_can_be_evaluated(sweep: Sweep, recipe: dict) -> None:
    """Before the first run, not after it: ``mdpretrain evaluate`` reads no DeepSpeed folder."""
    if sweep.measure.evaluate is not None and "deepspeed" in str(recipe["trainer"].get("strategy")).lower():
        raise ValueError(
            "measure.evaluate: the recipe trains by DeepSpeed, whose checkpoints `mdpretrain evaluate` does not read; stack "
            "recipes/engine/ddp.yaml, or measure a column of the log"
        )


def _check_evaluation_shards(sweep: Sweep) -> None:
    """Before the first run, not after it: folders to evaluate on that are not here."""
    for folder in (sweep.measure.evaluate or {}).get("shards", []):
        if "://" not in str(folder) and not Path(folder).exists():
            raise ValueError(f"measure.evaluate.shards: there is no folder {folder}")
