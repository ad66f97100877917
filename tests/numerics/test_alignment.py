"""Global and local alignment of a prior to a prompt: closed forms, a float64 least-squares oracle per pixel, degenerate prompts."""

import numpy as np
import pytest
import torch

from mdpretrain.prompts import alignment, neighbours
from mdpretrain.prompts.alignment import EMPTY_INVERSE_DEPTH, fit_global, global_align, local_knn_align
from mdpretrain.prompts.neighbours import prompt_points
from mdpretrain.prompts.planes import local_plane
from mdpretrain.structures import SparsePrompt

H, W = 24, 32


def scene(count: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, SparsePrompt]:
    """(true inverse depth 1/m, a prior that is locally but not globally affine in it, prompt)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(H) / H, torch.arange(W) / W, indexing="ij")
    phase = torch.rand(batch, 1, 1, 1, generator=generator) * 6
    truth = 0.6 + 0.3 * torch.sin(4 * columns + phase) * torch.cos(3 * rows) + 0.05 * torch.rand(batch, 1, H, W, generator=generator)
    prior = (3 + columns) * truth + 0.4 * rows + 0.02 * torch.rand(batch, 1, H, W, generator=generator)
    mask = torch.zeros(batch, H * W, dtype=torch.bool)
    for image in range(batch):
        mask[image, torch.randperm(H * W, generator=generator)[:count]] = True
    mask = mask.view(batch, 1, H, W)
    return truth, prior, SparsePrompt(torch.where(mask, 1 / truth, 0.0), mask)


@pytest.fixture(params=["torch", "loops"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the local alignment; without numba the loops run as they are written."""
    monkeypatch.setattr(alignment, "COMPILED", request.param == "loops")
    monkeypatch.setattr(neighbours, "COMPILED", request.param == "loops")
    return request.param


def local_oracle(prior: np.ndarray, depth_m: np.ndarray, mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Spec 1.2 literally, pixel after pixel in float64: lstsq on W X, W y with W = 1/dist; and the condition of each system.

    Of equally distant points the one further up, then further left, comes first.
    """
    known = np.argwhere(mask)
    rows, columns = known.T
    x_known, y_known = prior[rows, columns].astype(np.float64), 1 / depth_m[rows, columns].astype(np.float64)
    result, condition = np.zeros(mask.shape), np.zeros(mask.shape)
    for row, column in np.ndindex(mask.shape):
        squared = ((known - [row, column]) ** 2).sum(axis=1)
        index = squared.argsort(kind="stable")[:k]
        w = 1 / np.maximum(np.sqrt(squared[index]), 1e-9)
        w /= w.sum()
        design = np.stack([x_known[index], np.ones(k)], axis=1) * w[:, None]
        solution = np.linalg.lstsq(design, y_known[index] * w, rcond=None)[0]
        result[row, column] = solution[0] * prior[row, column] + solution[1]
        condition[row, column] = np.linalg.cond(design)
    result[rows, columns] = y_known
    return result, condition


def test_local_alignment_equals_the_reference_per_pixel(way: str) -> None:
    _, prior, prompt = scene(40)
    result = local_knn_align(prior, prompt, k=5, ridge=0.0, neighbour_margin=None, inverse_depth_range=(1e-9, 1e9))
    for image in range(2):
        mask = prompt.mask[image, 0].numpy()
        expected, condition = local_oracle(prior[image, 0].numpy(), prompt.depth_m[image, 0].numpy(), mask, 5)
        checked = (condition < 1e3) & (expected > 1e-2)
        assert checked.mean() > 0.8
        np.testing.assert_allclose(result[image, 0].numpy()[checked], expected[checked], rtol=1e-4)


OPTIONS = {
    "default": {},
    "bare": {"ridge": 0.0, "neighbour_margin": None, "keep_known": False},
    "tight": {"neighbour_margin": 1.0, "k": 9, "ridge": 0.1, "estimator": "least_squares"},
    "one neighbour": {"k": 1, "keep_known": False},
    "short range": {"inverse_depth_range": (0.5, 0.7)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_compiled_loops_give_what_torch_gives(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    _, prior, prompt = scene(60, batch=4)
    prompt.mask[1] &= torch.arange(W) % 16 == 0  # a few points
    prompt.mask[2] = False
    prompt.mask[3], prompt.depth_m[3] = True, 0.5 + torch.rand(1, H, W, generator=torch.Generator().manual_seed(2))
    prompt.mask[3, :, 5:15, 6:20] = False
    holes = torch.rand(prior.shape, generator=torch.Generator().manual_seed(1))
    for given in (prior, None, torch.where(holes < 0.2, torch.nan, torch.where(holes > 0.9, torch.inf, prior))):
        for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
            value = None if given is None else given.to(dtype)
            results = []
            for loops in (True, False):
                monkeypatch.setattr(alignment, "COMPILED", loops)
                monkeypatch.setattr(neighbours, "COMPILED", loops)
                results.append(local_knn_align(value, prompt, **options))
            assert results[0].dtype == results[1].dtype
            tolerance = 1e-5 if given is None else tolerance
            torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance / 10)


def test_bands_change_neither_the_map_nor_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    _, prior, prompt = scene(40)
    leaf = prior.double().requires_grad_()
    found = []
    for pixels in (1 << 16, 200):
        monkeypatch.setattr(neighbours, "PIXELS_AT_ONCE", {"cpu": pixels})
        aligned = local_knn_align(leaf, prompt)
        (gradient,) = torch.autograd.grad((aligned * prior).sum(), leaf)
        found.append((aligned.detach(), gradient, local_plane(prompt)))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)
    torch.testing.assert_close(found[0][0], local_knn_align(prior.double(), prompt))  # without a gradient


def test_where_every_pixel_is_measured_nothing_is_searched(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prior, _ = scene(5)
    prompt = SparsePrompt(1 / truth, torch.ones_like(truth, dtype=torch.bool))
    monkeypatch.setattr(alignment, "neighbour_bands", None)
    monkeypatch.setattr(alignment, "align_image", None)
    leaf = torch.where(torch.arange(W) % 5 == 0, torch.nan, prior).requires_grad_()
    aligned = local_knn_align(leaf, prompt)
    torch.testing.assert_close(aligned, truth)
    (gradient,) = torch.autograd.grad(aligned.sum(), leaf)
    assert (gradient == 0).all()
    torch.testing.assert_close(local_knn_align(None, prompt), truth)


def test_a_prior_that_is_affine_in_the_truth_is_recovered_exactly() -> None:
    truth, _, prompt = scene(30)
    prior = 0.2 * truth - 7.0
    for estimator in ("least_squares", "huber", "trimmed"):
        torch.testing.assert_close(global_align(prior, prompt, estimator), truth, rtol=2e-5, atol=0)
    torch.testing.assert_close(local_knn_align(prior, prompt, neighbour_margin=None), truth, rtol=1e-4, atol=0)


def test_global_alignment_equals_lstsq_in_float64() -> None:
    _, prior, prompt = scene(50)
    result = global_align(prior, prompt, "least_squares")
    for image in range(2):
        mask = prompt.mask[image, 0]
        x = prior[image, 0].double().numpy()
        design = np.stack([x[mask], np.ones(50)], axis=1)
        scale, shift = np.linalg.lstsq(design, 1 / prompt.depth_m[image, 0][mask].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(result[image, 0].numpy(), scale * x + shift, rtol=1e-5)


def test_neither_alignment_depends_on_the_priors_scale_and_shift() -> None:
    _, prior, prompt = scene(40)
    prior = prior.double()
    for other in (1e-6 * prior, 1e4 * prior - 3e4):
        torch.testing.assert_close(global_align(other, prompt), global_align(prior, prompt), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(local_knn_align(other, prompt), local_knn_align(prior, prompt), rtol=1e-5, atol=1e-7)


def test_known_pixels_keep_their_measurement() -> None:
    _, prior, prompt = scene(40)
    inverse = 1 / prompt.depth_m[prompt.mask]
    for aligned in (local_knn_align(prior, prompt), local_knn_align(None, prompt), local_plane(prompt)):
        torch.testing.assert_close(aligned[prompt.mask], inverse, rtol=1e-6, atol=0)
    assert (local_knn_align(prior, prompt, keep_known=False)[prompt.mask] - inverse).abs().max() > 1e-6


def test_without_prior_it_is_the_inverse_square_distance_mean() -> None:
    _, _, prompt = scene(20, batch=1)
    result = local_knn_align(None, prompt, k=4)
    known = prompt.mask[0, 0].nonzero()
    values = 1 / prompt.depth_m[0, 0][prompt.mask[0, 0]]
    for row, column in ((0, 0), (10, 17), (23, 31)):
        squared = (known - torch.tensor([row, column])).square().sum(1).double()
        nearest = squared.argsort()[:4]
        if squared[nearest[0]] > 0 and squared.sort().values[3] < squared.sort().values[4]:
            weight = 1 / squared[nearest]
            assert result[0, 0, row, column].item() == pytest.approx(((weight * values[nearest]).sum() / weight.sum()).item(), rel=1e-5)


def test_the_ridge_leads_from_the_local_to_the_global_slope() -> None:
    _, prior, prompt = scene(40)
    fit = fit_global(prior, prompt_points(prompt))
    stiff = local_knn_align(prior, prompt, ridge=1e9, neighbour_margin=None, keep_known=False)
    # With the image's slope the residual y - s x is averaged over the neighbours and added back.
    residual = SparsePrompt(
        torch.where(prompt.mask, 1 / (1 / prompt.depth_m - fit.scale[:, None, None, None] * prior + 50), 0.0), prompt.mask
    )
    mean = local_knn_align(None, residual, neighbour_margin=None, keep_known=False) - 50
    torch.testing.assert_close(stiff, fit.scale[:, None, None, None] * prior + mean, rtol=1e-3, atol=1e-4)


def test_the_margin_keeps_the_output_near_the_neighbours() -> None:
    _, prior, prompt = scene(40)
    prior = prior + 20 * (torch.rand(prior.shape, generator=torch.Generator().manual_seed(1)) > 0.98)  # spikes of the prior
    result = local_knn_align(prior, prompt, k=32, neighbour_margin=1.5)
    inverse = 1 / prompt.depth_m[prompt.mask].view(2, -1)
    assert (result.flatten(1) <= 1.5 * inverse.amax(1, keepdim=True) * (1 + 1e-6)).all()
    assert (result.flatten(1) >= inverse.amin(1, keepdim=True) / 1.5 * (1 - 1e-6)).all()


def all_maps(prior: torch.Tensor, prompt: SparsePrompt) -> dict[str, torch.Tensor]:
    maps = {f"global {name}": global_align(prior, prompt, name) for name in ("least_squares", "huber", "trimmed")}
    for margin in (None, 1.0):
        for ridge in (0.0, 1e-4):
            maps[f"local {margin} {ridge}"] = local_knn_align(prior, prompt, ridge=ridge, neighbour_margin=margin)
    return maps | {
        "mean": local_knn_align(None, prompt),
        "plane": local_plane(prompt),
        "open plane": local_plane(prompt, neighbour_margin=None),
    }


DEGENERATE_PRIORS = {
    "as it is": lambda prior: prior,
    "flat": lambda prior: torch.full_like(prior, 0.3),
    "zero": torch.zeros_like,
    "negative": lambda prior: -prior,
    "huge": lambda prior: prior * 1e12,
    "tiny": lambda prior: prior * 1e-12,
    "nearly flat": lambda prior: 5 + 1e-6 * prior,
    "half nan": lambda prior: torch.where(torch.arange(W) < W // 2, torch.nan, prior),
    "all nan": lambda prior: torch.full_like(prior, torch.nan),
    "inf": lambda prior: torch.where(torch.arange(W) % 5 == 0, torch.inf, prior),
}


@pytest.mark.parametrize("change", DEGENERATE_PRIORS.values(), ids=DEGENERATE_PRIORS.keys())
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 30])
@pytest.mark.parametrize("values", ["varied", "equal", "extreme"])
def test_output_and_gradient_are_finite_whatever_comes(change, count: int, values: str) -> None:
    _, prior, prompt = scene(count)
    if values != "varied":
        depth_m = torch.full_like(prompt.depth_m, 3.0)
        if values == "extreme":
            depth_m[..., ::2] = 1e-8
            depth_m[..., 1::2] = 1e8
        prompt = SparsePrompt(torch.where(prompt.mask, depth_m, 0.0), prompt.mask)
    leaf = change(prior).detach().requires_grad_()
    maps = all_maps(leaf, prompt)
    for name, aligned in maps.items():
        assert aligned.shape == prior.shape and aligned.isfinite().all(), name
        assert (aligned >= 1e-3).all() and (aligned <= 1e3).all(), name
        if count == 0:
            assert (aligned == EMPTY_INVERSE_DEPTH).all(), name
        if values == "equal" and count > 0 and ("local 1.0" in name or name in ("mean", "plane")):
            torch.testing.assert_close(aligned, torch.full_like(aligned, 1 / 3), rtol=1e-5, atol=0, msg=name)
        if aligned.requires_grad:
            (gradient,) = torch.autograd.grad(aligned.sum(), leaf, retain_graph=True)
            assert gradient.isfinite().all(), name


def test_one_point_scales_the_prior() -> None:
    _, prior, prompt = scene(1)
    scale = (1 / prompt.depth_m[prompt.mask] / prior[prompt.mask]).view(2, 1, 1, 1)
    torch.testing.assert_close(global_align(prior, prompt), scale * prior)
    torch.testing.assert_close(local_knn_align(prior, prompt, neighbour_margin=None), scale * prior, rtol=1e-5, atol=1e-6)


def test_fewer_points_than_k_are_all_used() -> None:
    _, prior, prompt = scene(3)
    torch.testing.assert_close(local_knn_align(prior, prompt, k=9), local_knn_align(prior, prompt, k=3))


def test_outliers_do_not_turn_the_robust_global_alignment() -> None:
    truth, _, prompt = scene(60)
    prior = 2 * truth + 1
    rows = prompt.mask[0, 0].nonzero()[::6]
    prompt.depth_m[0, 0, rows[:, 0], rows[:, 1]] = 0.1  # 10 of 60 points of the first image claim 10 cm
    error = {name: (global_align(prior, prompt, name) - truth).abs()[0].max().item() for name in ("least_squares", "huber", "trimmed")}
    assert error["least_squares"] > 0.5
    assert error["huber"] < 0.01 and error["trimmed"] < 1e-4


def test_one_image_does_not_touch_another() -> None:
    _, prior, prompt = scene(30, batch=3)
    together = local_knn_align(prior, prompt), global_align(prior, prompt), local_plane(prompt)
    for image in range(3):
        alone = SparsePrompt(prompt.depth_m[image : image + 1], prompt.mask[image : image + 1])
        own = prior[image : image + 1]
        for whole, single in zip(together, (local_knn_align(own, alone), global_align(own, alone), local_plane(alone)), strict=True):
            torch.testing.assert_close(whole[image : image + 1], single, rtol=1e-5, atol=1e-6)


def test_gradients_with_respect_to_the_prior_are_those_of_finite_differences() -> None:
    _, prior, prompt = scene(12, batch=1)
    prior = prior.double()[..., :8, :9].contiguous()
    small = SparsePrompt(prompt.depth_m[..., :8, :9].contiguous(), prompt.mask[..., :8, :9].contiguous())
    small.mask[0, 0, [0, 3, 6, 7, 1, 4], [0, 5, 2, 8, 8, 7]] = True
    small.depth_m = torch.where(small.mask, 1 + torch.rand(small.mask.shape, generator=torch.Generator().manual_seed(3)), 0.0)

    def local(value: torch.Tensor) -> torch.Tensor:
        # A large ridge and least squares: the spread and the robust weights are held constant by design.
        return local_knn_align(value, small, ridge=0.0, neighbour_margin=None, estimator="least_squares", inverse_depth_range=(1e-9, 1e9))

    assert torch.autograd.gradcheck(local, (prior.requires_grad_(),), atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_priors_are_aligned_in_single(dtype: torch.dtype) -> None:
    _, prior, prompt = scene(40)
    for function in (global_align, local_knn_align):
        result = function(prior.to(dtype), prompt)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, function(prior.to(dtype).float(), prompt))


def test_a_plane_is_found_inside_and_outside_the_hull() -> None:
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    plane = (0.2 + 0.01 * columns + 0.004 * rows)[None, None].expand(2, 1, H, W)
    _, _, prompt = scene(30)
    prompt = SparsePrompt(torch.where(prompt.mask, 1 / plane, 0.0), prompt.mask)
    found = local_plane(prompt, k=8, ridge=0.0, neighbour_margin=None)
    torch.testing.assert_close(found, plane, rtol=1e-3, atol=0)


def test_an_unknown_estimator_is_refused() -> None:
    _, prior, prompt = scene(5)
    with pytest.raises((ValueError, TypeError), match="estimator"):
        global_align(prior, prompt, "ransac")
