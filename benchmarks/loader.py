"""Training-ready samples per second on one core: this project's loader against others, against its own decoders, and split by stage.

    python benchmarks/loader.py                                     # 64 frames of 640x480, rendered once into runs/benchmarks
    python benchmarks/loader.py --raw FOLDER                        # frames in the layout of the source `simple` (docs/sources.md)
    python benchmarks/loader.py --shards FOLDER                     # shards that `data-shards build` wrote
    python benchmarks/loader.py --streaming-python .venv-streaming/bin/python

All of it runs on one core, on the same frames, from the page cache, without worker processes, and ends in batches of 224x224 with
augmentation and prompts. A batch's time is the best of ``--rounds`` rounds, so that other work on the machine counts little; CPU time
unless ``--wall``.

* **ours**: the training loader itself, with shuffling, checksums and ledger.
* **webdataset + PIL + PNG16, litdata, mosaicml-streaming**: the same samples (depth as 16-bit PNG of the same codes) in each one's own
  format, read in order by its own DataLoader, decoded by PIL, then this project's own transforms and collation: only reading and
  decoding differ (``loader_peers.py``). Each runs in a process of its own, with numba where ours has it (``mdpretrain.data.compiled``).
  Before a figure counts, the peer's first batch is compared with ours: depth, masks, camera and prompt to the bit, colour to what
  decoding at reduced size changes.
* **decoders alone**: decoding the very same bytes, in memory, sample after sample in the loader's order, with nothing before or after:
  of each sample the colour image as the loader does it (at reduced size where the view allows), the depth map to float32, and the
  masks, where it has any; timed batch by batch, as the loader is. "Share of the decoders" is their time over the loader's: what would
  be 100 % if reading, cropping, resizing, jittering, resampling, prompts and collation cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from loader_peers import FIRST_BATCH, PROMPT_POINTS
from loader_stages import SEED, Measurement, loader_seconds, stage_seconds

from data_shards.cli import main as data_shards_command
from data_shards.reading import read_samples
from data_shards.schema import Sample
from data_shards.writer import write_shard
from mdpretrain.data.collate import collate
from mdpretrain.data.freed_memory import keep_freed_memory
from mdpretrain.data.pipeline import Augmentation, PromptOptions, RowOptions, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder

ROOT = Path(__file__).resolve().parents[1]
VIEWS = 4  # frames of a rendered scene
PEERS = {"webdataset": "webdataset + PIL + PNG16", "litdata": "litdata", "streaming": "mosaicml-streaming"}
# Decoding a jpg at half size and averaging twice as many pixels give pictures that differ a little.
COLOUR_DIFFERENCE = 0.01
HOW_TO_LITDATA = "pip install 'mdpretrain[bench]'"
HOW_TO_STREAMING = (
    "it needs an older numpy, so an environment of its own: python -m venv .venv-streaming && .venv-streaming/bin/pip install "
    "mosaicml-streaming torch==2.13.0 torchvision==0.28.0 opencv-python-headless simplejpeg pcodec 'blosc2>=3' numba "
    "jaxtyping threadpoolctl scipy fsspec, then --streaming-python .venv-streaming/bin/python"
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--shards", type=Path, help="folder of shards")
    frames.add_argument("--raw", type=Path, help="folder of raw frames in the layout of `simple`")
    parser.add_argument("--samples", type=int, default=64, help="how many frames, spread evenly over the folder")
    parser.add_argument("--frame-size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"), help="of rendered frames")
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--interpolate", action="store_true", help="interpolate the prompt in the worker, too")
    parser.add_argument("--rounds", type=int, default=8, help="the best of so many rounds counts")
    parser.add_argument("--wall", action="store_true", help="wall time instead of CPU time")
    parser.add_argument("--no-peers", action="store_true", help="this project's loader only")
    parser.add_argument("--streaming-python", type=Path, help="python of an environment with mosaicml-streaming")
    parser.add_argument("--core", type=int, help="the core to run on (default: the last)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        samples = read_frames(arguments, work)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if arguments.core is None else arguments.core})
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        keep_freed_memory()
        (work / "ours").mkdir()
        (work / "png").mkdir()
        write_shard(work / "ours" / "frames.tar", samples)
        write_shard(work / "png" / "frames.tar", samples, container="png")
        clock = time.perf_counter if arguments.wall else time.process_time
        size = (arguments.image_size[0], arguments.image_size[1])
        what = Measurement(ShardFolder(work / "ours"), size, arguments.batch_size, arguments.interpolate, arguments.rounds, clock)
        ours = loader_seconds(what)
        peers = {} if arguments.no_peers else peer_seconds(what, arguments, work)
        stages, decoders, together = stage_seconds(what)
    sizes = sorted({"x".join(map(str, sample.meta.image_size)) for sample in samples})
    time_kind = "wall" if arguments.wall else "CPU"
    print(f"\n{len(samples)} frames of {', '.join(sizes)} to {size[1]}x{size[0]}, batches of {what.batch_size}, one core, {time_kind} time")
    print_comparison(ours, peers)
    print_stages(ours, stages, decoders, together)
    return 0


def read_frames(arguments: argparse.Namespace, work: Path) -> list[Sample]:
    """The samples, a whole number of batches of them. Rendered ones are kept in ``runs/benchmarks`` for the next time.

    Raises:
        SystemExit: fewer frames than one batch.
    """
    folder = arguments.shards
    if arguments.raw is not None:
        folder = work / "built"
        build("simple", ["--input", str(arguments.raw)], folder)
    elif folder is None:
        width, height = arguments.frame_size
        scenes = -(-arguments.samples // VIEWS)
        folder = Path("runs/benchmarks") / f"frames_{width}x{height}_{scenes}"
        options = [f"scenes={scenes}", f"views={VIEWS}", f"width={width}", f"height={height}"]
        build("rendered", [f"--set={option}" for option in options], folder)
    found = [read.sample for read in read_samples([folder], arguments.samples, "loader", quiet=True) if read.sample is not None]
    whole = len(found) // arguments.batch_size * arguments.batch_size
    if whole == 0:
        raise SystemExit(f"{folder}: {len(found)} frames are less than one batch; use more --samples or a smaller --batch-size")
    return found[:whole]


def build(source: str, options: list[str], folder: Path) -> None:
    """Raises SystemExit where ``data-shards build`` fails."""
    if code := data_shards_command(["build", source, "--output", str(folder), *options]):
        raise SystemExit(code)


def peer_seconds(what: Measurement, arguments: argparse.Namespace, work: Path) -> dict[str, float | str]:
    """Seconds a sample of each peer, or how to have it measured.

    Raises:
        SystemExit: a peer fails, or its batches are not those of the loader.
    """
    found: dict[str, float | str] = {}
    for peer, name in PEERS.items():
        python = arguments.streaming_python if peer == "streaming" else Path(sys.executable)
        how_to = HOW_TO_STREAMING if peer == "streaming" else HOW_TO_LITDATA
        if python is None or subprocess.run([python, "-c", f"import importlib.util as u; exit(u.find_spec({peer!r}) is None)"]).returncode:
            found[name] = how_to
            continue
        (work / peer).mkdir()
        command = [python, ROOT / "benchmarks" / "loader_peers.py", peer, work / "png", work / peer]
        command += ["--image-size", *map(str, what.image_size), "--batch-size", str(what.batch_size), "--rounds", str(what.rounds)]
        command += ["--interpolate"] * what.interpolate + ["--wall"] * arguments.wall
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed with exit code {done.returncode}; its messages stand above")
        figures = json.loads(done.stdout.splitlines()[-1])
        if figures["batches"] * what.batch_size != len(what.folder):
            raise SystemExit(f"{name} gave {figures['batches']} batches of {what.batch_size}, not all {len(what.folder)} samples")
        compare_batch(what, work / peer / FIRST_BATCH, name)
        found[name] = figures["seconds"]
    return found


def compare_batch(what: Measurement, path: Path, name: str) -> None:
    """Raises SystemExit unless the peer's first batch holds what this project's pipeline makes of the same samples."""
    pipeline = SamplePipeline(what.image_size, Augmentation(), PromptOptions(PROMPT_POINTS, what.interpolate), SEED)
    batch = collate([pipeline(what.folder.sample(index), index, RowOptions()) for index in range(what.batch_size)])
    assert batch.prompt is not None
    with np.load(path) as theirs:
        own = {field: getattr(batch, field).numpy() for field in ("depth", "valid", "sky", "intrinsics", "position")}
        for field, values in {**own, "prompt": batch.prompt.depth_m.numpy(), "key": np.array(batch.key)}.items():
            if not np.array_equal(values, theirs[field], equal_nan=values.dtype.kind == "f"):
                raise SystemExit(f"{name} does not give the same output: {field} differs in its first batch")
        difference = np.abs(batch.image.numpy() - theirs["image"]).mean(axis=(1, 2, 3)).max()
    if difference > COLOUR_DIFFERENCE:
        raise SystemExit(f"{name} does not give the same output: an image of its first batch differs by {difference:.3f} in the mean")


def print_comparison(ours: float, peers: dict[str, float | str]) -> None:
    print(f"\n| {'loader':28s} | ms/sample | samples/s | ours faster |\n|{'-' * 30}|----------:|----------:|------------:|")
    print(f"| {'ours':28s} | {ours * 1e3:9.3f} | {1 / ours:9.0f} | {'':11s} |")
    measured = {name: seconds for name, seconds in peers.items() if isinstance(seconds, float)}
    for name, seconds in measured.items():
        print(f"| {name:28s} | {seconds * 1e3:9.3f} | {1 / seconds:9.0f} | {seconds / ours:10.2f}x |")
    for name, how_to in peers.items():
        if name not in measured:
            print(f"{name}: not measured; {how_to}")
    if measured:
        best = min(measured, key=lambda name: measured[name])
        print(f"ours over the best of them ({best}): {measured[best] / ours:.2f}x (aim: 2)")


def print_stages(ours: float, stages: dict[str, float], decoders: dict[str, float], together: float) -> None:
    rule = f"|{'-' * 30}|----------:|------:|----------:|"
    print(f"\n| {'stage, alone':28s} | ms/sample | share | samples/s |\n{rule}")
    for name, seconds in [*stages.items(), ("sum of the stages", sum(stages.values())), ("the loader, end to end", ours)]:
        print(f"| {name:28s} | {seconds * 1e3:9.3f} | {seconds / ours:5.0%} | {1 / seconds:9.0f} |")
    print(f"\n| {'decoder, alone':28s} | ms/sample | share | samples/s |\n{rule}")
    for name, seconds in [*decoders.items(), ("decoders alone (together)", together)]:
        print(f"| {name:28s} | {seconds * 1e3:9.3f} | {seconds / ours:5.0%} | {1 / max(seconds, 1e-9):9.0f} |")
    print(f"the loader reaches {together / ours:.0%} of what its decoders alone reach (aim: 85 %)")


if __name__ == "__main__":
    sys.exit(main())
