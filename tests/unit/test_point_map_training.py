"""The point-map student through the common roads: it learns a frame and its camera, is logged, stored, loaded and evaluated."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib

import pytest
import torch
import yaml
from network_parts import TINY_ENCODER, made_batch
from tiny_shards import HEIGHT, WIDTH, write_folder
from training_parts import batch_loader, build, make_trainer

from data_shards.rendering.frames import render_scene
from mdpretrain.evaluation.command import evaluate_command
from mdpretrain.losses.point_table import PointMapLoss
from mdpretrain.networks.module_config import build_module
from mdpretrain.tasks.distillation import Distillation
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.predictor import load_predictor
from mdpretrain.tasks.schedule import Schedule

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "debug" / "student_pointmap.yaml"
NETWORK = {
    "class_path": "mdpretrain.networks.point_map.PointMapStudent",
    "init_args": {"encoder": TINY_ENCODER, "feature_channels": 16, "widths": [16, 12, 8, 8, 8], "normals": True},
}
TERMS = [
    {"name": "global"},
    {"name": "local", "level": 4, "patches": 2, "resolution": 4},
    {"name": "edge"},
    {"name": "normal", "weight": 0.1},
    {"name": "scale", "weight": 0.1},
    {"name": "mask", "weight": 0.1},
]


def rendered_batch():
    """One rendered view of a room with its exact depth and camera."""
    frame = render_scene(3, "indoor", 1, (96, 72), 0)[0]
    depth = torch.from_numpy(frame.depth_z_m)[None, None]
    sky = ~depth.isfinite()
    camera = torch.tensor([[frame.camera.fx, 0, frame.camera.cx], [0, frame.camera.fy, frame.camera.cy], [0, 0, 1]])[None]
    return dataclasses.replace(
        made_batch(72, 96, 1),
        image=torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None] / 255,
        depth=torch.where(sky, 0.0, depth),
        valid=~sky,
        sky=sky,
        intrinsics=camera.float(),
        label_kind=torch.tensor([2]),
        prompt=None,
        prepared=None,
    )


def test_the_debug_recipe_learns_one_frame_and_its_camera() -> None:
    arguments = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]
    torch.manual_seed(0)
    network, loss = build_module(arguments["network"]), build_module(arguments["loss"])
    batch = rendered_batch()
    steps = 70
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments["optimizer"]["lr"])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first: dict[str, float] = {}
    for step in range(steps):
        batch.position = torch.tensor([step])
        value, parts = loss(network(batch), batch)
        first = first or {name: part.item() for name, part in parts.items()}
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay.step()
    last = {name: part.item() for name, part in parts.items()}
    assert last["global"] < 0.3 * first["global"] and last["local"] < 0.5 * first["local"] and last["edge"] < 0.5 * first["edge"]
    assert last["mask"] < 0.3 * first["mask"]
    blind = dataclasses.replace(batch, camera_known=torch.tensor([False]), intrinsics=torch.full((1, 3, 3), torch.nan))
    with torch.no_grad():
        found = network.eval()(blind)
    assert found.estimated_f_px.item() == pytest.approx(batch.intrinsics[0, 0, 0].item(), rel=0.1)
    ratio = (found.values / batch.depth.clamp_min(0.1))[batch.valid]
    assert 0.67 < ratio.median() < 1.5  # metres, of an image alone; a scale of one number learns slower than a shape
    assert (ratio / ratio.median() - 1).abs().median() < 0.1


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ({"normal"}, r"normal_head: add normal to the loss's terms, or set the network's normals: false"),
        ({"mask"}, r"mask_head: add mask .*, or freeze the head \(optimizer.frozen\)"),
        ({"scale"}, r"scale_head: add scale"),
        ({"global", "local", "edge"}, r"points_head: add global or local or edge"),
    ],
)
def test_a_head_that_no_term_trains_is_refused_unless_it_is_frozen(left_out: set[str], message: str) -> None:
    loss = PointMapLoss({"default": [term for term in TERMS if term["name"] not in left_out]}, align_resolution=5)
    with pytest.raises(ValueError, match=message):
        Distillation(build(NETWORK), loss)
    head = message.partition(":")[0]
    task = Distillation(build(NETWORK), loss, AdamW(frozen=(head,)))
    task.training_loss(dataclasses.replace(made_batch(), prompt=None, prepared=None))[0].backward()
    # as DDP needs it: every parameter that is to be trained has a gradient, if only zeros
    without = {name for name, parameter in task.network.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in task.network.named_parameters() if name.startswith(f"{head}.")}


def test_it_is_trained_stored_and_evaluated_without_a_camera(tmp_path: pathlib.Path) -> None:
    loss = PointMapLoss({"default": TERMS}, align_resolution=5)
    task = Distillation(build(NETWORK), loss, AdamW(lr=1e-3), Schedule(kind="constant"))
    trainer = make_trainer(tmp_path, 3)
    trainer.fit(task, batch_loader(3), batch_loader(1))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert {"train/global", "train/local", "train/focal_log_error", "val/scale", "val/camera_fraction"} <= set(rows[0])
    trainer.save_checkpoint(tmp_path / "point_map.ckpt")

    predictor = load_predictor(tmp_path / "point_map.ckpt")
    batch = dataclasses.replace(made_batch(), prompt=None, prepared=None)
    task.network.eval()
    with torch.no_grad():
        assert torch.allclose(predictor.depth_m(batch), task.network(batch).values, rtol=1e-4)
    unknown = dataclasses.replace(batch, camera_known=torch.zeros(2, dtype=torch.bool), intrinsics=torch.full((2, 3, 3), torch.nan))
    assert predictor(unknown).estimated_f_px.isfinite().all()

    write_folder(tmp_path / "held", [2, 1], "held", camera=None)
    output = tmp_path / "report"
    places = ["--shards", str(tmp_path / "held"), "--output", str(output), "--image-size", str(HEIGHT), str(WIDTH), "--device", "cpu"]
    assert evaluate_command(["--student", str(tmp_path / "point_map.ckpt"), *places, "--batch-size", "2", "--resamples", "20"]) == 0
    record = json.loads((output / "metrics.json").read_text())
    (row,) = [row for row in record["rows"] if row["source"] == "all" and row["model"] == "student"]
    assert row["samples"] == 3 and row["abs_rel"] > 0  # answered, though no camera is known
