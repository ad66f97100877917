"""The training stream on real shards: coverage, weights, passes, faults, states, and Lightning's own resume."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tiny_shards import damage_image, write_folder

from data_shards.index import list_shards
from data_shards.mixture import MixtureSource
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.structures import DepthBatch


def make_module(root: Path, **changes: Any) -> ShardDataModule:
    """Two sources of 12 and 5 samples in ``root``, drawn 2 : 1 in batches of 3."""
    options: dict[str, Any] = {
        "train": [MixtureSource(str(root / "one"), weight=2.0), MixtureSource(str(root / "two"))],
        "val": [str(root / "val")],
        "image_size": (12, 16),
        "batch_size": 3,
        "shuffle": ShuffleOptions(2, 8),
        "seed": 4,
        "pin_memory": False,
    }
    return ShardDataModule(**(options | changes))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_folder(tmp_path / "one", [5, 7], "one")
    write_folder(tmp_path / "two", [5], "two")
    write_folder(tmp_path / "val", [3, 2], "val")
    return tmp_path


def read(module: ShardDataModule, steps: int) -> list[DepthBatch]:
    module.setup("fit")
    loader, batches = module.train_dataloader(), []
    while len(batches) < steps:
        for batch in loader:
            batches.append(batch)
            if len(batches) == steps:
                break
    return batches


def test_weights_and_coverage(shards: Path) -> None:
    batches = read(make_module(shards), 36)
    keys = [key for batch in batches for key in batch.key]
    for source, size, draws in (("one", 12, 72), ("two", 5, 36)):
        own = [key for key in keys if key.startswith(source)]
        assert abs(len(own) - draws) <= 2
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size  # each pass shows every sample once
        assert own[:size] != own[size : 2 * size]
    assert [p for batch in batches for p in batch.position.tolist()] == list(range(108))


def test_passes_continue_without_a_seam(shards: Path) -> None:
    """Leaving a pass early (limit_train_batches) loses nothing, and workers that read ahead do not shift the position."""
    expected = [batch.key for batch in read(make_module(shards), 9)]
    module = make_module(shards, num_workers=2)
    module.setup("fit")
    loader = module.train_dataloader()
    assert len(loader) == 5  # 17 samples // 3
    seen = []
    for steps in (4, 2, 3):
        for number, batch in enumerate(loader, start=1):
            seen.append(batch.key)
            if number == steps:
                break
    assert seen == expected


def test_a_bad_sample_is_replaced_the_same_way_on_every_replay(shards: Path) -> None:
    healthy = [batch.key for batch in read(make_module(shards), 12)]
    damage_image(shards / "one", "one/0003")
    options = {"faults": FaultBudget(max_fraction=1.0), "bad_sample_file": str(shards / "bad.jsonl")}
    damaged = [batch.key for batch in read(make_module(shards, **options), 12)]
    assert [batch.key for batch in read(make_module(shards, num_workers=2, **options), 12)] == damaged
    changed = [(old, new) for olds, news in zip(healthy, damaged) for old, new in zip(olds, news) if old != new]
    assert changed and all(old == "one/0003" and new.startswith("one/") for old, new in changed)  # nothing else has moved
    lines = [json.loads(line) for line in (shards / "bad.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {"one/0003"} and "image" in lines[0]["reason"] and "00000.tar" in lines[0]["shard"]
    assert len(lines) >= 2 * len(changed)


def test_a_source_that_is_all_bad_ends_the_run_by_name(shards: Path) -> None:
    for number in range(5):
        damage_image(shards / "two", f"two/{number:04d}")
    with pytest.raises(ValueError, match="source 'two': 5 bad samples in a row"):
        read(make_module(shards, num_workers=1), 5)


def test_too_large_a_share_of_bad_samples_ends_the_run_by_name(shards: Path) -> None:
    damage_image(shards / "one", "one/0000")
    with pytest.raises(ValueError, match=r"source 'one': 17 bad samples in 200 draws before step 100 pass its budget of 5\.0%"):
        read(make_module(shards), 150)


def test_a_vanished_shard_ends_the_run_by_name(shards: Path) -> None:
    module = make_module(shards)
    module.setup("fit")
    (shards / "two" / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"source 'two': .*two cannot be read any more .*mounted"):
        list(module.train_dataloader())


def test_missing_and_truncated_shards_are_found_at_setup(shards: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        make_module(shards, train=[MixtureSource(str(shards / "nowhere"))]).setup("fit")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        make_module(shards, val=[str(shards / "nowhere")]).setup("validate")
    shard = list_shards(shards / "one")[0]
    os.truncate(shard, shard.stat().st_size - 512)
    with pytest.raises(ValueError, match=r"00000\.tar: is truncated"):
        make_module(shards).setup("fit")


def test_states_of_other_recipes_are_refused(shards: Path) -> None:
    module = make_module(shards)
    module.setup("fit")
    module.train_dataloader()
    state = json.loads(json.dumps(module.state_dict()))
    module.load_state_dict(state)
    other_weight = [MixtureSource(str(shards / "one"), weight=3.0), MixtureSource(str(shards / "two"))]
    for changes, sentence in (
        ({"seed": 5}, "seed = 4, but the recipe says 5"),
        ({"batch_size": 6}, "batch_size = 3, but the recipe says 6"),
        ({"train": other_weight}, r"mixture\.one\.weight = 2\.0, but the recipe says 3\.0"),
        ({"train": other_weight[:1]}, r"mixture\.one\.weight"),
        ({"shuffle": ShuffleOptions(2, 16)}, "window_samples = 8, but the recipe says 16"),
    ):
        other = make_module(shards, **changes)
        other.setup("fit")
        with pytest.raises(ValueError, match=sentence + ".*--data.on_mixture_change=continue .* restart"):
            other.load_state_dict(state)


def test_depth_limits_of_a_row(shards: Path) -> None:
    limited = [MixtureSource(str(shards / "one"), min_depth_m=3.5, max_depth_m=4.2)]
    for batch in read(make_module(shards, train=limited), 3):
        depth = batch.depth[batch.valid]
        assert depth.min() >= 3.5 and depth.max() <= 4.2 and (batch.depth[~batch.valid] == 0).all() and not batch.valid.all()


class KeyRecorder(lightning.LightningModule):
    """Trains one number and remembers what it saw; fails at a given step, after the batch was fetched."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.seen: list[list[str]] = []
        self.random: list[float] = []
        self.validated: Counter[str] = Counter()

    def training_step(self, batch: DepthBatch, batch_number: int) -> torch.Tensor:
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("killed")
        self.seen.append(batch.key)
        self.random.append(torch.rand(()).item())
        return self.weight * batch.image.mean()

    def validation_step(self, batch: DepthBatch, batch_number: int) -> None:
        self.validated.update(batch.key)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, module: ShardDataModule, steps: int, fail_at: int | None = None, checkpoint: str | None = None, **options: Any):
    """Train, saving after every second step; returns the recorder."""
    saver = lightning.pytorch.callbacks.ModelCheckpoint(root, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saver], default_root_dir=root, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    recorder = KeyRecorder(fail_at)
    try:
        trainer.fit(recorder, datamodule=module, ckpt_path=checkpoint, weights_only=False)
    except RuntimeError as error:
        assert str(error) == "killed"
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("killed_at", "saved", "workers"), [(3, 2, 2), (5, 4, 0), (9, 8, 2), (11, 10, 0)])
def test_lightning_goes_on_where_it_stopped(shards: Path, killed_at: int, saved: int, workers: int) -> None:
    """Passes have 5 steps: mid-pass, with a batch fetched but not trained on (3, 9, 11), and just after a pass (saved 10)."""
    undisturbed = fit(shards / "a", make_module(shards), 14)
    assert len(undisturbed.seen) == 14 and undisturbed.validated == Counter({f"val/{k:04d}": 2 for k in range(5)})
    first = fit(shards / "b", make_module(shards, num_workers=workers), 14, fail_at=killed_at)
    assert first.seen == undisturbed.seen[:killed_at]
    resumed = fit(shards / "b", make_module(shards, num_workers=workers), 14, checkpoint=str(shards / "b" / f"step={saved}.ckpt"))
    assert resumed.seen == undisturbed.seen[saved:]


@pytest.mark.filterwarnings("ignore")
def test_lightning_counts_batches_not_updates(shards: Path) -> None:
    """With accumulation an update takes two batches; limit_train_batches cuts passes; the position follows the batches."""
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 4, "limit_val_batches": 0}
    undisturbed = fit(shards / "a", make_module(shards), 6, **options)
    assert len(undisturbed.seen) == 12
    resumed = fit(shards / "b", make_module(shards), 6, checkpoint=str(shards / "a" / "step=2.ckpt"), **options)
    assert resumed.seen == undisturbed.seen[4:]


@pytest.mark.filterwarnings("ignore")
def test_loaders_leave_the_global_generator_alone(shards: Path) -> None:
    """Dropout must not depend on how often and when loaders are made."""
    draws = []
    for workers in (0, 1):
        torch.manual_seed(0)
        draws.append(fit(shards / str(workers), make_module(shards, num_workers=workers), 7).random)
    torch.manual_seed(0)
    assert draws[0] == draws[1] == [torch.rand(()).item() for _ in range(7)]


@pytest.mark.filterwarnings("ignore")
def test_lightning_refuses_a_changed_mixture(shards: Path) -> None:
    fit(shards / "a", make_module(shards), 2)
    with pytest.raises(ValueError, match="seed = 4, but the recipe says 9"):
        fit(shards / "a", make_module(shards, seed=9), 4, checkpoint=str(shards / "a" / "step=2.ckpt"))


def test_prompts_are_metric_points_of_the_label(shards: Path) -> None:
    write_folder(shards / "scale_free", [4], "scale_free", metric=False)
    train = [MixtureSource(str(shards / name)) for name in ("one", "scale_free")]
    for batch in read(make_module(shards, train=train, prompt=PromptOptions((3, 9), interpolate=True)), 4):
        assert batch.prompt is not None and batch.prompt.interpolated_inverse_depth is not None
        counts = batch.prompt.mask.sum(dim=(1, 2, 3))
        for b, source in enumerate(batch.source):
            assert (3 <= counts[b] <= 9) if source == "one" else counts[b] == 0
        assert torch.equal(batch.prompt.depth_m[batch.prompt.mask], batch.depth[batch.prompt.mask])
        assert (batch.prompt.depth_m[~batch.prompt.mask] == 0).all()
