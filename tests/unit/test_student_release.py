"""MetricAnything's released student: its checkpoint fits ours name by name, and what comes in predicts the release's formula."""

from __future__ import annotations

import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
import yaml
from network_parts import TINY_STUDENT, built, made_batch
from released_student import BUFFERS, TINY, Widths, canonical_inverse_depth, random_release, released_shapes
from safetensors.torch import load_file
from test_networks_loading import saved
from training_parts import make_batch

from mdpretrain.cli import main
from mdpretrain.export.student import export_student, student_config
from mdpretrain.export.student_names import from_release, to_release
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.loading import load_network
from mdpretrain.networks.module_config import build_module
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.predictor import load_predictor


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return random_release(TINY)


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("student")
    torch.save(released, folder / "student_depthmap.pt")
    output = folder / "own.safetensors"
    assert main(["import-weights", "--from", "metric-anything-student", str(folder / "student_depthmap.pt"), "--output", str(output)]) == 0
    return output


def test_the_layout_has_the_published_number_of_parameters():
    shapes = released_shapes(Widths())
    assert sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS)) == 876_664_001  # 876.66 M


def test_every_released_tensor_has_one_place_in_the_recipes_network(repository: pathlib.Path):
    """At full size, on the meta device: names and shapes, both ways, with nothing left over on either side; and the parameters' number."""
    recipe = yaml.safe_load((repository / "recipes/metric_anything/student_depthmap_vith_1536.yaml").read_text())
    config = recipe["model"]["init_args"]["network"]
    shapes = released_shapes(Widths())
    with torch.device("meta"):
        network = build_module(config)
        given = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == 876_664_001
    own = network.state_dict()
    assert shapes_of(to_release(own)) == shapes
    assert shapes_of(from_release(given)) == shapes_of(own)
    # and the importer builds this very network from the weights alone
    read, wanted = student_config(given, "the release")["init_args"], dict(config["init_args"])
    encoder = {key: value for key, value in wanted["encoder"]["init_args"].items() if key not in ("weights", "gradient_checkpointing")}
    wanted["encoder"] = {**wanted["encoder"], "init_args": encoder}
    assert {**read, "head_channels": 32} == {**wanted, "head_channels": 32}


def test_an_imported_release_predicts_what_its_formula_gives(released, imported):
    """Against the formula in float64, at an image that is resized on the way in and out; C, and metres with their clamp."""
    batch = made_batch(140, 200, batch=1)
    predictor = load_predictor(imported)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    square = F.interpolate(batch.image, (96 * TINY.patch, 96 * TINY.patch), mode="bilinear", antialias=True)
    with torch.no_grad():
        doubles = {name: value.double() for name, value in released.items()}
        canonical = canonical_inverse_depth(doubles, TINY, ((square - mean) / std).double())
    expected = F.interpolate(canonical, (140, 200), mode="bilinear", align_corners=False)
    assert expected.std() > 0.1 and 0.05 < (canonical == 0).double().mean() < 0.95  # the last ReLU cuts some, not all
    prediction = predictor(batch).values.double()
    torch.testing.assert_close(prediction, expected, rtol=1e-3, atol=2e-4 * float(expected.max()))
    f_px = batch.intrinsics[0, 0, 0].double()
    depth_m = 1.0 / (expected * 200 / f_px).clamp(1e-3, 1e3)
    ours = predictor.depth_m(batch).double()
    assert ours.isfinite().all() and ours.max() == pytest.approx(1000.0)  # C = 0 is the farthest depth, not infinity
    near = expected > 0.05 * expected.max()
    torch.testing.assert_close(ours[near], depth_m[near], rtol=1e-2, atol=0)


def test_what_is_exported_is_what_was_imported(released, imported, tmp_path):
    assert main(["export", str(imported), "--format", "original", "--output", str(tmp_path / "again.pt")]) == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == released.keys()
    for name, value in released.items():
        if name.endswith("qkv.bias"):  # what the mask hides comes back as zero
            value = value * released[name + "_mask"]
        assert torch.equal(again[name], value), name
    torch.save({"state_dict": again}, tmp_path / "wrapped.pt")
    main(
        ["import-weights", "--from", "metric-anything-student", str(tmp_path / "wrapped.pt"), "--output", str(tmp_path / "own.safetensors")]
    )
    first, second = load_file(imported), load_file(tmp_path / "own.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoder.upsample1.1.weight": None}, r"'encoder\.upsample1\.1\.weight' is missing"),
        ({"encoder.patch_encoder.cls_token": None}, r"'encoder\.patch_encoder\.cls_token' is missing"),
        (
            {"encoder.patch_encoder.blocks.3.attn.qkv.bias_mask": None},
            r"'encoder\.patch_encoder\.blocks\.3\.attn\.qkv\.bias_mask' is missing",
        ),
        ({"fov.head.0.weight": torch.zeros(2, 2)}, r"'fov\.head\.0\.weight' is not part of this network"),
        ({"encoder.patch_encoder.rope_embed.periods": torch.ones(3)}, r"16 channels cannot be heads of 12, as its 3 rotary periods say"),
        ({"decoder.convs.2.weight": torch.zeros(())}, r"a tensor has no such shape there"),
        ({"head.4.weight": torch.zeros(3, 3, 1, 1)}, r"'head\.4\.weight' has shape \(3, 3, 1, 1\) where \(3, 3, 3, 3\) is needed"),
        (
            {"encoder.patch_encoder.blocks.2.attn.qkv.bias_mask": torch.full((48,), torch.nan)},
            r"blocks\.2\.attn\.qkv\.bias_mask is not finite",
        ),
    ],
)
def test_another_checkpoint_is_refused_in_one_sentence(released, tmp_path, capsys, change, sentence):
    changed = {name: value for name, value in {**released, **change}.items() if value is not None}
    torch.save(changed, tmp_path / "student.pt")
    options = ["--output", str(tmp_path / "own.safetensors")]
    assert main(["import-weights", "--from", "metric-anything-student", str(tmp_path / "student.pt"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "student.pt") in error
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(error)
    assert not (tmp_path / "own.safetensors").exists()


def test_users_mistakes(released, tmp_path, capsys):
    command = ["import-weights", "--from", "metric-anything-student"]
    assert main([*command, str(tmp_path / "no.pt"), "--output", str(tmp_path / "own.safetensors")]) == 2
    assert "is not a file; give MetricAnything's student_depthmap.pt" in capsys.readouterr().err
    assert main([*command, str(tmp_path), "--output", str(tmp_path / "own.ckpt")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main([*command, str(tmp_path), "--output", str(tmp_path / "own.safetensors"), "--max-depth-m", "20"]) == 2
    assert "--max-depth-m is for --from prompt-da" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"26 blocks; the release reads those numbered \[7, 13, 19, 25\] and a later one"):
        student_config({name: value for name, value in released.items() if ".blocks.26." not in name}, "a file")


def test_a_student_of_another_form_is_not_exported_as_the_release(imported, tmp_path):
    network = load_network(imported)
    network.level_sources = [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"another form .*: level_sources \[0, 1, 2, 3, 4, 5, 6\] instead of \[4, 3, 2, 1, 0, 5, 6\]"):
        export_student(network, tmp_path / "out.pt", imported)
    network.level_sources, network.encoder.crop_px = [4, 3, 2, 1, 0, 5, 6], 64
    with pytest.raises(ValueError, match=r"encoder crop_px 64 instead of 96"):
        export_student(network, tmp_path / "out.pt", imported)
    with pytest.raises(ValueError, match="another form"):
        export_student(built(TINY_STUDENT), tmp_path / "out.pt", imported)
    with pytest.raises(ValueError, match=r"end in \.pt"):
        export_student(network, tmp_path / "out.ckpt", imported)
    small = saved(built(TINY_STUDENT), tmp_path / "small.ckpt")
    assert main(["export", str(small), "--format", "original", "--output", str(tmp_path / "out.pt")]) == 2
    assert not (tmp_path / "out.pt").exists()


def test_the_recipes_encoder_starts_from_dinov3s_own_file(released, tmp_path):
    """``weights``: DINOv3's names are those of the student's backbone; what has no effect stays zero, the periods are timm's."""
    prefix = "encoder.patch_encoder."
    dinov3 = {name.removeprefix(prefix): value for name, value in released.items() if name.startswith(prefix)}
    torch.save(dinov3, tmp_path / "dinov3.pth")
    config = student_config(released, "the release")["init_args"]["encoder"]
    encoder = build_module({**config, "init_args": {**config["init_args"], "weights": str(tmp_path / "dinov3.pth")}})
    own = {name.removeprefix("encoder."): value for name, value in from_release(released).items() if name.startswith("encoder.")}
    without = ("k_bias", "mask_token", "periods")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, own[name]) != name.endswith(without[1:]), name
        assert value.any() != name.endswith(without[:2]), name


def test_the_small_twin_of_the_recipe_has_its_form_and_trains_a_step(repository: pathlib.Path):
    full, twin = (
        yaml.safe_load((repository / "recipes" / name).read_text())["model"]["init_args"]
        for name in ("metric_anything/student_depthmap_vith_1536.yaml", "debug/student_depthmap_multi_scale.yaml")
    )
    for option in ("deep_to_deep", "reassembly", "upsampling", "head_layers", "positive_activation"):
        assert full["network"]["init_args"][option] == twin["network"]["init_args"][option]
    torch.manual_seed(0)
    network = build_module(twin["network"])
    task = Distillation(network, LossTable(**twin["loss"]["init_args"]))
    batch = make_batch()
    value = task.loss(task.predict_depth(batch), batch)[0]
    value.backward()
    trained = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert value.isfinite() and [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []
    assert trained["encoder.backbone.patch_embed.proj.weight"].any()


def test_biases_of_keys_come_in_behind_their_mask(released):
    other = {name: value + (1 - released.get(name + "_mask", torch.ones(1))) for name, value in released.items()}
    assert any(not torch.equal(released[name], other[name]) for name in released)
    own, again = from_release(released), from_release(other)
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert sum(not own[name].any() for name in own if name.endswith("k_bias")) == TINY.blocks
