"""PromptPreparation: every map it can make, with and without a prior, on every kind of prompt."""

import numpy as np
import pytest
import torch

from mdpretrain.prompts.alignment import EMPTY_INVERSE_DEPTH, global_align, local_knn_align
from mdpretrain.prompts.interpolation import linear_inverse_depth, nearest_inverse_depth
from mdpretrain.prompts.planes import local_plane
from mdpretrain.prompts.preparation import MAPS, PromptPreparation
from mdpretrain.structures import SparsePrompt

H, W = 20, 27
COUNTS = (0, 1, 2, 4, 40)


@pytest.fixture
def prompt() -> SparsePrompt:
    rng = np.random.default_rng(0)
    mask = np.zeros((len(COUNTS), 1, H, W), bool)
    for image, count in enumerate(COUNTS):
        mask[image, 0].flat[rng.choice(H * W, count, replace=False)] = True
    depth_m = np.where(mask, rng.uniform(0.5, 6, mask.shape), 0).astype(np.float32)
    return SparsePrompt(torch.from_numpy(depth_m), torch.from_numpy(mask))


@pytest.fixture
def prior() -> torch.Tensor:
    return torch.rand(len(COUNTS), 1, H, W, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("with_prior", [True, False])
def test_every_map_is_finite_positive_and_in_range(prompt: SparsePrompt, prior: torch.Tensor, with_prior: bool) -> None:
    prepared = PromptPreparation(MAPS, inverse_depth_range=[0.2, 1.5])(prompt, prior if with_prior else None)
    assert prepared.names == MAPS and prepared.inverse_depth_maps.shape == (len(COUNTS), len(MAPS), H, W)
    assert prepared.inverse_depth_maps.dtype == torch.float32 and prepared.inverse_depth_maps.isfinite().all()
    assert prepared.inverse_depth_maps.min() >= 0.2 and prepared.inverse_depth_maps.max() <= 1.5
    assert prepared.usable.tolist() == [False, True, True, True, True]
    assert (prepared.inverse_depth_maps[0] == EMPTY_INVERSE_DEPTH).all()
    assert prepared.prompt is prompt


def test_the_maps_are_those_of_the_functions(prompt: SparsePrompt, prior: torch.Tensor) -> None:
    prepared = PromptPreparation(("local", "global", "local_plane", "nearest", "interpolated"), k=4, plane_k=7)(prompt, prior)
    torch.testing.assert_close(prepared.named("local"), local_knn_align(prior, prompt, k=4))
    torch.testing.assert_close(prepared.named("global"), global_align(prior, prompt))
    torch.testing.assert_close(prepared.named("local_plane"), local_plane(prompt, k=7))
    for image in range(1, len(COUNTS)):
        depth_m, mask = prompt.depth_m[image, 0].numpy(), prompt.mask[image, 0].numpy()
        np.testing.assert_allclose(prepared.named("interpolated")[image, 0], linear_inverse_depth(depth_m, mask), rtol=1e-6)
        same = np.isclose(prepared.named("nearest")[image, 0], nearest_inverse_depth(depth_m, mask), rtol=1e-5)
        assert same.mean() > 0.9  # the rest: two points equally near


def test_without_prior_global_is_the_median_and_local_the_mean(prompt: SparsePrompt) -> None:
    prepared = PromptPreparation()(prompt, None)
    for image in range(1, len(COUNTS)):
        inverse = 1 / prompt.depth_m[image][prompt.mask[image]]
        torch.testing.assert_close(prepared.named("global")[image], inverse.median().expand(1, H, W))
    torch.testing.assert_close(prepared.named("local"), local_knn_align(None, prompt))


def test_the_loaders_interpolation_is_taken_over(prompt: SparsePrompt) -> None:
    prompt.interpolated_inverse_depth = torch.full_like(prompt.depth_m, 0.7)
    prompt.interpolated_inverse_depth[0] = 0.0
    prepared = PromptPreparation(["interpolated"])(prompt, None)
    assert (prepared.named("interpolated")[1:] == torch.tensor(0.7)).all()
    assert (prepared.named("interpolated")[0] == EMPTY_INVERSE_DEPTH).all()


def test_it_has_nothing_to_train_or_to_store() -> None:
    preparation = PromptPreparation()
    assert not list(preparation.parameters()) and not preparation.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": ["global", "pdsa"]}, "'pdsa' is unknown"),
        ({"maps": []}, "at least one"),
        ({"maps": ["local", "local"]}, "only once"),
        ({"inverse_depth_range": [0.0, 1.0]}, "inverse_depth_range"),
    ],
)
def test_senseless_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptPreparation(**arguments)


def test_a_prior_of_another_size_is_refused(prompt: SparsePrompt) -> None:
    with pytest.raises(ValueError, match="resize the prior"):
        PromptPreparation()(prompt, torch.rand(len(COUNTS), 1, H, W + 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_maps(prompt: SparsePrompt, prior: torch.Tensor) -> None:
    preparation = PromptPreparation(MAPS)
    expected = preparation(prompt, prior).inverse_depth_maps
    found = preparation(prompt.to("cuda"), prior.cuda()).inverse_depth_maps.cpu()
    different = ~torch.isclose(found, expected, rtol=1e-3, atol=1e-5)
    assert different.float().mean() < 0.1  # the rest: which of equally near points is taken may differ
