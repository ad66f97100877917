"""The FLOPs of one image through one training step of a task, counted from how its modules were built.

A twin of fake tensors is counted and not the network itself: under ZeRO-3 a process holds only its part, and what activation
checkpointing computes again must not count as useful work (MFU).
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from mdpretrain.networks.fake_step import FakeNetwork
from mdpretrain.networks.module_config import module_config

_log = logging.getLogger(__name__)


def model_flops_per_image(task: nn.Module, image_size: tuple[int, int]) -> int | None:
    """Forward and backward of ``task.network``, and the forward pass of ``task.prior`` if there is one.

    None, with a warning in the log, where it cannot be counted (a network that was not built from a config, or whose operations depend
    on values): a figure that is missing is better than a run that is.
    """
    height, width = image_size
    own: Any = getattr(task, "network", None)
    if own is None:
        return None
    try:
        # torch.compile's wrapper has no config of its own
        network = FakeNetwork.of_config(module_config(getattr(own, "_orig_mod", own)))
        step = network.train_step(lambda prediction, batch: prediction.values.float().sum(), 1, height, width, checkpointing=False)
        flops = step.forward_flops + step.backward_flops
        prior: Any = getattr(task, "prior", None)
        if prior is not None and any(True for _ in prior.parameters()):
            flops += FakeNetwork.of_config(module_config(prior)).inference(1, height, width).forward_flops
        return flops
    except (ValueError, RuntimeError) as error:
        _log.warning("FLOPs are not counted, so MFU is not logged: %s", error)
        return None
