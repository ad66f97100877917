"""Samples/s, MFU and peak memory of the teacher and student networks: bf16, eager and compiled, with and without checkpointing.

    python benchmarks/train.py                          every recipe of the list below, on this machine's GPU
    python benchmarks/train.py --recipes recipes/metric_anything/student_depthmap_vitl_518.yaml --batches 8,16
    python benchmarks/train.py --debug                  on a CPU: the debug recipes, a small batch, float32

A step is forward, loss, backward, clipping and AdamW on one batch that lies on the device: no data, no Lightning, no other process
(`benchmarks/train_step.py` measures what Lightning adds, `benchmarks/loader.py` the data, `mdpretrain bench strategy` several
processes). The prior's forward pass and the prompt preparation are not in it. FLOPs are counted (networks/fake_step.py), without what
activation checkpointing computes again. benchmarks/train_gpu.md says how to read the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
import torch
import yaml
from torch import nn

from mdpretrain.engine.gpus import gpu_of_device
from mdpretrain.engine.step_times import peak_memory_bytes
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.blank_batch import blank_batch
from mdpretrain.networks.fake_step import FakeNetwork, set_checkpointing
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.parameter_groups import parameter_groups
from mdpretrain.planning.units import table_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
FULL = [f"metric_anything/{role}_{size}_518" for role in ("student_depthmap", "teacher") for size in ("vits", "vitb", "vitl")]
FULL += ["metric_anything/teacher_vitl_1536", "metric_anything/teacher_vith_1536", "metric_anything/student_depthmap_vith_1536"]
DEBUG = ["debug/student_depthmap", "debug/teacher", "debug/teacher_multi_scale"]
FIRST_BATCHES = {518: (4, 8, 16, 32), 1536: (1, 2, 4)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement; ``failure`` in place of figures."""

    recipe: str
    batch: int
    compiled: bool
    checkpointing: bool
    step_ms: float = 0.0
    samples_per_s: float = 0.0
    tflops_per_s: float = 0.0
    mfu_percent: float | None = None
    peak_gib: float = 0.0
    failure: str | None = None


class Step:
    """One training step of a recipe's network on one batch that is already on the device."""

    def __init__(self, model: dict[str, Any], size: tuple[int, int], images: int, device: str, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = build_module(model["network"]).to(device).train()
        self.run: Any = self.network
        self.loss = LossTable(**model["loss"]["init_args"]).to(device)
        maps = tuple(getattr(self.network, "prepared_maps", None) or ())
        self.batch = blank_batch(images, *size, maps, points=1000 if maps else 0, device=device)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, 1e-5), lr=1e-5, fused=True)
        self.device, self.precision = device, precision

    def __call__(self) -> None:
        with torch.autocast(self.device, dtype=self.precision, enabled=self.precision != torch.float32):
            value, _ = self.loss(self.run(self.batch), self.batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure(recipe: str, batch: int, compiled: bool, checkpointing: bool, flops: int, device: str, steps: int, warm_up: int) -> Row:
    """Median step; a configuration that runs out of memory or does not compile is a row with its reason."""
    content = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        step = Step(content["model"]["init_args"], tuple(content["data"]["image_size"]), batch, device, precision)
        set_checkpointing(step.network, checkpointing)
        if compiled:
            step.run = torch.compile(step.network)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = _timed(step, steps, warm_up, device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        failure = " ".join(str(error).split())[:120]
        return Row(recipe, batch, compiled, checkpointing, failure=failure or type(error).__name__)
    rate = batch / seconds
    gpu = gpu_of_device(torch.cuda.get_device_name()) if device == "cuda" else None
    mfu = None if gpu is None else 100 * rate * flops / gpu.flops_per_s
    peak = peak_memory_bytes(torch.device(device)) / 2**30
    return Row(recipe, batch, compiled, checkpointing, 1e3 * seconds, rate, rate * flops / 1e12, mfu, peak)


def _timed(step: Step, steps: int, warm_up: int, device: str) -> float:
    seconds = []
    for number in range(warm_up + steps):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def flops_per_image(recipe: str) -> int:
    """Forward and backward of one image."""
    content = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    model, size = content["model"]["init_args"], content["data"]["image_size"]
    table = LossTable(**model["loss"]["init_args"])
    cost = FakeNetwork.of_config(model["network"]).train_step(lambda p, b: table(p, b)[0], 1, *size, checkpointing=False)
    return cost.forward_flops + cost.backward_flops


def text(rows: list[Row]) -> str:
    """The table."""
    lines = [["recipe", "batch", "compiled", "ckpt", "step ms", "samples/s", "TFLOP/s", "MFU %", "peak GiB"]]
    for row in rows:
        head = [row.recipe, str(row.batch), "yes" if row.compiled else "no", "yes" if row.checkpointing else "no"]
        mfu = "-" if row.mfu_percent is None else f"{row.mfu_percent:.1f}"
        figures = [f"{row.step_ms:.1f}", f"{row.samples_per_s:.2f}", f"{row.tflops_per_s:.3g}", mfu, f"{row.peak_gib:.1f}"]
        lines.append([*head, *(figures if row.failure is None else ["-"] * 5)])
    failures = [f"{row.recipe}, batch {row.batch}: failed: {row.failure}" for row in rows if row.failure is not None]
    return "\n".join([*table_text(lines), *failures])


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", help="files under recipes/; the list in this file unless given")
    parser.add_argument("--batches", type=lambda value: [int(part) for part in value.split(",")], help="images per step, e.g. 8,16")
    parser.add_argument("--debug", action="store_true", help="the debug recipes at batch 2: what a CPU can do")
    parser.add_argument("--compile", choices=["both", "no", "yes"], default="both")
    parser.add_argument("--checkpointing", choices=["both", "no", "yes"], default="both")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there, too")
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not (options.debug or options.recipes):
        parser.error("there is no GPU here; --debug measures the debug recipes on the CPU")
    names = [str(pathlib.Path(path).resolve().relative_to(ROOT / "recipes").with_suffix("")) for path in options.recipes or []]
    choices = {"both": [False, True], "no": [False], "yes": [True]}
    rows: list[Row] = []
    for recipe in names or (DEBUG if options.debug else FULL):
        flops = flops_per_image(recipe)
        side = 1536 if "1536" in recipe else 518
        for checkpointing in choices[options.checkpointing]:
            for compiled in choices[options.compile]:
                for batch in options.batches or ([2] if options.debug else FIRST_BATCHES[side]):
                    rows.append(measure(recipe, batch, compiled, checkpointing, flops, device, options.steps, options.warm_up))
                    print(text(rows[-1:]).splitlines()[-1], flush=True)
                    if rows[-1].failure is not None:
                        break  # a larger batch will not fit either
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{where}, torch {torch.__version__}, {'bf16' if device == 'cuda' else 'float32'}\n{text(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
