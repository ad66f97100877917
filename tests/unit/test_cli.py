"""The command line answers people: one sentence and exit code 2 for their mistakes, tracebacks only when asked for."""

from __future__ import annotations

import pathlib

import pytest
import yaml
from safetensors.torch import load_file, save_file
from shard_parts import write_folder
from training_runs import losses, prior_model, recipe, write_recipe

from mdpretrain.cli import COMMANDS, main, one_sentence
from mdpretrain.networks.checkpoint_files import load_checkpoint
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.training_cli import readable


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder / "train", 8)
    write_folder(folder / "val", 2, first=100)
    content = recipe(folder, tensorboard=True, trainer={"max_steps": 2, "val_check_interval": 2})
    write_recipe(folder / "run.yaml", content)
    return folder


def _error(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capfd.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mdpretrain")]
    assert len(lines) == 1
    return lines[0]


def test_help_and_unknown_verbs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capfd.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in COMMANDS)
    assert "there is no verb 'fti'; there are fit, validate" in _error(capfd, ["fti"])


def test_mistakes_are_one_sentence(
    tmp_path: pathlib.Path, shards: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir = str(shards / "run.yaml"), ["--run_dir", str(tmp_path / "run")]
    assert "there is no recipe" in _error(capfd, ["fit", "--config", "missing.yaml"])
    assert "--run_dir runs/NAME" in _error(capfd, ["fit", "--config", config])
    assert "batchsize" in _error(capfd, ["fit", "--config", config, *run_dir, "--data.batchsize", "3"])
    missing = yaml.safe_dump([str(tmp_path / "nowhere")], default_flow_style=True).strip()
    assert "nowhere" in _error(capfd, ["fit", "--config", config, *run_dir, "--data.val", missing])
    assert "does not exist" in _error(capfd, ["consolidate", "--checkpoint", "nothing", "--output", "x.ckpt"])
    monkeypatch.setenv("MDPRETRAIN_DEBUG", "1")
    with pytest.raises(ValueError, match="there is no recipe"):
        main(["fit", "--config", "missing.yaml"])
    monkeypatch.delenv("MDPRETRAIN_DEBUG")
    with pytest.raises(ValueError, match="there is no recipe"):
        main(["fit", "--config", "missing.yaml", "--debug"])


def test_a_run_leaves_its_config_logs_and_checkpoints_and_is_never_overwritten(
    tmp_path: pathlib.Path, shards: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["fit", "--config", str(shards / "run.yaml"), "--run_dir", str(run_dir)]
    assert main(arguments) == 0
    assert sorted(losses(run_dir)) == [0, 1]
    assert (run_dir / "checkpoints/latest").read_text() == "step_00000002.ckpt\n"
    assert list((run_dir / "tensorboard").glob("events*"))
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 2 and saved["seed_everything"] == 3
    assert "already holds a run (step_00000002.ckpt): give --resume" in _error(capfd, arguments)

    before = (run_dir / "csv/metrics.csv").read_text()
    assert main([*arguments, "--resume"]) == 0  # nothing left to do
    assert (run_dir / "csv/metrics.csv").read_text() == before

    # what was saved is a recipe: it repeats the run
    again = ["fit", "--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]
    assert main(again) == 0 and losses(tmp_path / "again") == losses(run_dir)

    other = recipe(shards, trainer={"max_steps": 3})
    other["model"] = prior_model()
    wrong = ["fit", "--config", write_recipe(tmp_path / "o.yaml", other), "--run_dir", str(run_dir), "--resume"]
    assert "the checkpoint is of another network" in _error(capfd, wrong)

    checkpoint = str(run_dir / "checkpoints/step_00000002.ckpt")
    assert main(["validate", "--config", str(shards / "run.yaml"), "--run_dir", str(run_dir), "--ckpt_path", checkpoint]) == 0
    assert main(["consolidate", "--checkpoint", str(run_dir), "--output", str(tmp_path / "small.ckpt")]) == 0
    assert (tmp_path / "small.ckpt").stat().st_size < pathlib.Path(checkpoint).stat().st_size
    assert load_predictor(tmp_path / "small.ckpt").fingerprint == load_predictor(run_dir).fingerprint

    assert main(["consolidate", str(run_dir)]) == 0
    weights = load_file(run_dir / "run.safetensors")
    assert weights.keys() == load_checkpoint(pathlib.Path(checkpoint))["state_dict"].keys()
    assert load_predictor(run_dir / "run.safetensors").fingerprint == load_predictor(run_dir).fingerprint
    save_file(weights, tmp_path / "bare.safetensors")
    for bad, complaint in (("bare.safetensors", "does not say how their network is built"), ("cut.safetensors", "is it whole")):
        if bad.startswith("cut"):
            (tmp_path / bad).write_bytes((run_dir / "run.safetensors").read_bytes()[:-7])
        with pytest.raises(ValueError, match=complaint):
            load_predictor(tmp_path / bad)
    assert "must end in .safetensors or .ckpt" in _error(capfd, ["consolidate", str(run_dir), "--output", str(tmp_path / "x.bin")])
    assert "say with --output" in _error(capfd, ["consolidate", checkpoint])
    assert "name one checkpoint" in _error(capfd, ["consolidate"])


def test_errors_become_one_line() -> None:
    assert one_sentence(ValueError("two\n  lines")) == "two lines"
    assert one_sentence(FileNotFoundError(2, "No such file or directory", "a.png")) == "a.png: No such file or directory"
    message = (
        'Parser key "model": Does not validate against any of the Union subtypes\nSubtypes: [<class A>, <class B>]\nErrors:\n'
        "  - Parser key \"network\": Option 'widht' is not accepted\n  - Expected a <class 'NoneType'>\nGiven value type: dict"
    )
    assert readable(message) == "model: network: Option 'widht' is not accepted"
