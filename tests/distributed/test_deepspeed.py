"""DeepSpeed ZeRO on two CPU processes (gloo): trains, saves, resumes, and its consolidated weights predict."""

from __future__ import annotations

import pathlib

import pytest
import torch
from shard_parts import write_folder
from training_parts import make_batch
from training_runs import audit, delivered, losses, recipe, run, write_recipe

from mdpretrain.cli import main
from mdpretrain.data.audit_command import data_state
from mdpretrain.tasks.predictor import load_predictor

STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "train", 22)
    write_folder(folder / "val", 3, first=100)
    content = recipe(folder, trainer={"max_steps": STEPS, "gradient_clip_val": 1.0})
    content["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]["model_args"].pop("drop_path_rate")
    write_recipe(folder / "run.yaml", content)
    assert run(["fit", "--config", str(folder / "run.yaml"), "--run_dir", str(folder / "ddp_of_one")]) == [0]
    return folder


@pytest.mark.parametrize("stage", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_zero_trains_saves_resumes_and_consolidates(
    repository: pathlib.Path, tmp_path: pathlib.Path, shards: pathlib.Path, stage: int, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = ["--config", str(repository / "recipes/engine/deepspeed_zero2.yaml"), "--trainer.devices", "2"]
    engine += ["--trainer.strategy.init_args.stage", str(stage)]
    arguments = ["fit", "--config", str(shards / "run.yaml"), *engine, "--run_dir", str(tmp_path / "run")]
    assert run([*arguments, "--trainer.max_steps", "4"], ranks=2) == [0, 0]
    assert (tmp_path / "run/checkpoints/step_00000004.ckpt/checkpoint").is_dir()
    assert run([*arguments, "--resume"], ranks=2) == [0, 0]

    single, sharded = losses(shards / "ddp_of_one"), losses(tmp_path / "run")
    assert sorted(sharded) == list(range(STEPS))
    for step in range(STEPS):
        assert float(sharded[step]) == pytest.approx(float(single[step]), rel=1e-3), f"step {step}"

    code, text = audit(tmp_path / "run", capfd)
    assert code == 0 and "steps 0 to 5 in 2 starts on 2, 2 processes: 24 samples" in text and "steps 4, 6 agree" in text, text
    assert delivered(tmp_path / "run") == delivered(shards / "ddp_of_one")
    # what ZeRO on two processes saved is, to the bit, what one process saves: either goes on where the other stopped
    ours, theirs = (data_state(folder / "checkpoints/step_00000006.ckpt") for folder in (tmp_path / "run", shards / "ddp_of_one"))
    assert ours == theirs and ours[0] == STEPS

    assert main(["consolidate", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "weights.ckpt")]) == 0
    consolidated, reference = load_predictor(tmp_path / "weights.ckpt"), load_predictor(shards / "ddp_of_one")
    batch = make_batch(5)
    torch.testing.assert_close(consolidated.depth_m(batch), reference.depth_m(batch), rtol=1e-2, atol=1e-3)
    assert not torch.equal(consolidated.depth_m(batch), consolidated.depth_m(make_batch(6)))

    assert main(["consolidate", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "x.ckpt")]) == 2
    assert "holds no finished checkpoint" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_from_zero_3_on_two_to_zero_2_on_one_to_ddp_on_four(
    repository: pathlib.Path, tmp_path: pathlib.Path, shards: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole command with a real network and loader; ``test_resume_matrix`` has every pair with a small one."""
    zero, ddp = (["--config", str(repository / f"recipes/engine/{name}.yaml")] for name in ("deepspeed_zero2", "ddp"))
    arguments = ["fit", "--config", str(shards / "run.yaml"), "--run_dir", str(tmp_path / "run"), "--resume"]
    for engine, processes, until in (([*zero, "--trainer.strategy.init_args.stage", "3"], 2, 2), (zero, 1, 4), (ddp, 4, STEPS)):
        options = ["--trainer.devices", str(processes), "--trainer.max_steps", str(until)]
        assert run([*arguments, *engine, *options], ranks=processes, deadline_s=240) == [0] * processes, f"on {processes} processes"
    single, moved = losses(shards / "ddp_of_one"), losses(tmp_path / "run")
    assert sorted(moved) == list(range(STEPS))
    for step in range(STEPS):
        assert float(moved[step]) == pytest.approx(float(single[step]), rel=2e-4), f"step {step}"
    code, text = audit(tmp_path / "run", capfd)
    assert code == 0 and "steps 0 to 5 in 3 starts on 2, 1, 4 processes: 24 samples, none lost or repeated" in text, text
    assert delivered(tmp_path / "run") == delivered(shards / "ddp_of_one")
