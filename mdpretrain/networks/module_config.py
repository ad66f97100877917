"""How a module remembers what built it, so that one checkpoint file rebuilds it anywhere.

A *module config* is ``{"class_path": "package.module.Class", "init_args": {...}}`` with plain values (numbers, strings,
lists, dictionaries) and, where an argument is itself a module, its module config. Every module made by ``build_module``
or by the command line carries its config; ``module_config`` reads it back.

A class whose rebuilt form differs from its first form (weights that were read from a file and now live in the
checkpoint) defines ``reload_config(self, recorded: dict) -> dict`` and returns the config to store.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import os
import types
import typing
from typing import Any

from torch import nn

_RECORD = "_module_config_record"


def record_and_build(cls: type, *args: Any, **init_args: Any) -> Any:
    """``cls(**init_args)`` with the arguments remembered on the instance (the instantiator of the command line).

    Raises:
        ValueError: positional arguments, which a config cannot name.
    """
    if args:
        raise ValueError(f"{cls.__name__}: give every argument by name, so that a checkpoint can store it")
    module = cls(**init_args)
    if isinstance(module, nn.Module):
        # Set past nn.Module.__setattr__: the record may hold modules, which must not become submodules twice.
        object.__setattr__(module, _RECORD, {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args})
    return module


def build_module(config: dict[str, Any]) -> Any:
    """Build a module from its config, nested modules first.

    Raises:
        ValueError: the class cannot be imported, or does not take these arguments.
    """
    class_path = config["class_path"]
    cls = _import_class(class_path)
    init_args = {name: _build_value(value) for name, value in (config.get("init_args") or {}).items()}
    init_args = {name: _as_annotated(cls, name, value) for name, value in init_args.items()}
    try:
        return record_and_build(cls, **init_args)
    except TypeError as error:
        raise ValueError(f"{class_path} cannot be built from its stored arguments {sorted(init_args)}: {error}") from error


def module_config(module: nn.Module) -> dict[str, Any]:
    """The config that rebuilds ``module`` (without its weights).

    Raises:
        ValueError: the module was made by calling its class; nothing recorded how.
    """
    recorded = getattr(module, _RECORD, None)
    if recorded is None:
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        raise ValueError(f"nothing recorded how this {name} was built; build it with mdpretrain.networks.module_config.build_module")
    config = {"class_path": recorded["class_path"], "init_args": {k: _plain(v) for k, v in recorded["init_args"].items()}}
    reload_config = getattr(module, "reload_config", None)
    return config if reload_config is None else reload_config(config)


def _import_class(class_path: str) -> type:
    module_name, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {class_path!r} ({error})") from error


def _build_value(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) <= {"class_path", "init_args"} and "class_path" in value:
            return build_module(value)
        return {key: _build_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_build_value(item) for item in value]
    return value


def _as_annotated(cls: type, name: str, value: Any) -> Any:
    """A config has lists only; an argument that is annotated as a tuple gets one."""
    if not isinstance(value, list):
        return value
    hint = typing.get_type_hints(cls.__init__).get(name)  # type: ignore[misc]
    choices = [hint, *typing.get_args(hint)] if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    return tuple(value) if any(choice is tuple or typing.get_origin(choice) is tuple for choice in choices) else value


def _plain(value: Any) -> Any:
    """Values that torch's restricted unpickler, JSON and YAML all carry."""
    if isinstance(value, nn.Module):
        return module_config(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
