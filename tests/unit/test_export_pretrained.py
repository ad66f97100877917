"""Pretrained folders: the same predictor to the bit from any place, and every wrong folder is a sentence."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
import yaml
from network_parts import TINY_ENCODER, TINY_STUDENT, TINY_TEACHER, built, made_batch
from safetensors.torch import load_file
from training_parts import PREPARATION, PRIOR_NETWORK, build

from mdpretrain.cli import main
from mdpretrain.export.pretrained import export_pretrained
from mdpretrain.networks.loading import network_to_config
from mdpretrain.networks.module_config import module_config
from mdpretrain.networks.pretrained_folder import is_pretrained_folder, read_pretrained
from mdpretrain.tasks.predictor import Predictor, load_predictor

POINT_MAP = {
    "class_path": "mdpretrain.networks.point_map.PointMapStudent",
    "init_args": {"encoder": TINY_ENCODER, "feature_channels": 16, "widths": [16, 8, 8, 8, 8]},
}
NETWORKS = {"student": TINY_STUDENT, "teacher": TINY_TEACHER, "point map": POINT_MAP}
SAID = {  # depth space, prompt needed, focal length needed, focal length estimated
    "student": ("canonical_inverse", False, True, False),
    "teacher": ("metric", True, False, False),
    "point map": ("metric", False, False, True),
}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def checkpoint_of(kind: str, file: pathlib.Path) -> pathlib.Path:
    """As the tasks write it, a teacher with preparation and prior; with an average that differs from the weights."""
    modules = {"network": randomised(built(NETWORKS[kind]))}
    if kind == "teacher":
        prior = {"class_path": "mdpretrain.networks.priors.CheckpointPrior", "init_args": {"network": PRIOR_NETWORK}}
        modules |= {"preparation": build(PREPARATION), "prior": randomised(build(prior))}
    configs = {name: module_config(module) for name, module in modules.items()}
    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    average = {f"network.{key}": value + 0.01 for key, value in modules["network"].named_parameters()}
    # a loss may have weights of its own, and the recipe the paths of its machine: neither leaves the house
    recipe = {"model": {"class_path": "some.Task"}, "data": {"image_size": [48, 64], "train": ["/secret/shards"]}}
    content = {
        **configs,
        "state_dict": state | {"loss.scale": torch.ones(1)},
        "ema": average,
        "global_step": 7,
        "run": {"recipe": yaml.safe_dump(recipe), "code": {"version": "1"}},
    }
    torch.save(content, file)
    return file


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A student's folder."""
    folder = tmp_path_factory.mktemp("pretrained")
    return export_pretrained(checkpoint_of("student", folder / "student.ckpt"), folder / "student", licence="apache-2.0")


def test_others_may_read_what_is_exported(student: pathlib.Path) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in student.iterdir()}
    assert len(files) == 3 and len(set(files.values())) == 1, files


@pytest.mark.parametrize(("kind", "weights"), [("student", "ema"), ("teacher", "trained"), ("point map", "trained")])
def test_the_folder_predicts_as_the_run_to_the_bit(tmp_path, kind, weights):
    run = checkpoint_of(kind, tmp_path / "run.ckpt")
    options = ["--ema"] if weights == "ema" else []
    assert main(["export", str(run), "--output", str(tmp_path / "out"), *options]) == 0
    first, second = load_predictor(run, weights=weights), load_predictor(tmp_path / "out")
    assert first.fingerprint == second.fingerprint
    assert second.needs_prompt == (kind == "teacher") and (second.prior is None) == (kind != "teacher")
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    batch = made_batch()
    assert torch.equal(first(batch).values, second(batch).values)
    assert network_to_config(first.network) == network_to_config(second.network)
    facts = json.loads((tmp_path / "out/config.json").read_text())["mdpretrain"]["facts"]
    assert facts["fingerprint"] == first.fingerprint and facts["weights"] == weights
    names = ("depth_space", "needs_prompt", "needs_focal_length", "estimates_focal_length")
    assert tuple(facts[name] for name in names) == SAID[kind]
    assert facts["training"] == {"global_step": 7, "code": {"version": "1"}, "task": "some.Task", "image_size": [48, 64]}


def test_nothing_in_the_folder_runs_code_or_tells_of_the_machine(student):
    assert sorted(path.name for path in student.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "secret" not in (student / "config.json").read_text() + (student / "README.md").read_text()
    assert not any(name.startswith("loss.") for name in load_file(student / "model.safetensors"))
    assert not [path for path in student.parent.iterdir() if "partial" in path.name]


def test_the_card_is_true(student):
    card = (student / "README.md").read_text()
    assert "license: apache-2.0" in card and "library_name: mdpretrain" in card
    assert "canonical inverse depth C = f_px / (W * depth_m)" in card and "the focal length in pixels" in card
    network = load_predictor(student).network
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M" in card and load_predictor(student).fingerprint in card


def test_one_line_loads_it_from_the_hubs_cache(student, tmp_path, monkeypatch):
    expected = load_predictor(student).fingerprint
    cached = tmp_path / "hub/models--org--depth"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abc")
    shutil.copytree(student, cached / "snapshots/0123abc")
    assert Predictor.from_pretrained(student).fingerprint == expected
    assert Predictor.from_pretrained("org/depth", cache_dir=tmp_path / "hub").fingerprint == expected
    assert Predictor.from_pretrained("org/depth", cache_dir=tmp_path / "hub", revision="0123abc").fingerprint == expected
    assert load_predictor(cached).fingerprint == expected  # every command takes it
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert Predictor.from_pretrained("org/depth").fingerprint == expected
    with pytest.raises(ValueError, match=r"org/depth is neither a pretrained folder nor in the hub's cache with revision 'v2'"):
        Predictor.from_pretrained("org/depth", revision="v2")
    with pytest.raises(ValueError, match=r"org/other is neither .*nothing is downloaded"):
        Predictor.from_pretrained("org/other")


def test_half_the_bytes_round_the_matrices_alone(student, tmp_path):
    folder = export_pretrained(student, tmp_path / "small", dtype="bf16")  # a folder can be exported again
    full, small = load_file(student / "model.safetensors"), load_file(folder / "model.safetensors")
    assert full.keys() == small.keys()
    for name, value in full.items():
        assert torch.equal(small[name].float(), value.bfloat16().float() if value.ndim > 1 else value), name
    predictor = load_predictor(folder)
    facts = read_pretrained(folder)["facts"]
    assert facts["training"]["global_step"] == 7 and facts["licence"] == "apache-2.0"  # handed on
    assert facts["dtype"] == "bf16" and facts["fingerprint"] == predictor.fingerprint != load_predictor(student).fingerprint
    assert all(value.dtype == torch.float32 for value in predictor.state_dict().values() if value.is_floating_point())
    batch = made_batch()
    torch.testing.assert_close(predictor(batch).values, load_predictor(student)(batch).values, rtol=0.05, atol=0.02)


def test_wrong_folders_are_named(student, tmp_path):
    def damaged(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(student, tmp_path / name))

    weights = damaged("flipped") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its SHA-256"):
        load_predictor(tmp_path / "flipped")
    weights = damaged("short") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it has \d+ bytes and \d+ were written"):
        load_predictor(tmp_path / "short")
    (damaged("none") / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load_predictor(tmp_path / "none")
    (damaged("cut") / "config.json").write_text('{"mdpretrain": {')
    with pytest.raises(ValueError, match=r"config\.json:? is not JSON"):
        load_predictor(tmp_path / "cut")
    config = json.loads((student / "config.json").read_text())
    config["mdpretrain"]["format"] = 2
    (damaged("later") / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has format 2 and this version reads 1"):
        load_predictor(tmp_path / "later")
    config["mdpretrain"] |= {"format": 1, "modules": {"network": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}}}
    (damaged("foreign") / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"asks for the class 'subprocess\.Popen'"):
        load_predictor(tmp_path / "foreign")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "dpt"}')
    assert not is_pretrained_folder(tmp_path / "other") and not is_pretrained_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no key 'mdpretrain'"):
        read_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="exists already"):
        export_pretrained(student, tmp_path / "other")
    with pytest.raises(ValueError, match="no averaged weights"):
        export_pretrained(student, tmp_path / "ema", weights="ema")
    assert not (tmp_path / "ema").exists()


def test_an_interrupted_export_leaves_nothing(student, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_shards.atomic.os.replace", fails)
    with pytest.raises(KeyboardInterrupt):
        export_pretrained(student, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_options_of_one_form_are_refused_for_another(student, tmp_path, capsys):
    assert main(["export", str(student), "--output", str(tmp_path / "x"), "--format", "transformers", "--dtype", "bf16"]) == 2
    assert "--dtype belongs to --format pretrained; leave it out for transformers" in capsys.readouterr().err
    assert main(["export", str(student), "--output", str(tmp_path / "x"), "--format", "transformers"]) == 2
    assert "is not a Depth Pro of transformers" in capsys.readouterr().err
