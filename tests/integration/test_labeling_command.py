"""``mdpretrain label --config``: strict YAML, and the recipe's CPU-sized twin as a call."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from test_labeling import make_sample
from test_prior_labels import save
from transformers_models import tiny_depth_anything, tiny_depth_pro

import tests.training_parts as parts
from data_shards.mixture import MixtureSource
from data_shards.writer import write_shard
from mdpretrain.cli import main
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.labeling.label_options import parse_label_options

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
FULL, TWIN = sorted((RECIPES / "metric_anything").glob("label_*.yaml")), RECIPES / "debug/label.yaml"


@pytest.fixture
def road(tmp_path: pathlib.Path) -> list[str]:
    """A random teacher and a shard, as the options that say where they are."""
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "toy-000000.tar", [make_sample(number, metric=number != 2) for number in range(4)])
    teacher = save(parts.build(parts.TEACHER_NETWORK), tmp_path / "teacher.ckpt", preparation=parts.build(parts.PREPARATION))
    return ["--checkpoint", str(teacher), "--shards", str(tmp_path / "shards"), "--output", str(tmp_path / "out"), "--device", "cpu"]


def test_the_full_recipe_parses_and_names_its_twin() -> None:
    assert FULL
    for path in FULL:
        options, twin = parse_label_options(["--config", str(path)]), parse_label_options(["--config", str(TWIN)])
        assert "recipes/debug/label.yaml" in path.read_text()
        assert (options.consistency, options.flip, options.unknown_camera) == (twin.consistency, twin.flip, twin.unknown_camera)
        assert options.long_side % options.multiple == 0 and options.prompt_count[1] >= options.prompt_count[0] > 0


def test_the_twin_labels_and_the_command_line_wins(road: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["label", "--config", str(TWIN), *road, "--long-side", "64", "--prompt-count", "50", "80", "--quiet"]
    assert main(call) == 0
    assert "3 pseudo-labels of teacher" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert record["complete"] and record["request"]["flip"] and record["request"]["long_side"] == 64
    assert record["request"]["consistency"] == ["disjoint", "density"] and record["labelling_version"] >= 2
    reader = SourceReader(MixtureSource(str(tmp_path / "shards"), sidecars=[str(tmp_path / "out")]))
    figures = reader.sample(0).meta.quality
    assert reader.unlabelled == 1 and figures is not None
    assert all(figures[f"{name}_disagreement"] is not None for name in ("flip", "prompt", "density"))
    assert main(call) == 0 and "1 of 1 shards were there already" in capsys.readouterr().out
    assert main([*call, "--no-flip"]) == 2
    assert "holds labels with another request.flip (True, this call has False)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("promt_count: [5, 9]", "unknown key 'promt_count'; do you mean 'prompt_count'?"),
        ("prompt-count: [5, 9]", "unknown key 'prompt-count'; do you mean 'prompt_count'?"),
        ("prompt_count: {low: 5}", "prompt_count is {'low': 5}; give a value, or a list of values"),
        ("- 5", "holds no options"),
        ("a: [", "not YAML"),
        ("precision: '32'", "--shards is missing"),
    ],
)
def test_a_config_that_is_wrong_is_a_sentence(content: str, words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "label.yaml").write_text(content)
    assert main(["label", "--config", str(tmp_path / "label.yaml"), "--checkpoint", "x"]) == 2
    assert words in capsys.readouterr().err


def test_options_that_do_not_go_together_are_sentences(road: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        ([], "this teacher needs a sparse prompt"),
        (["--prompt-count", "5", "9", "--consistency", "flip,sideways"], "--consistency sideways: there are flip, disjoint, density"),
        (["--as", "prior", "--flip"], "--as prior: --flip is for pseudo-labels"),
        (["--as", "prior", "--unknown-camera", "canonical"], "--as prior: --unknown-camera is for pseudo-labels"),
        (["--prompt-count", "5", "9", "--device", "warp"], "--device warp: torch cannot use it here"),
        (["--prompt-count", "5", "9", "--batch-size", "0"], "give at least 1"),
    ):
        assert main(["label", *road, *options]) == 2
        assert words in capsys.readouterr().err


def test_folders_of_transformers_are_teachers(road: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command; a relative model is refused, and Depth Pro's own focal length stands in for an unknown camera if asked."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    pro = tiny_depth_pro(transformers)
    torch.nn.init.constant_(pro.head.layers[-2].weight, 0.01)
    torch.nn.init.constant_(pro.head.layers[-2].bias, 0.5)
    models = {"metric": tiny_depth_anything(transformers, "metric"), "relative": tiny_depth_anything(transformers), "pro": pro}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 42, "width": 42}}))
    write_shard(tmp_path / "shards" / "toy-000000.tar", [make_sample(number, camera=number != 2) for number in range(4)])

    def label(name: str, *options: str) -> int:
        output = ["--output", str(tmp_path / f"labels_{name}"), "--long-side", "56", "--quiet", *options]
        return main(["label", *road, "--checkpoint", str(tmp_path / name), *output])

    assert label("metric") == 0 and "4 pseudo-labels" in capsys.readouterr().out
    assert label("relative") == 2 and "affine_invariant depth, which has no metres" in capsys.readouterr().err
    assert label("pro", "--unknown-camera", "estimate") == 0
    reader = SourceReader(MixtureSource(str(tmp_path / "shards"), sidecars=[str(tmp_path / "labels_pro")]))
    sample = reader.sample(2)
    assert len(reader) == 4 and sample.meta.camera is None and sample.meta.metric and sample.meta.quality is not None
    assert (sample.meta.quality["estimated_f_px_per_width"] or 0) > 0
