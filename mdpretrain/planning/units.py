"""Figures for people."""

from __future__ import annotations


def bytes_text(count: float | int) -> str:
    """``850 MB``, ``12.3 GB``, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if abs(count) < 1000 else f"{count:,.0f} {unit}"


def time_text(seconds: float | int) -> str:
    """``0.35 s``, ``12 min``, ``17.4 h``, ``3.2 days``."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def table_text(rows: list[list[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines
