"""mdpretrain: training of metric depth. ``mdpretrain.load(path)`` gives a trained network to predict with.

Nothing is imported before it is asked for, so that importing the package costs nothing (and needs no torch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdpretrain.inference.loading import load as load


def __getattr__(name: str) -> Any:
    if name == "load":
        from mdpretrain.inference.loading import load

        return load
    raise AttributeError(f"module 'mdpretrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
