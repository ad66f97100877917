"""Feature alignment: the formula, who gets gradients, what a checkpoint holds, and a resumed run."""

from __future__ import annotations

import copy
import pathlib

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset
from training_parts import ENCODER, STUDENT_NETWORK, batch_loader, build, mae_table, make_batch, make_trainer, weights_of

from mdpretrain.networks.module_config import build_module
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.feature_alignment import FeatureAligner, FeatureAlignment, alignment_losses
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.tasks.schedule import Schedule

CROPS = {
    "class_path": "mdpretrain.networks.encoders.multi_scale_patches.MultiScalePatchEncoder",
    "init_args": {**ENCODER["init_args"], "crop_px": 128},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pretrained encoder of these tests: the tiny one, with weights of its own."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_file(build(ENCODER, seed=7).backbone.state_dict(), path)
    return str(path)


def make_task(weights: str, margin: float = 0.85, weight: float = 0.5, network=STUDENT_NETWORK) -> Distillation:
    options = FeatureAlignment(weights, weight, margin)
    optimizer, schedule = AdamW(lr=1e-3, weight_decay=0.01), Schedule(kind="constant")
    return Distillation(build(network), mae_table(), optimizer, schedule, feature_alignment=options)


def test_the_formula_by_hand_and_no_gradient_from_the_margin_on():
    """Vectors at 0, 60 and 90 degrees: 1 - cos is 0, 0.5 and 1; with margin 0.4 the one at 60 degrees is near enough."""
    angles = torch.tensor([0.0, 60.0, 90.0]).deg2rad()
    student = (torch.stack([angles.cos(), angles.sin()]) * 3.0)[None, :, None].requires_grad_()
    frozen = torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 3)
    torch.testing.assert_close(alignment_losses(student, frozen, 1.0), torch.tensor([1.5 / 3]))
    loss = alignment_losses(student, frozen, 0.4)
    torch.testing.assert_close(loss, torch.tensor([1 / 3]))
    loss.sum().backward()
    moved = student.grad[0, :, 0].abs().sum(dim=0) > 0
    assert moved.tolist() == [False, False, True]
    twin = 1 - (student.detach().double() * frozen.double()).sum(1) / (student.detach().double().norm(dim=1) * frozen.double().norm(dim=1))
    torch.testing.assert_close(alignment_losses(student, frozen, 0.99).double(), torch.where(twin > 0.01, twin, 0).mean().view(1))


def test_the_term_is_that_of_the_two_encoders_and_only_the_student_learns(weights: str) -> None:
    task, batch = make_task(weights).train(), make_batch()
    plain = Distillation(copy.deepcopy(task.network), mae_table()).train()
    frozen = build_module({**ENCODER, "init_args": {**ENCODER["init_args"], "weights": weights, "frozen": True}})
    expected = alignment_losses(task.network.encoder(batch.image)[-1], frozen(batch.image)[-1], 0.85)
    assert (expected > 0.01).all()  # two random encoders differ
    loss, terms = task.training_loss(batch)
    base, _ = plain.training_loss(batch)
    torch.testing.assert_close(terms["feature_alignment"], expected.mean().detach())
    torch.testing.assert_close(loss, base + 0.5 * expected.mean())
    loss.backward()
    twin = task._aligner._twin
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in twin.parameters()) and not twin.training
    assert torch.equal(twin.state_dict()["blocks.0.attn.proj.weight"], frozen.backbone.state_dict()["blocks.0.attn.proj.weight"])
    gradients = [parameter.grad for parameter in task.network.encoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(torch.stack(task.sample_losses(batch)).mean(), loss)
    assert torch.equal(task.eval().sample_losses(batch)[0], plain.eval().sample_losses(batch)[0])  # validation is the loss table alone


def test_an_encoder_that_has_not_moved_adds_nothing(weights: str) -> None:
    same = {**STUDENT_NETWORK, "init_args": {**STUDENT_NETWORK["init_args"], "encoder": {**ENCODER, "init_args": {**ENCODER["init_args"]}}}}
    same["init_args"]["encoder"]["init_args"]["weights"] = weights
    task = make_task(weights, network=same).train()
    _, terms = task.training_loss(make_batch())
    assert terms["feature_alignment"] == 0


def test_over_the_35_crops_the_images_as_a_whole_are_compared(weights: str) -> None:
    network = {**STUDENT_NETWORK, "init_args": {"encoder": CROPS, "features": 16}}
    task, batch = make_task(weights, network=network).train(), make_batch()
    aligner = FeatureAligner(task.network, task.feature_alignment)
    coarsest = task.network.encoder.encode(batch.image).features[-1]  # normalised, of the whole image at a quarter
    quarter, kwargs = aligner._inputs[0][-len(batch) :], aligner._inputs[1]
    losses = aligner.losses(len(batch))
    raw = aligner._twin(quarter, **kwargs)[-1]
    expected = alignment_losses(coarsest, aligner._twin.norm(raw.movedim(1, -1)).movedim(-1, 1), 0.85)
    torch.testing.assert_close(losses, expected)
    assert (losses > 0).all() and losses.requires_grad


def fit(folder: pathlib.Path, weights: str, steps: int, resume: pathlib.Path | None = None) -> Distillation:
    task = make_task(weights)
    trainer = make_trainer(folder, steps)
    batches = DataLoader(Subset(batch_loader(8).dataset, range(0 if resume is None else 2, 8)), batch_size=None)
    trainer.fit(task, batches, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / f"step_{steps:08d}.ckpt")
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == len(list(task.network.parameters()))
    return task


def test_a_resumed_run_goes_on_as_if_undisturbed_and_its_checkpoint_holds_the_student_alone(tmp_path: pathlib.Path, weights: str) -> None:
    whole = weights_of(fit(tmp_path / "whole", weights, 4).network)
    fit(tmp_path / "parts", weights, 2)
    resumed = weights_of(fit(tmp_path / "parts", weights, 4, resume=tmp_path / "parts/step_00000002.ckpt").network)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    content = torch.load(tmp_path / "whole/step_00000004.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"network"}
    assert load_predictor(tmp_path / "whole/step_00000004.ckpt")(make_batch()).values.isfinite().all()
    header, first = (tmp_path / "whole/metrics.csv").read_text().splitlines()[:2]
    assert float(dict(zip(header.split(","), first.split(",")))["train/feature_alignment"]) > 0


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"margin": 1.5}, {"weight": float("inf")}])
def test_a_mistaken_option_is_refused_by_name(options):
    with pytest.raises(ValueError, match=rf"feature_alignment\.{next(iter(options))}"):
        FeatureAlignment("encoder.safetensors", **options)


def test_what_cannot_be_aligned_is_refused_in_words(tmp_path: pathlib.Path, weights: str) -> None:
    with pytest.raises(ValueError, match="whose encoder is a TimmEncoder"):
        FeatureAligner(torch.nn.Linear(1, 1), FeatureAlignment(weights))
    task = make_task(weights)
    task.network.eval()
    with pytest.raises(ValueError, match="freezes the student's own"):
        FeatureAligner(task.network, FeatureAlignment(weights))
    with pytest.raises(ValueError, match="absent"):
        make_trainer(tmp_path, 1).fit(make_task(str(tmp_path / "absent.safetensors")), batch_loader(1))
