"""A network out of a checkpoint: how it was built (``checkpoint["network"]``) and its weights (``network.*``)."""

from __future__ import annotations

import pathlib
from typing import Any

from torch import Tensor, nn

from mdpretrain.networks.checkpoint_files import find_checkpoint, load_checkpoint, module_weights
from mdpretrain.networks.encoders.local_weights import first_difference
from mdpretrain.networks.module_config import build_module, module_config

_OWN_PACKAGE = "mdpretrain."


def load_network(checkpoint: str | pathlib.Path, name: str = "network") -> nn.Module:
    """The module stored under ``name`` in a checkpoint (or in a run folder's newest), on the CPU, in evaluation mode.

    Only classes of this package are built: a checkpoint names its classes, and a stranger's file must not run a stranger's code.

    Raises:
        ValueError: nothing there, a damaged file, a class outside this package, arguments that no longer fit, or weights that
            are not this network's (naming the first differing key or shape).
    """
    path = pathlib.Path(checkpoint)
    content = load_checkpoint(path)
    if not isinstance(content.get(name), dict):
        raise ValueError(f"checkpoint {find_checkpoint(path)} holds no {name!r}; it was written by another kind of task")
    return restore_module(content[name], module_weights(content, name), f"checkpoint {find_checkpoint(path)}")


def restore_module(config: dict[str, Any], weights: dict[str, Tensor], source: str) -> nn.Module:
    """Build a module from its config and fill it; ``source`` is what an error calls the file."""
    refuse_foreign_classes(config, source)
    try:
        module = build_module(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{source}: {config['class_path']} is not a network")
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}  # torch.compile's wrapper
    difference = first_difference(module.state_dict(), weights)
    if difference:
        raise ValueError(
            f"{source} does not hold the weights of {config['class_path']} as it describes it: {difference}; use the file as it was written"
        )
    module.load_state_dict(weights)
    return module.eval()


def network_to_config(network: nn.Module) -> dict[str, Any]:
    """``{"class_path", "init_args"}`` that rebuilds the network (see ``module_config``), plain values only.

    Raises:
        ValueError: nothing recorded how the network was built.
    """
    return module_config(network)


def refuse_foreign_classes(config: Any, source: str) -> None:
    """Raise ValueError if any class path, at any depth, is not of this package."""
    if isinstance(config, dict):
        class_path = config.get("class_path")
        if class_path is not None and not str(class_path).startswith(_OWN_PACKAGE):
            raise ValueError(f"{source} asks for the class {class_path!r}; only classes of {_OWN_PACKAGE}* are built from a checkpoint")
        for value in config.values():
            refuse_foreign_classes(value, source)
    elif isinstance(config, list):
        for value in config:
            refuse_foreign_classes(value, source)
