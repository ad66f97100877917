"""The average of the weights on one process: against a float64 twin, over skipped steps, in validation, resumed and exported."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from training_parts import STUDENT_NETWORK, batch_loader, build, mae_table, make_batch, make_trainer
from training_runs import EmaTwin

from mdpretrain.cli import main
from mdpretrain.engine.ema import Ema
from mdpretrain.engine.parameter_fragments import _shared_out
from mdpretrain.engine.step_guard import StepGuard
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.tasks.schedule import Schedule


class SpoiltStep(torch.nn.Module):
    """The plain loss; NaN where scene 3 is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = mae_table()

    def forward(self, prediction: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = self.table(prediction, batch)
        return loss * (torch.nan if "scene_3/view_0" in batch.key else 1.0), terms


def fit(folder: pathlib.Path, steps: int, decay: float | None = 0.9, validate: bool = True, resume: Any = None, **options: Any) -> Any:
    """A finished trainer after ``steps`` steps; the fourth is refused."""
    guard = StepGuard()
    callbacks: list[lightning.Callback] = [StepSeed(0), guard]
    if decay is not None:
        callbacks += [Ema(decay, guard, validate), EmaTwin(decay, str(folder / "twin.pt"))]
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(folder, steps, callbacks=callbacks, **options)
    task = Distillation(build(STUDENT_NETWORK), SpoiltStep(), AdamW(lr=1e-2), Schedule(kind="constant"))
    held_out = batch_loader(2) if options else None
    batches = DataLoader(Subset(batch_loader(8).dataset, range(0 if resume is None else 2, 8)), batch_size=None)  # resumed after two
    trainer.fit(task, batches, held_out, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / "step_00000001.ckpt")
    return trainer


def ema_of(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "step_00000001.ckpt", weights_only=True)["ema"]


def test_the_average_is_that_of_a_float64_twin_and_leaves_out_what_was_skipped(tmp_path: pathlib.Path) -> None:
    trainer = fit(tmp_path, 7)
    average, twin = ema_of(tmp_path), torch.load(tmp_path / "twin.pt")
    weights = dict(trainer.lightning_module.named_parameters())
    assert average.keys() == twin.keys() == weights.keys()
    for name, value in average.items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), twin[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(average[name], weights[name], atol=1e-3) for name in average)
    assert torch.load(tmp_path / "step_00000001.ckpt", weights_only=True)["callbacks"]["Ema"] == {"updates": 6}


def test_an_accumulated_step_is_one_update(tmp_path: pathlib.Path) -> None:
    fit(tmp_path, 2, accumulate_grad_batches=2)  # batches 0 to 3, the second pair refused
    assert torch.load(tmp_path / "step_00000001.ckpt", weights_only=True)["callbacks"]["Ema"] == {"updates": 1}
    twin = torch.load(tmp_path / "twin.pt")
    for name, value in ema_of(tmp_path).items():
        torch.testing.assert_close(value.double(), twin[name], rtol=1e-5, atol=1e-7)


def test_a_resumed_average_goes_on_to_the_bit(tmp_path: pathlib.Path) -> None:
    fit(tmp_path / "whole", 6)
    fit(tmp_path / "first", 2)
    fit(tmp_path / "second", 6, resume=tmp_path / "first" / "step_00000001.ckpt")
    whole, resumed = ema_of(tmp_path / "whole"), ema_of(tmp_path / "second")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_validation_is_of_the_average_and_training_does_not_notice(tmp_path: pathlib.Path) -> None:
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    plain, averaged = fit(tmp_path / "plain", 6, decay=None, **options), fit(tmp_path / "averaged", 6, **options)
    raw = fit(tmp_path / "raw", 6, validate=False, **options)
    for name, value in plain.lightning_module.state_dict().items():
        assert torch.equal(value, averaged.lightning_module.state_dict()[name]), name
    assert raw.callback_metrics["val/loss"] == plain.callback_metrics["val/loss"]
    network = load_predictor(tmp_path / "averaged", weights="ema").network
    losses = [mae_table()(network(batch), batch)[0] for batch in (make_batch(0), make_batch(1))]
    assert float(averaged.callback_metrics["val/loss"]) == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    assert float(plain.callback_metrics["val/loss"]) != pytest.approx(float(sum(losses)) / 2, rel=1e-3)


def test_the_average_is_exported(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "with", 3)
    fit(tmp_path / "without", 3, decay=None)
    assert main(["consolidate", "--checkpoint", str(tmp_path / "with"), "--ema", "--output", str(tmp_path / "ema.ckpt")]) == 0
    exported, average = load_predictor(tmp_path / "ema.ckpt"), ema_of(tmp_path / "with")
    assert all(torch.equal(value, average["network." + name]) for name, value in exported.network.named_parameters())
    assert exported.fingerprint == load_predictor(tmp_path / "with", weights="ema").fingerprint
    assert exported.fingerprint != load_predictor(tmp_path / "with").fingerprint
    assert main(["consolidate", "--checkpoint", str(tmp_path / "without"), "--ema", "--output", str(tmp_path / "no.ckpt")]) == 2
    assert "holds no averaged weights: train with ema_decay" in capsys.readouterr().err


def test_ranks_share_the_parameters_evenly() -> None:
    sizes = {f"layer_{index}": 10 + index % 7 for index in range(40)} | {"large": 100}
    owners = _shared_out(sizes, 4)
    load = [sum(sizes[name] for name, owner in owners.items() if owner == rank) for rank in range(4)]
    assert owners.keys() == sizes.keys() and max(load) - min(load) <= 16


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema_decay 1\.0 must lie in"):
        Ema(1.0)
