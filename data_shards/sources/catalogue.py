"""The catalogue of raw sources, printed from their records: ``data-shards sources [--markdown]`` and a part of ``docs/sources.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_shards.atomic import write_atomically
from data_shards.sources.record import SourceRecord
from data_shards.sources.registry import SOURCES

BEGIN = "<!-- printed by: data-shards sources --markdown -->"
END = "<!-- end of what data-shards printed -->"
PER_FRAME = "per frame"  # what None means in a record
DETAILS = ("layout", "unit", "encoding", "invalid_codes", "camera", "first_pixel", "group", "notes")


def records() -> dict[str, SourceRecord]:
    """Name -> record of every source, by name."""
    classes: dict[str, Any] = {name: SOURCES[name] for name in sorted(SOURCES)}
    return {name: source_class.record for name, source_class in classes.items()}


def as_text() -> str:
    """One line a source: name, label kind, trust tier, z or ray, metric or not, licence, title."""
    rows = [("NAME", "LABEL", "TRUST", "DEPTH", "METRIC", "LICENCE", "TITLE")]
    rows += [(name, *_cells(record), _short(record.licence), record.title) for name, record in records().items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_markdown() -> str:
    """The catalogue for ``docs/sources.md``, from ``BEGIN`` to ``END``: a table of all sources, then a paragraph for each."""
    rows = ["| name | data | label | trust | depth | metric | licence of the data |", "|---|---|---|---|---|---|---|"]
    paragraphs = []
    for name, record in records().items():
        title = f"[{record.title}]({record.homepage})" if record.homepage else record.title
        licence = f"[{record.licence}]({record.licence_url})" if record.licence_url else record.licence
        rows.append(f"| `{name}` | {title} | {' | '.join(_cells(record))} | {licence} |")
        lines = [f"* {field.replace('_', ' ')}: {_plain(field, value)}" for field in DETAILS if (value := getattr(record, field))]
        paragraphs.append("\n".join([f"#### `{name}`", "", *lines]))
    return "\n\n".join([BEGIN, "\n".join(rows), *paragraphs, END]) + "\n"


def update(path: Path) -> None:
    """Replace what stands from ``BEGIN`` to ``END`` in a text file by the catalogue of today.

    Raises:
        ValueError: the file is not there or lacks one of the two marks.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the text that holds the catalogue (docs/sources.md)")
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if not (begin and end):
        raise ValueError(f"{path}: lacks the lines {BEGIN!r} and {END!r} between which the catalogue stands; add them")
    write_atomically(path, (before + as_markdown() + after).encode())


def _cells(record: SourceRecord) -> tuple[str, str, str, str]:
    metric = {True: "yes", False: "no", None: PER_FRAME}[record.metric]
    label, depth = (PER_FRAME if kind is None else kind.value for kind in (record.label_kind, record.depth_type))
    return label, record.trust_tier.value, depth, metric


def _plain(field: str, text: str) -> str:
    """The text as markdown shows it unchanged; layouts are code."""
    return f"`{text}`" if field == "layout" else text.replace("*", "\\*")


def _short(text: str, length: int = 32) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
