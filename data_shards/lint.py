"""``data-shards lint``: depth that cannot be right. Checks look at one sample, at a source and sensor as a whole, or at all pictures.

``docs/lint.md`` has the table of findings. Thresholds stand at the top of the file that uses them, each with its reason:
``lint_checks.py`` (values), ``lint_camera.py``, ``lint_planes.py`` (z or ray, floor), ``lint_edges.py`` (depth on colour),
``lint_units.py``, ``lint_duplicates.py``, ``lint_sources.py`` (a source as a whole).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from data_shards.codecs import decode_image
from data_shards.lint_camera import camera_remarks
from data_shards.lint_checks import piles, value_remarks
from data_shards.lint_duplicates import DuplicateSearch, picture_hash
from data_shards.lint_edges import edge_agreement, sample_remark
from data_shards.lint_findings import ERROR, WARNING, LintReport, Place, Remark
from data_shards.lint_planes import camera_height, flatness
from data_shards.lint_sources import SourceFacts
from data_shards.lint_units import Scale, step_of
from data_shards.reading import ReadSample, read_samples
from data_shards.schema import Sample
from data_shards.storage.address import ShardPath


def lint(paths: Sequence[ShardPath], max_samples: int | None = None, quiet: bool = False) -> LintReport:
    """Read samples and report what cannot be right, per source and sensor.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar.
    """
    return judge(read_samples(paths, max_samples, "lint", quiet))


def judge(reads: Iterable[ReadSample]) -> LintReport:
    """The report on samples that were read; a sample's place is only repeated, not opened."""
    sources: dict[tuple[str, str], SourceFacts] = {}
    pictures = DuplicateSearch()
    count = 0
    for read in reads:
        count += 1
        name = (read.source, "" if read.sample is None else read.sample.meta.sensor)
        facts = sources.setdefault(name, SourceFacts(*name))
        facts.samples += 1
        place = Place(read.path, read.position, read.key)
        if read.sample is None:
            facts.object(place, Remark("unreadable", ERROR, 0.0, read.problem))
            continue
        trusted = _gather_depth(facts, place, read.sample)
        _gather_picture(facts, place, read.sample, trusted, pictures)
    findings = [found for facts in sources.values() for found in facts.findings()]
    return LintReport(count, sorted(findings, key=lambda found: (found.severity != ERROR, found.source, found.sensor, found.check)))


def _gather_depth(facts: SourceFacts, place: Place, sample: Sample) -> bool:
    """What depth and camera say; returns whether both are sound enough to compare depth with colour."""
    meta, values = sample.meta, np.sort(sample.depth[np.isfinite(sample.depth)])
    on_values, on_camera = value_remarks(sample, values), camera_remarks(sample)
    for remark in on_values + on_camera:
        facts.object(place, remark)
    facts.add_camera(place, meta)
    at_the_ends = [] if on_values else piles(values)
    facts.piles += [(depth, share, place) for depth, share in at_the_ends]
    trusted = not any(remark.severity == ERROR for remark in on_values + on_camera)
    height = None
    if meta.camera is not None and trusted:
        flat = flatness(sample.depth, meta.image_size, meta.camera)
        if flat is not None:
            facts.readings.append((place, meta.depth_type, flat))
        height = camera_height(sample.depth, meta.image_size, meta.camera, meta.depth_type)
    if meta.metric and values.size:
        facts.scales.append((place, Scale(float(np.median(values)), step_of(sample, values), height)))
    return trusted and not at_the_ends  # clipping takes most edges away


def _gather_picture(facts: SourceFacts, place: Place, sample: Sample, trusted: bool, pictures: DuplicateSearch) -> None:
    try:
        grey = cv2.cvtColor(decode_image(sample.image_bytes), cv2.COLOR_RGB2GRAY)
    except ValueError as error:
        facts.object(place, Remark("unreadable", ERROR, 0.0, f"image: {error}"))
        return
    agreement = edge_agreement(grey, sample.depth) if trusted else None
    if agreement is not None:
        facts.add_edges(place, agreement)
        if (remark := sample_remark(agreement)) is not None:
            facts.object(place, remark)
    picture = picture_hash(grey)
    if picture is not None and (twin := pictures.first_like(picture, place)) is not None:
        first, different = twin
        message = f"the same picture as {first.key} in {first.shard} ({different} of 255 bits of their hashes differ)"
        facts.object(place, Remark("duplicate", WARNING, different, message, -different), first)
