"""Time and memory of the prompt alignments against their brute-force formulation, and of the local one by several algorithms.

Run: ``python benchmarks/prompt_preparation.py`` (``--quick``: seconds, in this process; ``--device cuda``; ``--threads 2``; ``--help``).

The first table has one line per image size and number of points N, a prior of random blocks and a uniform prompt, K = 5:

* ``global``: the Huber fit of one scale and shift, and the aligned map (GMDR's role).
* ``local``: neighbours and the closed-form local fit (PDSA's role), as ``local_knn_align`` does it here.
* ``brute force``: the same map as the reference formulates it: all distances (``torch.cdist``), ``topk``, and one
  ``torch.linalg.lstsq`` of W X, W y per pixel. Skipped where an estimate from its first rows exceeds ``--brute-force-limit``.
* ``extra MiB``: growth of the peak memory over what was there before the call (CPU: resident set in a process of its own;
  CUDA: allocated).

Lines with N = all pixels, with a hole in the middle (N = 3/4), and a training batch: 16 images of 192 x 144 with 300 points each.

The second table is the local alignment end to end, from the prompt's two maps to the aligned one, by algorithm (CPU):

* ``tiles, compiled``: candidate lists of small tiles and the fit in one loop (numba); what ``local_knn_align`` does where numba is.
* ``tiles, torch``: the same lists by grid hashing and the fits in torch; what it does elsewhere.
* ``pixels, compiled``: grid hashing with one ring search for each pixel, then the torch fit.
* ``k-d tree``: scipy's ``cKDTree`` with one query for each pixel (``workers=-1``), then the torch fit.
* ``jump flooding``: each pixel takes over the points of eight neighbours at halved distances (compiled), then the torch fit.

``wrong`` is the share of pixels whose K squared distances are not the smallest (jump flooding is no exact algorithm); ``CPU ms`` the
processor time of all threads, which does not depend on what else the machine does.
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
from scipy.spatial import cKDTree

from mdpretrain.compilation import COMPILED, compiled
from mdpretrain.prompts import alignment, neighbours
from mdpretrain.prompts.alignment import global_align, local_knn_align
from mdpretrain.prompts.compiled_search import FAR, CellGrid, cell_grid, cell_side, make_workspace, visit_rings
from mdpretrain.prompts.neighbours import Neighbours, PromptPoints, nearest_points, prompt_points
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


def measure(function: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of one call, after the device has finished, by the wall's clock and by the processor's."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, processor = time.perf_counter(), time.process_time()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


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


@compiled
def search_each_pixel(grid: CellGrid, width: int, squared: np.ndarray, index: np.ndarray) -> None:
    """Rings of cells around every pixel by itself: int64 (K, P) of the K nearest, unordered among equals."""
    work = make_workspace(grid, squared.shape[0])
    for pixel in range(squared.shape[1]):
        v, u = pixel // width, pixel % width
        number = visit_rings(grid, (v, u, v, u), v // grid.side, u // grid.side, work)
        filled = np.zeros(squared.shape[0], np.int64)
        for j in range(squared.shape[0]):
            squared[j, pixel] = work.kth[j]
        for position in range(number):
            point = work.found[position]
            distance = (grid.u[point] - u) ** 2 + (grid.v[point] - v) ** 2
            for j in range(squared.shape[0]):
                if distance == work.kth[j] and filled[j] == 0:
                    index[j, pixel], filled[j] = point, 1
                    break


@compiled
def jump_flood(u: np.ndarray, v: np.ndarray, step: int, before: np.ndarray, after: np.ndarray) -> None:
    """One round of jump flooding: int64 (H, W, K) of squared distance << 32 | point, rising, FAR where there is none yet."""
    height, width, k = before.shape
    for i in range(height):
        for j in range(width):
            held = after[i, j]
            held[:] = before[i, j]
            for p in range(i - step, i + step + 1, step):
                for q in range(j - step, j + step + 1, step):
                    if p < 0 or q < 0 or p >= height or q >= width:
                        continue
                    for n in range(k):
                        if before[p, q, n] == FAR:
                            break
                        point = before[p, q, n] & 0xFFFFFFFF
                        key = ((u[point] - j) ** 2 + (v[point] - i) ** 2) << 32 | point
                        slot = k
                        while slot > 0 and held[slot - 1] > key:
                            slot -= 1
                        if slot == k or (slot > 0 and held[slot - 1] == key):
                            continue
                        held[slot + 1 :] = held[slot : k - 1].copy()
                        held[slot] = key


def by_pixel_search(points: PromptPoints) -> Neighbours:
    """Grid hashing, pixel by pixel, in one thread."""
    pixels = points.size[0] * points.size[1]
    grid = cell_grid(points.pixel[0].numpy(), points.size, cell_side(points.size, points.pixel.shape[1]))
    squared, index = np.empty((NEIGHBOURS, pixels), np.int64), np.empty((NEIGHBOURS, pixels), np.int64)
    search_each_pixel(grid, points.size[1], squared, index)
    return as_neighbours(squared, index)


def by_tree(points: PromptPoints) -> Neighbours:
    """One query of a k-d tree for each pixel, in all cores."""
    height, width = points.size
    tree = cKDTree(np.stack(np.divmod(points.pixel[0].numpy(), width), axis=1))
    distance, index = tree.query(np.stack(np.divmod(np.arange(height * width), width), axis=1), k=NEIGHBOURS, workers=-1)
    return as_neighbours(np.rint(distance.T**2), index.T)


def by_jump_flooding(points: PromptPoints) -> Neighbours:
    """Jump flooding with lists of K, in one thread."""
    height, width = points.size
    v, u = np.divmod(points.pixel[0].numpy(), width)
    lists = np.full((height, width, NEIGHBOURS), FAR, np.int64)
    lists[v, u, 0] = np.arange(len(u))
    other, step = np.empty_like(lists), 1 << (max(height, width) - 1).bit_length() >> 1
    while step:
        jump_flood(u, v, step, lists, other)
        lists, other, step = other, lists, step >> 1
    keys = lists.reshape(-1, NEIGHBOURS).T
    return as_neighbours(np.where(keys == FAR, 1 << 30, keys >> 32), np.where(keys == FAR, 0, keys & 0xFFFFFFFF))


def as_neighbours(squared: np.ndarray, index: np.ndarray) -> Neighbours:
    distance = torch.from_numpy(np.ascontiguousarray(squared, dtype=np.int32))[None]
    return Neighbours(torch.from_numpy(np.ascontiguousarray(index))[None], distance, distance < 1 << 30)


SEARCHES = {"pixels, compiled": by_pixel_search, "k-d tree": by_tree, "jump flooding": by_jump_flooding}
ALGORITHMS = ("tiles, compiled", "tiles, torch", *SEARCHES)


def one_algorithm(name: str, height: int, width: int, number: int, options: argparse.Namespace) -> str:
    """Measure one algorithm and format its row."""
    torch.set_num_threads(options.threads)
    prior, prompt = make_inputs(1, height, width, number, "cpu")
    points = prompt_points(prompt)
    alignment.COMPILED = neighbours.COMPILED = name == "tiles, compiled"
    search = SEARCHES.get(name)

    def align(prior: torch.Tensor = prior, prompt: SparsePrompt = prompt) -> torch.Tensor:
        own = prompt_points(prompt)
        return local_knn_align(prior, prompt, NEIGHBOURS, points=own, neighbours=None if search is None else search(own))

    with torch.no_grad():
        align(*make_inputs(1, 40, 40, 60, "cpu"))  # compiles
        extra = peak_growth_mib(align, "cpu")
        seconds, processor = zip(*(measure(align, "cpu") for _ in range(options.repeats)), strict=True)
        found = nearest_points(points, NEIGHBOURS) if search is None else search(points)
        neighbours.COMPILED = COMPILED
        wrong = (found.squared_distance != nearest_points(points, NEIGHBOURS).squared_distance).any(dim=1).float().mean().item()
    cells = [name, f"{width} x {height}", f"{number:,}", f"{min(seconds) * 1e3:.0f}", f"{min(processor) * 1e3:.0f}", f"{extra:.0f}"]
    return " | ".join([*cells, f"{wrong:.3%}"])


def one_line(batch: int, height: int, width: int, points: int, options: argparse.Namespace) -> str:
    """Measure one configuration and format its row."""
    torch.set_num_threads(options.threads)
    prior, prompt = make_inputs(batch, height, width, points, options.device)
    cells = [f"{batch} x {width} x {height}", f"{points:,}"]
    if points == height * width * 3 // 4:
        prompt.mask[:] = True
        prompt.mask[:, :, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = False
        prompt.depth_m = torch.where(prompt.mask, 1.0 + torch.rand_like(prompt.depth_m), 0.0)
        cells[1] += " (hole)"
    local_knn_align(*make_inputs(1, 40, 40, 60, options.device), NEIGHBOURS)  # compiles
    for align in (lambda: global_align(prior, prompt), lambda: local_knn_align(prior, prompt, NEIGHBOURS, workers=options.threads)):
        with torch.no_grad():
            extra = peak_growth_mib(align, options.device)  # the first call: it also pays for what is loaded lazily
            seconds = min(measure(align, options.device)[0] for _ in range(options.repeats))
        cells += [f"{seconds * 1e3:.0f}", f"{extra:.0f}"]
    pixels = height * width
    sample = max(1, min(pixels, 20 * (ROWS_AT_ONCE // 8) // points))
    brute_force(prior, prompt, min(sample, 100))
    estimate = measure(lambda: brute_force(prior, prompt, sample), options.device)[0] * pixels / sample * batch
    if estimate > options.brute_force_limit:
        return " | ".join([*cells, f"skipped (about {estimate:.0f} s)"])
    seconds = sum(measure(lambda: brute_force(prior, prompt), options.device)[0] for _ in range(batch))
    return " | ".join([*cells, f"{seconds * 1e3:.0f}"])


def main(argv: list[str] | None = None) -> int:
    """Print the tables; every line is measured in a fresh process, so that no peak hides another (except with --quick)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small configurations, for the tests")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--brute-force-limit", type=float, default=BRUTE_FORCE_LIMIT_S, help="seconds beyond which brute force is skipped")
    parser.add_argument("--only", choices=["sizes", "algorithms"], help="one of the two tables")
    options = parser.parse_args(argv)
    configurations = [(1, side, side, points) for side in (518, 1536) for points in (500, 4000, 40_000, side**2, side**2 * 3 // 4)]
    configurations.append((16, 144, 192, 300))
    compared = [(518, 518, 4000), (1536, 1536, 40_000)]
    if options.quick:
        configurations, compared, options.repeats = [(1, 96, 96, 200), (2, 72, 96, 100)], [(40, 48, 60)], 1
    if options.only != "algorithms":
        heading = ["size", "N", "global ms", "extra MiB", "local ms", "extra MiB", "brute force ms"]
        print_table(heading, one_line, [(*configuration, options) for configuration in configurations], options.quick)
    if options.only != "sizes" and options.device == "cpu":
        names = [name for name in ALGORITHMS if COMPILED or options.quick or name in ("tiles, torch", "k-d tree")]
        heading = ["algorithm", "size", "N", "ms", "CPU ms", "extra MiB", "wrong"]
        print_table(heading, one_algorithm, [(name, *size, options) for size in compared for name in names], options.quick)
    return 0


def print_table(heading: list[str], row: Callable[..., str], calls: list[tuple], here: bool) -> None:
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}", flush=True)
    context = multiprocessing.get_context("spawn")
    for call in calls:
        if here:
            print(f"| {row(*call)} |", flush=True)
            continue
        with context.Pool(1) as pool:
            print(f"| {pool.apply(row, call)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
