"""Every command in README.md is run, in order and in one folder, as a reader would: only sizes are made small, and the made-up
paths get data. The two make targets that run the tests and the demo are checked by name here; CI and test_demo.py run what is in them."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest

from tests.unit.source_fixtures import write_codes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHORT_FIT = (
    "--trainer.max_steps 2 --model.schedule.warmup_steps 0 --trainer.val_check_interval 2 --data.batch_size 4 --data.num_workers 0 "
    "--trainer.limit_val_batches 1 --tensorboard false"
)
# What a test adds to a command so that it ends in seconds: the program's own options, nothing else.
SMALLER = {
    "data-shards build rendered": "--set scenes=2 --set views=2 --set width=64 --set height=48 --set quality=0 --workers 1",
    "mdpretrain fit": SHORT_FIT,
    "python benchmarks/loader.py": "--samples 4 --rounds 1 --batch-size 2 --frame-size 64 48 --image-size 32 32",
    "python benchmarks/prompt_preparation.py": "--quick",
    "python benchmarks/train_step.py": "--rounds 1 --steps 1 --batch 2 --size 48 64",
    "python benchmarks/codec.py": "--samples 2 --rounds 1",
    "python benchmarks/labeling.py": "--images 4 --rounds 1 --batch-size 2 --long-side 56",
}


def readme_commands() -> list[str]:
    """The indented command lines of README.md, continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+", " ", line) for line in lines if re.match(r"(make|mdpretrain|data-shards|python|apt-get) ", line)]


def readme_python() -> str:
    """The indented Python example of README.md, as one program."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (example,) = (block for block in blocks if block.strip().startswith("import mdpretrain"))
    return textwrap.dedent(example)


def write_simple_frames(folder: pathlib.Path, sources: list[str], frames: int = 3) -> None:
    """Frames in the simple layout of docs/sources.md: a tilted plane, 1 to 3 m, in 16-bit millimetres."""
    for number, source in enumerate(sources):
        (folder / source).mkdir(parents=True)
        for frame in range(frames + len(sources) - number):
            name = folder / source / f"{frame:04d}"
            rng = np.random.default_rng([number, frame])
            cv2.imwrite(f"{name}.rgb.jpg", rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            depth_mm = np.linspace(1000, 3000, 48)[:, None] + rng.uniform(0, 200, (1, 64))
            write_codes(pathlib.Path(f"{name}.depth.png"), depth_mm.astype(np.uint16))
            record = {"width": 64, "height": 48, "depth_width": 64, "depth_height": 48, "depth_scale": 1000.0, "depth_type": "z"}
            record |= {"fx": 60.0, "fy": 60.0, "cx": 32.0, "cy": 24.0, "label": "captured"}
            pathlib.Path(f"{name}.json").write_text(json.dumps(record))


def run(command: str, folder: pathlib.Path) -> str:
    """One command line as the reader's shell runs it; fails the test with its output."""
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def adapted(command: str, kitti: pathlib.Path) -> str:
    command = command.replace("/data/kitti/object", str(kitti)).replace(" --workers 8", "")
    if command.startswith("data-shards build rendered"):
        command = re.sub(r" --set scenes=\d+", "", command)
    return command + "".join(f" {options}" for start, options in SMALLER.items() if command.startswith(start))


@pytest.mark.slow
def test_every_readme_command_runs(tmp_path: pathlib.Path) -> None:
    for name in ("recipes", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_simple_frames(tmp_path / "my_frames", ["my_camera", "other_camera"])
    kitti = tmp_path / "kitti"
    write_kitti_object(kitti)
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((96, 128, 3), 128, dtype=np.uint8))
    small = SMALLER["data-shards build rendered"]
    for part, first in (("train", 0), ("val", 100000)):  # what `make demo` leaves behind
        run(f"data-shards build rendered --output runs/demo/shards/{part} --set first_scene={first} {small}", tmp_path)
    commands = readme_commands()
    assert len(commands) > 20
    for command in commands:
        if command.startswith("make "):
            targets = [word for word in command.split()[1:] if "=" not in word]
            assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets), command
        elif not command.startswith("apt-get"):
            run(adapted(command, kitti), tmp_path)
    assert (tmp_path / "runs/demo/report/index.html").stat().st_size > 10_000
    assert {path.suffix for path in (tmp_path / "predictions").iterdir()} >= {".npy", ".png", ".ply"}
    run(shlex.join([sys.executable, "-c", readme_python()]), tmp_path)
    assert list((tmp_path / "predictions").glob("*.glb"))


def write_kitti_object(folder: pathlib.Path) -> None:
    """One frame of KITTI's object layout: a wall of points ten metres ahead."""
    training = folder / "training"
    for name in ("calib", "image_2", "velodyne"):
        (training / name).mkdir(parents=True)
    cv2.imwrite(str(training / "image_2" / "000001.png"), np.full((96, 320, 3), 90, dtype=np.uint8))
    across, up = np.meshgrid(np.linspace(-4, 4, 60), np.linspace(-1, 1, 20))
    points = np.stack([np.full_like(across, 10.0), across, up, np.ones_like(across)], -1).reshape(-1, 4).astype(np.float32)
    points.tofile(training / "velodyne" / "000001.bin")
    projection = "300 0 160 0 0 300 48 0 0 0 1 0"
    calibration = [f"P{camera}: {projection}" for camera in range(4)]
    calibration += ["R0_rect: 1 0 0 0 1 0 0 0 1", "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0", "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0"]
    (training / "calib" / "000001.txt").write_text("\n".join(calibration) + "\n")
