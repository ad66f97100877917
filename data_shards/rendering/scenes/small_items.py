"""Things that stand on tables, shelves and floors. Each is drawn at the origin of its frame and at most ``tallest`` metres high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_shards.rendering.scenes.mesh import rotation_z
from data_shards.rendering.scenes.scene import LocalFrame
from data_shards.rendering.scenes.shapes import box, ellipsoid, revolved, screen_with_bezel

SmallItem = Callable[[LocalFrame, float], None]


def cup(here: LocalFrame, tallest: float) -> None:
    """A cup or a pot."""
    radius, height = here.uniform(0.03, 0.05), min(here.uniform(0.08, 0.12), tallest)
    profile = revolved([0, radius, radius, radius * 0.9, radius * 0.85, 0], [0, 0, height, height, 0.01, 0.01])
    here.add(profile, here.material(("paint", "print", "marble")))


def bottle(here: LocalFrame, tallest: float) -> None:
    """A bottle with a neck."""
    radius, height = 0.037, min(here.uniform(0.2, 0.33), tallest)
    widths = [0, radius, radius, radius * 0.4, radius * 0.36, 0]
    shape = revolved(widths, [0, 0, height * 0.6, height * 0.78, height, height], 14)
    here.add(shape, here.material(("paint", "print", "metal"), roughness=0.1))


def books(here: LocalFrame, tallest: float) -> None:
    """A small pile of books."""
    base = 0.0
    for _ in range(int(here.rng.integers(1, 5))):
        thickness = here.uniform(0.01, 0.04)
        if base + thickness > tallest:
            break
        cover = here.material(("print", "paint", "leather"), span=(0.2, 0.28))
        turn = rotation_z(here.rng.normal(0, 0.3))
        here.add(box(here.uniform(0.12, 0.22), here.uniform(0.18, 0.28), thickness), cover, (0, 0, base), turn)
        base += thickness


def vase(here: LocalFrame, tallest: float) -> None:
    """A turned vase."""
    t, height = np.linspace(0, 1, 10), min(here.uniform(0.12, 0.35), tallest)
    widths = np.clip(0.05 + 0.04 * np.sin(t * here.uniform(3, 7) + here.uniform(0, 6)), 0.012, None)
    here.add(revolved(widths, t * height), here.material(("marble", "paint", "tile", "stripes", "painting")))


def packet(here: LocalFrame, tallest: float) -> None:
    """A carton or a small box."""
    width, depth, height = here.rng.uniform(0.05, 0.2, 3)
    height = min(height, tallest)
    here.add(box(width, depth, height, 0.004), here.material(("print", "cardboard", "paint", "wood"), span=(width, height)))


def fruit(here: LocalFrame, tallest: float) -> None:
    """A round thing."""
    radius = min(here.uniform(0.03, 0.07), tallest / 2)
    here.add(ellipsoid((radius, radius, radius), 14), here.material(("paint", "leaf", "print", "stripes")), (0, 0, radius))


def screen(here: LocalFrame, tallest: float) -> None:
    """A monitor on its foot, often switched on."""
    if tallest < 0.4:
        return packet(here, tallest)
    width = here.uniform(0.3, 0.7)
    height = min(width * 0.6, tallest - 0.08)
    casing, picture = screen_with_bezel(width, height)
    black, turn = here.plain(0.02), rotation_z(here.rng.normal(0, 0.3))
    here.add(casing, black, (0, 0, 0.08), turn)
    glow = (0.4, 0.4, 0.45) if here.chance(0.6) else None
    here.add(picture, here.material("print", span=(width, height), emission=glow, roughness=0.08), (0, 0, 0.08), turn)
    here.add(box(0.2, 0.15, 0.01), black)
    here.add(box(0.04, 0.03, 0.1), black, (0, 0.02, 0))


def bowl(here: LocalFrame, tallest: float) -> None:
    """An open bowl."""
    radius = min(here.uniform(0.06, 0.14), tallest)
    widths, heights = [0, radius * 0.5, radius, radius * 0.95, radius * 0.45, 0], [0, 0, radius * 0.6, radius * 0.6, 0.012, 0.012]
    here.add(revolved(widths, heights), here.material(("paint", "tile", "wood", "metal")))


SMALL_ITEMS: tuple[SmallItem, ...] = (cup, bottle, books, vase, packet, fruit, screen, bowl)


def random_item(here: LocalFrame, at: tuple[float, float, float], tallest: float = 0.5) -> None:
    """One of the above, standing at ``at`` and turned at random."""
    item = SMALL_ITEMS[int(here.rng.integers(len(SMALL_ITEMS)))]
    item(here.frame(at, here.uniform(-0.5, 0.5)), tallest)


def scatter(here: LocalFrame, at_most: int, width: float, depth: float, height: float, tallest: float = 0.5) -> None:
    """Up to ``at_most`` items on a surface of that width and depth, at that height."""
    for _ in range(int(here.rng.integers(0, at_most + 1))):
        random_item(here, (here.uniform(-0.5, 0.5) * width, here.uniform(-0.5, 0.5) * depth, height), tallest)
