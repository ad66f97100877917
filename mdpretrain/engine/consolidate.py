"""Any checkpoint of a run -> one small file with the weights and how to build what they belong to."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch

from mdpretrain.engine.deepspeed_strategy import make_importable
from mdpretrain.networks.checkpoint_files import find_checkpoint, load_checkpoint, with_averaged_weights

_KEPT = ("global_step", "epoch", "pytorch-lightning_version", "network", "preparation", "prior")


def consolidate(checkpoint: pathlib.Path, output: pathlib.Path, ema: bool = False) -> pathlib.Path:
    """Write ``output``: float32 weights, configs and the step; no optimiser state.

    Args:
        checkpoint: A Lightning file, a DeepSpeed folder (ZeRO-1, 2 or 3), or a run folder, whose newest checkpoint is taken.
        output: The file to write.
        ema: Write the averaged weights in place of the trained ones.

    Raises:
        ValueError: there is no checkpoint, or it cannot be read, with its path.
    """
    source = find_checkpoint(checkpoint)
    content = _deepspeed_content(source) if source.is_dir() else load_checkpoint(source)
    if "network" not in content:
        raise ValueError(f"{source}: not a checkpoint of mdpretrain (it does not say how its network is built)")
    if ema:
        content = with_averaged_weights(content, source)
    kept = {name: content[name] for name in _KEPT if name in content}
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(output.name + ".partial")
    torch.save({**kept, "state_dict": content["state_dict"]}, aside)
    os.replace(aside, output)
    return output


def _deepspeed_content(folder: pathlib.Path) -> dict[str, Any]:
    """The client state and the gathered float32 weights of a DeepSpeed folder as one Lightning-like dictionary."""
    make_importable(torch.cuda.is_available())
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    states = sorted((folder / "checkpoint").glob("*model_states.pt"))
    if not states:
        raise ValueError(f"{folder}: DeepSpeed's model states are missing from its folder 'checkpoint'")
    # DeepSpeed writes its own classes; this is a folder that our run wrote, not a download.
    client_state = torch.load(states[0], map_location="cpu", weights_only=False)
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="checkpoint")
    prefix = "_forward_module."
    return {**client_state, "state_dict": {name.removeprefix(prefix): value.clone() for name, value in weights.items()}}
