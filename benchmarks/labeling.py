"""Labelling from shard to shard against the network alone: samples/s of both, in one run, and their ratio.

    python benchmarks/labeling.py                                     # a small random network on made-up shards
    python benchmarks/labeling.py --checkpoint RUN --shards FOLDER --prompt-count 2000 4000 --long-side 518

All options of ``mdpretrain label`` are taken, but for --output. *Alone* is what the teacher's passes cost on batches that lie on its device
already, decoded, with their prompts drawn; the batches are those that labelling makes. *End to end* is ``mdpretrain label``: reading,
decoding, drawing prompts, the same passes, judging, encoding, writing and flushing to disk. The two take turns; the median of each
round's ratio is printed. On a CPU the three stages share the cores, so leave some to the threads: ``--torch-threads``. The CPU time of
all threads is printed, too: what reading, judging and writing add to the passes, also on a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_shards.codecs import encode_image
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard
from mdpretrain.labeling.command import teacher_labeler
from mdpretrain.labeling.label_options import parse_label_options
from mdpretrain.labeling.labeler import Labeler, LabelRead
from mdpretrain.labeling.source_shards import SourceShards
from mdpretrain.networks.module_config import build_module, module_config
from mdpretrain.structures import DepthBatch, SparsePrompt

STUDENT = {
    "class_path": "mdpretrain.networks.metric_anything.MetricAnythingStudent",
    "init_args": {
        "encoder": {
            "class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder",
            "init_args": {"model_name": "vit_small_patch14_dinov2", "layers": [2, 5, 8, 11]},
        },
        "features": 64,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32, help="of the made-up shards, 640 x 480")
    parser.add_argument("--torch-threads", type=int, default=max(1, torch.get_num_threads() - 1), help="of the network on a CPU")
    own, rest = parser.parse_known_args()
    torch.set_num_threads(own.torch_threads)
    with tempfile.TemporaryDirectory() as folder:
        if not any(option.startswith(("--checkpoint", "--config")) for option in rest):
            rest = [*made_up(Path(folder), own.images), *rest]
        options = parse_label_options([*rest, "--output", folder])
        labeler = teacher_labeler(options)
        source = SourceShards(options.shards, options.sidecars)
        batches = collated_batches(labeler, source)
        samples = sum(len(batch) for batch, _ in batches)
        alone_s(labeler, batches[:1])
        ratios, work = [], []
        print(f"{samples} samples in batches of {labeler.batch_size}, {len(source.names)} shards, {own.torch_threads} torch threads")
        print(
            "| round | alone, samples/s | end to end, samples/s | ratio | CPU s a sample, alone | end to end |\n|--:|--:|--:|--:|--:|--:|"
        )
        for number in range(own.rounds):
            alone, alone_cpu = alone_s(labeler, batches)
            output = Path(folder) / f"labels_{number}"
            whole, whole_cpu = timed(lambda to=output: labeler.label_folder(options.shards, to, quiet=True, sidecars=options.sidecars))
            ratios.append(alone / whole)
            work.append(alone_cpu / whole_cpu)
            cells = [samples / alone, samples / whole, ratios[-1], alone_cpu / samples, whole_cpu / samples]
            print(f"| {number} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)
        print(f"median ratio of samples/s {statistics.median(ratios):.3f}, of the CPU time a sample takes {statistics.median(work):.3f}")


def alone_s(labeler: Labeler, batches: list[tuple[DepthBatch, dict[str, SparsePrompt]]]) -> tuple[float, float]:
    """Seconds that the passes take, one after the other, until the last is done: of the clock, and of all threads."""

    def run() -> None:
        for batch, prompts in batches:
            output = labeler.passes(batch, prompts)
        if output.label_m.is_cuda:
            torch.cuda.synchronize()

    return timed(run)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """(clock seconds, CPU seconds of this process)"""
    started, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - cpu


def collated_batches(labeler: Labeler, source: SourceShards) -> list[tuple[DepthBatch, dict[str, SparsePrompt]]]:
    """The batches that labelling makes: of one size, within a shard, in its order."""
    batches = []
    for number in range(len(source.names)):
        shard = source.open(number)
        groups: dict[tuple[int, ...], list[LabelRead]] = {}
        for position in range(len(shard)):
            read = labeler.read(shard, position)
            if isinstance(read, str):
                continue
            group = groups.setdefault(read.row.depth.shape, [])
            group.append(read)
            if len(group) == labeler.batch_size:
                batches.append(labeler.collated(groups.pop(read.row.depth.shape)))
        batches += [labeler.collated(group) for group in groups.values()]
    return batches


def made_up(folder: Path, images: int) -> list[str]:
    """Shards of smooth images and a random network's checkpoint, as options of ``mdpretrain label``."""
    rng = np.random.default_rng(0)
    (folder / "shards").mkdir()
    samples = [_sample(number, rng) for number in range(images)]
    for first in range(0, images, 16):
        write_shard(folder / "shards" / f"made-{first // 16:06d}.tar", samples[first : first + 16])
    torch.manual_seed(0)
    network = build_module(STUDENT)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"network": module_config(network), "state_dict": state}, folder / "teacher.ckpt")
    return ["--checkpoint", str(folder / "teacher.ckpt"), "--shards", str(folder / "shards"), "--long-side", "518", "--multiple", "14"]


def _sample(number: int, rng: np.random.Generator) -> Sample:
    coarse = torch.from_numpy(rng.random((1, 4, 24, 32), dtype=np.float32))
    maps = torch.nn.functional.interpolate(coarse, (480, 640), mode="bicubic").clamp(0, 1).numpy()[0]
    image = (255 * maps[:3].transpose(1, 2, 0)).astype(np.uint8)
    meta = SampleMeta(f"made/{number:04d}", "made", LabelKind.RENDERED, DepthType.Z, True, Camera(600.0, 600.0, 320.0, 240.0), (640, 480))
    return Sample(meta, encode_image(np.ascontiguousarray(image)), "jpg", 1 + 9 * maps[3])


if __name__ == "__main__":
    main()
