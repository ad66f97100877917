"""What one image costs a run: FLOPs and live memory of the network it trains and of the prior it only asks."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import torch

from mdpretrain.networks.checkpoint_files import load_checkpoint
from mdpretrain.networks.fake_step import FakeNetwork, StepCost
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.transformers_prior import TransformersPrior
from mdpretrain.planning.recipe import PlannedRun

_VIT_LARGE_384 = {
    "model_type": "dinov2",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 384,
}
# The released Depth Pro (952 M parameters): what a path of that name will hold, when it is not on this machine.
DEPTH_PRO = {
    "model_type": "depth_pro",
    "use_fov_model": True,
    "patch_model_config": _VIT_LARGE_384,
    "image_model_config": _VIT_LARGE_384,
    "fov_model_config": _VIT_LARGE_384,
}
_PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "short_side": 384}


@dataclasses.dataclass(frozen=True)
class PriorCost:
    """The frozen prior; ``assumed`` says in words what was not known about it."""

    parameters: int
    forward: StepCost
    assumed: str | None = None


@dataclasses.dataclass(frozen=True)
class ImageCost:
    """One image through one training step. ``plain`` and ``recomputed``: without and with activation checkpointing."""

    parameters: int
    trainable: int
    checkpointing: bool
    plain: StepCost
    recomputed: StepCost
    prior: PriorCost | None
    notes: tuple[str, ...]

    @property
    def model_flops(self) -> int:
        """Forward, backward and the prior's forward, without what activation checkpointing computes again: what MFU counts."""
        return self.plain.forward_flops + self.plain.backward_flops + (0 if self.prior is None else self.prior.forward.forward_flops)

    def step_flops(self, checkpointing: bool) -> int:
        """All that is computed."""
        again = self.recomputed.backward_flops - self.plain.backward_flops if checkpointing else 0
        return self.model_flops + again

    def activation_bytes(self, images: int, checkpointing: bool, autocast: bool) -> int:
        """The most that lives beside weights, gradients and optimiser in a step of ``images`` images.

        All but the weights' copies in the type of the arithmetic grows with the images. Without ``autocast`` (DeepSpeed keeps the
        weights themselves in bfloat16) there are no such copies. The prior runs before the network and leaves nothing.
        """
        cost = self.recomputed if checkpointing else self.plain
        network = images * (cost.peak_bytes - cost.weight_copy_bytes) + (cost.weight_copy_bytes if autocast else 0)
        return max(network, 0 if self.prior is None else images * self.prior.forward.peak_bytes)


def image_cost(run: PlannedRun) -> ImageCost:
    """Count one image of a run.

    Raises:
        ValueError: the network cannot be built, or cannot take an image of the recipe's size.
    """
    height, width = run.image_size
    precision = torch.float32 if run.precision.startswith("32") else torch.bfloat16
    table = build_module(run.loss)
    fake = FakeNetwork.of_config(_without_files(run.network))
    plain, recomputed = (
        fake.train_step(lambda prediction, batch: table(prediction, batch)[0], 1, height, width, precision, on) for on in (False, True)
    )
    notes: list[str] = []
    prior = None if run.prior is None else _prior_cost(run.prior, height, width, precision, notes)
    return ImageCost(fake.parameters, fake.trainable, fake.checkpointing, plain, recomputed, prior, tuple(notes))


def _prior_cost(config: dict[str, Any], height: int, width: int, precision: torch.dtype, notes: list[str]) -> PriorCost | None:
    """None, with a note, for a prior of which nothing can be known here."""
    kind, arguments = config["class_path"].rsplit(".", 1)[-1], config.get("init_args") or {}
    if kind == "StoredPrior":
        return None
    if kind == "TransformersPrior":
        return _transformers_cost(arguments, height, width, precision, notes)
    if kind == "CheckpointPrior":
        try:
            network = arguments.get("network") or load_checkpoint(pathlib.Path(arguments["checkpoint"]))["network"]
        except (ValueError, OSError, KeyError):
            notes.append(f"the prior's checkpoint {arguments.get('checkpoint')} is not on this machine: its cost is left out")
            return None
        fake = FakeNetwork.of_config(_without_files(network))
        return PriorCost(fake.parameters, fake.inference(1, height, width, precision))
    notes.append(f"what a prior of class {kind} costs is not known: it is left out")
    return None


def _transformers_cost(arguments: dict[str, Any], height: int, width: int, precision: torch.dtype, notes: list[str]) -> PriorCost | None:
    description, path = arguments.get("description"), pathlib.Path(str(arguments.get("path")))
    assumed = None
    if description is None and (path / "config.json").is_file():
        description = {"config": json.loads((path / "config.json").read_text()), "processor": _PROCESSOR}
    elif description is None and "depth_pro" in path.name.lower().replace("-", "_").replace("depthpro", "depth_pro"):
        assumed = f"{path} is not on this machine: taken to be the released Depth Pro"
        description = {"config": DEPTH_PRO, "processor": _PROCESSOR}
    if description is None:
        notes.append(f"the prior {path} is not on this machine and its name does not tell what it is: its cost is left out")
        return None
    try:
        fake = FakeNetwork(lambda: TransformersPrior(description=description))
    except ValueError as error:
        notes.append(f"the prior's cost is left out: {error}")
        return None
    if assumed:
        notes.append(assumed)
    return PriorCost(fake.parameters, fake.inference(1, height, width, precision), assumed)


def _without_files(config: Any) -> Any:
    """A module config whose weights files need not be there: sizes do not depend on them."""
    if isinstance(config, dict):
        return {key: None if key == "weights" and isinstance(value, str) else _without_files(value) for key, value in config.items()}
    return [_without_files(value) for value in config] if isinstance(config, list) else config
