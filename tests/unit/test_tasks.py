"""The three tasks: they learn, they keep what is frozen frozen, they log what they say, and refuse what does not fit."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning
import pytest
import torch
from training_parts import (
    PREPARATION,
    PRIOR_NETWORK,
    STUDENT_NETWORK,
    TEACHER_NETWORK,
    batch_loader,
    build,
    mae_table,
    make_batch,
    make_trainer,
    ssi_table,
    weights_of,
)

from mdpretrain.engine.callbacks import ChannelsLast, ProgressLines
from mdpretrain.networks.priors import CheckpointPrior
from mdpretrain.tasks.affine_invariant import AffineInvariantTraining
from mdpretrain.tasks.base import TrainingTask
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining
from mdpretrain.tasks.schedule import Schedule

CHECKPOINT_PRIOR: dict[str, Any] = {
    "class_path": "mdpretrain.networks.priors.CheckpointPrior",
    "init_args": {"checkpoint": None, "network": PRIOR_NETWORK},
}


def make_task(kind: str, lr: float = 1e-3) -> TrainingTask:
    optimizer, schedule = AdamW(lr=lr, encoder_lr=lr / 10, weight_decay=0.01), Schedule(kind="constant")
    if kind == "prior":
        return AffineInvariantTraining(build(PRIOR_NETWORK), ssi_table(), optimizer, schedule)
    if kind == "student":
        return Distillation(build(STUDENT_NETWORK), mae_table(), optimizer, schedule)
    prior, preparation = build(CHECKPOINT_PRIOR, seed=1), build(PREPARATION)
    return PromptedPretraining(build(TEACHER_NETWORK), mae_table(), preparation, prior, optimizer, schedule)


def read_csv(folder: pathlib.Path) -> list[dict[str, str]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]


def prompt_points(kind: str) -> int | None:
    return 60 if kind == "teacher" else None


@pytest.mark.parametrize("kind", ["prior", "teacher", "student"])
def test_task_learns_logs_and_rebuilds_from_its_checkpoint(tmp_path: pathlib.Path, kind: str) -> None:
    task = make_task(kind)
    frozen = weights_of(task.prior) if isinstance(task, PromptedPretraining) and task.prior is not None else {}
    loader = batch_loader(2, prompt_points=prompt_points(kind))
    trainer = make_trainer(tmp_path, 12, val_check_interval=12, check_val_every_n_epoch=None)
    trainer.fit(task, loader, loader)

    rows = read_csv(tmp_path)
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 12 and sum(losses[-2:]) < sum(losses[:2])
    assert {"train/valid_fraction", "train/gradient_norm", "val/loss", "lr/encoder", "lr/decoder"} <= set(rows[0])
    assert float(rows[0]["lr/decoder"]) == pytest.approx(1e-3) and float(rows[0]["lr/encoder"]) == pytest.approx(1e-4)
    assert float(rows[3]["train/gradient_norm"]) > 0 and float(rows[3]["train/valid_fraction"]) == 1.0
    for name, value in frozen.items():
        assert torch.equal(value, task.prior.state_dict()[name]), name

    file = tmp_path / "step_00000012.ckpt"
    trainer.save_checkpoint(file)
    predictor, batch = load_predictor(file), make_batch(9, prompt_points=prompt_points(kind))
    task.eval()
    with torch.no_grad():
        task.to(memory_format=torch.channels_last)  # as the predictor has it: other orders of memory round otherwise
    assert torch.equal(predictor(batch).values, task.predict_depth(batch).values)
    assert predictor.needs_prompt == (kind == "teacher") and len(predictor.fingerprint) == 64
    assert predictor.fingerprint == load_predictor(tmp_path).fingerprint
    with torch.no_grad():
        next(iter(predictor.network.parameters())).add_(1e-6)
    del predictor.__dict__["fingerprint"]
    assert predictor.fingerprint != load_predictor(file).fingerprint


def test_frozen_modules_stay_in_eval(tmp_path: pathlib.Path) -> None:
    task = make_task("teacher")
    assert isinstance(task, PromptedPretraining)
    task.train()
    assert task.network.training and isinstance(task.prior, CheckpointPrior)
    assert not any(module.training for module in task.prior.modules())
    assert not any(parameter.requires_grad for parameter in task.prior.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_to_the_recipes_norm_and_logged_before(tmp_path: pathlib.Path, precision: str) -> None:
    seen = []

    class Watch(lightning.Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            seen.append(float(torch.nn.utils.get_total_norm(gradients)) if gradients else None)

    trainer = make_trainer(tmp_path, 3, gradient_clip_val=1e-3, callbacks=[Watch()], precision=precision)
    trainer.fit(make_task("student"), batch_loader(3))
    assert seen[0] is None and seen[1:] == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert all(float(row["train/gradient_norm"]) > 1e-2 for row in read_csv(tmp_path))


def test_channels_last_is_the_same_network_in_another_order_of_memory(tmp_path: pathlib.Path) -> None:
    tasks = {}
    for name, callbacks in (("first", []), ("last", [ChannelsLast()])):
        torch.manual_seed(0)
        tasks[name] = make_task("student")
        make_trainer(tmp_path / name, 2, callbacks=callbacks).fit(tasks[name], batch_loader(2))
    weights = {name: dict(task.network.named_parameters()) for name, task in tasks.items()}
    kernels = [key for key, value in weights["first"].items() if value.ndim == 4 and min(value.shape[1:]) > 1]
    assert kernels and all(weights["last"][key].is_contiguous(memory_format=torch.channels_last) for key in kernels)
    assert not any(weights["first"][key].is_contiguous(memory_format=torch.channels_last) for key in kernels)
    first, last = (float(read_csv(tmp_path / name)[-1]["train/loss"]) for name in ("first", "last"))
    assert first == pytest.approx(last, rel=1e-3)


def test_channels_last_refuses_deepspeed_in_words(tmp_path: pathlib.Path) -> None:
    trainer = make_trainer(tmp_path, 1)
    trainer.strategy.__class__ = type("DeepSpeed", (type(trainer.strategy),), {})
    with pytest.raises(ValueError, match="channels_last: DeepSpeed"):
        ChannelsLast().setup(trainer, make_task("student"), "fit")


def test_tasks_refuse_networks_of_another_space() -> None:
    with pytest.raises(ValueError, match="MetricAnythingStudent predicts canonical_inverse"):
        AffineInvariantTraining(build(STUDENT_NETWORK), ssi_table()).predict_depth(make_batch())
    with pytest.raises(ValueError, match="AnyDepth predicts affine_invariant"):
        Distillation(build(PRIOR_NETWORK), mae_table()).predict_depth(make_batch())
    with pytest.raises(ValueError, match=r"data\.prompt"):
        Distillation(build(STUDENT_NETWORK), mae_table()).predict_depth(make_batch(prompt_points=20))
    with pytest.raises(ValueError, match="sparse metric prompt"):
        make_task("teacher").predict_depth(make_batch())


def test_resuming_another_network_is_refused_in_words(tmp_path: pathlib.Path) -> None:
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(make_task("student"), batch_loader(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    wider = {**STUDENT_NETWORK, "init_args": {**STUDENT_NETWORK["init_args"], "features": 24}}
    with pytest.raises(ValueError, match=r"network\.init_args\.features is 16 in the checkpoint and 24 in the recipe"):
        make_trainer(tmp_path, 2).fit(Distillation(build(wider), mae_table()), batch_loader(2), ckpt_path=tmp_path / "a.ckpt")


def test_module_without_a_record_fails_at_the_start_not_at_the_first_checkpoint(tmp_path: pathlib.Path) -> None:
    network = build(STUDENT_NETWORK)
    object.__delattr__(network, "_module_config_record")
    with pytest.raises(ValueError, match="nothing recorded how"):
        make_trainer(tmp_path, 1).fit(Distillation(network, mae_table()), batch_loader(1))


def test_depth_in_metres_from_each_space(tmp_path: pathlib.Path) -> None:
    trainer = make_trainer(tmp_path, 1)
    for kind in ("prior", "student"):
        task = make_task(kind)
        trainer = make_trainer(tmp_path, 1)
        trainer.fit(task, batch_loader(1))
        trainer.save_checkpoint(tmp_path / f"{kind}.ckpt")
    batch = make_batch()
    with pytest.raises(ValueError, match="has no metres"):
        load_predictor(tmp_path / "prior.ckpt").depth_m(batch)
    student = load_predictor(tmp_path / "student.ckpt")
    canonical = student(batch).values.double()
    focal = batch.intrinsics[:, 0, 0].double().view(-1, 1, 1, 1)
    torch.testing.assert_close(student.depth_m(batch).double(), 1 / (canonical * 64 / focal).clamp(1e-3, 1e3), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"scene_0/view_0: the camera is unknown"):
        student.depth_m(make_batch(camera=False))


def test_nan_loss_stops_the_run_and_names_its_samples(tmp_path: pathlib.Path) -> None:
    class Spoilt(torch.nn.Module):
        def forward(self, prediction: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            factor = torch.nan if "scene_2/view_0" in batch.key else 1.0
            return prediction.values.mean() * factor, {}

    task = Distillation(build(STUDENT_NETWORK), Spoilt(), AdamW(lr=1e-4), Schedule(kind="constant"))
    with pytest.raises(ValueError, match=r"step 2, because the loss is not finite.*its samples: scene_2/view_0, scene_2/view_1\."):
        make_trainer(tmp_path, 5).fit(task, batch_loader(5))


def test_progress_is_told_once_a_step_also_when_gradients_are_accumulated(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two batches make a step, every second step is logged: its rate counts the samples of four batches, and one line tells it."""
    callbacks = [ProgressLines(every_s=0.0)]
    options = {"accumulate_grad_batches": 2, "log_every_n_steps": 2, "callbacks": callbacks}
    make_trainer(tmp_path, 4, **options).fit(make_task("student"), batch_loader(8))
    told = [line.split()[1] for line in capfd.readouterr().err.splitlines() if "samples/s" in line]
    assert told == ["2/4", "4/4"]
