"""AdamW with learning rates for the encoder (one, or one a layer) and for everything else, and what is not trained at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class AdamW:
    """What a recipe says about the optimiser.

    Args:
        lr: Learning rate of decoders and heads.
        encoder_lr: Learning rate of the encoder; ``lr`` when left out.
        weight_decay: On matrices and convolutions only; biases, norms and other vectors are never decayed.
        betas: Adam's two decay rates.
        eps: Adam's epsilon.
        layer_decay: Each layer of the encoder has this factor of the learning rate of the layer above it, the last ``encoder_lr``;
            null: one rate for all.
        frozen: Parts of the network that are not trained, by the beginning of their parameters' names: ``[encoder]``,
            ``[encoder.backbone.patch_embed]``. They stay in evaluation mode.
        fused: One kernel per step (on CPU as fast as DeepSpeed's compiled Adam).
    """

    lr: float = 1e-4
    encoder_lr: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | None = None
    frozen: tuple[str, ...] = ()
    fused: bool = True


def freeze(network: nn.Module, parts: tuple[str, ...]) -> list[nn.Module]:
    """Take gradients from the parameters of these parts; the modules that lie wholly in them, to be kept in evaluation mode.

    Raises:
        ValueError: a part that is no parameter's.
    """
    for part in parts:
        members = [parameter for name, parameter in network.named_parameters() if _lies_in(name, part)]
        if not members:
            known = ", ".join(sorted({name.split(".")[0] for name, _ in network.named_parameters()}))
            raise ValueError(f"optimizer.frozen: no parameter of {type(network).__name__} lies in {part!r}; its parts are {known}")
        for parameter in members:
            parameter.requires_grad_(False)
    return [module for name, module in network.named_modules() if any(_lies_in(name, part) for part in parts)]


def _lies_in(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def build_optimizer(model: nn.Module, groups: list[dict[str, Any]], settings: AdamW) -> torch.optim.AdamW:
    """The optimiser over ``groups`` after checking that they hold every trainable parameter of ``model`` exactly once.

    Args:
        model: Everything that is trained.
        groups: AdamW parameter groups.
        settings: The recipe's choice.

    Raises:
        ValueError: nothing to train, or a trainable parameter in no group or in two, named.
    """
    check_groups(model, groups)
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )
    # A fused optimiser offers to undo fp16's loss scale inside its step, and Lightning then refuses to clip in any mixed precision,
    # bf16 included. Without the offer the scaler undoes it before the clipping, which is right in both.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Refuse groups that miss, repeat or invent a trainable parameter, naming up to five of them."""
    names = {id(p): name for name, p in model.named_parameters()}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: is everything frozen?")
    grouped = [id(p) for group in groups for p in group["params"]]
    for what, bad in (
        ("in no optimiser group", trainable - set(grouped)),
        ("in two optimiser groups", {i for i in grouped if grouped.count(i) > 1} if len(set(grouped)) != len(grouped) else set()),
        ("in an optimiser group but not trainable", set(grouped) - trainable),
    ):
        if bad:
            listed = sorted(names.get(i, "(not of this model)") for i in bad)
            raise ValueError(f"{len(bad)} parameters are {what}: {', '.join(listed[:5])}")
