"""What a run shows of itself: times, FLOPs, figures by source, panels, a profile; the same over several processes."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from shard_parts import write_folder
from training_parts import PREPARATION, TEACHER_NETWORK
from training_runs import column, recipe, run, write_recipe

from mdpretrain.networks.fake_step import FakeNetwork

STEPS = 4
SOURCES = ("near", "far")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "train", 12)
    write_folder(folder / "more", 12, first=50)
    write_folder(folder / "val", 3, first=100)
    return folder


def teacher_run(shards: pathlib.Path, **changes: object) -> dict:
    """A prompted run over two sources that logs every second step and validates twice."""
    content = recipe(
        shards,
        trainer={"max_steps": STEPS, "log_every_n_steps": 2, "val_check_interval": 2, "gradient_clip_val": 0.05},
        data={
            "train": [{"path": str(shards / "train"), "name": "near"}, {"path": str(shards / "more"), "name": "far"}],
            "prompt": {"count": [100, 100]},
        },
        model={
            "class_path": "mdpretrain.tasks.prompted_pretraining.PromptedPretraining",
            "init_args": {
                "network": TEACHER_NETWORK,
                "preparation": PREPARATION,
                "loss": {"class_path": "mdpretrain.losses.table.LossTable", "init_args": {"terms": {"default": [{"name": "mae"}]}}},
            },
        },
    )
    return content | {"ledger": False} | changes


@pytest.fixture(scope="module")
def one(shards: pathlib.Path) -> pathlib.Path:
    """A run on one process with everything on."""
    content = teacher_run(shards, count_flops=True, panel_images=2, profile_steps="1:3", tensorboard=True)
    config = write_recipe(shards / "run.yaml", content)
    assert run(["fit", "--config", config, "--run_dir", str(shards / "one")]) == [0]
    return shards / "one"


def figures(folder: pathlib.Path, name: str) -> list[float]:
    return [float(value) for value in column(folder, name).values()]


def test_times_are_there_and_make_sense(one: pathlib.Path) -> None:
    steps = figures(one, "time/step_s")
    parts = [figures(one, f"time/{part}_s") for part in ("forward", "backward", "optimizer")]
    assert len(steps) == STEPS // 2 and all(len(part) == STEPS // 2 for part in parts)
    for step, *of_step in zip(steps, *parts):
        assert all(seconds > 0 for seconds in of_step) and sum(of_step) <= step
    assert all(0 <= percent <= 100 for percent in figures(one, "time/data_wait_percent"))
    assert all(0.05 < gib < 100 for gib in figures(one, "memory/peak_gib"))


def test_the_rate_of_arithmetic_is_the_counted_flops_over_the_measured_time(one: pathlib.Path) -> None:
    fake = FakeNetwork.of_config(TEACHER_NETWORK)
    step = fake.train_step(lambda prediction, batch: prediction.values.sum(), 1, 48, 64)
    flops = 4 * (step.forward_flops + step.backward_flops)
    for rate, seconds in zip(figures(one, "performance/tflops_per_s"), figures(one, "time/step_s")):
        assert rate == pytest.approx(flops / seconds / 1e12, rel=0.05)
    assert "performance/mfu_percent" not in (one / "csv/metrics.csv").read_text()  # there is no GPU to have a peak


def test_gradients_are_seen_before_and_after_clipping(one: pathlib.Path) -> None:
    for before, after in zip(figures(one, "train/gradient_norm"), figures(one, "train/gradient_norm_clipped")):
        assert after == pytest.approx(min(before, 0.05), rel=1e-3)
    assert max(figures(one, "train/gradient_norm")) > 0.05


def test_losses_by_source_average_to_the_loss(one: pathlib.Path) -> None:
    loss = figures(one, "train/loss")
    by_source = [figures(one, f"source_loss/{name}") for name in SOURCES]
    for total, near, far in zip(loss, *by_source):  # the mixture draws both alike: two images of four each
        assert (near + far) / 2 == pytest.approx(total, rel=1e-5) and near != far
    valid = [figures(one, f"source_valid/{name}") for name in SOURCES]
    for fraction, near, far in zip(figures(one, "train/valid_fraction"), *valid):
        assert (near + far) / 2 == pytest.approx(fraction, rel=1e-5)
    for density in figures(one, "train/prompt_density"):
        assert 0 < density <= 100 / (48 * 64) + 1e-9


def test_a_panel_is_drawn_at_every_validation_of_the_same_samples(one: pathlib.Path) -> None:
    files = sorted((one / "panels").iterdir())
    assert [file.name for file in files] == ["step_00000002.png", "step_00000004.png"]
    first, last = (np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files)
    assert first.shape == last.shape and first.std() > 10
    width = first.shape[1]
    assert np.array_equal(first[:, : width // 4], last[:, : width // 4]), "the image and its truth stay"
    assert not np.array_equal(first, last), "the prediction moves"
    assert any("tfevents" in file.name for file in (one / "tensorboard").iterdir())


def test_the_profile_holds_the_steps_asked_for(one: pathlib.Path) -> None:
    (file,) = (one / "profile").iterdir()
    assert file.name == "steps_1_3_rank_0000.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = [str(event.get("name")) for event in events]
    assert any("aten::convolution" in name for name in names)
    assert sum("Optimizer.step" in name for name in names) == 2


def test_two_processes_log_what_one_does(one: pathlib.Path, shards: pathlib.Path, repository: pathlib.Path) -> None:
    config = write_recipe(shards / "two.yaml", teacher_run(shards, panel_images=2))
    ddp = ["--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2"]
    assert run(["fit", "--config", config, *ddp, "--run_dir", str(shards / "two")], ranks=2) == [0, 0]
    for name in ("train/loss", "train/prompt_density", *(f"source_{kind}/{source}" for kind in ("loss", "valid") for source in SOURCES)):
        assert figures(shards / "two", name) == pytest.approx(figures(one, name), rel=1e-3), name
    assert len(figures(shards / "two", "time/step_s")) == STEPS // 2 and (shards / "two/panels/step_00000004.png").is_file()


def test_wrong_options_are_sentences(shards: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mdpretrain.cli import main

    config = write_recipe(shards / "wrong.yaml", teacher_run(shards))
    for option, sentence in (("--profile_steps 9:9", "write FIRST:END with FIRST < END"), ("--panel_images -1", "must not be negative")):
        assert main(["fit", "--config", config, "--run_dir", str(shards / "wrong"), *option.split()]) == 2
        assert sentence in capfd.readouterr().err
