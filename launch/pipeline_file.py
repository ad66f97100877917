"""``PIPELINE.yaml``: the stages from raw data to an evaluated student, and what makes each of them what it is.

name: demo                      # of the jobs
folder: runs/pipeline           # {folder} in the stages
stages:                         # in any order; each names what it needs
  shards:
    command: data-shards build rendered --output {folder}/shards
    array: 8                    # the command shares its work out by SLURM's array (data-shards build and mdpretrain label do)
    then: data-shards merge {folder}/shards
  prior:
    fit: [recipes/debug/prior.yaml]
    run_dir: "{folder}/prior"
    options: [--data.train, "[{path: {folder}/shards}]"]
    needs: [shards]
    nodes: 2                    # nodes, gpus_per_node, cpus_per_process, processes_per_node, time, partition: instead of the cluster file's
"""

from __future__ import annotations

import dataclasses
import graphlib
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from mdpretrain.slurm.cluster_file import Cluster, load_yaml, read_record

LAYOUT = ("nodes", "gpus_per_node", "cpus_per_process", "processes_per_node", "time", "partition")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: ``fit`` (recipes, stacked) with ``run_dir`` and ``options``, or ``command``.

    Args:
        command: program and arguments; no shell syntax.
        array: tasks that share the command's work; 0 for one.
        then: a command to run once when all tasks are done.
        fit: recipes of a training run.
        run_dir: its folder.
        options: further options of fit.
        needs: stages that must be done before.
        inputs: files and folders whose content the stage depends on, besides its recipes and the stages it needs.
    """

    command: str | None = None
    array: int = 0
    then: str | None = None
    fit: list[str] = dataclasses.field(default_factory=list)
    run_dir: str | None = None
    options: list[str] = dataclasses.field(default_factory=list)
    needs: list[str] = dataclasses.field(default_factory=list)
    inputs: list[str] = dataclasses.field(default_factory=list)
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_process: int | None = None
    processes_per_node: int | None = None
    time: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        if (self.command is None) == (not self.fit):
            raise ValueError("give either command or fit")
        if self.fit and not self.run_dir:
            raise ValueError("fit needs a run_dir")
        if self.fit and (self.array or self.then):
            raise ValueError("array and then are for commands")
        if self.command is not None and (self.run_dir or self.options or self.nodes):
            raise ValueError("run_dir, options and nodes are for fit")
        if self.array < 0:
            raise ValueError(f"array is {self.array}; give the number of tasks")

    def cluster(self, cluster: Cluster) -> Cluster:
        """The cluster as this stage uses it."""
        changes = {name: getattr(self, name) for name in LAYOUT if getattr(self, name) is not None}
        return dataclasses.replace(cluster, **changes)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which each comes after those that it needs."""

    name: str
    folder: Path
    stages: dict[str, Stage]


@dataclasses.dataclass(frozen=True)
class _File:
    name: str
    folder: str
    stages: dict[str, Any]


def load_pipeline(path: Path) -> Pipeline:
    """Read strictly.

    Raises:
        ValueError: no such file, an unknown key, a stage that needs one that is not there, or itself; names file, stage and key.
    """
    if not path.is_file():
        raise ValueError(f"there is no pipeline {path}")
    file = read_record(_File, load_yaml(path), str(path))
    stages: dict[str, Stage] = {}
    for name, record in file.stages.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise ValueError(f"{path}: stage {name!r}: use letters, digits, - and _ in its name")
        stage = read_record(Stage, _filled(record, file.folder), f"{path}: stage {name}")
        for needed in stage.needs:
            if needed not in file.stages:
                raise ValueError(f"{path}: stage {name} needs {needed!r}, and there is no such stage")
        stages[str(name)] = stage
    try:
        order = list(graphlib.TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"{path}: stages need each other in a circle: {' -> '.join(error.args[1])}") from error
    return Pipeline(file.name, Path(file.folder).absolute(), {name: stages[name] for name in order})


def command_words(command: str) -> list[str]:
    """A command as a list of words."""
    return shlex.split(command)


def fingerprints(pipeline: Pipeline) -> dict[str, str]:
    """What makes each stage what it is: its command or recipes, its inputs, and the fingerprints of the stages that it needs.

    Not part of it: the layout on the cluster and the number of tasks, which change nothing in what comes out, and the code.

    Raises:
        ValueError: an input is missing.
    """
    result: dict[str, str] = {}
    for name, stage in pipeline.stages.items():
        what = {"command": stage.command, "then": stage.then, "run_dir": stage.run_dir, "options": stage.options}
        inputs = [_content(Path(path), name) for path in [*stage.fit, *stage.inputs]]
        needs = [result[needed] for needed in stage.needs]
        result[name] = hashlib.sha256(json.dumps([what, inputs, needs], sort_keys=True).encode()).hexdigest()[:32]
    return result


def _filled(value: Any, folder: str) -> Any:
    """``{folder}`` replaced everywhere; other braces stay."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, list):
        return [_filled(entry, folder) for entry in value]
    return {name: _filled(entry, folder) for name, entry in value.items()} if isinstance(value, dict) else value


def _content(path: Path, stage: str) -> list[str]:
    """A file by its bytes; a folder by names and sizes, and the bytes of the JSON files in which a shard folder has its hashes."""
    if path.is_file():
        return [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    if not path.is_dir():
        raise ValueError(f"stage {stage}: its input {path} does not exist")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            if file.name in ("dataset.json", "shards.json"):
                digest.update(file.read_bytes())
    return [str(path), digest.hexdigest()]
