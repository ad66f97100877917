"""What ``data-shards lint`` gathers over the samples of one source and sensor, and what it says of them together."""

from __future__ import annotations

import dataclasses

from data_shards.lint_edges import EdgeAgreement, EdgeSums
from data_shards.lint_findings import ERROR, WARNING, Finding, Place, Remark, finding
from data_shards.lint_planes import Flatness
from data_shards.lint_units import Scale, judge_samples, judge_source
from data_shards.schema import Camera, DepthType, SampleMeta

ENOUGH_VERDICTS, CLEAR_MAJORITY = 3, 0.8  # samples that tell z from ray, and how many of them must contradict the meta
CLEAR_ALONE = 2.0  # how many times flatter one sample by itself must be: a slope can bend just so (1.5 in one of 240 rendered views)
# One sample may end in a wall that is seen head-on; several that end at exactly the same depth were clipped there.
ENOUGH_PILES, SAME_DEPTH = 3, 1e-4
ANOTHER_SIZE = 1.05  # sizes that differ by less are rounding


@dataclasses.dataclass
class SourceFacts:
    """Filled sample by sample; ``findings`` judges. ``remarks``: check -> samples that it objects to by themselves."""

    source: str
    sensor: str
    samples: int = 0
    remarks: dict[str, list[tuple[Place, Remark]]] = dataclasses.field(default_factory=dict)
    scales: list[tuple[Place, Scale]] = dataclasses.field(default_factory=list)
    readings: list[tuple[Place, DepthType, Flatness]] = dataclasses.field(default_factory=list)
    piles: list[tuple[float, float, Place]] = dataclasses.field(default_factory=list)
    cameras: dict[Camera, dict[tuple[int, int], list[Place]]] = dataclasses.field(default_factory=dict)
    edges: EdgeSums = dataclasses.field(default_factory=EdgeSums)
    with_edges: list[Place] = dataclasses.field(default_factory=list)

    def object(self, place: Place, remark: Remark, twin: Place | None = None) -> None:
        """One check's objection to one sample."""
        self.remarks.setdefault(remark.check, []).append((place.shows(remark, twin), remark))

    def add_camera(self, place: Place, meta: SampleMeta) -> None:
        """Which sizes of images a camera was given to."""
        if meta.camera is not None:
            self.cameras.setdefault(meta.camera, {}).setdefault(meta.image_size, []).append(place)

    def add_edges(self, place: Place, agreement: EdgeAgreement) -> None:
        """One more sample's agreement of edges."""
        if self.edges.add(agreement):
            self.with_edges.append(place)

    def findings(self) -> list[Finding]:
        """One finding per check: of the whole source where that speaks, with the samples that speak for themselves first."""
        overall: dict[str, tuple[Remark, list[Place]]] = {}
        for judge in (self._unit, self._depth_type, self._clipped, self._camera, self._misaligned):
            judged = judge()
            if judged is not None:
                overall[judged[0].check] = judged
        found = []
        for check in [*overall, *(check for check in self.remarks if check not in overall)]:
            alone = self.remarks.get(check, [])
            places = [place for place, _ in alone]
            if check in overall:
                remark, others = overall[check]
                named = {(place.path, place.position) for place in places}
                places += [place for place in others if (place.path, place.position) not in named]
            else:
                remark = max((remark for _, remark in alone), key=lambda remark: (remark.severity == ERROR, remark.badness))
            if check == "few_pixels" and 2 * len(places) > self.samples:
                remark = dataclasses.replace(remark, severity=ERROR)  # a bad frame happens; a source of them was read wrongly
            found.append(finding(remark, self.source, self.sensor, places))
        return found

    def _unit(self) -> tuple[Remark, list[Place]] | None:
        scales = [scale for _, scale in self.scales]
        remark = judge_source(scales, self.sensor)
        if remark is not None:
            return remark, [place.shows(_of_scale(scale)) for place, scale in self.scales]
        for number, alone in judge_samples(scales).items():
            self.object(self.scales[number][0], alone)
        return None

    def _depth_type(self) -> tuple[Remark, list[Place]] | None:
        decided = [(place, said, flat, flat.verdict()) for place, said, flat in self.readings]
        against = [(place, said, flat) for place, said, flat, verdict in decided if verdict not in (None, said)]
        votes = sum(verdict is not None for _, _, _, verdict in decided)
        if votes < ENOUGH_VERDICTS or len(against) < CLEAR_MAJORITY * votes:
            for place, said, flat in against:
                if (remark := _of_reading(said, flat)).number >= CLEAR_ALONE:
                    self.object(place, remark)
            return None
        said = against[0][1]
        truly = DepthType.RAY if said == DepthType.Z else DepthType.Z
        message = (
            f"surfaces are flat only if the depth is {truly.value!r} in {len(against)} of {votes} samples, the meta says {said.value!r}"
        )
        return Remark("depth_type", ERROR, len(against) / votes, message), [
            place.shows(_of_reading(said, flat)) for place, said, flat in against
        ]

    def _clipped(self) -> tuple[Remark, list[Place]] | None:
        piles = sorted(self.piles, key=lambda pile: pile[0])
        best: list[tuple[float, float, Place]] = []
        first = 0
        for last in range(len(piles)):
            while piles[last][0] > piles[first][0] * (1 + SAME_DEPTH):
                first += 1
            if last + 1 - first > len(best):
                best = piles[first : last + 1]
        if len(best) < ENOUGH_PILES:
            return None
        depth = best[-1][0]
        message = (
            f"{len(best)} samples pile up at exactly {depth:g}, up to {max(share for _, share, _ in best):.0%} of a map: clipped there?"
        )
        shown = [Remark("clipped", ERROR, depth, f"{share:.1%} of the pixels lie at exactly {depth:g}", share) for depth, share, _ in best]
        return Remark("clipped", ERROR, depth, message), [place.shows(remark) for (_, _, place), remark in zip(best, shown)]

    def _camera(self) -> tuple[Remark, list[Place]] | None:
        for camera, places_of in self.cameras.items():
            fitting = min(places_of, key=lambda size: abs(camera.cx / size[0] - 0.5) + abs(camera.cy / size[1] - 0.5))
            others = [size for size in places_of if max(size[0] / fitting[0], fitting[0] / size[0]) > ANOTHER_SIZE]
            if others:
                sizes = ", ".join(f"{width}x{height}" for width, height in sorted([fitting, *others]))
                message = (
                    f"one camera (fx {camera.fx:g}, cx {camera.cx:g}, cy {camera.cy:g}) for images of {sizes}: it can fit one size only"
                )
                remark = Remark("camera_resolution", ERROR, len(others) + 1, message)
                return remark, [place.shows(remark) for size in others for place in places_of[size]]
        return None

    def _misaligned(self) -> tuple[Remark, list[Place]] | None:
        remark = self.edges.remark()
        return None if remark is None else (remark, [place.shows(remark) for place in self.with_edges])


def _of_scale(scale: Scale) -> Remark:
    height = "" if scale.height_m is None else f", camera {scale.height_m:.3g} m above the floor"
    return Remark("unit", ERROR, scale.median_m, f"median depth {scale.median_m:.3g} m{height}")


def _of_reading(said: DepthType, flat: Flatness) -> Remark:
    shares = f"{flat.as_z:.0%} of the points if the depth is 'z', {flat.as_ray:.0%} if it is 'ray'"
    message = f"the largest plane holds {shares}; the meta says {said.value!r}"
    ratio = max(flat.as_z, flat.as_ray) / max(min(flat.as_z, flat.as_ray), 1e-3)
    return Remark("depth_type", WARNING, ratio, message, ratio)
