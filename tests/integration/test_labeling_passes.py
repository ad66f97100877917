"""Passes, tiles and unknown cameras against teachers in closed form, whose every answer can be computed beside them."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from test_labeling import make_sample
from torch import nn

from data_shards.mixture import MixtureSource
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.writer import write_shard
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.labeling.labeler import Labeler
from mdpretrain.labeling.passes import TeacherPasses, log_mean, mirrored
from mdpretrain.labeling.requests import LabelRequest
from mdpretrain.labeling.tiles import LogDepthBlend, crop_batch, tile_layout, tile_window
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor
from tests.training_parts import make_batch


class Teacher(nn.Module):
    """Gives what ``answer(batch)`` says."""

    def __init__(self, answer: Any, space: DepthSpace = DepthSpace.METRIC, estimated_share: float | None = None) -> None:
        super().__init__()
        self.answer, self.space, self.estimated_share = answer, space, estimated_share

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        width = batch.image.shape[-1]
        estimated = None if self.estimated_share is None else torch.full((len(batch),), self.estimated_share * width)
        return DepthPrediction(self.answer(batch).float(), self.space, estimated_f_px=estimated)


class Nothing(nn.Module):
    """A preparation that prepares nothing: it makes a predictor one with a prompt."""

    maps = ("filled",)

    def forward(self, *_: Any) -> None:
        return None


def predictor(network: nn.Module, prompted: bool = False) -> Predictor:
    made = Predictor(network, Nothing() if prompted else None)
    made.fingerprint = "closed form"
    return made


def brightness(batch: DepthBatch) -> torch.Tensor:
    return 1 + batch.image.mean(1, keepdim=True)


def column_share(batch: DepthBatch) -> torch.Tensor:
    """Depth that grows to the right of whatever is seen, mirrored or not: the flip disagrees in a known way."""
    width = batch.image.shape[-1]
    return (1 + (torch.arange(width) + 0.5) / width).expand(len(batch), 1, batch.image.shape[-2], width)


def prompt_mean(batch: DepthBatch) -> torch.Tensor:
    """The mean of the prompt's depth, everywhere: tells which points it was given."""
    assert batch.prompt is not None
    count = batch.prompt.mask.sum((1, 2, 3), keepdim=True)
    mean = batch.prompt.depth_m.sum((1, 2, 3), keepdim=True) / count
    return mean.expand(batch.depth.shape)


def test_tiles_cover_every_pixel_and_overlap_by_a_quarter() -> None:
    for height, width, side in ((48, 64, 32), (100, 33, 32), (32, 32, 32), (40, 500, 64)):
        tiles = tile_layout(height, width, side)
        seen = np.zeros((height, width), int)
        for tile in tiles:
            assert 0 <= tile.top <= height - tile.height and 0 <= tile.left <= width - tile.width
            seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
        assert seen.min() >= 1
        for starts, length in (
            (sorted({tile.left for tile in tiles}), tiles[0].width),
            (sorted({tile.top for tile in tiles}), tiles[0].height),
        ):
            assert all(second - first <= 0.75 * length + 1 for first, second in itertools.pairwise(starts))


def test_blended_tiles_are_the_weighted_mean_of_log_depth() -> None:
    """Against the same sum written out in float64; and a map that all tiles agree on comes back."""
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(2, 1, 40, 56)
    blend, total, weights = LogDepthBlend(like), np.zeros(like.shape), np.zeros(like.shape)
    for tile in tile_layout(40, 56, 32):
        window = tile_window(tile.height, tile.width)
        assert window.min() > 0 and torch.allclose(window, window.flip(0).flip(1))
        depth = 1 + torch.rand(2, 1, tile.height, tile.width, generator=generator)
        blend.add(tile, depth, window.expand_as(depth))
        part = (..., slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width))
        total[part] += window.double().numpy() * np.log(depth.double().numpy())
        weights[part] += window.double().numpy()
    np.testing.assert_allclose(blend.depth_m().numpy(), np.exp(total / weights), rtol=1e-5)


def test_a_tile_is_the_images_part_with_its_own_camera() -> None:
    """A point seen in a tile and in the whole image lies on the same viewing ray."""
    batch = make_batch(prompt_points=60)
    tile = tile_layout(48, 64, 32)[-1]
    part = crop_batch(batch, tile)
    assert torch.equal(part.image, batch.image[..., 16:48, 32:64]) and torch.equal(part.intrinsics[:, :2, :2], batch.intrinsics[:, :2, :2])
    assert part.prompt is not None and batch.prompt is not None
    assert torch.equal(part.prompt.mask, batch.prompt.mask[..., 16:48, 32:64])
    u, v = torch.tensor(40.5), torch.tensor(20.5)
    ray = (u - batch.intrinsics[0, 0, 2]) / batch.intrinsics[0, 0, 0], (v - batch.intrinsics[0, 1, 2]) / batch.intrinsics[0, 1, 1]
    own = (u - tile.left - part.intrinsics[0, 0, 2]) / 60.0, (v - tile.top - part.intrinsics[0, 1, 2]) / 60.0
    assert torch.allclose(torch.stack(ray), torch.stack(own))


@pytest.mark.parametrize("camera", [True, False])
def test_canonical_tiles_become_metres_by_the_tiles_own_width(camera: bool) -> None:
    """A teacher that is right about C of what it sees (f = 60 px of this image) is right in metres, whatever it was shown. With the camera
    unknown the answer is 1 / C of the whole image."""
    batch = make_batch(camera=camera)
    truth_m = brightness(batch)
    teacher = Teacher(lambda seen: 60.0 / (seen.image.shape[-1] * brightness(seen)), DepthSpace.CANONICAL_INVERSE)
    for side in (None, 32):
        request = LabelRequest(None, 64, 16, tile_side=side, unknown_camera="canonical")
        output = TeacherPasses(predictor(teacher), request)(batch, {})
        expected = truth_m if camera else truth_m * 64 / 60
        torch.testing.assert_close(output.label_m, expected, rtol=1e-5, atol=0)
        assert output.sound.all()


def test_a_tile_without_a_point_of_the_prompt_says_nothing() -> None:
    batch = make_batch(size=1, prompt_points=200)
    assert batch.prompt is not None
    mask = batch.prompt.mask.clone()
    mask[..., 32:] = False
    prompt = dataclasses.replace(batch.prompt, mask=mask, depth_m=batch.prompt.depth_m * mask)
    request = LabelRequest(PromptOptions((5, 9)), 64, 16, tile_side=32)
    output = TeacherPasses(predictor(Teacher(brightness), prompted=True), request)(dataclasses.replace(batch, prompt=prompt), {})
    seen = ~output.label_m[0, 0].isnan()
    assert seen[:, :32].all() and not seen[:, 48:].any()
    torch.testing.assert_close(output.label_m[0, 0][seen], brightness(batch)[0, 0][seen], rtol=1e-5, atol=0)


def test_the_mirrored_pass_is_mirrored_back_and_averaged_in_log_depth() -> None:
    batch = make_batch()
    output = TeacherPasses(predictor(Teacher(column_share)), LabelRequest(None, 64, 16, flip=True))(batch, {})
    plain, flipped = column_share(batch), column_share(batch).flip(-1)
    torch.testing.assert_close(output.others["flip"], flipped)
    torch.testing.assert_close(output.label_m, (plain * flipped).sqrt(), rtol=1e-5, atol=0)
    judged = TeacherPasses(predictor(Teacher(column_share)), LabelRequest(None, 64, 16, consistency=("flip",)))(batch, {})
    torch.testing.assert_close(judged.label_m, plain) and torch.testing.assert_close(judged.others["flip"], flipped)
    twice = mirrored(mirrored(batch))
    assert torch.equal(twice.image, batch.image) and torch.allclose(twice.intrinsics, batch.intrinsics)
    assert log_mean([torch.tensor([torch.nan, 2.0]), torch.tensor([3.0, 8.0])]).tolist() == pytest.approx([3.0, 4.0])


def labelled(
    tmp_path: pathlib.Path, teacher: Predictor, request: LabelRequest, samples: list[Sample], name: str = "labels"
) -> SourceReader:
    folder = tmp_path / "shards"
    if not folder.exists():
        folder.mkdir()
        write_shard(folder / "toy-000000.tar", samples)
    Labeler(teacher, request, batch_size=2).label_folder(folder, tmp_path / name, quiet=True)
    return SourceReader(MixtureSource(str(folder), sidecars=[str(tmp_path / name)]))


def test_prompts_are_drawn_anew_cut_in_halves_and_thinned(tmp_path: pathlib.Path) -> None:
    """The teacher answers with its prompt's mean, so every pass tells its points: halves that are disjoint average to the whole."""
    request = LabelRequest(PromptOptions((50, 50)), 64, 16, prompts=3, consistency=("disjoint", "density"))
    labeler = Labeler(predictor(Teacher(prompt_mean), prompted=True), request)
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "toy-000000.tar", [make_sample(1), make_sample(2)])
    from mdpretrain.labeling.source_shards import SourceShards

    reads = [labeler.read(SourceShards(folder).open(0), position) for position in range(2)]
    for read in reads:
        assert not isinstance(read, str) and list(read.variants) == ["prompt_2", "prompt_3", "disjoint_a", "disjoint_b", "sparse"]
        masks = {name: row.prompt_mask for name, row in read.variants.items()} | {"first": read.row.prompt_mask}
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {  # type: ignore[union-attr]
            "first": 50, "prompt_2": 50, "prompt_3": 50, "disjoint_a": 25, "disjoint_b": 25, "sparse": 12,
        }  # fmt: skip
        assert np.array_equal(masks["disjoint_a"] ^ masks["disjoint_b"], masks["first"])  # type: ignore[operator]
        assert not (masks["sparse"] & ~masks["first"]).any()  # type: ignore[operator]
        drawn = [masks[name] for name in ("first", "prompt_2", "prompt_3")]
        assert len({mask.tobytes() for mask in drawn}) == 3  # type: ignore[union-attr]
    reader = labelled(tmp_path, labeler.predictor, request, [])
    for number, read in enumerate(reads):
        assert not isinstance(read, str)
        rows = [read.row, read.variants["prompt_2"], read.variants["prompt_3"]]
        means = [row.prompt_depth_m[row.prompt_mask].mean() for row in rows]  # type: ignore[index]
        sample = reader.sample(number)
        np.testing.assert_allclose(np.nanmin(sample.depth), np.exp(np.mean(np.log(means))), rtol=1e-3)
        halves = [read.variants[name].prompt_depth_m[read.variants[name].prompt_mask].mean() for name in ("disjoint_a", "disjoint_b")]  # type: ignore[index]
        assert sample.meta.quality is not None
        told = np.logical_or.reduce([row.prompt_mask for row in rows])  # of all three passes that the label is the mean of
        judged = read.row.valid & ~told
        expected = np.abs(np.exp(np.mean(np.log(means))) / read.row.depth[judged].astype(np.float64) - 1).mean()
        assert sample.meta.quality["prompt_fraction"] == told.mean() > 100 / told.size
        assert sample.meta.quality["abs_rel"] == pytest.approx(expected, rel=1e-5)
        assert sample.meta.quality["prompt_disagreement"] == pytest.approx(abs(np.log(halves[0] / halves[1])), rel=1e-3)


def test_an_unknown_camera_is_rejected_canonical_or_estimated(tmp_path: pathlib.Path) -> None:
    """Canonical labels say so, are 1 / C, and have no figures in metres; estimated ones are metres and tell the focal length."""
    samples = [make_sample(1), make_sample(2, camera=False)]
    canonical = Teacher(lambda seen: 60.0 / (seen.image.shape[-1] * brightness(seen)), DepthSpace.CANONICAL_INVERSE)
    request = LabelRequest(None, 64, 16)
    rejecting = labelled(tmp_path, predictor(canonical), request, samples)
    assert rejecting.keys() == ["scene/001"] and rejecting.unlabelled == 1
    assert "the camera is unknown, and this teacher's depth needs it" in (tmp_path / "labels" / "rejects.jsonl").read_text()

    reader = labelled(tmp_path, predictor(canonical), dataclasses.replace(request, unknown_camera="canonical"), samples, "canonical")
    known, unknown = reader.sample(0), reader.sample(1)
    assert known.meta.metric and not known.meta.canonical and known.depth[10, 10] == rejecting.sample(0).depth[10, 10]
    assert unknown.meta.canonical and not unknown.meta.metric and unknown.meta.camera is None
    assert unknown.meta.quality is not None and known.meta.quality is not None
    in_metres = ("abs_rel", "log_scale", "near_m", "far_m")  # a row's `far_m: [null, 300]` must not take f_px / W for metres
    assert {unknown.meta.quality[name] for name in in_metres} == {None} and None not in {known.meta.quality[name] for name in in_metres}
    assert unknown.meta.quality["abs_rel_aligned"] is not None and unknown.meta.quality["consistency"] is None

    estimating = Teacher(canonical.answer, DepthSpace.CANONICAL_INVERSE, estimated_share=2.0)
    request = dataclasses.replace(request, unknown_camera="estimate")
    reader = labelled(tmp_path, predictor(estimating), request, samples, "estimate")
    estimated = reader.sample(1)
    assert estimated.meta.metric and estimated.meta.camera is None and estimated.meta.quality is not None
    assert estimated.meta.quality["estimated_f_px_per_width"] == 2.0
    finite = np.isfinite(estimated.depth)
    np.testing.assert_allclose(estimated.depth[finite], unknown.depth[finite] * 2, rtol=1e-3)


def test_a_teacher_of_relative_depth_and_a_broken_one_are_sentences(tmp_path: pathlib.Path) -> None:
    request = LabelRequest(None, 64, 16)
    with pytest.raises(ValueError, match="Teacher predicts affine_invariant depth, which has no metres"):
        labelled(tmp_path, predictor(Teacher(brightness, DepthSpace.AFFINE_INVARIANT)), request, [make_sample(1)], "a")
    with pytest.raises(ValueError, match="scene/001: the teacher predicts depth that is not finite and positive"):
        labelled(tmp_path, predictor(Teacher(lambda seen: brightness(seen) * torch.nan)), request, [], "b")
    assert not list((tmp_path / "b").glob("*.tmp-*"))
    with pytest.raises(ValueError, match="this teacher takes no prompt"):
        Labeler(predictor(Teacher(brightness)), dataclasses.replace(request, prompt=PromptOptions((5, 9))))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"consistency": ("mirror",)}, "--consistency mirror: there are flip, disjoint, density"),
        ({"prompts": 2}, "--prompts 2 is for a teacher with a prompt"),
        ({"tile_side": 20}, "--tiles 20: give a multiple of --multiple 16"),
        ({"tile_side": 64}, "--tiles 64: with --long-side 64, the largest that a label may have, every image fits into one tile"),
        ({"tile_side": 32, "unknown_camera": "estimate"}, "leave out --tiles"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LabelRequest(None, 64, 16, **options)


def test_what_is_written_for_a_fixed_request_is_what_this_version_says(tmp_path: pathlib.Path) -> None:
    """If this fails, labels of the same teacher, request and shards have changed: raise LABELLING_VERSION, then these numbers."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float32)
    image = np.stack([(4 * x) % 256, (5 * y) % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    from tiny_shards import png

    meta = SampleMeta("a/0", "toy", LabelKind.RENDERED, DepthType.Z, True, Camera(60.0, 60.0, 32.0, 24.0), (64, 48))
    sample = Sample(meta, png(image), "png", 1 + (x + y) / 50)
    network = Teacher(lambda seen: prompt_mean(seen) * brightness(seen))
    request = LabelRequest(PromptOptions((40, 60)), 48, 8, flip=True, prompts=2, consistency=("disjoint", "density"), tile_side=24)
    found = labelled(tmp_path, predictor(network, prompted=True), request, [sample]).sample(0)
    assert found.meta.quality is not None and found.confidence is not None
    figures = {name: found.meta.quality[name] for name in ("abs_rel", "prompt_disagreement", "consistency")}
    assert found.depth.shape == (32, 48)
    assert found.depth.mean() == pytest.approx(3.08703, rel=1e-3) and found.depth[3, 5] == pytest.approx(1.79819, rel=1e-3)
    assert found.confidence.mean() == pytest.approx(0.72445, abs=0.01)
    assert figures == pytest.approx({"abs_rel": 0.46551, "prompt_disagreement": 0.04180, "consistency": 0.97982}, abs=2e-3)
