"""Layer-wise decay, frozen parts, recomputation, compilation: what is trained, how fast, and that recomputing changes nothing."""

from __future__ import annotations

import copy
import os
import pathlib
import subprocess
import sys
from typing import Any

import lightning
import pytest
import torch
from training_parts import ENCODER, PREPARATION, PRIOR_NETWORK, STUDENT_NETWORK, TEACHER_NETWORK, batch_loader, build, mae_table, ssi_table

from mdpretrain.engine.recomputation import ActivationCheckpointing, CompileNetwork, can_compile
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.networks.parameter_groups import parameter_groups
from mdpretrain.tasks.affine_invariant import AffineInvariantTraining
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining
from mdpretrain.tasks.schedule import Schedule


def with_encoder(network: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The network with other arguments of its encoder."""
    encoder = {**ENCODER, "init_args": {**ENCODER["init_args"], **changes}}
    return {**network, "init_args": {**network["init_args"], "encoder": encoder}}


def trainer_of(folder: pathlib.Path, steps: int, *callbacks: lightning.Callback) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[StepSeed(0), *callbacks],
    )


def test_each_layer_has_its_share_of_the_encoders_rate() -> None:
    network = build(STUDENT_NETWORK)  # an encoder of two blocks
    groups = parameter_groups(network, lr=1e-3, encoder_lr=1e-4, weight_decay=0.1, layer_decay=0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    rate = {name: group["lr"] for group in groups for p in group["params"] for name, q in network.named_parameters() if p is q}
    assert rate["encoder.backbone.patch_embed.proj.weight"] == rate["encoder.backbone.cls_token"] == pytest.approx(2.5e-5)
    assert rate["encoder.backbone.blocks.0.attn.proj.weight"] == pytest.approx(5e-5)
    assert rate["encoder.backbone.blocks.1.norm1.bias"] == rate["encoder.backbone.norm.weight"] == pytest.approx(1e-4)
    assert {rate[name] for name in rate if not name.startswith("encoder.")} == {1e-3}
    assert [g["name"] for g in groups][:3] == ["encoder layer 00", "encoder layer 00 (no decay)", "encoder layer 01"]
    same = parameter_groups(network, lr=1e-3, encoder_lr=1e-4, layer_decay=1.0)
    assert {group["lr"] for group in same} == {1e-3, 1e-4}


def test_a_layer_decay_that_means_nothing_is_refused() -> None:
    network = build(STUDENT_NETWORK)
    with pytest.raises(ValueError, match=r"layer_decay 1\.5 must lie in \(0, 1\]"):
        parameter_groups(network, 1e-3, layer_decay=1.5)
    with pytest.raises(ValueError, match="give one of them"):
        parameter_groups(network, 1e-3, layer_decay=0.5, rules={"": 1e-3})
    with pytest.raises(ValueError, match="needs an encoder that knows its layers"):
        parameter_groups(torch.nn.Linear(1, 1), 1e-3, layer_decay=0.5)


def test_frozen_parts_do_not_move_and_stay_in_evaluation_mode(tmp_path: pathlib.Path) -> None:
    frozen = ("encoder.backbone.patch_embed", "encoder.backbone.blocks.0", "encoder.backbone.cls_token")
    optimizer = AdamW(lr=1e-2, layer_decay=0.7, frozen=frozen)
    network = build(with_encoder(STUDENT_NETWORK, model_args={**ENCODER["init_args"]["model_args"], "drop_path_rate": 0.5}))
    task = Distillation(network, mae_table(), optimizer, Schedule(kind="constant"))
    before = copy.deepcopy(network.state_dict())
    trainer_of(tmp_path, 2).fit(task, batch_loader(2))
    assert not task.network.encoder.backbone.blocks[0].training and task.network.encoder.backbone.blocks[1].training
    for name, parameter in network.named_parameters():
        still = name.startswith(("encoder.backbone.patch_embed.", "encoder.backbone.blocks.0.")) or name == "encoder.backbone.cls_token"
        assert parameter.requires_grad != still and torch.equal(parameter, before[name]) == still, name


def test_a_teachers_prior_stays_frozen_beside_frozen_parts() -> None:
    prior = build({"class_path": "mdpretrain.networks.priors.CheckpointPrior", "init_args": {"network": PRIOR_NETWORK}})
    optimizer = AdamW(frozen=("encoder",))
    task = PromptedPretraining(build(TEACHER_NETWORK), mae_table(), build(PREPARATION), prior, optimizer).train()
    assert not task.prior.training and not task.network.encoder.training and task.network.decoder.training
    assert not any(parameter.requires_grad for parameter in task.network.encoder.parameters())


def test_a_frozen_part_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no parameter of MetricAnythingStudent lies in 'encode'; its parts are decoder, encoder"):
        Distillation(build(STUDENT_NETWORK), mae_table(), AdamW(frozen=("encode",)))


@pytest.mark.parametrize("family", ["student", "prior"])
def test_recomputed_activations_give_the_same_training(tmp_path: pathlib.Path, family: str) -> None:
    """With drop-path, and (the prior's decoder) batch normalisation, whose statistics must not be updated twice."""
    config = with_encoder(
        STUDENT_NETWORK if family == "student" else PRIOR_NETWORK,
        model_args={**ENCODER["init_args"]["model_args"], "drop_path_rate": 0.4},
    )
    tasks = []
    for callbacks in ([], [ActivationCheckpointing(["encoder", "decoder"])]):
        network, optimizer = build(config), AdamW(lr=1e-2)
        kind, loss = (Distillation, mae_table()) if family == "student" else (AffineInvariantTraining, ssi_table())
        task = kind(network, loss, optimizer, Schedule(kind="constant"))
        trainer_of(tmp_path, 3, *callbacks).fit(task, batch_loader(3))
        tasks.append(task)
    plain, recomputed = tasks
    assert recomputed.network.encoder.backbone.grad_checkpointing and not plain.network.encoder.backbone.grad_checkpointing
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=f"{name} differs")
    assert any(name.endswith("running_mean") for name in plain.state_dict()) == (family == "prior")


def test_recomputation_keeps_fewer_activations(tmp_path: pathlib.Path) -> None:
    """What autograd still holds after a forward pass."""
    held = []
    batch = next(iter(batch_loader(1)))
    for parts in ([], ["decoder"], ["encoder", "decoder"]):
        task = Distillation(build(STUDENT_NETWORK), mae_table())
        ActivationCheckpointing(parts).setup(trainer_of(tmp_path, 1), task, "fit")
        task.train()
        held.append(_saved_bytes(lambda task=task: task.predict_depth(batch).values.mean()))
    assert held[2] < held[1] < held[0]


def _saved_bytes(forward: Any) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def test_parts_that_cannot_be_recomputed_are_named(tmp_path: pathlib.Path) -> None:
    task = Distillation(build(STUDENT_NETWORK), mae_table())
    with pytest.raises(ValueError, match="MetricAnythingStudent has no part 'neck'; it has encoder, decoder, head"):
        ActivationCheckpointing(["neck"]).setup(trainer_of(tmp_path, 1), task, "fit")
    pyramid = with_encoder(STUDENT_NETWORK, model_name="resnet10t", model_args={"channels": [8, 8, 8, 8], "stem_width": 8, "stem_type": ""})
    pyramid["init_args"]["deep_to_deep"] = False
    task = Distillation(build(pyramid), mae_table())
    with pytest.raises(ValueError, match="encoder has batch normalisation"):
        ActivationCheckpointing(["encoder"]).setup(trainer_of(tmp_path, 1), task, "fit")


COMPILED = """
import pathlib, sys, torch
from test_training_options import *
torch.set_num_threads(1)
states = []
for callbacks in ([], [CompileNetwork()]):
    task = Distillation(build(STUDENT_NETWORK), mae_table(), AdamW(lr=1e-3), Schedule(kind="constant"))
    trainer_of(pathlib.Path(sys.argv[1]), 2, *callbacks).fit(task, batch_loader(2))
    states.append(task.state_dict())
assert task.network._compiled_call_impl is not None
plain, compiled = states
assert plain.keys() == compiled.keys()
for name, value in plain.items():
    torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=2e-5, msg=lambda text: f"{name}: {text}")
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_like_the_other(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """In a process of its own: the type checks that the tests put around every function are not for a compiler."""
    paths = [str(repository), str(repository / "tests"), str(repository / "tests/unit")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", "import mdpretrain.compat\n" + COMPILED, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0 and "equal" in result.stdout, result.stderr[-3000:]


def test_compiling_refuses_zero_3(tmp_path: pathlib.Path) -> None:
    trainer = trainer_of(tmp_path, 1)
    trainer.strategy.config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(ValueError, match="compile: ZeRO-3 fetches parameters in hooks"):
        CompileNetwork().setup(trainer, Distillation(build(STUDENT_NETWORK), mae_table()), "fit")
