"""ONNX files: onnxruntime's numbers are torch's, at sizes that the export itself did not look at, and every refusal is a sentence."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jaxtyping
import numpy as np
import pytest
import torch
from network_parts import TINY_ANY_DEPTH, TINY_STUDENT, TINY_TEACHER, built, made_batch
from test_networks_loading import saved
from training_parts import PREPARATION, build

from mdpretrain.cli import main
from mdpretrain.export import onnx_file
from mdpretrain.export.onnx_file import compare, write_onnx
from mdpretrain.export.onnx_graph import followable
from mdpretrain.tasks.predictor import Predictor, load_predictor

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TIMM = "mdpretrain.networks.encoders.timm_encoder.TimmEncoder"


def encoder(name: str, layers: list[int], args: dict, **changes: object) -> dict:
    return {"class_path": TIMM, "init_args": {"model_name": name, "layers": layers, "model_args": args, **changes}}


RESNET = encoder("resnet10t", [1, 2, 3, 4], {"channels": [8, 8, 16, 16], "stem_type": "", "stem_width": 8})
DINOV3 = encoder("vit_tiny_patch16_dinov3_qkvb", [0, 1], {"embed_dim": 32, "depth": 2, "num_heads": 2})
DINOV2 = encoder("vit_small_patch14_dinov2", [0, 1], {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56})


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Weights away from zero, so that every part counts, and small, so that depth stays in a usual range."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(autouse=True)
def shapes_may_be_symbols():
    """A traced size is a symbol, which the tests' type checker takes for no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def run_onnx(file: pathlib.Path, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == list(inputs)
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: value.numpy() for name, value in inputs.items()})))


def assert_metric_depth(file: pathlib.Path, predictor: Predictor, height: int, width: int, images: int) -> None:
    """Against the predictor's own metres, whose camera comes by another way."""
    batch = dataclasses.replace(made_batch(height, width, images, seed=5), prompt=None, prepared=None)
    batch.intrinsics[:, 0, 0] = f_px = torch.linspace(0.6, 1.7, images) * width
    found = run_onnx(file, image=batch.image, f_px=f_px)
    torch.testing.assert_close(torch.from_numpy(found["depth_m"]), predictor.depth_m(batch), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.from_numpy(found["canonical_inverse_depth"]), predictor(batch).values, rtol=1e-3, atol=1e-6)
    unknown = run_onnx(file, image=batch.image[:1], f_px=torch.tensor([float("nan")]))
    assert (unknown["depth_m"] == 0).all() and np.isfinite(unknown["canonical_inverse_depth"]).all()


@pytest.mark.slow
def test_a_vision_transformer_of_any_size_through_the_command(tmp_path, capsys):
    run = saved(randomised(built(TINY_STUDENT, encoder=DINOV3)), tmp_path / "student.ckpt")
    file = tmp_path / "student.onnx"
    assert main(["export", str(run), "--output", str(file), "--format", "onnx"]) == 0
    assert "onnxruntime equals torch within" in capsys.readouterr().out
    predictor = load_predictor(run)
    assert_metric_depth(file, predictor, 112, 208, images=3)
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert metadata["mdpretrain.fingerprint"] == predictor.fingerprint
    assert metadata["mdpretrain.depth_space"] == "canonical_inverse" and "multiples of 16" in metadata["mdpretrain.image"]
    assert json.loads(metadata["mdpretrain.facts"])["needs_focal_length"] is True
    assert (
        {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""] == onnx_file.OPSET == int(metadata["mdpretrain.opset"])
    )


@pytest.mark.slow
def test_learned_positions_are_resized_to_any_grid(tmp_path):
    """Antialiased, as timm does; plain bicubic below."""
    predictor = Predictor(randomised(built(TINY_STUDENT, encoder=DINOV2)))
    write_onnx(predictor, tmp_path / "student.onnx")
    assert_metric_depth(tmp_path / "student.onnx", predictor, 42, 154, images=1)


@pytest.mark.slow
def test_a_residual_network_that_resizes_for_itself(tmp_path):
    """As the debug student does; the resize is antialiased."""
    sized = {**RESNET, "init_args": {**RESNET["init_args"], "input_size": [64, 96]}}
    predictor = Predictor(randomised(built(TINY_STUDENT, encoder=sized, deep_to_deep=False, positive_activation="exp")))
    write_onnx(predictor, tmp_path / "student.onnx")
    for height, width in ((45, 50), (131, 300)):
        assert_metric_depth(tmp_path / "student.onnx", predictor, height, width, images=2)


@pytest.mark.slow
def test_a_prior_of_any_size(tmp_path):
    """SDT decoder and DySample; a patch of 14 where the decoder enlarges by 16; positions resized as DINOv2 does."""
    bicubic = {**DINOV2, "init_args": {**DINOV2["init_args"], "position_resize": "bicubic"}}
    predictor = Predictor(randomised(built(TINY_ANY_DEPTH, encoder=bicubic)))
    write_onnx(predictor, tmp_path / "prior.onnx")
    image = torch.rand(3, 3, 42, 98)
    found = run_onnx(tmp_path / "prior.onnx", image=image)["inverse_depth_affine_invariant"]
    batch = dataclasses.replace(made_batch(42, 98, 3), image=image, prompt=None, prepared=None)
    torch.testing.assert_close(torch.from_numpy(found), predictor(batch).values, rtol=1e-3, atol=1e-5)


def test_numbers_that_differ_are_not_written(tmp_path, monkeypatch):
    predictor = Predictor(randomised(built(TINY_STUDENT, encoder=RESNET, deep_to_deep=False)))
    report = write_onnx(predictor, tmp_path / "right.onnx", (32, 64))
    assert list(report.differences) == ["32x64"] and report.largest <= 1e-3
    with pytest.raises(Exception, match="invalid dimensions"):
        run_onnx(report.path, image=torch.rand(1, 3, 64, 64), f_px=torch.ones(1))
    assert_metric_depth(report.path, predictor, 32, 64, images=5)  # their number is free
    other = randomised(built(TINY_STUDENT, encoder=RESNET, deep_to_deep=False))
    with torch.no_grad():
        other.head.output[-1].bias += 0.01
    assert compare(tmp_path / "right.onnx", other, [(32, 64)])["32x64"] > 1e-3  # what the comparison is for

    def wrong(network: torch.nn.Module) -> torch.nn.Module:
        return followable(other)

    monkeypatch.setattr("mdpretrain.export.onnx_graph.followable", wrong)
    with pytest.raises(ValueError, match=r"wrong\.onnx was not written: onnxruntime differs from torch by"):
        write_onnx(predictor, tmp_path / "wrong.onnx", (32, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


def test_the_rotations_that_can_be_traced_are_timms_own():
    network = randomised(built(TINY_STUDENT, encoder=DINOV3))
    image = torch.rand(1, 3, 48, 80)
    assert torch.equal(followable(network).encoder(image)[-1], network.encoder(image)[-1])


def test_refusals_are_sentences(tmp_path, monkeypatch, capsys):
    student = Predictor(built(TINY_STUDENT, encoder=DINOV2))
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        write_onnx(student, tmp_path / "student")
    with pytest.raises(ValueError, match=r"--size 40 56: both must be multiples of 14"):
        write_onnx(student, tmp_path / "student.onnx", (40, 56))
    with pytest.raises(ValueError, match=r"MetricAnythingTeacher reads a prompt, .*export a prompt-free student"):
        write_onnx(Predictor(built(TINY_TEACHER), build(PREPARATION)), tmp_path / "teacher.onnx")
    (tmp_path / "there.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already"):
        write_onnx(student, tmp_path / "there.onnx")
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "x.onnx"), "--format", "onnx", "--size", "64"]) == 2
    assert "--size 64: give a height and a width" in capsys.readouterr().err
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'mdpretrain\[onnx\]'"):
        write_onnx(student, tmp_path / "student.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
