"""``launch/clusters/NAME.yaml``: what a cluster wants to be told, read strictly (an unknown key is an error that names it)."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml


@dataclasses.dataclass(frozen=True)
class Container:
    """How processes get into a container.

    Args:
        kind: apptainer, pyxis (enroot through srun's own options) or enroot (without the pyxis plugin).
        image: a .sif for apptainer, an image or .sqsh for pyxis, the name of a created container for enroot.
        mounts: ``/from`` or ``/from:/to``; the working directory and the run folder must be among them.
        options: further options of apptainer exec, of srun (pyxis), or of enroot start.
    """

    kind: Literal["apptainer", "pyxis", "enroot"]
    image: str
    mounts: list[str] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One cluster, or one part of it; what is left out is left to SLURM's own defaults.

    Args:
        partition, account, qos, constraint, memory: as sbatch has them (``memory`` is --mem, per node).
        time: the limit of one job, which a run may pass as often as it likes: it is saved, requeued and goes on.
        nodes: of a training job, unless the command line says otherwise.
        gpus_per_node: 0 trains on CPUs.
        gpu_request: how GPUs are asked for: --gpus-per-node=N, --gres=gpu:N, or not at all.
        processes_per_node: by default one per GPU, at least one.
        cpus_per_process: CPU cores of each of them, its loader workers included.
        launcher: srun starts one task per process; torchrun starts one agent per node, and that the processes.
        cpu_bind: of srun; null leaves it out.
        mpi: of srun; "none" keeps it from loading an MPI plugin that training does not use.
        signal_before_end_s: how long before the time limit the run is told to save.
        requeue: whether a job that was preempted, lost a node or reached its limit starts again by itself.
        interface: network interface for NCCL, gloo and the rendezvous; null lets each choose.
        modules, setup: ``module load`` names, and lines of shell that make ``python`` find mdpretrain.
        python: the interpreter's name or path after that.
        variables: environment of the processes, e.g. NCCL_IB_HCA.
        local_cache: folder on a disk of the node for caches (remote shards, compiled kernels); may hold shell variables.
        container: see ``Container``; ``python`` is then the container's.
        sbatch: further options, e.g. ["--exclusive"].
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    memory: str | None = None
    time: str = "24:00:00"
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    processes_per_node: int | None = None
    cpus_per_process: int = 1
    launcher: Literal["srun", "torchrun"] = "srun"
    cpu_bind: str | None = "cores"
    mpi: str | None = "none"
    signal_before_end_s: int = 120
    requeue: bool = True
    interface: str | None = None
    modules: list[str] = dataclasses.field(default_factory=list)
    setup: list[str] = dataclasses.field(default_factory=list)
    python: str = "python"
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    local_cache: str | None = None
    container: Container | None = None
    sbatch: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_process", 1), ("signal_before_end_s", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")
        if self.processes_per_node is not None and self.processes_per_node < 1:
            raise ValueError(f"processes_per_node is {self.processes_per_node}; give at least 1, or null for one per GPU")
        if self.container is not None and self.launcher == "torchrun":
            raise ValueError("launcher: torchrun cannot hand signals into a container; use launcher: srun with it")

    @property
    def processes(self) -> int:
        """Training processes of one node."""
        return self.processes_per_node or max(1, self.gpus_per_node)


def load_cluster(path: Path, **changes: Any) -> Cluster:
    """The cluster file, with what the command line changes (values that are None change nothing).

    Raises:
        ValueError: no such file, an unknown key, a value of the wrong type; names file and key.
    """
    known = sorted(file.stem for file in (Path(__file__).parents[2] / "launch" / "clusters").glob("*.yaml"))
    if not path.is_file():
        raise ValueError(f"there is no cluster file {path}; launch/clusters has {', '.join(known)}: copy one and change it")
    cluster = read_record(Cluster, load_yaml(path), str(path))
    try:
        return dataclasses.replace(cluster, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ValueError with the place of a mistake."""
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def read_record(record: type, content: Any, where: str) -> Any:
    """A dataclass from a mapping, strictly.

    Raises:
        ValueError: not a mapping, an unknown or missing key, a value of the wrong type; ``where`` says in which file.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected keys and values, found {type(content).__name__}")
    fields = {field.name: field for field in dataclasses.fields(record)}
    for name in content:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            raise ValueError(
                f"{where}: unknown key {name!r}" + (f"; do you mean {near[0]!r}?" if near else f"; there are {', '.join(fields)}")
            )
    for name, field in fields.items():
        if name not in content and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {name} is missing")
    kinds = typing.get_type_hints(record)
    values = {name: _value(kinds[name], value, f"{where}: {name}") for name, value in content.items()}
    try:
        return record(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` if it is of ``kind``. Numbers may stand for texts (YAML reads 0 as a number), nothing else is converted."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _value(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}; it can be {', '.join(map(str, arguments))}")
        return value
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], entry, where) for entry in value]
    if origin is dict and isinstance(value, dict):
        return {str(name): _value(arguments[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        return read_record(typing.cast(type, kind), value, where)
    is_time = kind is str and where.rpartition(" ")[2] == "time"
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool) and not is_time:
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, "a list" if origin is list else "keys and values"
    )
    hint = "; write it in quotes, YAML takes 1:30:00 for a number" if is_time else ""
    raise ValueError(f"{where} is {value!r}; it must be {expected}{hint}")
