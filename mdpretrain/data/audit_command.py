"""``mdpretrain audit RUN``: was every sample delivered that should have been, once, and nothing else?"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from data_shards.progress import progress_bar
from mdpretrain.data.audit import KeyWriter, Report, audit_hashes, audit_sessions
from mdpretrain.data.audit_plan import PlannedRun
from mdpretrain.data.faults import read_fault_log
from mdpretrain.data.ledger import LEDGER_FOLDER, read_sessions
from mdpretrain.networks.checkpoint_files import FOLDER, is_deepspeed_folder, whole_checkpoints

STATE_NAME = "ShardDataModule"  # Lightning keeps a data module's state under its class's name
SHOWN_FINDINGS = 10


def audit_command(argv: list[str]) -> int:
    """Print what was proven, or what differs from where on.

    Returns:
        0 if the run was trained on exactly what its order says, 1 if not.

    Raises:
        ValueError: the run or its shards cannot be read, or there is nothing to audit.
    """
    parser = argparse.ArgumentParser(prog="mdpretrain audit", description="Prove what a run was trained on.")
    parser.add_argument("run", type=pathlib.Path, help="the run's folder")
    parser.add_argument("--shards", nargs="+", default=[], metavar="NAME=FOLDER", help="where the shards of a source are now")
    parser.add_argument("--bad-samples", type=pathlib.Path, help="the run's list of bad samples (default: RUN/bad_samples.jsonl)")
    parser.add_argument("--keys", type=pathlib.Path, help="write the delivered sequence there, one line 'POSITION SOURCE KEY' each")
    options = parser.parse_args(argv)
    if not options.run.is_dir():
        raise ValueError(f"{options.run}: no such run folder")
    sessions = read_sessions(options.run / LEDGER_FOLDER)
    checkpoints = {step: state for path in whole_checkpoints(options.run / FOLDER) for step, state in [data_state(path)]}
    planned = PlannedRun(read_fault_log(options.bad_samples or options.run / "bad_samples.jsonl"), _moved(options.shards))
    if not sessions and not checkpoints:
        raise ValueError(f"{options.run}: holds neither a ledger nor a checkpoint; train with --ledger true to have both")
    if not sessions and options.keys is not None:
        raise ValueError(f"{options.run}: has no ledger, and so no keys; train with --ledger true to have them")
    with _key_file(options.keys) as write_key, progress_bar(max(checkpoints, default=None), "step", "audit") as bar:
        if sessions:
            report = audit_sessions(sessions, checkpoints, planned, write_key, bar.update)
        else:
            report = audit_hashes(checkpoints, planned, bar.update)
    for line in lines_of(report):
        print(line)
    return 1 if report.findings else 0


def lines_of(report: Report) -> Iterator[str]:
    """The report as sentences."""
    if report.findings:
        yield f"NOT PROVEN: {len(report.findings)} findings; the first position that differs is {report.findings[0].position}"
        yield from (f"  {finding.sentence}" for finding in report.findings[:SHOWN_FINDINGS])
        return
    layouts = ", ".join(map(str, report.processes))
    starts = f" in {report.sessions} starts on {layouts} processes" if report.sessions else ""
    yield f"PROVEN: steps 0 to {report.steps - 1}{starts}: {report.samples} samples, none lost or repeated, each the one the order says"
    if not report.sessions:
        yield "  by the hashes alone: the run has no ledger"
    if report.substituted:
        yield f"  {report.substituted} deliveries stood in for bad samples, all of them listed"
    if report.hashes:
        yield f"  the hashes of the checkpoints of steps {', '.join(map(str, report.hashes))} agree"


def data_state(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """(steps, the data module's state) of a checkpoint file or a DeepSpeed folder.

    Raises:
        ValueError: it has none, or cannot be read.
    """
    source = path
    if is_deepspeed_folder(path):
        found = sorted((path / "checkpoint").glob("*model_states.pt"))
        if not found:
            raise ValueError(f"{path}: DeepSpeed's model states are missing from its folder 'checkpoint'")
        source = found[0]
    try:
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        state: dict[str, Any] = content[STATE_NAME]
        return int(state["steps"]), state
    except Exception as error:  # torch raises many types here, all meaning: this file is no good
        raise ValueError(f"{path}: has no data state that an audit could read ({type(error).__name__}: {error})") from error


def _moved(texts: list[str]) -> dict[str, str]:
    moved = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise ValueError(f"--shards {text!r}: write NAME=FOLDER, for example indoor=shards/indoor")
        moved[name] = folder
    return moved


@contextlib.contextmanager
def _key_file(path: pathlib.Path | None) -> Iterator[KeyWriter | None]:
    """A function that appends one line to ``path``, which appears when all are written."""
    if path is None:
        yield None
        return
    aside = path.with_name(path.name + ".partial")
    with open(aside, "w") as file:
        yield lambda position, source, key: print(position, source, key, file=file)
    aside.replace(path)
    print(f"wrote {path}", file=sys.stderr)
