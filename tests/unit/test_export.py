"""Weights in and out: released forms -> a checkpoint of ours -> the same depth in transformers; names of the original release."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import torch
from network_parts import TINY_STUDENT, built, made_batch
from prompt_da_parts import random_transformers_model
from safetensors.torch import load_file, save_file
from test_networks_loading import saved

from mdpretrain.cli import main
from mdpretrain.export.description import published_layers
from mdpretrain.export.reading import import_weights
from mdpretrain.export.transformers_folder import write_transformers_folder
from mdpretrain.export.writing import export
from mdpretrain.networks.loading import load_network
from mdpretrain.networks.module_config import build_module, module_config
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import SparsePrompt
from mdpretrain.tasks.predictor import load_predictor

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("released")
    random_transformers_model().save_pretrained(folder)
    return folder


def prompted_batch(height: int = 42, width: int = 56):
    batch = made_batch(height, width)
    prompt = SparsePrompt(batch.depth, torch.ones_like(batch.valid))
    return dataclasses.replace(batch, prompt=prompt, prepared=None)


@torch.no_grad()
def depth_in_transformers(folder: pathlib.Path, batch, **options) -> torch.Tensor:
    """What transformers makes of a folder; it must hold exactly the weights of its network."""
    model, report = transformers.AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return model.eval()((batch.image - mean) / std, **options).predicted_depth[:, None]


@pytest.mark.parametrize("gated", [False, True])
def test_import_then_export_gives_the_same_depth_in_transformers(tmp_path, gated):
    random_transformers_model(gated).save_pretrained(tmp_path / "released")
    assert main(["import-weights", str(tmp_path / "released"), "--output", str(tmp_path / "own.safetensors")]) == 0
    assert main(["export", str(tmp_path / "own.safetensors"), "--output", str(tmp_path / "again"), "--format", "transformers"]) == 0
    batch = prompted_batch()
    first = depth_in_transformers(tmp_path / "released", batch, prompt_depth=batch.prompt.depth_m)
    again = depth_in_transformers(tmp_path / "again", batch, prompt_depth=batch.prompt.depth_m)
    assert torch.equal(first, again) and first.std() > 0.05
    ours = load_predictor(tmp_path / "own.safetensors").depth_m(batch)
    torch.testing.assert_close(ours, first, rtol=0, atol=1e-4)


def test_the_folders_processor_is_transformers_own(tmp_path, released):
    import_weights(released, tmp_path / "own.safetensors")
    export(tmp_path / "own.safetensors", tmp_path / "again")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again", local_files_only=True)
    assert type(processor).__name__.startswith("PromptDepthAnythingImageProcessor") and processor.ensure_multiple_of == 14


def test_the_original_form_round_trips_and_has_the_original_names(tmp_path, released):
    import_weights(released, tmp_path / "own.safetensors")
    export(tmp_path / "own.safetensors", tmp_path / "model.ckpt", "original")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    cut = {name[9:]: value for name, value in stored.items()}  # as the original loader does
    assert all(name.startswith(("pretrained.", "depth_head.", "_mean", "_std")) for name in cut)
    # one name of every kind, and the shapes that the original's layers have
    for name, shape in {
        "pretrained.mask_token": (1, 32),
        "pretrained.pos_embed": (1, 26, 32),
        "pretrained.blocks.3.attn.qkv.weight": (96, 32),
        "pretrained.blocks.0.ls2.gamma": (32,),
        "pretrained.norm.bias": (32,),
        "depth_head.projects.1.weight": (12, 32, 1, 1),
        "depth_head.resize_layers.3.bias": (20,),
        "depth_head.scratch.layer1_rn.weight": (16, 8, 3, 3),
        "depth_head.scratch.refinenet4.resConfUnit1.conv1.weight": (16, 16, 3, 3),
        "depth_head.scratch.refinenet1.resConfUnit2.conv2.bias": (16,),
        "depth_head.scratch.refinenet2.resConfUnit_depth.0.weight": (16, 1, 3, 3),
        "depth_head.scratch.refinenet2.resConfUnit_depth.4.weight": (16, 16, 3, 3),
        "depth_head.scratch.refinenet3.out_conv.weight": (16, 16, 1, 1),
        "depth_head.scratch.output_conv1.weight": (8, 16, 3, 3),
        "depth_head.scratch.output_conv2.2.bias": (1,),
    }.items():
        assert tuple(cut[name].shape) == shape, name
    # layers and heads cannot be read off such a file, so it is imported as of a published size would be
    own = load_file(tmp_path / "own.safetensors")
    import_weights(tmp_path / "model.ckpt", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert own.keys() == again.keys() and all(torch.equal(own[name], again[name]) for name in own)


def test_coarse_and_fine_levels_are_not_mixed_up(tmp_path, released):
    """The original's refinenet1 is the finest, transformers' first fusion layer the coarsest."""
    given = load_file(released / "model.safetensors")
    import_weights(released, tmp_path / "own.safetensors")
    export(tmp_path / "own.safetensors", tmp_path / "model.ckpt", "original")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    for level in range(4):
        theirs = given[f"neck.fusion_stage.layers.{3 - level}.projection.weight"]
        assert torch.equal(theirs, stored[f"pipeline.depth_head.scratch.refinenet{level + 1}.out_conv.weight"])


def test_depth_anything_v2_is_a_starting_point_that_predicts_as_itself_without_a_prompt(tmp_path):
    """Metric Depth Anything V2 in, its own depth out where the prompt is empty; the prompt has no effect yet."""
    template = random_transformers_model().config
    settings = ("backbone_config", "reassemble_hidden_size", "neck_hidden_sizes", "fusion_hidden_size", "head_hidden_size")
    config = transformers.DepthAnythingConfig(
        **{name: getattr(template, name) for name in settings}, depth_estimation_type="metric", max_depth=80
    )
    model = transformers.DepthAnythingForDepthEstimation(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "released")
    import_weights(tmp_path / "released", tmp_path / "own.safetensors")
    predictor = load_predictor(tmp_path / "own.safetensors")
    batch = prompted_batch()
    empty = dataclasses.replace(batch, prompt=SparsePrompt(torch.zeros_like(batch.depth), torch.zeros_like(batch.valid)))
    expected = depth_in_transformers(tmp_path / "released", batch)
    torch.testing.assert_close(predictor.depth_m(empty), expected, rtol=0, atol=1e-3)
    # with a prompt: the same share of another span
    low, high = batch.depth.amin((1, 2, 3), keepdim=True), batch.depth.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(predictor.depth_m(batch), expected / 80 * (high - low) + low, rtol=0, atol=1e-4)
    assert not any(bool(value.any()) for name, value in predictor.network.state_dict().items() if "prompt_fusion.projection" in name)


def test_a_training_starts_from_imported_weights(tmp_path, released):
    import_weights(released, tmp_path / "own.safetensors")
    imported = load_network(tmp_path / "own.safetensors")
    config = module_config(imported)
    config["init_args"] |= {"weights": str(tmp_path / "own.safetensors"), "point_tokens": 8}
    started = build_module(config)
    batch = prompted_batch()
    batch = dataclasses.replace(batch, prepared=PromptPreparation(["filled"])(batch.prompt, None))
    with torch.no_grad():
        assert torch.equal(started.eval()(batch).values, imported(batch).values), "the new tokens start without effect"
    assert module_config(started)["init_args"]["weights"] is None, "a checkpoint must not look for the file again"
    config["init_args"]["head_channels"] = 4
    with pytest.raises(ValueError, match=r"own\.safetensors are not of this PromptDA: 'head"):
        build_module(config)


def test_a_paper_like_projection_is_exported_as_the_released_kind(tmp_path, released):
    """1x1 projections become 3x3 ones whose border is zero."""
    import_weights(released, tmp_path / "own.safetensors")
    config = module_config(load_network(tmp_path / "own.safetensors"))
    config["init_args"]["projection_kernel"] = 1
    torch.manual_seed(0)
    network = build_module(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    export(saved(network, tmp_path / "paper.ckpt"), tmp_path / "folder")
    batch = prompted_batch()
    batch = dataclasses.replace(batch, prepared=PromptPreparation(["filled"])(batch.prompt, None))
    with torch.no_grad():
        expected = network.eval()(batch).values
    found = depth_in_transformers(tmp_path / "folder", batch, prompt_depth=batch.prompt.depth_m)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_layers_of_the_published_sizes():
    assert [published_layers(blocks) for blocks in (12, 24, 40)] == [[2, 5, 8, 11], [4, 11, 17, 23], [9, 19, 29, 39]]


def test_mistakes_are_named(tmp_path, released):
    own = import_weights(released, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        import_weights(released, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match="does not exist"):
        import_weights(tmp_path / "nowhere", tmp_path / "x.safetensors")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"model_type": "dpt"}))
    with pytest.raises(ValueError, match="a model of type 'dpt'"):
        import_weights(tmp_path / "other", tmp_path / "x.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"pretrained\.cls_token"):
        import_weights(tmp_path / "odd.safetensors", tmp_path / "x.safetensors")
    incomplete = load_file(released / "model.safetensors")
    del incomplete["neck.convs.2.weight"]
    (tmp_path / "incomplete").mkdir()
    save_file(incomplete, tmp_path / "incomplete/model.safetensors")
    (tmp_path / "incomplete/config.json").write_text((released / "config.json").read_text())
    with pytest.raises(ValueError, match=r"'decoder\.reassemble\.2\.smooth\.weight' is missing"):
        import_weights(tmp_path / "incomplete", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is not a Depth Pro of transformers: its encoder is a TimmEncoder"):
        export(saved(built(TINY_STUDENT), tmp_path / "student.ckpt"), tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        export(own, tmp_path / "other")
    with pytest.raises(ValueError, match=r"end in \.ckpt"):
        export(own, tmp_path / "out", "original")
    with pytest.raises(ValueError, match="no averaged weights"):
        export(own, tmp_path / "out", weights="ema")
    config = module_config(load_network(own))
    config["init_args"]["point_tokens"] = 4
    with pytest.raises(ValueError, match="point tokens"):
        export(saved(build_module(config), tmp_path / "tokens.ckpt"), tmp_path / "out")


@pytest.mark.parametrize("stated", ["relative", None])
@pytest.mark.parametrize("model", ["depth_anything", "prompt_depth_anything"])
def test_relative_depth_is_not_imported_as_metric(tmp_path, released, model, stated):
    """transformers leaves the key out where it has its default; the weights themselves have the same shapes."""
    config = json.loads((released / "config.json").read_text())
    config |= {"model_type": model, "depth_estimation_type": stated}
    if stated is None:
        del config["depth_estimation_type"]
    (tmp_path / "relative").mkdir()
    (tmp_path / "relative/model.safetensors").write_bytes((released / "model.safetensors").read_bytes())
    (tmp_path / "relative/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"predicts relative depth .*import a metric one"):
        import_weights(tmp_path / "relative", tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()


@pytest.mark.parametrize("form", ["transformers", "original"])
@pytest.mark.parametrize(
    ("option", "value"), [("encoder.input_size", [42, 56]), ("prompt_size", [12, 16]), ("range_floor", 0.05)], ids=lambda v: str(v)
)
def test_what_others_would_run_differently_is_not_exported(tmp_path, released, option, value, form):
    config = module_config(load_network(import_weights(released, tmp_path / "own.safetensors")))
    of_encoder = option.startswith("encoder.")
    (config["init_args"]["encoder"]["init_args"] if of_encoder else config["init_args"])[option.removeprefix("encoder.")] = value
    with pytest.raises(ValueError, match=option.replace(".", " ")):
        export(saved(build_module(config), tmp_path / "other.ckpt"), tmp_path / "out.ckpt", form)
    assert not (tmp_path / "out.ckpt").exists()


def test_an_export_in_the_original_form_overwrites_nothing(tmp_path, released):
    own = import_weights(released, tmp_path / "own.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"model\.ckpt exists already"):
        export(own, tmp_path / "model.ckpt", "original")
    assert (tmp_path / "model.ckpt").read_bytes() == b"mine"


def test_a_folder_is_whole_or_not_there_and_a_neighbour_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("somebody's")
    with pytest.raises(TypeError):
        write_transformers_folder(tmp_path / "out", {"a": torch.ones(2)}, {"no": object()}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    write_transformers_folder(tmp_path / "out", {"a": torch.ones(2)}, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"] and (tmp_path / "out.partial" / "mine").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
