"""``data-shards preview``: colour, coloured depth with a metric colour bar, mask and histogram, as an HTML page and a PNG sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_shards.atomic import write_atomically
from data_shards.codecs import decode_image, encode_image
from data_shards.panels import PAGE_STYLE, draw_colour, draw_depth, draw_histogram, draw_mask, embedded, row_of_panels
from data_shards.reading import ReadSample, read_samples
from data_shards.schema import DEPTH_FIELDS, Sample
from data_shards.storage.address import ShardPath

SHEET_ROWS = 24
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{style}</head><body><h1>{title}</h1>
<p>Depth is coloured on a logarithmic scale from the 1st to the 99th percentile of each image (the bar is in {unit_note}).
Grey: not measured. Light blue: infinitely far.</p>
{body}
</body></html>
"""


def preview(paths: Sequence[ShardPath], output: Path, samples: int = 12, quiet: bool = False) -> list[Path]:
    """Write ``preview.html`` (self-contained, all samples) and ``preview.png`` (the first 24); returns both paths.

    Raises:
        ValueError: a folder or an index is missing or does not fit its tar, or the output cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error
    sections: list[str] = []
    sheet: list[bytes] = []
    for read in read_samples(paths, samples, "preview", quiet):
        picture = b"" if read.sample is None else row_of_panels(_panels(read.sample), read.key)
        sections.append(_section(read, picture))
        if picture and len(sheet) < SHEET_ROWS:
            sheet.append(picture)
    title = f"{len(sections)} samples of {', '.join(str(path) for path in paths)}"
    page = PAGE.format(
        title=html.escape(title),
        style=PAGE_STYLE,
        body="\n".join(sections),
        unit_note="metres, or without unit where the depth is up to scale",
    )
    written = [output / "preview.html"]
    write_atomically(written[0], page.encode())
    if sheet:
        written.append(output / "preview.png")
        write_atomically(written[1], _stacked(sheet))
    return written


def _section(read: ReadSample, picture: bytes) -> str:
    name = f"<h3>{html.escape(read.key)}</h3>"
    if read.sample is None:
        return f'<section>{name}<p class="problem">{html.escape(read.problem)}</p></section>'
    meta = read.sample.meta
    camera = "camera unknown"
    if meta.camera is not None:
        camera = f"fx {meta.camera.fx:.1f}, fy {meta.camera.fy:.1f}, cx {meta.camera.cx:.1f}, cy {meta.camera.cy:.1f} px"
    facts = [
        f"{meta.image_size[0]}x{meta.image_size[1]} {read.sample.image_format}",
        f"depth {read.sample.depth.shape[1]}x{read.sample.depth.shape[0]}",
        f"{meta.depth_type.value}, {'metric' if meta.metric else 'up to scale'}",
        f"{np.isfinite(read.sample.depth).mean():.1%} measured",
        meta.label_kind.value,
        camera,
        f"source {meta.source}, group {meta.group or '-'}, sensor {meta.sensor}, licence {meta.licence}",
        read.shard,
    ]
    return f"<section>{name}<p><code>{html.escape(' | '.join(facts))}</code></p>{embedded(picture, read.key)}</section>"


def _panels(sample: Sample) -> list:
    """What to draw, in order: functions of (axes); the first four are the same for every sample."""
    unit = "m" if sample.meta.metric else "no unit"

    def depth_panel(name: str):
        return lambda axes: draw_depth(axes, getattr(sample, name), name, unit)

    others = [depth_panel(name) for name in DEPTH_FIELDS[1:] if getattr(sample, name) is not None]
    return [
        lambda axes: draw_colour(axes, sample),
        depth_panel("depth"),
        lambda axes: draw_mask(axes, sample.depth),
        lambda axes: draw_histogram(axes, sample.depth, unit),
        *others,
    ]


def _stacked(pictures: list[bytes]) -> bytes:
    """PNG pictures below each other, padded with white to the widest."""
    rows = [decode_image(picture) for picture in pictures]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_image(np.concatenate(padded), "png")
