"""What a row of the mixture may say about its samples: loss kind, crop, licence, figures, repeat cap, sidecars."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stream_runs import make_module, stream
from tiny_shards import HEIGHT, WIDTH, make_sample, write_folder
from training_runs import audit

from data_shards.index import index_path, list_shards, load_index
from data_shards.mix import plan as mix_plan
from data_shards.mixture import MixtureSource
from data_shards.recipe import Run
from data_shards.schema import LABEL_KINDS, DepthType, LabelKind
from data_shards.sidecars import sidecar_members
from data_shards.writer import write_shard
from mdpretrain.data.faults import FatalSourceError
from mdpretrain.data.pipeline import Augmentation
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.losses.table import LossTable
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace


def batches_of(root: Path, steps: int, *rows: MixtureSource, **options: Any) -> list[DepthBatch]:
    module = make_module(root, train=list(rows), steps_per_epoch=steps, **options)
    module.setup("fit")
    return list(module.train_dataloader())


def add_figures(folder: Path, figures: dict[str, dict[str, float | None]]) -> None:
    """Write figures (key -> name -> value) into the indexes, as ``data-shards stats`` does."""
    for path in list_shards(folder):
        index = load_index(path)
        entries = tuple(dataclasses.replace(entry, figures=figures.get(entry.key)) for entry in index.entries)
        index_path(path).write_bytes(dataclasses.replace(index, entries=entries).to_bytes())
    (folder / "shards.json").unlink(missing_ok=True)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_folder(tmp_path / "one", [5, 7], "one")
    write_folder(tmp_path / "two", [5], "two")
    return tmp_path


def test_loss_kind_chooses_the_row_of_the_loss_table(shards: Path) -> None:
    rows = MixtureSource(str(shards / "one"), loss_kind="captured"), MixtureSource(str(shards / "two"))
    for batch in batches_of(shards, 4, *rows):
        wanted = [LabelKind.CAPTURED if key.startswith("one") else LabelKind.RENDERED for key in batch.key]
        assert batch.label_kind.tolist() == [LABEL_KINDS.index(kind) for kind in wanted]


def test_crop_of_a_row_stands_in_for_the_augmentations(shards: Path) -> None:
    """A crop of fraction f magnifies by 1 / f: the camera tells. The output is a third of the image."""
    rows = MixtureSource(str(shards / "one"), crop=(0.5, 0.5)), MixtureSource(str(shards / "two"), crop=(1.0, 1.0))
    focal = {key: batch.intrinsics[b, 0, 0].item() for batch in batches_of(shards, 6, *rows) for b, key in enumerate(batch.key)}
    full = 40.0 * 16 / WIDTH
    assert len(focal) > 8
    for key, value in focal.items():
        assert value == pytest.approx(full * (2 if key.startswith("one") else 1), rel=0.05), key


def test_licences_leave_samples_out(shards: Path) -> None:
    licences = ["CC-BY-4.0", "proprietary", "CC0-1.0", "CC-BY-4.0", "proprietary", "CC-BY-NC-4.0"]
    (shards / "mixed").mkdir()
    write_shard(shards / "mixed/00000.tar", [make_sample(f"m/{k}", licence=licence) for k, licence in enumerate(licences[:4])])
    write_shard(shards / "mixed/00001.tar", [make_sample(f"m/{k + 4}", licence=licence) for k, licence in enumerate(licences[4:])])
    keys = Counter(key for batch in batches_of(shards, 4, row(shards, "mixed", licences=["CC-BY-4.0", "CC0-*"])) for key in batch.key)
    assert keys == Counter({"m/0": 4, "m/2": 4, "m/3": 4})  # each pass shows each of the three, the second shard has none
    with pytest.raises(ValueError, match=r"none of its 6 samples passes licences \['MIT'\]"):
        SourceReader(row(shards, "mixed", licences=["MIT"]))
    path = shards / "mixed/00000.tar"
    index = load_index(path)
    older = tuple(dataclasses.replace(entry, licence=None) for entry in index.entries)
    index_path(path).write_bytes(dataclasses.replace(index, entries=older).to_bytes())
    with pytest.raises(ValueError, match=r"mixed/00000\.tar: its index does not hold licences; run `data-shards index --replace"):
        SourceReader(row(shards, "mixed", licences=["MIT"]))


def row(root: Path, name: str, **options: Any) -> MixtureSource:
    return MixtureSource(str(root / name), **options)


def test_figures_leave_samples_out(shards: Path) -> None:
    values = {f"two/{k:04d}": {"sharpness": value, "other": 0.0} for k, value in enumerate([0.1, 0.5, 0.9, None, 0.7])}
    add_figures(shards / "two", values)
    for bounds, kept in (((0.5, None), {1, 2, 4}), ((None, 0.5), {0, 1}), ((0.5, 0.7), {1, 4})):
        chosen = row(shards, "two", figures={"sharpness": bounds, "other": (None, 1.0)})
        assert SourceReader(chosen).keys() == [f"two/{k:04d}" for k in sorted(kept)]
        assert {key for batch in batches_of(shards, 3, chosen) for key in batch.key} == {f"two/{k:04d}" for k in kept}
    with pytest.raises(ValueError, match=r"two/00000\.tar: its index holds no figure 'blur' of two/0000; `data-shards stats` adds"):
        SourceReader(row(shards, "two", figures={"blur": (0.0, None)}))


def test_a_filter_is_part_of_the_order(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another threshold is another order and refused; the audit recomputes the filter."""
    add_figures(shards / "two", {f"two/{k:04d}": {"sharpness": k / 10} for k in range(5)})
    filtered = make_module(shards, train=[row(shards, "one"), row(shards, "two", figures={"sharpness": (0.2, None)})])
    keys = stream(shards / "run", filtered, 8)
    assert {key for key in keys if key.startswith("two")} == {f"two/{k:04d}" for k in (2, 3, 4)}
    code, text = audit(shards / "run", capsys)
    assert code == 0, text
    other = make_module(shards, train=[row(shards, "one"), row(shards, "two", figures={"sharpness": (0.3, None)})])
    with pytest.raises(ValueError, match=r"mixture\.two\.figures\.sharpness = \[0\.2, None\], but the recipe says \[0\.3, None\]"):
        stream(shards / "run", other, 2, resume=True)


def test_a_repeat_cap_gives_its_share_away_and_ends_a_run_that_is_too_long(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capped = [row(shards, "one", weight=1.0), row(shards, "two", weight=1.0, max_passes=1.6)]
    keys = stream(shards / "run", make_module(shards, train=capped), 15)
    assert sum(key.startswith("two") for key in keys) == 8  # 1.6 passes over 5
    assert all(key.startswith("one") for key in keys[18:]) and sum(key.startswith("two") for key in keys[:16]) == 8
    assert Counter(key for key in keys if key.startswith("one")).most_common()[-1][1] >= 3
    assert audit(shards / "run", capsys)[0] == 0
    both = [row(shards, "one", max_passes=1.0), row(shards, "two", max_passes=1.0)]
    keys = stream(shards / "short", make_module(shards, train=both), 5)
    assert len(set(keys)) == 15  # of 17: nothing came twice
    with pytest.raises(ValueError, match=r"the mixture ends after 17 samples, .* raise max_passes"):
        stream(shards / "short", make_module(shards, train=both), 2, resume=True)


def write_sidecar(folder: Path, keys: list[list[str]], **fields: Any) -> Path:
    """One sidecar shard for each list of keys, with the same fields for all."""
    folder.mkdir()
    for number, own in enumerate(keys):
        samples = [make_sample(key, **fields) for key in own]
        names = [name for name in ("depth", "prior", "confidence", "sky") if name in fields]
        write_shard(folder / f"{number:05d}.tar", [(sample.meta.key, sidecar_members(sample, names)) for sample in samples])
    return folder


def keys_of(name: str, *sizes: int) -> list[list[str]]:
    ends = np.cumsum(sizes)
    return [[f"{name}/{k:04d}" for k in range(end - size, end)] for end, size in zip(ends, sizes)]


def test_a_stored_confidence_weighs_the_loss_of_its_pixels(shards: Path) -> None:
    """From the sidecar's 8 bits through crop, flip and resize to the loss: what a pixel's error counts is what was stored at its place."""
    confidence = np.full((HEIGHT, WIDTH), 1.0, np.float32)
    confidence[:, WIDTH // 2 :] = 0.2
    pseudo = {"label_kind": LabelKind.PSEUDO, "teacher": "t", "depth_type": DepthType.Z, "quality": {}}
    label = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    write_sidecar(shards / "labels", keys_of("one", 5, 7), depth=label, confidence=confidence, **pseudo)
    joined, plain = row(shards, "one", sidecars=[str(shards / "labels")]), Augmentation(colour=None)
    seen = set()
    for batch in batches_of(shards, 4, joined, augmentation=plain):
        x = batch.image[:, :1] * 255 / 2  # the image is its own pixel coordinates: see coordinate_image
        wrong = (x - WIDTH / 2).abs() > 2
        prediction = DepthPrediction(batch.depth + wrong.float(), DepthSpace.METRIC)
        loss, _ = LossTable({"pseudo": [{"name": "mae"}]})(prediction, batch)
        stored = torch.where(x < WIDTH / 2, 1.0, 0.2)
        torch.testing.assert_close(loss, (stored * wrong).mean(), rtol=1e-5, atol=1e-6)
        seen |= set(stored[wrong].unique().tolist())
        unweighted, _ = LossTable({"pseudo": [{"name": "mae"}]}, use_confidence=False)(prediction, batch)
        torch.testing.assert_close(unweighted, wrong.float().mean(), rtol=1e-5, atol=1e-6)
    assert len(seen) == 2


def test_sidecars_bring_priors_and_pseudo_labels(shards: Path) -> None:
    before = {path: path.read_bytes() for path in list_shards(shards / "one")}
    prior = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    label = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    confidence = np.full((HEIGHT, WIDTH), 1.0, np.float32)
    write_sidecar(shards / "priors", keys_of("one", 5, 7), prior=prior)
    pseudo = {"label_kind": LabelKind.PSEUDO, "teacher": "t", "depth_type": DepthType.Z, "quality": {"agreement": 0.5}}
    write_sidecar(shards / "labels", keys_of("one", 5, 7), depth=label, confidence=confidence, **pseudo)
    joined = row(shards, "one", sidecars=[str(shards / "priors"), str(shards / "labels")])
    for batch in batches_of(shards, 5, joined):
        assert batch.prior_depth is not None and torch.allclose(batch.prior_depth, torch.tensor(3.0), rtol=1e-3)
        assert torch.allclose(batch.depth[batch.valid], torch.tensor(2.0), rtol=1e-3) and batch.confidence is not None
        assert set(batch.label_kind.tolist()) == {LABEL_KINDS.index(LabelKind.PSEUDO)}
    sample = SourceReader(joined).sample(6)
    assert sample.meta.key == "one/0006" and sample.meta.teacher == "t" and sample.meta.quality == {"agreement": 0.5}
    assert sample.image_bytes == SourceReader(row(shards, "one")).sample(6).image_bytes
    assert {path: path.read_bytes() for path in list_shards(shards / "one")} == before
    plain = batches_of(shards, 5, row(shards, "one"))
    for batch, other in zip(batches_of(shards, 5, joined), plain, strict=True):
        assert batch.key == other.key and torch.equal(batch.image, other.image)  # a sidecar changes no order and no pixel of colour


def test_figures_of_a_sidecar_filter_too(shards: Path) -> None:
    folder = write_sidecar(shards / "scores", keys_of("two", 5), confidence=np.ones((HEIGHT, WIDTH), np.float32))
    add_figures(folder, {f"two/{k:04d}": {"agreement": k / 4} for k in range(5)})
    chosen = row(shards, "two", sidecars=[str(folder)], figures={"agreement": (0.5, None)})
    assert SourceReader(chosen).keys() == ["two/0002", "two/0003", "two/0004"]


def test_sidecars_that_do_not_fit_name_the_shard(shards: Path) -> None:
    prior = {"prior": np.full((HEIGHT, WIDTH), 3.0, np.float32)}

    def refused(name: str, keys: list[list[str]], sentence: str) -> None:
        folder = write_sidecar(shards / name, keys, **prior)
        with pytest.raises(ValueError, match=sentence):
            SourceReader(row(shards, "one", sidecars=[str(folder)]))

    right = keys_of("one", 5, 7)
    refused("missing", right[:1], r"missing: has no 00001\.tar for .*one/00001\.tar")
    refused("surplus", [*right, ["one/0099"]], r"surplus/00002\.tar: is the sidecar of no shard")
    refused("short", [right[0], right[1][:-1]], r"short/00001\.tar: holds 6 samples, .*one/00001\.tar 7")
    swapped = [right[0], [*right[1][:2], right[1][3], right[1][2], *right[1][4:]]]
    refused("swapped", swapped, r"swapped/00001\.tar: its sample 2 is 'one/0008', in .*one/00001\.tar it is 'one/0007'.*same order")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        SourceReader(row(shards, "one", sidecars=[str(shards / "nowhere")]))
    # a process that did not compare all keys at the start finds it when it reads the shard
    reader = SourceReader(row(shards, "one", sidecars=[str(shards / "swapped")]), thorough=False)
    with pytest.raises(
        FatalSourceError, match=r"source 'one': .*swapped/00001\.tar holds 'one/0008' where .*one/00001\.tar has 'one/0007'"
    ):
        [reader.sample(index) for index in range(12)]


def test_a_sidecar_of_another_image_is_a_bad_sample(shards: Path) -> None:
    """The keys agree, the content does not: counted and replaced like any unusable sample."""
    folder = write_sidecar(shards / "priors", keys_of("two", 5), prior=np.full((HEIGHT, WIDTH), 3.0, np.float32))
    (folder / "00000.tar").unlink()
    other = [make_sample(key, prior=np.full((9, 12), 3.0, np.float32), image_size=(WIDTH, HEIGHT)) for key in keys_of("two", 5)[0]]
    members = [(sample.meta.key, sidecar_members(sample, ["prior"])) for sample in other]
    members[2][1]["meta.json"] = members[2][1]["meta.json"].replace(b"48", b"50")
    write_shard(folder / "00000.tar", members)
    (folder / "shards.json").unlink(missing_ok=True)
    reader = SourceReader(row(shards, "two", sidecars=[str(folder)]))
    assert reader.sample(1).prior is not None
    with pytest.raises(ValueError, match=r"two/0002: its sidecar does not fit .*\[50, 36\]"):
        reader.sample(2)
    with pytest.raises(ValueError, match="a sidecar cannot hold 'image'"):
        sidecar_members(other[0], ["image"])
    with pytest.raises(ValueError, match="the sample has no sky for its sidecar"):
        sidecar_members(other[0], ["sky"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss_kind": "lidar"}, "loss_kind 'lidar' is no row of the loss table"),
        ({"crop": (0.0, 1.0)}, r"crop is \[0.0, 1.0\]"),
        ({"max_passes": 0.0}, r"max_passes 0\.0 must be positive"),
        ({"figures": {"a": (1.0, 0.0)}}, r"figures\.a is \[1\.0, 0\.0\]"),
        ({"max_bad_fraction": 1.5}, r"max_bad_fraction 1\.5 must lie in \[0, 1\]"),
        ({"max_bad_in_a_row": 0}, "max_bad_in_a_row 0 must be at least 1"),
    ],
)
def test_impossible_rows_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"source somewhere: .*{sentence}"):
        MixtureSource("somewhere", **options)


def write_labels(folder: Path, keys: list[list[str]], without: set[str], **meta: Any) -> Path:
    """A sidecar of pseudo-labels of 2 m with a figure each; stand-ins for ``without``."""
    folder.mkdir()
    label = np.full((HEIGHT // 2, WIDTH // 2), 2.0, np.float32)
    confidence = np.full(label.shape, 0.5, np.float32)
    pseudo = {"label_kind": LabelKind.PSEUDO, "teacher": "t", "depth_type": DepthType.Z, **meta}
    for number, own in enumerate(keys):
        entries = []
        for key in own:
            sample = make_sample(key, depth=label, confidence=confidence, quality={"agreement": int(key[-1]) / 10, "empty": None}, **pseudo)
            members = sidecar_members(sample if key not in without else make_sample(key), [] if key in without else ["depth", "confidence"])
            entries.append((key, members))
        write_shard(folder / f"{number:05d}.tar", entries)
    return folder


def test_samples_without_a_label_are_left_out_and_counted(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student must not learn the raw depth of a sample that the teacher could not label; a prior's stand-in leaves nobody out."""
    missing = {f"one/{k:04d}" for k in (0, 1, 2, 3, 4, 9)}  # the whole first shard and one of the second
    labels = write_labels(shards / "labels", keys_of("one", 5, 7), missing)
    priors = write_sidecar(shards / "priors", keys_of("one", 5, 7), prior=np.full((HEIGHT, WIDTH), 3.0, np.float32))
    (priors / "00000.tar").unlink()
    write_shard(priors / "00000.tar", [(key, sidecar_members(make_sample(key), [])) for key in keys_of("one", 5)[0]])
    joined = row(shards, "one", sidecars=[str(labels), str(priors)])
    reader = SourceReader(joined)
    assert set(reader.keys()) == {f"one/{k:04d}" for k in range(12)} - missing and reader.unlabelled == 6
    assert reader.shard_sizes == [0, 6] and reader.identity()["samples"] == 6
    assert len(SourceReader(row(shards, "one", sidecars=[str(priors)]))) == 12
    for batch in batches_of(shards, 4, joined):
        assert torch.allclose(batch.depth[batch.valid], torch.tensor(2.0), rtol=1e-3) and not missing & set(batch.key)
    assert "one: 6 samples have no label in its sidecars and are left out" in capsys.readouterr().err
    # figures come from the labels' own quality; a stand-in, which has none, is no error
    assert SourceReader(dataclasses.replace(joined, figures={"agreement": (0.6, 0.8)})).keys() == ["one/0006", "one/0007", "one/0008"]
    with pytest.raises(ValueError, match=r"none of its 12 samples .*; 6 have no label in .*labels"):
        SourceReader(dataclasses.replace(joined, figures={"empty": (0.0, None)}))
    drawn = mix_plan(Run((joined,), 4, 1, 3, 1, None), quiet=True).sources[0]
    assert (drawn.samples, drawn.in_folder, drawn.unlabelled) == (6, 12, 6)


def test_a_run_does_not_go_on_with_other_labels(shards: Path) -> None:
    """The order is the same, the depth is another teacher's: refused like other shards, unless the recipe says to go on."""
    joined = row(shards, "one", sidecars=[str(write_labels(shards / "labels", keys_of("one", 5, 7), set()))])
    keys = stream(shards / "run", make_module(shards, train=[joined]), 2)
    shutil.rmtree(shards / "labels")
    write_labels(shards / "labels", keys_of("one", 5, 7), set(), teacher="another")
    with pytest.raises(ValueError, match=r"mixture\.one\.sidecars = \['\w+'\], but the recipe says \['\w+'\]"):
        stream(shards / "run", make_module(shards, train=[joined]), 2, resume=True)
    going_on = make_module(shards, train=[joined], on_mixture_change="continue")
    assert len({*keys, *stream(shards / "run", going_on, 2, resume=True)}) == 12  # and the pass has no seam


def test_what_belongs_to_the_old_depth_does_not_stay_beside_a_label(shards: Path) -> None:
    """Masks of another resolution, and maps along the ray or without metres, would be read as what they are not."""
    full = {name: np.full((HEIGHT, WIDTH), 3.0, np.float32) for name in ("prior", "prompt", "depth_edge")}
    masks = {"sky": np.zeros((HEIGHT, WIDTH), bool), "confidence": np.ones((HEIGHT, WIDTH), np.float32)}
    for name, left, changes in (
        ("z", {"prior", "prompt", "depth_edge"}, {}),
        ("scaled", {"prior", "prompt"}, {"metric": False}),
        ("ray", set(), {"depth_type": DepthType.RAY}),
    ):
        (shards / name).mkdir()
        write_shard(shards / name / "00000.tar", [make_sample(f"{name}/0000", **full, **masks, **changes)])
        labels = write_labels(shards / f"{name}_labels", [[f"{name}/0000"]], set())
        sample = SourceReader(row(shards, name, sidecars=[str(labels)])).sample(0)
        assert {field for field in full if getattr(sample, field) is not None} == left, name
        assert sample.sky is None and sample.confidence is not None and sample.confidence.shape == sample.depth.shape
        assert sample.meta.metric and sample.meta.depth_type == DepthType.Z
    ray_prior = write_sidecar(shards / "ray_prior", [["z/0000"]], prior=full["prior"], depth_type=DepthType.RAY)
    with pytest.raises(ValueError, match=r"its maps are of depth type ray, the sample's of z"):
        SourceReader(row(shards, "z", sidecars=[str(ray_prior)])).sample(0)
