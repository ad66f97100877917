"""Time and memory of the prompt alignments against their brute-force formulation.

Run: ``python benchmarks/prompt_preparation.py`` (``--quick``: seconds, in this process; ``--device cuda``; ``--threads 2``; ``--help``).

One line per image size and number of points N, a prior of random blocks and a uniform prompt, K = 5:

* ``global``: the Huber fit of one scale and shift, and the aligned map (GMDR's role).
* ``local``: neighbours and the closed-form local fit (PDSA's role).
* ``brute force``: the same map as the reference formulates it: all distances (``torch.cdist``), ``topk``, and one
  ``torch.linalg.lstsq`` of W X, W y per pixel. Skipped where an estimate from its first rows exceeds 60 s.
* ``extra MiB``: growth of the peak memory over what was there before the call (CPU: resident set in a process of its own;
  CUDA: allocated).

The last lines are a training batch: 16 images of 192 x 144 with 300 points each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from mdpretrain.prompts.alignment import global_align, local_knn_align
from mdpretrain.structures import SparsePrompt

BRUTE_FORCE_LIMIT_S = 60.0
NEIGHBOURS = 5
ROWS_AT_ONCE = 1 << 24  # entries of one block of the brute-force distance matrix


def make_inputs(batch: int, height: int, width: int, points: int, device: str) -> tuple[torch.Tensor, SparsePrompt]:
    """A blocky inverse depth as truth, a distorted copy as prior, and ``points`` uniform prompt pixels per image."""
    rng = np.random.default_rng(0)
    blocks = torch.from_numpy(rng.uniform(0.1, 1.0, (batch, 1, 12, 12)).astype(np.float32))
    truth = torch.nn.functional.interpolate(blocks, size=(height, width), mode="bicubic").clamp_min(0.05)
    prior = 3 * truth.sqrt() - 1 + 0.01 * torch.from_numpy(rng.standard_normal(truth.shape).astype(np.float32))
    mask = np.zeros((batch, height * width), dtype=bool)
    for row in mask:
        row[rng.choice(height * width, points, replace=False)] = True
    there = torch.from_numpy(mask).view(batch, 1, height, width)
    return prior.to(device), SparsePrompt(torch.where(there, 1 / truth, 0.0), there).to(device)


def brute_force(prior: torch.Tensor, prompt: SparsePrompt, pixels: int | None = None) -> torch.Tensor:
    """Local alignment as the reference writes it, for the first ``pixels`` pixels (all by default) of the first image."""
    height, width = prior.shape[-2:]
    known = prompt.mask[0, 0].nonzero().float()
    x, y = prior[0, 0][prompt.mask[0, 0]], 1 / prompt.depth_m[0, 0][prompt.mask[0, 0]]
    everything = torch.arange(height * width if pixels is None else pixels, device=prior.device)
    result = []
    for some in everything.split(max(1, ROWS_AT_ONCE // len(known))):
        place = torch.stack([some // width, some % width], dim=1).float()
        distance, index = torch.cdist(place, known).topk(NEIGHBOURS, largest=False)
        weight = 1 / distance.clamp_min(1e-6)
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        design = torch.stack([x[index] + 1e-5 * torch.rand_like(x[index]), torch.ones_like(x[index])], dim=-1)
        solution = torch.linalg.lstsq(weight * design, weight * y[index][..., None]).solution[..., 0]
        result.append(solution[:, 0] * prior[0, 0].flatten()[some] + solution[:, 1])
    return torch.cat(result)


def measure(function: Callable[[], object], device: str) -> float:
    """Seconds of one call, after the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident_mib() -> float:
    """This process's resident set (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def peak_growth_mib(function: Callable[[], object], device: str) -> float:
    """Peak memory during one call over the memory before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, highest, done = resident_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0.0, max(highest, resident_mib()) - before)


def one_line(batch: int, height: int, width: int, points: int, options: argparse.Namespace) -> str:
    """Measure one configuration and format its row."""
    torch.set_num_threads(options.threads)
    prior, prompt = make_inputs(batch, height, width, points, options.device)
    cells = [f"{batch} x {width} x {height}", f"{points:,}"]
    for align in (lambda: global_align(prior, prompt), lambda: local_knn_align(prior, prompt, NEIGHBOURS, workers=options.threads)):
        with torch.no_grad():
            extra = peak_growth_mib(align, options.device)  # the first call: it also pays for what is loaded lazily
            seconds = min(measure(align, options.device) for _ in range(options.repeats))
        cells += [f"{seconds * 1e3:.0f}", f"{extra:.0f}"]
    pixels = height * width
    sample = max(1, min(pixels, 20 * (ROWS_AT_ONCE // 8) // points))
    brute_force(prior, prompt, min(sample, 100))
    estimate = measure(lambda: brute_force(prior, prompt, sample), options.device) * pixels / sample * batch
    if estimate > options.brute_force_limit:
        return " | ".join([*cells, f"skipped (about {estimate:.0f} s)"])
    seconds = sum(measure(lambda: brute_force(prior, prompt), options.device) for _ in range(batch))
    return " | ".join([*cells, f"{seconds * 1e3:.0f}"])


def main(argv: list[str] | None = None) -> int:
    """Print the table; every configuration runs in a fresh process, so that no peak hides another (except with --quick)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small configurations, for the tests")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--brute-force-limit", type=float, default=BRUTE_FORCE_LIMIT_S, help="seconds beyond which brute force is skipped")
    options = parser.parse_args(argv)
    configurations = [(1, side, side, points) for side in (518, 1536) for points in (500, 4000, 40_000)] + [(16, 144, 192, 300)]
    if options.quick:
        configurations, options.repeats = [(1, 96, 96, 200), (2, 72, 96, 100)], 1
    print("| size | N | global ms | extra MiB | local ms | extra MiB | brute force ms |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    for configuration in configurations:
        if options.quick:
            print(f"| {one_line(*configuration, options)} |", flush=True)
            continue
        with context.Pool(1) as pool:
            print(f"| {pool.apply(one_line, (*configuration, options))} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
