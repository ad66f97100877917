"""The part of a training recipe that says what is drawn, read without the training stack: plain YAML, stacked as ``mdpretrain fit`` does.

Of several recipes the later one wins, key by key; a list replaces an earlier one, ``key+`` adds to it; ``data: FILE`` stands for the
file's content. A test compares this with the command line's own parser on every recipe of this repository.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_shards.mixture import MixtureSource, scaled

ENDLESS = -1  # Lightning's word for a run without a last step
NUMBERS = ("weight", "min_depth_m", "max_depth_m", "max_passes", "fraction", "max_bad_fraction")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: PyYAML takes ``1e3`` for a text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]*\.[0-9]*[eE][0-9]+$"), list("-+0123456789."))


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run draws: ``batches`` global batches of ``batch_size`` samples, or None without a last one.

    ``epoch_batches`` is what the recipe calls an epoch (None: one pass over as many samples as the mixture has).
    """

    sources: tuple[MixtureSource, ...]
    batch_size: int
    max_steps: int
    max_epochs: int
    accumulate: int
    epoch_batches: int | None

    def epoch(self, samples: int) -> int:
        """Batches that training calls an epoch: whole optimiser steps, where gradients are accumulated."""
        length = self.epoch_batches or samples // self.batch_size
        return max(1, length // self.accumulate) * self.accumulate

    def batches(self, samples: int) -> int | None:
        """How many global batches training takes from a mixture of ``samples`` samples."""
        epoch = self.epoch(samples)
        ends = [self.max_steps * self.accumulate] if self.max_steps >= 0 else []
        return min([*ends, self.max_epochs * epoch] if self.max_epochs >= 0 else ends, default=None)


def read_run(recipes: Sequence[Path], changes: Sequence[str] = ()) -> Run:
    """The run that stacked recipes describe, with ``changes`` like ``data.batch_size=64``.

    Raises:
        ValueError: a recipe that is missing or not YAML, an unknown key of a row, a value of the wrong type, no mixture; names it.
    """
    content = stacked([load_recipe(path) for path in recipes] + [_change(text) for text in changes])
    data, trainer = _section(content, "data"), _section(content, "trainer")
    rows = data.get("train") or []
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{' + '.join(map(str, recipes))}: no mixture under data.train; stack a recipe of recipes/mixtures on it")
    if "batch_size" not in data:
        raise ValueError(f"{' + '.join(map(str, recipes))}: data.batch_size is missing; add it, or --set data.batch_size=N")
    fraction = data.get("fraction", 1.0)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise ValueError(f"data.fraction is {fraction!r}, expected a number")
    return Run(
        tuple(scaled([_row(row, f"data.train[{number}]") for number, row in enumerate(rows)], fraction)),
        _whole(data, "data.batch_size", 1),
        _whole(trainer, "trainer.max_steps", ENDLESS, ENDLESS),
        _whole(trainer, "trainer.max_epochs", ENDLESS, ENDLESS),
        _whole(trainer, "trainer.accumulate_grad_batches", 1, 1),
        None if data.get("steps_per_epoch") is None else _whole(data, "data.steps_per_epoch", 1),
    )


def load_recipe(path: Path) -> dict[str, Any]:
    """One recipe's content, with files that stand for a section in place of their names (relative to the recipe).

    Raises:
        ValueError: it is missing, not YAML, or holds no keys.
    """
    try:
        content = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ValueError(f"there is no recipe {path}" if not path.exists() else f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe holds keys like data: and trainer:, not a {type(content).__name__}")
    return {
        key: load_recipe(path.parent / value) if key in ("data", "trainer") and isinstance(value, str) else value
        for key, value in content.items()
    }


def stacked(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One content of several: the later wins, key by key; ``key+`` adds to a list."""
    merged: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            if key.endswith("+"):
                merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *(value if isinstance(value, list) else [value])]
            elif isinstance(value, dict):
                merged[key] = stacked([merged[key] if isinstance(merged.get(key), dict) else {}, value])
            else:
                merged[key] = value
    return merged


def _change(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise ValueError(f"--set {text}: write KEY=VALUE, like data.batch_size=64")
    try:
        content: Any = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text}: the value is not YAML") from error
    for key in reversed(name.split(".")):
        content = {key: content}
    return content


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"{name}: holds keys, not {section!r}")
    return section


def _row(record: Any, where: str) -> MixtureSource:
    known = [field.name for field in dataclasses.fields(MixtureSource)]
    if not isinstance(record, dict) or "path" not in record:
        raise ValueError(f"{where}: a row is like {{path: FOLDER, weight: 1.0}}, got {record!r}")
    if unknown := sorted(set(record) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; a row has {', '.join(known)}")
    values = {name: value for name, value in record.items() if value is not None or name in ("name", "crop", "loss_kind")}
    for name in set(NUMBERS) & set(values):
        if isinstance(values[name], bool) or not isinstance(values[name], int | float):
            raise ValueError(f"{where}: {name} is {values[name]!r}, expected a number")
    return MixtureSource(**values)


def _whole(section: dict[str, Any], name: str, least: int, default: int | None = None) -> int:
    value = section.get(name.rsplit(".", 1)[1])
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return value
