"""What it costs that the ranks agree after every step whether to stop: ``python benchmarks/stop_agreement.py [--ranks 4] [--step-ms 5]``.

Each rank computes for about ``step-ms`` and asks; the time inside the call is measured, not the step. CPU processes over gloo, one machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
import torch.distributed
import torch.multiprocessing

from mdpretrain.engine.preemption import Agreement


def measure(rank: int, ranks: int, steps: int, step_ms: float) -> None:
    """One rank; the first prints."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{os.environ['BENCHMARK_PORT']}", rank=rank, world_size=ranks)
    agreement, matrix, times = Agreement(), torch.rand(256, 256), []
    for _ in range(steps):
        end = time.perf_counter() + step_ms / 1000
        while time.perf_counter() < end:
            matrix = (matrix @ matrix).sigmoid()
        start = time.perf_counter()
        agreement.any_rank(False)
        times.append(1000 * (time.perf_counter() - start))
    agreement.settle()
    if rank == 0:
        median, slow = statistics.median(times), sorted(times)[int(0.95 * steps)]
        print(f"{ranks} ranks, steps of {step_ms} ms: median {median:.3f} ms a step, 95 % within {slow:.3f} ms")
    torch.distributed.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=5.0)
    options = parser.parse_args()
    os.environ["BENCHMARK_PORT"] = str(20000 + os.getpid() % 10000)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(measure, (options.ranks, options.steps, options.step_ms), nprocs=options.ranks)


if __name__ == "__main__":
    main()
