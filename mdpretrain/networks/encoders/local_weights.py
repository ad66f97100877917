"""Encoder weights from a local file, checked key by key; nothing here ever downloads."""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
import pathlib
import sys

from timm.models import load_state_dict
from torch import nn

_CLASSIFIER_PREFIXES = ("head.", "fc_norm.", "head_drop.")  # the parts of a classifier that a dense encoder does not have


def load_local_weights(backbone: nn.Module, weights: str | pathlib.Path, model_name: str) -> None:
    """Fill ``backbone`` (a timm model) from a safetensors or pth file.

    The file may hold timm's keys or any original release that timm itself knows how to convert (its
    ``checkpoint_filter_fn``; position embeddings are resampled there when the grid differs). A classifier in the file is ignored.

    Raises:
        ValueError: no such file, an unreadable file, or a file of another network (naming the first differing key or shape).
    """
    path = pathlib.Path(weights)
    if not path.is_file():
        raise ValueError(f"encoder weights {path} are not a file; give a local safetensors or pth file of {model_name!r}, or null")
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # the readers raise many types; to the user each means the same
        raise ValueError(f"encoder weights {path} cannot be read as safetensors or pth ({type(error).__name__}: {error})") from error
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, backbone)
        except (KeyError, RuntimeError, AttributeError, ValueError) as error:
            raise ValueError(f"encoder weights {path} are not weights of {model_name!r}: timm cannot convert them ({error})") from error
    wanted = backbone.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(_CLASSIFIER_PREFIXES)}
    difference = first_difference(wanted, state)
    if difference:
        raise ValueError(f"encoder weights {path} are not weights of {model_name!r}: {difference}; give the matching file or model_args")
    backbone.load_state_dict(state)


def first_difference(wanted: dict, given: dict) -> str | None:
    """The first key or shape in which two state dictionaries differ, in words; None if they agree."""
    for key, tensor in wanted.items():
        if key not in given:
            return f"{key!r} is missing"
        if tuple(tensor.shape) != tuple(given[key].shape):
            return f"{key!r} has shape {tuple(given[key].shape)} where {tuple(tensor.shape)} is needed"
    extra = next((key for key in given if key not in wanted), None)
    return None if extra is None else f"{extra!r} is not part of this network"
