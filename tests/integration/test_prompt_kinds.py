"""Prompts of every kind, and degenerate ones, through whole training steps and into the log; and from a recipe through the loader."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from shard_parts import write_folder
from training_parts import HEIGHT, PREPARATION, PRIOR_NETWORK, TEACHER_NETWORK, WIDTH, build, mae_table, make_batch, make_trainer
from training_runs import column, recipe, run, write_recipe

from mdpretrain.engine.csv_log import CsvLog
from mdpretrain.engine.source_figures import SourceFigures
from mdpretrain.engine.step_guard import StepGuard, StepGuardOptions
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.prompts.options import PromptDrawer, PromptOptions
from mdpretrain.prompts.scene import PromptScene
from mdpretrain.structures import PROMPT_KINDS, DepthBatch, SparsePrompt
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining
from mdpretrain.tasks.schedule import Schedule

NOISE = PromptNoise(1.0, (0.2, 0.2), 0.02, (0.8, 1.2), (-0.05, 0.05), (0.0, 0.1), (0.0, 0.01), (0.0, 0.2))


def measured(name: str) -> np.ndarray:
    """The pixels that a prompt may be drawn from."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if name == "all":
        mask[:] = True
    elif name == "one":
        mask[20, 30] = True
    elif name == "line":
        mask[np.arange(HEIGHT), np.arange(HEIGHT)] = True
    return mask


def batch_of(kind: str, seed: int) -> DepthBatch:
    """Five images: a whole scene, a flat one, and scenes with a line, one pixel and nothing to draw a prompt from."""
    batch = make_batch(seed, size=5)
    batch.depth[1] = 3.0
    drawer = PromptDrawer(PromptOptions((50, 400), weights={kind: 1.0}, noise=NOISE if seed % 2 else None))
    drawn = []
    for index, name in enumerate(("all", "all", "line", "one", "none")):
        image = np.ascontiguousarray(batch.image[index].permute(1, 2, 0).numpy())
        scene = PromptScene(batch.depth[index, 0].numpy(), measured(name), image, batch.intrinsics[index].numpy())
        drawn.append(drawer(scene, np.random.default_rng([seed, index])))
    depth_m, mask = (torch.from_numpy(np.stack([getattr(one, name) for one in drawn]))[:, None] for name in ("depth_m", "mask"))
    return dataclasses.replace(batch, prompt=with_interpolation(depth_m, mask, torch.tensor([one.kind for one in drawn])))


def dense_batch(seed: int) -> DepthBatch:
    """A point at every pixel: of the truth, of a flat scene, all but one column, all but one pixel, and extreme depths."""
    batch = make_batch(seed, size=5)
    depth_m, mask = batch.depth.clone(), torch.ones_like(batch.valid)
    depth_m[1] = 2.0
    mask[2, ..., 7] = False
    mask[3, 0, 5, 5] = False
    depth_m[4, ..., ::2], depth_m[4, ..., 1::2] = 1e-3, 1e5
    return dataclasses.replace(batch, prompt=with_interpolation(depth_m * mask, mask, torch.full((5,), -1)))


def with_interpolation(depth_m: torch.Tensor, mask: torch.Tensor, kind: torch.Tensor) -> SparsePrompt:
    maps = [linear_inverse_depth(values[0], there[0]) for values, there in zip(depth_m.numpy(), mask.numpy())]
    return SparsePrompt(depth_m, mask, torch.from_numpy(np.stack(maps))[:, None], kind)


class WatchGradients(lightning.Callback):
    """Keeps whether all gradients of each step were there and finite, and their largest."""

    def __init__(self) -> None:
        self.finite: list[bool] = []
        self.largest: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad for parameter in module.network.parameters() if parameter.requires_grad]
        self.finite.append(all(one is not None and bool(torch.isfinite(one).all()) for one in gradients))
        self.largest.append(max(float(one.abs().max()) for one in gradients if one is not None))


@pytest.mark.parametrize(("output", "with_prior"), [("residual", True), ("direct", False)])
def test_degenerate_prompts_of_every_kind_through_training_steps(tmp_path: pathlib.Path, output: str, with_prior: bool) -> None:
    maps = ["global", "local", "interpolated"]
    prior = {"class_path": "mdpretrain.networks.priors.CheckpointPrior", "init_args": {"checkpoint": None, "network": PRIOR_NETWORK}}
    network = {**TEACHER_NETWORK, "init_args": {**TEACHER_NETWORK["init_args"], "output": output, "prepared_maps": maps}}
    task = PromptedPretraining(
        build(network),
        mae_table(),
        build({**PREPARATION, "init_args": {"maps": maps}}),
        build(prior) if with_prior else None,
        AdamW(lr=1e-4, encoder_lr=1e-4),
        Schedule(kind="constant"),
    )
    batches = [batch_of(kind, number) for number, kind in enumerate(PROMPT_KINDS)] + [dense_batch(99)]
    watch = WatchGradients()
    guard = StepGuard(StepGuardOptions(max_in_a_row=0))  # a loss or gradient that is not finite ends the run
    callbacks = [StepSeed(0), guard, watch, SourceFigures()]
    trainer = make_trainer(tmp_path, len(batches), callbacks=callbacks, logger=CsvLog(tmp_path / "csv"))
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.global_step == len(batches) and watch.finite == [True] * len(batches)
    assert min(watch.largest) > 0 and max(watch.largest) < 1e3
    losses = [float(value) for value in column(tmp_path, "train/loss").values()]
    assert len(losses) == len(batches) and np.isfinite(losses).all()
    for step, kind in enumerate(PROMPT_KINDS, start=1):
        # A batch of one kind: its figure is the whole loss, and no other batch has it.
        (loss,) = column(tmp_path, f"kind_loss/{kind}").values()
        assert float(loss) == pytest.approx(losses[step - 1], rel=1e-5)
        (density,) = column(tmp_path, f"kind_density/{kind}").values()
        assert float(density) == pytest.approx(float(batches[step - 1].prompt.mask.float().mean()), rel=1e-5)  # type: ignore[union-attr]


def test_a_recipe_mixes_kinds_and_logs_them(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path / "train", 12)
    write_folder(tmp_path / "val", 3, first=100)
    weights = {"uniform": 1, "grid": 1, "lidar": 1, "time_of_flight": 1}
    prompt = {"count": [60, 100], "interpolate": True, "weights": weights, "noise": {"sigma": [0.0, 0.05]}, "lidar": {"lines": [4, 8]}}
    model = {
        "class_path": "mdpretrain.tasks.prompted_pretraining.PromptedPretraining",
        "init_args": {
            "network": TEACHER_NETWORK,
            "preparation": PREPARATION,
            "loss": {"class_path": "mdpretrain.losses.table.LossTable", "init_args": {"terms": {"default": [{"name": "mae"}]}}},
        },
    }
    content = recipe(tmp_path, trainer={"max_steps": 6, "log_every_n_steps": 1}, data={"prompt": prompt}, model=model)
    assert run(["fit", "--config", write_recipe(tmp_path / "run.yaml", content), "--run_dir", str(tmp_path / "run")]) == [0]
    header = (tmp_path / "run/csv/metrics.csv").read_text().splitlines()[0].split(",")
    logged = {name.removeprefix("kind_loss/") for name in header if name.startswith("kind_loss/")}
    assert len(logged) >= 3 and logged <= set(weights)
    weights["sonar"] = weights.pop("grid")
    content = recipe(tmp_path, data={"prompt": prompt}, model=model)
    assert run(["fit", "--config", write_recipe(tmp_path / "wrong.yaml", content), "--run_dir", str(tmp_path / "wrong")]) != [0]
