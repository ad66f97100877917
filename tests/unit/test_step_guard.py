"""The transactional step on one process: a refused step leaves the run as it would be had its batch never been there."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from training_parts import ENCODER, STUDENT_NETWORK, build, mae_table, make_batch, make_trainer

from mdpretrain.engine.incidents import read_incident
from mdpretrain.engine.running_bound import RunningBound
from mdpretrain.engine.step_guard import StepGuard, StepGuardOptions
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.tasks.schedule import Schedule

BATCH_NORM_ENCODER: dict[str, Any] = {
    **ENCODER,
    "init_args": {"model_name": "resnet10t", "layers": [1, 2], "model_args": {"channels": [8, 8, 8, 8], "stem_width": 8, "stem_type": ""}},
}
BATCH_NORM_NETWORK = {**STUDENT_NETWORK, "init_args": {"encoder": BATCH_NORM_ENCODER, "features": 8, "deep_to_deep": False}}


class Batches(Dataset):
    """Batches of these seeds in this order."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Any:
        return make_batch(self.seeds[index])


class Factor(torch.nn.Module):
    """The plain loss times a factor wherever a certain sample is in the batch; the forward pass sees it too, if ``poison``."""

    def __init__(self, factors: dict[str, float]) -> None:
        super().__init__()
        self.table, self.factors = mae_table(), factors

    def forward(self, prediction: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = self.table(prediction, batch)
        for key in batch.key:
            loss = loss * self.factors.get(key, 1.0)
        return loss, terms


class PoisonedImages(Distillation):
    """A batch of scene 2 has a NaN in an image, so that batch statistics see it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if "scene_2/view_0" in batch.key:
            batch.image[0, 0, 0, 0] = torch.nan
        return super().training_step(batch, batch_idx)


def make_task(
    factors: dict[str, float], network: dict[str, Any] = STUDENT_NETWORK, kind: type = Distillation, fused: bool = True
) -> Distillation:
    optimizer = AdamW(lr=1e-2, weight_decay=0.01, fused=fused)
    return kind(build(network), Factor(factors), optimizer, Schedule(kind="cosine", warmup_steps=2, total_steps=20))


def fit(
    folder: pathlib.Path, task: Distillation, seeds: list[int], guard: StepGuard | None = None, accumulate: int = 1, **options: Any
) -> lightning.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    callbacks = [StepSeed(0), guard or StepGuard()]
    trainer = make_trainer(folder, len(seeds) // accumulate, accumulate_grad_batches=accumulate, callbacks=callbacks, **options)
    trainer.fit(task, DataLoader(Batches(seeds), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def everything(trainer: lightning.Trainer) -> dict[str, Any]:
    """Parameters, buffers, optimiser and schedule."""
    module, optimizer = trainer.lightning_module, trainer.optimizers[0]
    state: dict[str, Any] = {name: value.clone() for name, value in module.state_dict().items()}
    for index, (_, values) in enumerate(sorted(optimizer.state_dict()["state"].items())):
        state |= {f"optimizer {index} {name}": torch.as_tensor(value).clone() for name, value in values.items()}
    schedule = trainer.lr_scheduler_configs[0].scheduler
    state["schedule"] = torch.tensor([schedule.last_epoch, *(group["lr"] for group in optimizer.param_groups)], dtype=torch.float64)
    return state


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("fused", [True, False])
def test_a_refused_step_is_to_the_bit_as_if_its_batch_had_not_been_there(tmp_path: pathlib.Path, fused: bool, clip: float | None) -> None:
    guard = StepGuard()
    with_it = fit(tmp_path / "a", make_task({"scene_2/view_1": torch.nan}, fused=fused), [0, 1, 2, 3, 4], guard, gradient_clip_val=clip)
    without = fit(tmp_path / "b", make_task({}, fused=fused), [0, 1, 3, 4], gradient_clip_val=clip)
    assert_equal(everything(with_it), everything(without))
    assert guard.skipped == 1 and guard.in_a_row == 0 and with_it.global_step == 5
    lines = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/skipped_steps")
    assert [float(line.split(",")[column]) for line in lines[1:]] == [0, 0, 1, 1, 1]


def test_the_first_step_of_all_can_be_refused(tmp_path: pathlib.Path) -> None:
    with_it = fit(tmp_path / "a", make_task({"scene_2/view_0": torch.inf}), [2, 0, 1])
    assert_equal(everything(with_it), everything(fit(tmp_path / "b", make_task({}), [0, 1])))


def test_batch_statistics_forget_a_poisoned_forward_pass(tmp_path: pathlib.Path) -> None:
    with_it = fit(tmp_path / "a", make_task({}, BATCH_NORM_NETWORK, PoisonedImages), [0, 1, 2, 3])
    without = fit(tmp_path / "b", make_task({}, BATCH_NORM_NETWORK), [0, 1, 3])
    names = [name for name in everything(with_it) if name.endswith("running_mean")]
    assert names and all(everything(with_it)[name].isfinite().all() for name in names)
    assert_equal(everything(with_it), everything(without))


def test_a_spike_is_refused_once_the_bound_is_learnt(tmp_path: pathlib.Path) -> None:
    options = StepGuardOptions(window=8, spike_factor=20.0)
    seeds = [0, 1, 3, 4, 5, 2, 6]
    guard = StepGuard(options)
    with_it = fit(tmp_path / "a", make_task({"scene_2/view_1": 1e4}), seeds, guard)
    assert guard.skipped == 1
    assert_equal(everything(with_it), everything(fit(tmp_path / "b", make_task({}), [0, 1, 3, 4, 5, 6], StepGuard(options))))
    record = read_incident(tmp_path / "a/incidents/step_00000005.json")
    assert "is a spike: the bound is" in record["reasons"][0]
    assert record["loss"]["value"] > record["loss"]["bound"] > record["loss"]["median"]
    # before half of the window is there, and with no factor, only what is not finite is refused
    early, never = StepGuard(options), StepGuard(StepGuardOptions(window=8, spike_factor=None))
    fit(tmp_path / "c", make_task({"scene_2/view_1": 1e4}), [0, 1, 2, 3], early)
    fit(tmp_path / "d", make_task({"scene_2/view_1": 1e4}), seeds, never)
    assert early.skipped == never.skipped == 0


def test_the_whole_accumulated_step_is_refused(tmp_path: pathlib.Path) -> None:
    guard = StepGuard()
    with_it = fit(tmp_path / "a", make_task({"scene_2/view_0": torch.nan}), [0, 1, 2, 3, 4, 5], guard, accumulate=2)
    assert_equal(everything(with_it), everything(fit(tmp_path / "b", make_task({}), [0, 1, 4, 5], accumulate=2)))
    record = read_incident(tmp_path / "a/incidents/step_00000001.json")
    assert [sample["key"] for sample in record["samples"]] == [f"scene_{scene}/view_{view}" for scene in (2, 3) for view in (0, 1)]
    first, second = (entry["loss"] for entry in record["rank_losses"])
    assert np.isnan(first) and np.isfinite(second)
    assert [sample["loss"] for sample in record["samples"]][:2] == [None, None]  # this loader cannot read a batch again
    assert np.mean([sample["loss"] for sample in record["samples"]][2:]) == pytest.approx(second, rel=1e-5)


def test_an_incident_names_samples_sources_and_keeps_the_weights(tmp_path: pathlib.Path) -> None:
    task = make_task({"scene_2/view_1": torch.nan, "scene_4/view_0": torch.nan})
    fit(tmp_path, task, [0, 1, 2, 3, 4], StepGuard(seed=7))
    record = read_incident(tmp_path / "incidents/step_00000002.json")
    json.loads((tmp_path / "incidents/step_00000002.json").read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert record["step"] == 2 and record["seed"] == 7 and record["reasons"][0] == "the loss is not finite"
    one, other = record["samples"]
    assert (one["key"], one["source"], one["position"], one["rank"]) == ("scene_2/view_0", "rendered", 4, 0)
    assert np.isfinite(one["loss"]) and np.isnan(other["loss"]) and np.isnan(record["source_losses"]["rendered"])
    # the first incident keeps the weights it began with; the second does not
    kept = load_predictor(tmp_path / "incidents" / record["weights"])
    before = fit(tmp_path / "two", make_task({}), [0, 1]).lightning_module.network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in kept.network.state_dict().items())
    assert read_incident(tmp_path / "incidents/step_00000004.json")["weights"] is None


def test_more_than_so_many_in_a_row_stop_the_run(tmp_path: pathlib.Path) -> None:
    factors = {f"scene_{seed}/view_0": torch.nan for seed in (1, 2, 4, 5, 6)}
    guard = StepGuard(StepGuardOptions(max_in_a_row=2))
    with pytest.raises(
        ValueError, match=r"skipped 3 steps in a row.*max_in_a_row allows 2; the last, step 6.*samples: scene_6/view_0"
    ) as error:
        fit(tmp_path, make_task(factors), list(range(9)), guard)
    assert "\n" not in str(error.value)
    assert guard.skipped == 5 and len(list((tmp_path / "incidents").glob("*.json"))) == 5


def test_windows_and_counts_go_on_after_a_resume(tmp_path: pathlib.Path) -> None:
    options = StepGuardOptions(window=8)
    first = StepGuard(options)
    trainer = fit(tmp_path, make_task({"scene_1/view_0": torch.nan}), [0, 1, 3, 4, 5], first)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    second = StepGuard(options)
    second.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["StepGuard"])
    assert second.state_dict() == first.state_dict() and first.skipped == 1
    assert len(first.loss_bound.values()) == 4 and np.isfinite(second.norm_bound.bound)


def test_the_bound_is_median_and_deviation_of_the_last_values() -> None:
    values = np.random.default_rng(0).lognormal(size=50)
    bound = RunningBound(16, 5.0)
    assert bound.bound == np.inf
    for value in values:
        bound.add(float(value))
    last = values[-16:]
    deviation = 1.4826 * np.median(np.abs(last - np.median(last)))
    assert bound.bound == pytest.approx(np.median(last) + 5 * max(deviation, 0.25 * np.median(last)), rel=1e-12)
    quiet = RunningBound(4, 5.0)
    quiet.restore([2.0] * 9)
    assert quiet.values() == [2.0] * 4 and quiet.bound == pytest.approx(2 + 5 * 0.5)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="window 1 must be at least 2"):
        StepGuardOptions(window=1)
    with pytest.raises(ValueError, match="spike_factor -1"):
        StepGuardOptions(spike_factor=-1.0)
