"""``mdpretrain bench strategy RECIPE``: DDP and DeepSpeed ZeRO-1, 2 and 3 measured on this machine, and one of them recommended.

Every strategy runs in processes of its own, so one that crashes or runs out of memory is a row of the table and not the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import torch
import yaml

from mdpretrain.planning.made_up_shards import write_made_up_shards
from mdpretrain.planning.recipe import PlannedRun, read_recipe
from mdpretrain.planning.units import bytes_text, table_text, time_text

NAMES = {"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}  # the simplest first
CLOSE = 0.95  # a strategy that reaches this part of the fastest one's rate is as good as it, if it is simpler
WARM_UP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row; ``failure`` says in words why there are no figures."""

    strategy: str
    step_s: float = 0.0
    samples_per_s: float = 0.0
    peak_bytes: float = 0.0
    failure: str | None = None


def bench_command(argv: list[str]) -> int:
    """``strategy`` and its options; 1 where no strategy ran.

    Raises:
        ValueError: an unknown thing to measure, a recipe that training would refuse, or an impossible option.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mdpretrain bench strategy RECIPE [RECIPE ...] [options]; --help after strategy lists them")
        return 0 if argv else 2
    if argv[0] != "strategy":
        raise ValueError(f"there is nothing called {argv[0]!r} to measure; there is: strategy")
    options = _parser().parse_args(argv[1:])
    wanted = options.strategies.split(",")
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ValueError(f"--strategies {unknown[0]}: there are {', '.join(NAMES)}")
    if options.devices < 1 or options.steps < 1:
        raise ValueError("--devices and --steps must be at least 1")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends, too
    run = read_recipe(options.recipes, options.set)
    images = options.images_per_device or _images_per_device(run)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mdpretrain-bench-") as name:
        folder = pathlib.Path(name)
        overlay, changes, notes = _overlay(run, folder, options, images)
        print(_head(run, options, images, notes), file=sys.stderr, flush=True)
        for strategy in wanted:
            rows.append(measure(strategy, options, [*overlay, *changes], folder))
            print(_progress(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join([*table(rows), "", recommendation(rows)]))
    if options.json is not None:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return 0 if any(row.failure is None for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="mdpretrain bench strategy", description="Measure strategies on this machine.")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="stacked recipes, as for `mdpretrain fit --config`")
    parser.add_argument("--devices", type=int, default=gpus or 2, help="processes: one per GPU, or CPU processes where there is none")
    parser.add_argument("--strategies", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=20, help=f"measured steps, after {WARM_UP_STEPS} to warm up")
    parser.add_argument("--images-per-device", type=int, help="images of a process and step; what the recipe's own GPUs would take")
    parser.add_argument("--data", choices=["auto", "recipe", "synthetic"], default="auto", help="auto: the recipe's if it is here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe key, e.g. data.num_workers=4")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which a strategy counts as failed")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    return parser


def measure(strategy: str, options: argparse.Namespace, changes: list[str], folder: pathlib.Path) -> Measured:
    """Run one strategy to its end, or to its time limit."""
    result = folder / f"{strategy}.json"
    settings = folder / f"{strategy}.yaml"
    settings.write_text(yaml.safe_dump({"run_dir": str(folder / strategy), "trainer": {"strategy": _strategy(strategy)}}))
    configs = [part for path in (*options.recipes, settings) for part in ("--config", str(path))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.devices}"]
    command = [*launcher, "-m", "mdpretrain.planning.bench_worker", str(result), str(WARM_UP_STEPS), *configs, *changes]
    log = folder / f"{strategy}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(options.devices), start_new_session=True
        )
        try:
            code = process.wait(options.timeout)
        except subprocess.TimeoutExpired:
            return Measured(strategy, failure=f"no result within {time_text(options.timeout)}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the session that was started for it
                process.wait()
    if code or not result.is_file():
        return Measured(strategy, failure=reason(log.read_text(errors="replace"), code))
    record = json.loads(result.read_text())
    return Measured(strategy, record["step_s"], record["samples_per_s"], record["peak_bytes"])


def reason(log: str, code: int) -> str:
    """The first error that a process printed, in one line."""
    found = re.findall(r"^(?:\[rank\d+\]:\s*)?((?:[\w.]+\.)?\w*(?:Error|Exception|Exit)\b.*)$", log, re.MULTILINE)
    errors = [line.strip() for line in found if "ChildFailedError" not in line]
    if errors:
        return " ".join(errors[0].split())[:200]
    return f"ended with code {code}" + (" (killed: out of memory?)" if "Signal 9" in log or "SIGKILL" in log or code == -9 else "")


def table(rows: Sequence[Measured]) -> list[str]:
    """The measured rows, then what failed."""
    lines = [["strategy", "step", "samples/s", "peak memory"]]
    for row in rows:
        figures = (
            [time_text(row.step_s), f"{row.samples_per_s:.2f}", bytes_text(row.peak_bytes)] if row.failure is None else ["-", "-", "-"]
        )
        lines.append([NAMES[row.strategy], *figures])
    failures = [f"{NAMES[row.strategy]} failed: {row.failure}" for row in rows if row.failure is not None]
    return [*table_text(lines), *failures]


def recommendation(rows: Sequence[Measured]) -> str:
    """One sentence: which strategy, and why."""
    ran = [row for row in rows if row.failure is None]
    if not ran:
        return "No strategy ran: read the failures above; `mdpretrain plan` says what memory each one needs."
    fastest = max(ran, key=lambda row: row.samples_per_s)
    order = list(NAMES)
    best = next(r for r in sorted(ran, key=lambda r: order.index(r.strategy)) if r.samples_per_s >= CLOSE * fastest.samples_per_s)
    others = [row for row in ran if row is not best]
    failed = [NAMES[row.strategy] for row in rows if row.failure is not None]
    if not others:
        return f"Use {NAMES[best.strategy]}: it is the only one that ran." + _failed(failed)
    if best is fastest:
        second = max(others, key=lambda row: row.samples_per_s)
        why = f"it is the fastest, {best.samples_per_s / second.samples_per_s:.2f} times {NAMES[second.strategy]}'s rate"
    else:
        slower = 100 * (1 - best.samples_per_s / fastest.samples_per_s)
        why = f"it is within {slower:.1f} % of the fastest ({NAMES[fastest.strategy]}) and simpler to save and resume"
    least = min(ran, key=lambda row: row.peak_bytes)
    saved = 100 * (1 - least.peak_bytes / best.peak_bytes)
    note = f" {NAMES[least.strategy]} takes {saved:.0f} % less memory, if it runs out." if saved >= 5 else ""
    return f"Use {NAMES[best.strategy]}: {why}.{note}{_failed(failed)}"


def _failed(names: list[str]) -> str:
    return f" Not measured: {', '.join(names)}." if names else ""


def _strategy(name: str) -> dict[str, Any]:
    """The strategy of a recipe, as in recipes/engine."""
    if name == "ddp":
        arguments: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": arguments}
    return {"class_path": "mdpretrain.engine.deepspeed_strategy.DeepSpeed", "init_args": {"stage": int(name[-1])}}


def _overlay(run: PlannedRun, folder: pathlib.Path, options: argparse.Namespace, images: int) -> tuple[list[str], list[str], list[str]]:
    """A recipe that goes on top (this machine, few steps, nothing kept), keys that win over it, and what that changes, in words."""
    notes: list[str] = []
    on_gpu = torch.cuda.is_available()
    content: dict[str, Any] = {
        "wandb": "off",
        "tensorboard": False,
        "ledger": False,
        "count_flops": False,
        "panel_images": 0,
        "channels_last": False,  # DeepSpeed cannot have it, and a comparison wants one layout
        "trainer": {
            "accelerator": "gpu" if on_gpu else "cpu",
            "num_nodes": 1,
            "devices": options.devices,
            "max_steps": WARM_UP_STEPS + options.steps,
            "limit_val_batches": 0,
            "val_check_interval": None,
        },
        "data": {"batch_size": images * options.devices, "val": []},
    }
    here = all("://" in row.path or pathlib.Path(row.path).is_dir() for row in run.sources)
    if options.data == "synthetic" or (options.data == "auto" and not here):
        write_made_up_shards(folder / "made_up", *run.image_size)
        content["data"]["train"] = [{"path": str(folder / "made_up")}]
        notes.append("made-up data, since the recipe's is not here" if not here else "made-up data")
    changes = ["--model.init_args.schedule.total_steps", "1000000000"]  # the recipe's warm-up is longer than a few steps
    if _prior_is_missing(run):
        changes += ["--model.init_args.prior", "mdpretrain.networks.priors.StoredPrior"]
        notes.append("without the prior's forward pass, since its weights are not here")
    for setting in options.set:
        key, _, value = setting.partition("=")
        changes += [f"--{key}", value]
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)], changes, notes


def _prior_is_missing(run: PlannedRun) -> bool:
    arguments = {} if run.prior is None else run.prior.get("init_args") or {}
    return any(arguments.get(key) and not pathlib.Path(arguments[key]).exists() for key in ("checkpoint", "path"))


def _images_per_device(run: PlannedRun) -> int:
    return max(1, run.batch_size // (run.nodes * (run.devices or 1)))


def _environment(devices: int) -> dict[str, str]:
    """On a CPU every process gets its share of the cores as threads; torchrun alone would give each one thread."""
    threads = max(1, (os.cpu_count() or 1) // devices)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _head(run: PlannedRun, options: argparse.Namespace, images: int, notes: list[str]) -> str:
    height, width = run.image_size
    kind = "GPUs" if torch.cuda.is_available() else "CPU processes"
    text = f"{' + '.join(options.recipes)}: {images} images of {height} x {width} on each of {options.devices} {kind}"
    return "; ".join([text, *notes])


def _progress(row: Measured) -> str:
    return f"{NAMES[row.strategy]}: " + (f"{time_text(row.step_s)} a step" if row.failure is None else f"failed: {row.failure}")
