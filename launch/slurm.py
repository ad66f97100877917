#!/usr/bin/env python3
"""Training and whole pipelines on a SLURM cluster; needs Python and PyYAML (docs/slurm.md).

    launch/slurm.py submit RECIPE [RECIPE ...] --cluster launch/clusters/NAME.yaml [--nodes N] [--dry-run] [-- --key value ...]
    launch/slurm.py pipeline PIPELINE.yaml --cluster launch/clusters/NAME.yaml [--dry-run]
    launch/slurm.py status | logs | cancel RUN

The same submit or pipeline command continues what was interrupted. Exit codes: 0 good, 2 a mistake, in one sentence.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if path != str(HERE))]  # `import launch` from anywhere

from launch import job_queue  # noqa: E402
from launch.pipeline import run_pipeline  # noqa: E402
from launch.training_job import Submission, submit  # noqa: E402
from mdpretrain.slurm.cluster_file import Cluster, load_cluster  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run one verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options: list[str] = []
    if "--" in arguments:
        arguments, options = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parsed = _parser().parse_args(arguments)
    if options and parsed.run is not _submit:
        print(f"launch/slurm.py {parsed.verb}: options after -- are for submit", file=sys.stderr)
        return 2
    parsed.options = options
    try:
        print(parsed.run(parsed))
    except (ValueError, OSError) as error:
        print(f"launch/slurm.py {parsed.verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch/slurm.py", description="Train on a SLURM cluster (docs/slurm.md).")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("submit", help="train a recipe; the same command continues a run")
    verb.add_argument("recipes", nargs="+", metavar="RECIPE", help="stacked as --config is; options of fit follow after --")
    verb.add_argument("--run-dir", help="folder of the run (default: the recipe's run_dir)")
    _add_layout(verb)
    verb.set_defaults(run=_submit)
    verb = verbs.add_parser("pipeline", help="every stage that is not done, chained by dependencies")
    verb.add_argument("pipeline", type=Path, help="a file like launch/pipelines/demo.yaml")
    _add_layout(verb)
    verb.set_defaults(run=_pipeline)
    for name, function, text in (
        ("status", _status, "jobs and progress"),
        ("logs", _logs, "the newest output"),
        ("cancel", _cancel, "end every job"),
    ):
        verb = verbs.add_parser(name, help=f"{text} of a run or pipeline")
        verb.add_argument("folder", type=Path, metavar="RUN", help="the run's or the pipeline's folder")
        if name == "logs":
            verb.add_argument("--lines", type=int, default=40)
        verb.set_defaults(run=function)
    return parser


def _add_layout(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--cluster", type=Path, required=True, help="a file like launch/clusters/gpu_venv.yaml")
    verb.add_argument("--nodes", type=int, help="instead of the cluster file's")
    verb.add_argument("--gpus-per-node", type=int, help="instead of the cluster file's")
    verb.add_argument("--time", help="instead of the cluster file's")
    verb.add_argument("--partition", help="instead of the cluster file's")
    verb.add_argument("--allow-dirty", action="store_true", help="also with changes that are in no commit; they are copied too")
    verb.add_argument("--dry-run", action="store_true", help="check everything and print it; submit and write nothing")


def _cluster(options: argparse.Namespace) -> Cluster:
    names = ("nodes", "gpus_per_node", "time", "partition")
    return load_cluster(options.cluster, **{name: getattr(options, name) for name in names})


def _submit(options: argparse.Namespace) -> str:
    return submit(Submission(options.recipes, _cluster(options), options.run_dir, options.options, options.allow_dirty, options.dry_run))


def _pipeline(options: argparse.Namespace) -> str:
    return run_pipeline(options.pipeline, _cluster(options), options.allow_dirty, options.dry_run)


def _status(options: argparse.Namespace) -> str:
    lines = []
    for record in job_queue.records(options.folder):
        counted = collections.Counter(job_queue.states(record.job))
        state = ", ".join(f"{count} {name}" if len(counted) > 1 or count > 1 else name for name, count in counted.items())
        lines.append(
            f"job {record.job}  {record.stage or 'training'}  {state or 'ended (SLURM has forgotten how)'}  since {record.submitted}"
        )
    checkpoints = sorted(path.name for path in (options.folder / "checkpoints").glob("step_*.ckpt"))
    lines += [f"newest checkpoint: {checkpoints[-1]}"] if checkpoints else []
    done = sorted(path.name for path in (options.folder / "slurm" / "done").glob("*") if not path.name.endswith(".partial"))
    return "\n".join([*lines, *([f"done: {', '.join(done)}"] if done else [])])


def _logs(options: argparse.Namespace) -> str:
    written = [path for record in job_queue.records(options.folder) for path in _log_files(record.log)]
    if not written:
        raise ValueError(f"{options.folder}: no job has written anything yet")
    newest = max(written, key=lambda path: path.stat().st_mtime)
    lines = newest.read_text(errors="replace").splitlines()
    return "\n".join([f"== {newest}", *lines[-options.lines :]])


def _log_files(log: str) -> list[Path]:
    path = Path(log)
    return sorted(path.parent.glob(path.name.replace("%a", "*")))


def _cancel(options: argparse.Namespace) -> str:
    active = [record.job for record in job_queue.records(options.folder) if job_queue.is_active(record.job)]
    for job in active:
        job_queue.cancel(job)
    return f"cancelled {', '.join(active)}" if active else "nothing waits or runs"


if __name__ == "__main__":
    sys.exit(main())
