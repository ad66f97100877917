"""``SWEEP.yaml``: one recipe at several values of something, over several seeds, and what is measured (docs/sweeps.md); read strictly.

name: prompt_density
folder: runs/sweeps/prompt_density          # of the runs, of curve.json and curve.png
recipes: [recipes/metric_anything/teacher_vitl_1536.yaml, recipes/mixtures/metric_anything.yaml]    # stacked
settings: {trainer.max_steps: 20000}        # of every run; keys as `mdpretrain fit --key value` has them
vary:
  x: prompt points an image
  values: [500, 1000, 2000]                 # or points: [{x: 22, label: ViT-S, recipes: [...], settings: {...}}, ...]
  settings: {data.prompt.count: ["{x}", "{x}"]}    # "{x}" stands for the value
seeds: [0, 1, 2]
measure: {figure: val/loss}                 # a column of the run's log; with `evaluate` a metric of `mdpretrain evaluate`
fit: power_law                              # or none: means and their intervals
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Any, Literal

from mdpretrain.evaluation.command import evaluation_parser, evaluation_request
from mdpretrain.evaluation.protocols import find_protocol
from mdpretrain.evaluation.robustness import check_axes
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.metrics.depth import METRICS
from mdpretrain.slurm.cluster_file import load_yaml, read_record

PLACE = "{x}"
DEFAULT_PROTOCOL = "metric_default"
OWN_KEYS = ("run_dir", "resume", "seed_everything", "data.seed", "ckpt_path", "config")  # the sweep sets these itself
# Options of `mdpretrain evaluate` that a sweep gives itself, or that only concern the report.
NOT_MEASURED = ("output", "teacher", "student", "compare", "compare_all", "run", "protocol", "samples_shown", "title")


@dataclasses.dataclass(frozen=True)
class Point:
    """One place on the axis.

    Args:
        x: where; a number.
        label: what the folder of its runs is called; ``x`` unless given.
        recipes: stacked on the sweep's.
        settings: win over ``vary.settings`` and the sweep's.
    """

    x: Any
    label: str | None = None
    recipes: list[str] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.x, bool) or not isinstance(self.x, int | float) or not math.isfinite(self.x):
            raise ValueError(f"x is {self.x!r}; it must be a number (YAML wants 1.0e-3 for 1e-3)")

    @property
    def called(self) -> str:
        """Its name as a part of a path."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label if self.label is not None else str(self.x))


@dataclasses.dataclass(frozen=True)
class Vary:
    """The axis.

    Args:
        x: what it is called, with its unit.
        values: the points' x, in short.
        points: the points, where they differ in more than the value.
        settings: options of every point's runs, with ``{x}`` for its value.
    """

    x: str
    values: list[Any] = dataclasses.field(default_factory=list)
    points: list[Point] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.values) == bool(self.points):
            raise ValueError("give either values or points")

    def all_points(self) -> list[Point]:
        """The points, in the file's order."""
        return self.points or [Point(value) for value in self.values]


@dataclasses.dataclass(frozen=True)
class Measure:
    """The figure on the other axis.

    Args:
        figure: a column of the run's ``csv/metrics.csv`` such as val/loss; with ``evaluate`` a metric such as abs_rel.
        at: of a column: its value where it was logged last, or its lowest.
        evaluate: options of ``mdpretrain evaluate`` (``image_size: [96, 128]`` for ``--image-size 96 128``), with ``{x}`` for the
            point's value; null reads the log.
        network: which kind the run trains, as evaluate calls them: teacher (prompted) or student.
        protocol, source: which row of ``metrics.json``. A ``prompt_protocol`` of ``evaluate`` takes the place of ``protocol``.
    """

    figure: str
    at: Literal["last", "lowest"] = "last"
    evaluate: dict[str, Any] | None = None
    network: Literal["teacher", "student"] = "teacher"
    protocol: str = DEFAULT_PROTOCOL
    source: str = "all"

    def __post_init__(self) -> None:
        if self.evaluate is None:
            return
        if self.figure not in METRICS:
            raise ValueError(f"figure {self.figure!r} is no metric of `mdpretrain evaluate`; there are {', '.join(METRICS)}")
        find_protocol(self.protocol)
        self._check_prompt_protocol()
        options = vars(evaluation_parser().parse_args(["--shards", "-", "--output", "-"]))
        known = [name for name in options if name not in NOT_MEASURED]
        if unknown := sorted(set(self.evaluate) - set(known)):
            raise ValueError(f"evaluate: unknown key {unknown[0]!r}; there are {', '.join(known)}")
        if "shards" not in self.evaluate:
            raise ValueError("evaluate: shards is missing")
        if not {"image_size", "long_side", "prompt_protocol"} & set(self.evaluate):
            raise ValueError("evaluate: image_size is missing (or long_side, or a prompt_protocol with a size of its own)")
        if filled(self.evaluate, 0) == self.evaluate:  # else each point's own is checked, when its value is in place
            self._check_values()

    def _check_prompt_protocol(self) -> None:
        names = _as_list((self.evaluate or {}).get("prompt_protocol", []))
        if len(names) > 1:
            raise ValueError(f"evaluate: prompt_protocol has {len(names)} names; a curve has one figure, so give one")
        if names and self.protocol != DEFAULT_PROTOCOL:
            raise ValueError(
                f"protocol: prompt_protocol has a pixel protocol of its own; leave protocol out, or write {names[0]}@{self.protocol}"
            )

    def _check_values(self) -> None:
        """What ``mdpretrain evaluate`` would refuse after the training is refused when the sweep is read."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                options = evaluation_parser().parse_args(self.command(Path("RUN"), Path("OUTPUT"))[1:])
        except SystemExit as error:
            sentence = said.getvalue().strip().rpartition("error: ")[2]
            raise ValueError(f"evaluate: {re.sub(r'argument --([a-z-]+)', lambda found: found[1].replace('-', '_'), sentence)}") from error
        try:
            first = evaluation_request(options).passes()[0]
            check_axes(options.robustness, first.prompt)
            Resampling(options.resamples, options.seed)
        except ValueError as error:
            raise ValueError(f"evaluate: {error}") from error

    @property
    def row_protocol(self) -> str:
        """The ``protocol`` of the row that has the figure."""
        names = _as_list((self.evaluate or {}).get("prompt_protocol", []))
        return str(names[0]) if names else self.protocol

    def command(self, folder: Path, output: Path) -> list[str]:
        """The words of the evaluation, without the program's name: the newest checkpoint of the run in ``folder``."""
        words = ["evaluate", f"--{self.network}", str(folder), "--output", str(output)]
        if self.row_protocol == self.protocol:
            words += ["--protocol", self.protocol]
        for name, value in (self.evaluate or {}).items():
            if value is not False:  # a switch is there or not, and has no value
                values = [] if value is True else _as_list(value)
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return words

    def at_point(self, point: Point) -> Measure:
        """With the value in place of ``{x}``."""
        return dataclasses.replace(self, evaluate=filled(self.evaluate, point.x))

    def described(self) -> str:
        """For the axis."""
        if self.evaluate is None:
            return self.figure if self.at == "last" else f"lowest {self.figure}"
        return f"{self.figure}, {self.row_protocol}" + ("" if self.source == "all" else f", {self.source}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file."""

    name: str
    folder: str
    recipes: list[str]
    vary: Vary
    measure: Measure
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: Literal["none", "power_law"] = "none"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        points = self.vary.all_points()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; give at least one, each once")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must lie in (0, 1)")
        for point in points:
            self.measure.at_point(point)  # its own checks, with the value in place
        names = [point.called for point in points]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"vary: two points are called {repeated[0]!r}; give one another label")
        if self.fit == "power_law" and (low := min(point.x for point in points)) <= 0:
            raise ValueError(f"vary: a power law needs x > 0, and there is {low}; use fit: none")
        if self.fit == "power_law" and (len({point.x for point in points}) < 3 or len(points) * len(self.seeds) < 4):
            raise ValueError("fit: a power law with three numbers needs at least three different x and four runs; use fit: none")
        for settings in (self.settings, self.vary.settings, *(point.settings for point in points)):
            if taken := sorted(set(settings) & set(OWN_KEYS)):
                raise ValueError(f"settings: {taken[0]} is set by the sweep itself (folder, seeds); leave it out")


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ValueError: no such file, an unknown key, a value of the wrong type or out of range; names file and key.
    """
    if not path.is_file():
        raise ValueError(f"there is no sweep file {path}; recipes/sweeps has some")
    return read_record(Sweep, load_yaml(path), str(path))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def filled(value: Any, x: int | float) -> Any:
    """``value`` with x for every ``{x}``: as a number where the text is nothing else."""
    if isinstance(value, str):
        return x if value == PLACE else value.replace(PLACE, str(x))
    if isinstance(value, list):
        return [filled(entry, x) for entry in value]
    return {name: filled(entry, x) for name, entry in value.items()} if isinstance(value, dict) else value
