"""How much does ``data-shards lint`` find, and how often does it cry wolf? Good frames are damaged in every way that it knows.

    python benchmarks/lint_rates.py                     # 200 rendered frames
    python benchmarks/lint_rates.py SHARDS --source NAME  # frames of your own that are good

For each damage, two numbers of frames in 100: of the damaged ones, how many are named with the right finding when all frames of the
source are damaged, and when every tenth is; then how many of the others are named for anything. A frame counts as flagged by any
finding, error or warning, that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_shards.codecs import decode_image, encode_image
from data_shards.lint import judge
from data_shards.lint_findings import LintReport
from data_shards.lint_planes import rays
from data_shards.reading import ReadSample, read_samples
from data_shards.samples import members_to_sample, sample_to_members
from data_shards.schema import Camera, DepthType, Sample
from data_shards.sources.rendered import RenderedSource

SCENES, VIEWS, SIZE, FIRST_SCENE = 100, 2, (256, 192), 500
EVERY = 10  # one frame in so many is damaged in the second run
NAN = np.float32(np.nan)
Damage = Callable[[Sample, Sample], Sample]


def with_depth(sample: Sample, depth: np.ndarray, **meta) -> Sample:
    """The sample with another depth map, and other fields of its meta."""
    return dataclasses.replace(sample, depth=depth.astype(np.float32), sky=None, meta=dataclasses.replace(sample.meta, **meta))


def scaled(factor: float) -> Damage:
    """Depth in another unit."""
    return lambda sample, _: with_depth(sample, sample.depth * np.float32(factor))


def as_ray(sample: Sample, _: Sample) -> Sample:
    """Distances along the ray under a meta that says z (and the reverse)."""
    assert sample.meta.camera is not None, f"{sample.meta.key}: this damage needs frames with a camera"
    x, y = rays(sample.depth.shape, sample.meta.image_size, sample.meta.camera)
    length = np.sqrt(1 + x * x + y * y)
    return with_depth(sample, sample.depth * (length if sample.meta.depth_type == DepthType.Z else 1 / length))


def declared_wrongly(sample: Sample, _: Sample) -> Sample:
    """Good depth under a meta that says the other type."""
    other = DepthType.RAY if sample.meta.depth_type == DepthType.Z else DepthType.Z
    return with_depth(sample, sample.depth, depth_type=other)


def shifted(part: float) -> Damage:
    """Depth moved to the right by this part of the longer side."""

    def damage(sample: Sample, _: Sample) -> Sample:
        pixels = round(part * max(sample.depth.shape))
        moved = np.full_like(sample.depth, NAN)
        moved[:, pixels:] = sample.depth[:, :-pixels]
        return with_depth(sample, moved)

    return damage


def zoomed(sample: Sample, _: Sample) -> Sample:
    """Depth as a camera sees it whose focal length is 15 % longer: another camera's, not registered."""
    height, width = sample.depth.shape
    rows = ((np.arange(height) + 0.5 - height / 2) / 1.15 + height / 2).astype(int)
    columns = ((np.arange(width) + 0.5 - width / 2) / 1.15 + width / 2).astype(int)
    return with_depth(sample, sample.depth[rows][:, columns])


def of_another_frame(sample: Sample, other: Sample) -> Sample:
    """Depth of another frame, at this one's size."""
    size = (sample.depth.shape[1], sample.depth.shape[0])
    return with_depth(sample, cv2.resize(other.depth, size, interpolation=cv2.INTER_NEAREST))


def camera(change: Callable[[Camera, tuple[int, int]], Camera]) -> Damage:
    """Other intrinsics."""

    def damage(sample: Sample, _: Sample) -> Sample:
        assert sample.meta.camera is not None, f"{sample.meta.key}: this damage needs frames with a camera"
        return with_depth(sample, sample.depth, camera=change(sample.meta.camera, sample.meta.image_size))

    return damage


def with_codes(metres: float) -> Damage:
    """What was not measured, and a corner besides, reads as a distance."""

    def damage(sample: Sample, _: Sample) -> Sample:
        depth = np.where(np.isnan(sample.depth), np.float32(metres), sample.depth)
        depth[: depth.shape[0] // 6, : depth.shape[1] // 6] = metres
        return with_depth(sample, depth)

    return damage


def with_specks(sample: Sample, _: Sample) -> Sample:
    """Three false matches far away: 30 to 60 times the farthest hundredth of the scene, each of 0.03 % of the image."""
    depth = sample.depth.copy()
    far = np.percentile(depth[np.isfinite(depth)], 99)
    side = max(1, round(np.sqrt(3e-4 * depth.size)))
    rng = np.random.default_rng(0)
    for factor in (30, 45, 60):
        row, column = rng.integers(0, depth.shape[0] - side), rng.integers(0, depth.shape[1] - side)
        depth[row : row + side, column : column + side] = far * factor
    return with_depth(sample, depth)


def clipped(sample: Sample, _: Sample) -> Sample:
    """Everything beyond 3 m lies at 3 m."""
    return with_depth(sample, np.minimum(sample.depth, np.float32(3)))


def constant(sample: Sample, _: Sample) -> Sample:
    """One depth everywhere."""
    return with_depth(sample, np.where(np.isfinite(sample.depth), np.float32(2.5), sample.depth))


def quantised(levels: int) -> Damage:
    """As many levels up to the largest depth."""

    def damage(sample: Sample, _: Sample) -> Sample:
        step = sample.depth[np.isfinite(sample.depth)].max() / levels
        return with_depth(sample, np.maximum(np.rint(sample.depth / step), 1) * step)

    return damage


def cut(sample: Sample, _: Sample) -> Sample:
    """Depth of a narrower field of view."""
    return with_depth(sample, sample.depth[:, sample.depth.shape[1] // 5 :])


def nearly_empty(sample: Sample, _: Sample) -> Sample:
    """Twenty pixels are left."""
    depth = np.full_like(sample.depth, NAN)
    places = np.flatnonzero(np.isfinite(sample.depth))
    chosen = places[:: max(1, places.size // 20)]
    depth.ravel()[chosen] = sample.depth.ravel()[chosen]
    return with_depth(sample, depth)


def coded_again(sample: Sample, other: Sample) -> Sample:
    """Another frame's picture at another jpg quality."""
    data = encode_image(decode_image(other.image_bytes), "jpg", quality=70)
    meta = dataclasses.replace(sample.meta, image_size=other.meta.image_size, camera=other.meta.camera)
    return dataclasses.replace(sample, image_bytes=data, image_format="jpg", depth=other.depth, sky=None, meta=meta)


# name -> (the finding that must name it, the damage). Damages of the whole source come first in each kind.
DAMAGES: dict[str, tuple[str, Damage]] = {
    **{f"unit x{factor:g}": ("unit", scaled(factor)) for factor in (1000, 100, 10, 0.1, 0.01, 0.001)},
    "ray declared z": ("depth_type", as_ray),
    "z declared ray": ("depth_type", declared_wrongly),
    "shifted 1 %": ("misaligned", shifted(0.01)),
    "shifted 2 %": ("misaligned", shifted(0.02)),
    "shifted 3 %": ("misaligned", shifted(0.03)),
    "other camera's depth": ("misaligned", zoomed),
    "other frame's depth": ("misaligned", of_another_frame),
    "camera of half size": ("camera_resolution", camera(lambda c, _: c.scaled(0.5, 0.5))),
    "camera of double size": ("camera_resolution", camera(lambda c, _: c.scaled(2, 2))),
    "principal point outside": ("principal_point", camera(lambda c, s: dataclasses.replace(c, cx=1.3 * s[0]))),
    "focal length x30": ("field_of_view", camera(lambda c, _: dataclasses.replace(c, fx=30 * c.fx, fy=30 * c.fy))),
    "fy x1.8": ("focal_lengths", camera(lambda c, _: dataclasses.replace(c, fy=1.8 * c.fy))),
    "65535 as 65.535 m": ("invalid_code", with_codes(65.535)),
    "nothing as 1000 m": ("invalid_code", with_codes(1000.0)),
    "specks far away": ("outlier", with_specks),
    "clipped at 3 m": ("clipped", clipped),
    "constant": ("constant", constant),
    "255 levels": ("quantised", quantised(255)),
    "12 levels": ("quantised", quantised(12)),
    "cut depth": ("aspect", cut),
    "nearly empty": ("few_pixels", nearly_empty),
    "picture coded again": ("duplicate", coded_again),
}


def report_on(samples: list[Sample], coded: bool = True) -> LintReport:
    """Lint's report on samples as shards of 64 would hold them; ``coded``: written and read by the codecs, as depth in shards is."""
    reads = []
    for number, sample in enumerate(samples):
        key = sample.meta.key
        path, position = Path(f"{number // 64:05d}.tar"), number % 64
        held = members_to_sample(key, sample_to_members(sample)) if coded else sample
        reads.append(ReadSample(path, position, key, sample.meta.source, 0, held))
    return judge(reads)


def flagged(report: LintReport) -> dict[int, set[str]]:
    """Number of the sample -> the findings that name it."""
    return {64 * int(Path(path).stem) + position: checks for (path, position), checks in report.flagged().items()}


def damaged_frames(samples: list[Sample], damage: Damage, which: range) -> list[Sample]:
    """The samples, those of ``which`` damaged; the other frame, where a damage needs one, is half the list away."""
    other = len(samples) // 2
    return [damage(s, samples[(n + other) % len(samples)]) if n in which else s for n, s in enumerate(samples)]


def rates(samples: list[Sample], name: str) -> tuple[float, float, float]:
    """Shares of damaged frames named rightly (all damaged, every tenth damaged), and of the good ones named for anything then."""
    check, damage = DAMAGES[name]
    if check == "duplicate":
        damage_all = range(len(samples) // 2, len(samples))  # the first half is what the second repeats
    else:
        damage_all = range(len(samples))
    found = flagged(report_on(damaged_frames(samples, damage, damage_all)))
    every = range(len(samples) // 2, len(samples), EVERY) if check == "duplicate" else range(EVERY // 2, len(samples), EVERY)
    found_some = flagged(report_on(damaged_frames(samples, damage, every)))
    wrong = sum(n not in every for n in found_some)
    right = [
        sum(check in checks for n, checks in by.items() if n in which) / len(which)
        for by, which in ((found, damage_all), (found_some, every))
    ]
    return right[0], right[1], wrong / (len(samples) - len(every))


def rendered(scenes: int, views: int, size: tuple[int, int], first_scene: int) -> list[Sample]:
    """Good frames of the built-in renderer at its quickest."""
    source = RenderedSource(scenes=scenes, views=views, width=size[0], height=size[1], quality=0, first_scene=first_scene)
    return [sample for item in source.items() for sample in source.read(item)]


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", nargs="*", type=Path, help="folders of good frames (default: rendered ones)")
    parser.add_argument("--source", action="append", help="only samples of these sources (repeatable)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="how many scenes to render")
    parser.add_argument("--only", action="append", choices=sorted(DAMAGES), help="only these damages (repeatable)")
    arguments = parser.parse_args(argv)
    if arguments.shards:
        reads = read_samples(arguments.shards, None, "read", False)
        samples = [read.sample for read in reads if read.sample is not None and (not arguments.source or read.source in arguments.source)]
    else:
        samples = rendered(arguments.scenes, VIEWS, SIZE, FIRST_SCENE)
    good = flagged(report_on(samples))
    print(f"{len(samples)} good frames, {len(good)} flagged ({len(good) / len(samples):.1%}): {sorted(set().union(*good.values()))}")
    print("| damage | finding | all damaged: found % | one in ten damaged: found % | others flagged % |\n|---|---|---|---|---|")
    for name in arguments.only or DAMAGES:
        whole, some, wrong = rates(samples, name)
        print(f"| {name} | {DAMAGES[name][0]} | {whole:.0%} | {some:.0%} | {wrong:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
