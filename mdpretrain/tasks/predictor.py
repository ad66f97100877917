"""A checkpoint as something that predicts: network, preparation and prior rebuilt from one file."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import pathlib
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.geometry.canonical import depth_from_canonical_inverse
from mdpretrain.networks.checkpoint_files import find_checkpoint, load_checkpoint, module_weights, with_averaged_weights
from mdpretrain.networks.loading import restore_module
from mdpretrain.networks.module_config import module_config
from mdpretrain.networks.pretrained_folder import MODULES, find_pretrained, is_pretrained_folder, read_pretrained
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.prompting import prepare_batch


class Predictor(nn.Module):
    """Batch -> depth, whatever family and method the checkpoint is of. Frozen, in eval, without gradients.

    Args:
        network: The trained network.
        preparation: ``PromptPreparation`` of a prompted network, else None.
        prior: What its preparation aligns to the prompt; None: the prompt is prepared by itself.
    """

    def __init__(self, network: nn.Module, preparation: nn.Module | None = None, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.preparation = preparation
        self.prior = prior
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str = "main",
        device: str | torch.device = "cpu",
    ) -> Predictor:
        """What ``mdpretrain export --format pretrained`` wrote: a folder, or ``ORG/NAME`` in the hub's cache on this machine.

        Args:
            name_or_folder, cache_dir, revision: see ``pretrained_folder.find_pretrained``; nothing is downloaded.
            device: where it will run.

        Raises:
            ValueError: nothing there, or a damaged or foreign folder.
        """
        return load_predictor(find_pretrained(name_or_folder, cache_dir, revision), device)

    @property
    def needs_prompt(self) -> bool:
        """Whether a batch must carry a sparse metric prompt."""
        return self.preparation is not None

    @torch.no_grad()
    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """The network's prediction, in its own space. A prompt is ignored by a network that takes none."""
        if self.preparation is not None:
            batch = prepare_batch(batch, self.prior, self.preparation)
        return self.network(batch)

    @torch.no_grad()
    def depth_m(self, batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
        """Depth along the optical axis in metres.

        Raises:
            ValueError: the network's output has no metres in it, or it needs a camera that an image lacks, naming its key.
        """
        prediction = self(batch)
        if prediction.space is DepthSpace.METRIC:
            return prediction.values
        if prediction.space is not DepthSpace.CANONICAL_INVERSE:
            name = type(self.network).__name__
            raise ValueError(f"{name} predicts {prediction.space} depth, which has no metres; align it to a prompt or to ground truth")
        if not bool(batch.camera_known.all()):
            key = next(key for key, known in zip(batch.key, batch.camera_known.tolist()) if not known)
            raise ValueError(f"{key}: the camera is unknown, and canonical inverse depth needs it to give metres; tell its focal length")
        return depth_from_canonical_inverse(prediction.values, batch.intrinsics[:, 0, 0], batch.image.shape[-1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the configs and every weight: equal exactly when two checkpoints predict the same."""
        names = ("network", "preparation", "prior")
        return fingerprint_of({name: module for name in names if (module := getattr(self, name)) is not None})


def fingerprint_of(modules: dict[str, nn.Module]) -> str:
    """SHA-256 (hexadecimal) over how named modules were built and every weight in them."""
    configs = {name: module_config(module) for name, module in modules.items()}
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode())
    weights = {key: value for name, module in modules.items() for key, value in module.state_dict(prefix=f"{name}.").items()}
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """``--weights``: of those commands that load a predictor."""
    parser.add_argument("--weights", choices=("trained", "ema"), default="trained", help="ema: the average that ema_decay kept")


def load_predictor(
    checkpoint: str | pathlib.Path,
    device: str | torch.device = "cpu",
    weights: Literal["trained", "ema"] = "trained",
    without_prior: bool = False,
) -> Predictor:
    """Rebuild what a checkpoint predicts with; convolution weights lie with channels last, which is faster on every device.

    Args:
        checkpoint: A checkpoint file, a run folder, whose newest checkpoint is taken, or a folder of ``mdpretrain export``.
        device: Where it will run.
        weights: The trained ones, or their exponential moving average.
        without_prior: Leave a teacher's prior out: its prompt is prepared by itself, as for the images of ``prior_dropout``.

    Raises:
        ValueError: no checkpoint there, no average in it, a DeepSpeed folder (consolidate it), a damaged file, or weights that do not fit.
    """
    content, source = read_content(pathlib.Path(checkpoint), weights)
    predictor = predictor_of(content, source, without_prior)
    return predictor.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def read_content(path: pathlib.Path, weights: Literal["trained", "ema"] = "trained") -> tuple[dict[str, Any], str]:
    """A checkpoint's content, wherever it lies (see ``load_predictor``), and what errors call it."""
    if is_pretrained_folder(path):
        content, source = read_pretrained(path), path
    else:
        source = find_checkpoint(path)
        content = load_checkpoint(source)
    if weights == "ema":
        content = with_averaged_weights(content, source)
    return content, f"checkpoint {source}"


def predictor_of(content: dict[str, Any], source: str, without_prior: bool = False) -> Predictor:
    """The predictor that a checkpoint's content describes; ``source`` is what errors call it."""
    return Predictor(
        **{
            name: restore_module(content[name], module_weights(content, name), source)
            for name in MODULES
            if content.get(name) is not None and not (without_prior and name == "prior")
        }
    )
