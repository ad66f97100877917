"""Optimiser groups in which every trainable parameter stands exactly once."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_LAYER_SCALES = (".gamma_1", ".gamma_2", ".gamma")  # per-channel multipliers of timm's blocks


def parameter_groups(
    module: nn.Module,
    lr: float,
    encoder_lr: float | None = None,
    weight_decay: float = 0.0,
    decay_vectors: bool = False,
    rules: dict[str, float] | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """AdamW groups: encoder and rest, each split into decayed and undecayed parameters; empty groups are left out.

    Args:
        module: The network; parameters under ``encoder.`` get ``encoder_lr``.
        lr, encoder_lr: Learning rates; ``encoder_lr`` null is ``lr``.
        weight_decay: For matrices and convolutions.
        decay_vectors: Decay norms, biases, layer scales and other vectors and scalars too (class tokens and position
            embeddings count as vectors: they are learned inputs, not maps).
        rules: ``{regular expression: learning rate}`` in place of the encoder / rest split; each trainable parameter's full
            name must be matched (``re.search``) by exactly one.
        layer_decay: In place of one encoder rate: the encoder's last layer has ``encoder_lr`` and each one below it this factor of
            the one above, the patch embedding least; null for one rate.

    Returns:
        Groups with ``name``, ``params``, ``lr``, ``weight_decay``, in a fixed order (the optimiser state depends on it).

    Raises:
        ValueError: nothing is trainable; a trainable parameter under no rule or under two, named; a malformed rule; a layer decay
            outside (0, 1], together with rules, or for an encoder that does not know its layers.
    """
    if layer_decay is not None:
        if rules is not None:
            raise ValueError("layer_decay and rules both say the encoder's learning rates; give one of them")
        rules, titles = _layer_rules(module, lr, lr if encoder_lr is None else encoder_lr, layer_decay)
    elif rules is None:
        rules = {r"^encoder\.": lr if encoder_lr is None else encoder_lr, r"^(?!encoder\.)": lr}
        titles = dict(zip(rules, ("encoder", "decoder")))
    else:
        titles = {pattern: pattern for pattern in rules}
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameter: is everything frozen?")
    chosen = _assign(trainable, rules)
    groups: list[dict[str, Any]] = []
    for pattern, rate in rules.items():
        for decayed in (True, False):
            members = [p for name, p in trainable if chosen[name] == pattern and (decay_vectors or _is_map(name, p)) == decayed]
            if members:
                title = titles[pattern] + ("" if decayed else " (no decay)")
                groups.append({"name": title, "params": members, "lr": rate, "weight_decay": weight_decay if decayed else 0.0})
    return groups


def _layer_rules(module: nn.Module, lr: float, encoder_lr: float, decay: float) -> tuple[dict[str, float], dict[str, str]]:
    """Rules and titles: one per layer of the encoder, which names every one of its parameters, and one for the rest."""
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay {decay} must lie in (0, 1], e.g. 0.8; null is one learning rate for the whole encoder")
    encoder: Any = getattr(module, "encoder", None)
    if not hasattr(encoder, "layer_ids"):
        raise ValueError(f"layer_decay needs an encoder that knows its layers, as TimmEncoder does; {type(module).__name__} has none")
    layers: dict[int, list[str]] = {}
    for name, layer in encoder.layer_ids().items():
        layers.setdefault(layer, []).append(re.escape(f"encoder.{name}"))
    last = max(layers)
    rules, titles = {}, {}
    for layer in sorted(layers):
        pattern = f"^(?:{'|'.join(layers[layer])})$"
        rules[pattern], titles[pattern] = encoder_lr * decay ** (last - layer), f"encoder layer {layer:02d}"
    rest = r"^(?!encoder\.)"
    return {**rules, rest: lr}, {**titles, rest: "decoder"}


def _assign(trainable: list[tuple[str, nn.Parameter]], rules: dict[str, float]) -> dict[str, str]:
    """The one rule of each parameter."""
    try:
        compiled = {pattern: re.compile(pattern) for pattern in rules}
    except re.error as error:
        raise ValueError(f"a parameter-group rule is not a regular expression: {error}") from error
    matches = {name: [pattern for pattern, expression in compiled.items() if expression.search(name)] for name, _ in trainable}
    for what, wrong in (("no", [n for n, m in matches.items() if not m]), ("more than one", [n for n, m in matches.items() if len(m) > 1])):
        if wrong:
            raise ValueError(
                f"{len(wrong)} trainable parameters stand under {what} optimiser rule (rules: {list(rules)}): {', '.join(wrong[:5])}"
            )
    return {name: found[0] for name, found in matches.items()}


def _is_map(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and convolution kernels: what weight decay is for."""
    is_token = name.endswith(("cls_token", "reg_token", "pos_embed", "mask_token"))
    return parameter.ndim >= 2 and not is_token and not name.endswith((*_LAYER_SCALES, ".bias"))
