"""Any checkpoint of a run -> one small file with the weights and how to build what they belong to."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
from torch import Tensor

from data_shards.atomic import written_aside
from mdpretrain.engine.deepspeed_files import DeepSpeedFolder
from mdpretrain.networks.checkpoint_files import (
    SAFETENSORS_RECORD,
    SAFETENSORS_SUFFIX,
    find_checkpoint,
    load_checkpoint,
    with_averaged_weights,
)
from mdpretrain.networks.checkpoint_manifest import check
from mdpretrain.networks.safetensors_file import write_safetensors
from mdpretrain.networks.torch_file import write_torch_file

_KEPT = ("global_step", "epoch", "pytorch-lightning_version", "network", "preparation", "prior", "run")


def consolidate_command(argv: list[str]) -> int:
    """``mdpretrain consolidate RUN [--output FILE] [--ema]``."""
    parser = argparse.ArgumentParser(prog="mdpretrain consolidate", description="One small file with weights and how to build the network.")
    what = "a run folder (its newest checkpoint), RUN/checkpoints/best, a checkpoint file or a DeepSpeed folder"
    parser.add_argument("run", nargs="?", type=pathlib.Path, metavar="RUN", help=what)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="the same, by name")
    where = "the file to write: .safetensors (default: RUN/RUN.safetensors) or .ckpt, which torch.load reads"
    parser.add_argument("--output", type=pathlib.Path, help=where)
    parser.add_argument("--ema", action="store_true", help="the averaged weights (ema_decay) in place of the trained ones")
    options = parser.parse_args(argv)
    if (options.run is None) == (options.checkpoint is None):
        raise ValueError("name one checkpoint: mdpretrain consolidate RUN [--output FILE]")
    source = options.checkpoint if options.run is None else options.run
    output = options.output
    if output is None:
        if not source.is_dir():
            raise ValueError(f"{source} is not a run folder: say with --output what to write")
        output = source / f"{source.resolve().name}{SAFETENSORS_SUFFIX}"
    print(f"wrote {consolidate(source, output, options.ema)}")
    return 0


def consolidate(checkpoint: pathlib.Path, output: pathlib.Path, ema: bool = False) -> pathlib.Path:
    """Write ``output``: float32 weights, configs and the step; no optimiser state. Needs the weights once in memory.

    Args:
        checkpoint: A Lightning file, a DeepSpeed folder (ZeRO-1, 2 or 3, of any number of processes), or a run folder, whose newest
            checkpoint is taken.
        output: The file to write: ``.safetensors``, with the configs as JSON in its metadata, or ``.ckpt``.
        ema: Write the averaged weights in place of the trained ones.

    Raises:
        ValueError: there is no checkpoint, it is damaged or cannot be read, with its path; or ``output`` has another ending.
    """
    if output.suffix not in (SAFETENSORS_SUFFIX, ".ckpt"):
        raise ValueError(f"{output}: the file's name must end in {SAFETENSORS_SUFFIX} or .ckpt")
    source = find_checkpoint(checkpoint)
    content = _deepspeed_content(source) if source.is_dir() else load_checkpoint(source)
    if "network" not in content:
        raise ValueError(f"{source}: not a checkpoint of mdpretrain (it does not say how its network is built)")
    if ema:
        content = with_averaged_weights(content, source)
    kept = {name: content[name] for name in _KEPT if name in content}
    with written_aside(output) as aside:
        if output.suffix == SAFETENSORS_SUFFIX:
            write_safetensors(aside, _separate(content["state_dict"]), {SAFETENSORS_RECORD: json.dumps(kept)})
        else:
            write_torch_file(aside, {**kept, "state_dict": content["state_dict"]})
    return output


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous, and no two in the same memory."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value.contiguous().clone() if shared else value.contiguous()
    return result


def _deepspeed_content(folder: pathlib.Path) -> dict[str, Any]:
    """What Lightning stored in a DeepSpeed folder, and its float32 weights, as one Lightning-like dictionary."""
    try:
        check(folder)
    except ValueError as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}; name an older one of its folder") from error
    state = DeepSpeedFolder(folder)
    weights = {name: state.weight(name) for name in state.weight_names()}
    return {**state.client, "state_dict": {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}}
