"""Point-map losses: against closed forms and plain loops, what must not change them, and no NaN from degenerate input."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from network_parts import made_batch
from test_losses_table import NoSynchronisation

from mdpretrain.geometry.cameras import unproject
from mdpretrain.losses import point_patches, point_terms
from mdpretrain.losses.point_table import PointMapLoss
from mdpretrain.losses.point_target import build_point_target, surface_normals
from mdpretrain.networks.point_map import metric_depth
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, PointMap

HEIGHT, WIDTH, F_PX = 40, 56, 50.0
EVERY_TERM = [
    {"name": "global"},
    {"name": "local", "level": 4, "patches": 6, "resolution": 6},
    {"name": "edge"},
    {"name": "normal", "weight": 0.1},
    {"name": "mask", "weight": 0.1},
    {"name": "scale", "weight": 0.1},
]


def smooth_batch(batch: int = 2, **changes: object) -> DepthBatch:
    """Bumpy depth of 2 to 6 m, a strip of sky at the top, cameras off the image's centre."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2 + 4 * torch.rand(batch, 1, 4, 5, generator=generator)
    depth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
    sky = torch.zeros_like(depth, dtype=torch.bool)
    sky[:, :, :6] = True
    intrinsics = torch.tensor([[F_PX, 0, WIDTH / 2 + 4], [0, F_PX, HEIGHT / 2 - 3], [0, 0, 1]]).repeat(batch, 1, 1)
    made = dataclasses.replace(
        made_batch(HEIGHT, WIDTH, batch),
        depth=torch.where(sky, 0.0, depth),
        valid=~sky,
        sky=sky,
        intrinsics=intrinsics,
        prompt=None,
        prepared=None,
    )
    return dataclasses.replace(made, **changes)


def exact_points(batch: DepthBatch) -> torch.Tensor:
    return build_point_target(batch).points


def predicted(points: torch.Tensor, sky: torch.Tensor, scale: float = 1.0, normals: torch.Tensor | None = None) -> DepthPrediction:
    normals = torch.nn.functional.normalize(torch.ones_like(points), dim=1) if normals is None else normals
    point_map = PointMap(points, torch.where(sky, -3.0, 3.0), torch.full((len(points),), scale), normals)
    return DepthPrediction(points[:, 2:].abs(), DepthSpace.METRIC, point_map=point_map, estimated_f_px=torch.full((len(points),), F_PX))


def noisy(points: torch.Tensor, seed: int = 1, amount: float = 0.05) -> torch.Tensor:
    return points * (1 + amount * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed)))


def test_points_are_seen_from_the_image_centre_and_normals_from_the_camera() -> None:
    batch = smooth_batch()
    target = build_point_target(batch)
    u = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / F_PX
    assert torch.allclose(target.points[:, 0], torch.where(batch.valid, u * batch.depth, 1.0)[:, 0], atol=1e-5)
    known = unproject(batch.depth, batch.intrinsics)
    assert torch.allclose(torch.where(batch.valid, target.true_points - known, 0.0), torch.zeros(()), atol=1e-5)
    # a plane n . X = d: its normal at every pixel whose neighbours are measured, whatever the principal point
    normal = torch.nn.functional.normalize(torch.tensor([0.2, -0.3, -1.0]), dim=0)
    rays = unproject(torch.ones_like(batch.depth), batch.intrinsics)
    plane = -4.0 / torch.einsum("c,bchw->bhw", normal, rays)[:, None]
    flat = dataclasses.replace(batch, depth=plane * batch.valid)
    found, valid = surface_normals(build_point_target(flat))
    assert torch.allclose(found.movedim(1, -1)[valid[:, 0]], normal.expand(int(valid.sum()), 3), atol=1e-4)
    assert not valid[:, :, :7].any() and valid[:, :, 7:-1, 1:-1].all()
    # across a step there is none
    step = flat.depth.clone()
    step[..., 30:] *= 2
    _, valid = surface_normals(build_point_target(dataclasses.replace(batch, depth=step)))
    assert not valid[..., 29:31].any() and valid[:, :, 7:-1, 1:29].all()


def test_the_label_itself_in_another_scale_and_shift_costs_nothing() -> None:
    batch = smooth_batch()
    loss = PointMapLoss({"default": EVERY_TERM}, align_resolution=8)
    points = (exact_points(batch) - torch.tensor([0.0, 0.0, 0.7])[:, None, None]) / 3.0
    normals, _ = surface_normals(build_point_target(batch))
    value, parts = loss(predicted(points, batch.sky, 3.0, normals), batch)
    assert parts["global"] < 1e-5 and parts["local"] < 1e-5 and parts["scale"] < 1e-8 and parts["normal"] < 1e-6
    assert parts["edge"] < (math.radians(0.2)) ** 2  # below the least angle that counts
    assert parts["mask"].item() == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-5) and parts["focal_log_error"] < 1e-6
    assert value.item() == pytest.approx(0.1 * parts["mask"].item(), abs=1e-4)
    assert parts["served_fraction"] == 1 and parts["camera_fraction"] == 1


def test_global_is_what_a_plain_loop_says() -> None:
    batch = smooth_batch(1)
    target = build_point_target(batch)
    points = noisy(target.points) / 2
    point_map = predicted(points, batch.sky).point_map
    fit = point_terms.global_alignment(point_map, target, 8)
    got = point_terms.global_points(point_map, target, fit).values.item()
    total, count = 0.0, 0
    mean_inverse = float((1 / batch.depth[batch.valid]).mean())
    for v in range(HEIGHT):
        for u in range(WIDTH):
            if batch.valid[0, 0, v, u]:
                moved = fit.scale[0] * points[0, :, v, u] + fit.shift[0]
                inverse = min(1 / float(batch.depth[0, 0, v, u]), 10 * mean_inverse)
                total, count = total + float((moved - target.points[0, :, v, u]).abs().mean()) * inverse, count + 1
    assert got == pytest.approx(total / count, rel=1e-4)
    assert 1.5 < fit.scale.item() < 2.5


def test_local_is_what_a_plain_loop_says() -> None:
    """Patches by hand: the same centres, a sphere around each, its own alignment, the mean over all their pixels."""
    batch = smooth_batch(1)
    target = build_point_target(batch)
    point_map = predicted(noisy(target.points) / 2, batch.sky).point_map
    fit = point_terms.global_alignment(point_map, target, 8)
    drawn = point_patches._draw(target, 4, 5)
    total, count = 0.0, 0
    diagonal = math.hypot(HEIGHT, WIDTH)
    for patch in range(5):
        window = drawn.pixels[0, patch].reshape(drawn.side, drawn.side)
        centre = int(window[drawn.side // 2, drawn.side // 2])
        assert bool(batch.valid.flatten()[centre])
        q = target.points[0].flatten(1)
        reach = math.ceil(0.125 * diagonal)
        radius = 0.125 * diagonal / F_PX * float(q[2, centre])
        inside = [
            v * WIDTH + u
            for v in range(max(0, centre // WIDTH - reach), min(HEIGHT, centre // WIDTH + reach + 1))
            for u in range(max(0, centre % WIDTH - reach), min(WIDTH, centre % WIDTH + reach + 1))
            if batch.valid[0, 0, v, u] and float((q[:, v * WIDTH + u] - q[:, centre]).norm()) <= radius
        ]
        assert sorted(drawn.pixels[0, patch][drawn.inside[0, patch]].tolist()) == sorted(inside)
        own = point_patches._aligned(
            point_patches._taken(point_map.points, drawn.pixels),
            point_patches._taken(target.points, drawn.pixels),
            drawn,
            6,
        )
        if len(inside) >= point_patches.LEAST_POINTS:
            p = point_map.points[0].flatten(1)[:, inside] * own.scale[patch] + own.shift[patch][:, None]
            total += float(((p - q[:, inside]).abs().mean(dim=0) / q[2, inside]).sum())
            count += len(inside)
    got = point_patches.local_points(point_map, target, fit, level=4, patches=5, resolution=6)
    assert count > 200 and got.values.item() == pytest.approx(total / count, rel=1e-4)


def test_patches_follow_the_samples_position() -> None:
    batch = smooth_batch(2)
    drawn = point_patches._draw(build_point_target(batch), 4, 9)
    turned = point_patches._draw(build_point_target(batch.rows(slice(1, 2))), 4, 9)
    assert torch.equal(drawn.pixels[1:], turned.pixels)  # alone as in company
    later = point_patches._draw(build_point_target(dataclasses.replace(batch, position=batch.position + 2)), 4, 9)
    assert not torch.equal(drawn.pixels, later.pixels)
    centres = point_patches._draw(build_point_target(batch), 4, 4000).pixels
    middle = centres.reshape(2, 4000, drawn.side, drawn.side)[..., drawn.side // 2, drawn.side // 2]
    rows = torch.bincount(middle[0] // WIDTH, minlength=HEIGHT)
    assert rows[:6].sum() == 0 and rows[6:].min() > 60 and rows[6:].max() < 180  # uniform: 118 a row


def test_edge_angles() -> None:
    """Every horizontal difference turned by 20 degrees about the vertical axis, vertical ones left."""
    batch = smooth_batch(1)
    target = build_point_target(batch)
    angle = math.radians(20)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    turned = torch.einsum("ij,bjhw->bihw", turn, target.points)
    point_map = predicted(turned, batch.sky).point_map
    got = point_terms.edges(point_map, target, point_terms.global_alignment(point_map, target, 8)).values.item()
    expected = 0.0
    for axis in (-1, -2):
        one, other = turned.diff(dim=axis).double(), target.points.diff(dim=axis).double()
        size = target.valid.shape[axis]
        both = target.valid.narrow(axis, 0, size - 1) & target.valid.narrow(axis, 1, size - 1)
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=1)[:, None][both].clamp(-1, 1)
        radians = cosine.acos().clamp(math.radians(0.1), math.radians(90))
        three = math.radians(3)
        expected += float(torch.where(radians < three, radians**2 / (2 * three), radians - three / 2).mean())
    assert got == pytest.approx(expected / (2 * WIDTH), rel=1e-3)


def test_scale_and_shift_of_the_prediction_change_nothing_but_the_scale_term() -> None:
    batch = smooth_batch()
    points = noisy(exact_points(batch))
    terms = [term for term in EVERY_TERM if term["name"] != "scale"]
    loss = PointMapLoss({"default": terms}, align_resolution=8)
    plain = loss(predicted(points, batch.sky), batch)[0].item()
    for scale, shift in ((0.01, 0.0), (30.0, 0.0), (1.0, 5.0), (2.0, -0.5)):
        moved = points * scale + torch.tensor([0.0, 0.0, shift])[:, None, None]
        assert loss(predicted(moved, batch.sky), batch)[0].item() == pytest.approx(plain, rel=1e-3)
    # nor does the label's unit, where it has no metres
    other = dataclasses.replace(batch, depth=batch.depth * 50, metric=~batch.metric)
    assert loss(predicted(points, batch.sky), other)[0].item() == pytest.approx(plain, rel=1e-3)
    # an offset in x is another scene
    aside = points + torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert loss(predicted(aside, batch.sky), batch)[1]["global"] > 1.5 * loss(predicted(points, batch.sky), batch)[1]["global"]


def test_the_scale_term_is_the_squared_log_ratio_and_needs_metres() -> None:
    batch = smooth_batch()
    batch.metric = torch.tensor([True, False])
    loss = PointMapLoss({"default": [{"name": "scale"}]}, align_resolution=8)
    value, parts = loss(predicted(exact_points(batch) / 4, batch.sky, 2.0), batch)
    assert parts["scale"].item() == pytest.approx(math.log(2) ** 2, rel=1e-4)
    assert loss.image_figures["loss"].tolist() == pytest.approx([math.log(2) ** 2, 0.0], rel=1e-4)
    assert value.item() == pytest.approx(math.log(2) ** 2 / 2, rel=1e-4) and parts["served_fraction"].item() == 0.5


def test_confidence_weighs_every_term_but_the_mask() -> None:
    confidence = torch.ones(2, 1, HEIGHT, WIDTH)
    confidence[0] = 0.25
    batch = smooth_batch(2, confidence=confidence)
    points = noisy(exact_points(batch))
    for term in EVERY_TERM:
        loss = PointMapLoss({"default": [{**term, "weight": 1.0}]}, align_resolution=8)
        loss(predicted(points, batch.sky), dataclasses.replace(batch, confidence=None))
        plain = loss.image_figures["loss"]
        loss(predicted(points, batch.sky), batch)
        weighed = loss.image_figures["loss"]
        factor = 1.0 if term["name"] == "mask" else 0.25  # the mask is no depth
        assert weighed.tolist() == pytest.approx([factor * plain[0].item(), plain[1].item()], rel=0.1), term


def test_label_kinds_have_rows_and_an_image_without_camera_trains_the_mask() -> None:
    batch = smooth_batch(4, label_kind=torch.tensor([2, 0, 3, 2]), camera_known=torch.tensor([True, True, True, False]))
    batch.intrinsics[3] = torch.nan
    loss = PointMapLoss({"rendered": [{"name": "global"}, {"name": "mask"}], "captured": [{"name": "global", "weight": 3.0}]}, 8)
    points = noisy(exact_points(smooth_batch(4)))
    value, parts = loss(predicted(points, batch.sky), batch)
    fit = loss.image_figures["loss"]
    each = point_terms.global_points(
        predicted(points, batch.sky).point_map,
        build_point_target(batch),
        point_terms.global_alignment(predicted(points, batch.sky).point_map, build_point_target(batch), 8),
    ).values
    cross = math.log1p(math.exp(-3.0))
    assert fit.tolist() == pytest.approx([each[0].item() + cross, 3 * each[1].item(), 0.0, cross], rel=1e-4)
    assert value.item() == pytest.approx(fit.mean().item()) and parts["served_fraction"] == 0.75 and parts["camera_fraction"] == 0.75


def test_a_sample_alone_has_the_loss_it_has_in_a_batch() -> None:
    """What the guard of a step relies on."""
    batch = smooth_batch(3)
    prediction = predicted(noisy(exact_points(batch)), batch.sky)
    loss = PointMapLoss({"default": EVERY_TERM}, align_resolution=8)
    together = loss(prediction, batch)[0].item()
    alone = [loss(prediction.rows(slice(i, i + 1)), batch.rows(slice(i, i + 1)))[0].item() for i in range(3)]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("case", ["empty", "one pixel", "flat", "all sky", "wild", "no camera"])
def test_degenerate_input_has_a_finite_loss_and_gradient(case: str) -> None:
    batch = smooth_batch()
    points = noisy(exact_points(batch))
    if case in ("empty", "all sky", "one pixel"):
        batch.valid = torch.zeros_like(batch.valid)
        batch.sky = torch.full_like(batch.sky, case == "all sky")
    if case == "one pixel":
        batch.valid[:, :, 20, 20] = True
    if case == "flat":
        points = torch.ones_like(points)
    if case == "wild":  # outside the labels a prediction may be anything
        points[:, :, :6] = torch.inf
    if case == "no camera":
        batch.camera_known = torch.zeros_like(batch.camera_known)
        batch.intrinsics = torch.full_like(batch.intrinsics, torch.nan)
    points.requires_grad_(True)
    prediction = predicted(points, batch.sky)
    scale = prediction.point_map.metric_scale.requires_grad_(True)
    logits = prediction.point_map.mask_logits.requires_grad_(True)
    value, parts = PointMapLoss({"default": EVERY_TERM}, align_resolution=8)(prediction, batch)
    value.backward()
    assert value.isfinite() and all(part.isfinite() for part in parts.values())
    for tensor in (points, scale, logits):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_the_gradient_descends_and_reaches_valid_pixels_only() -> None:
    batch = smooth_batch()
    points = noisy(exact_points(batch)).requires_grad_(True)
    loss = PointMapLoss({"default": [term for term in EVERY_TERM if term["name"] in ("global", "local", "edge")]}, align_resolution=8)
    before, _ = loss(predicted(points, batch.sky), batch)
    before.backward()
    assert (points.grad[:, :, :6] == 0).all() and (points.grad[:, :, 6:] != 0).float().mean() > 0.9
    step = 0.01 * before.item() / points.grad.square().sum()
    after = loss(predicted((points - step * points.grad).detach(), batch.sky), batch)[0].item()
    assert after < before.item()


def test_neither_loss_nor_focal_length_makes_the_host_wait() -> None:
    batch = smooth_batch(2, camera_known=torch.tensor([True, False]), confidence=torch.full((2, 1, HEIGHT, WIDTH), 0.5))
    points = noisy(exact_points(batch)).requires_grad_(True)
    prediction, loss = predicted(points, batch.sky), PointMapLoss({"default": EVERY_TERM}, align_resolution=8)
    with NoSynchronisation():
        metric_depth(prediction.point_map, batch)
        loss(prediction, batch)[0].backward()
    assert points.grad is not None and points.grad.isfinite().all() and points.grad.any()  # it was computed, and not passed over
    with pytest.raises(AssertionError), NoSynchronisation():  # and the guard sees a host that waits
        points.sum().item()


def test_mistakes_are_named() -> None:
    for terms, named in (
        ({"default": [{"name": "globl"}]}, "globl"),
        ({"rendred": [{"name": "global"}]}, "rendred"),
        ({"default": [{"name": "local", "levle": 4}]}, "levle"),
        ({"default": [{"name": "local", "level": 0.5}]}, "level"),
        ({"default": [{"name": "global", "weight": -1}]}, "weight"),
    ):
        with pytest.raises(ValueError, match=named):
            PointMapLoss(terms)
    batch = smooth_batch()
    with pytest.raises(ValueError, match="LossTable"):
        PointMapLoss({"default": EVERY_TERM})(DepthPrediction(batch.depth, DepthSpace.METRIC), batch)
    prediction = predicted(exact_points(batch), batch.sky)
    prediction.point_map.normals = None
    with pytest.raises(ValueError, match="normals: true"):
        PointMapLoss({"default": EVERY_TERM})(prediction, batch)
