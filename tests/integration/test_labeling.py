"""Pseudo-labels: same keys and images, a teacher's depth, continued after an interruption with the same bytes, never mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import pytest
from storage_servers import nginx

import tests.training_parts as parts
from data_shards.build_tasks import Task
from data_shards.codecs import encode_png
from data_shards.index import IndexedShard, list_shards
from data_shards.samples import members_to_sample
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.shard_table import write_table
from data_shards.storage.address import shard_path
from data_shards.storage.storage import default_storage
from data_shards.writer import write_shard
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.labeling.labeler import Labeler, LabelRequest
from mdpretrain.labeling.quality import label_quality
from mdpretrain.tasks.predictor import Predictor

REQUEST = LabelRequest(prompt=None, long_side=64, multiple=16)


def make_sample(number: int, camera: bool = True, metric: bool = True) -> Sample:
    rng = np.random.default_rng(number)
    height, width = (48, 64) if number % 3 else (64, 48)
    depth = rng.uniform(1, 5, (height, width)).astype(np.float32)
    depth[:4] = np.inf
    depth[4:6] = np.nan
    meta = SampleMeta(
        key=f"scene/{number:03d}",
        source="toy",
        label_kind=LabelKind.CAPTURED,
        depth_type=DepthType.Z,
        metric=metric,
        camera=Camera(60.0, 60.0, width / 2, height / 2) if camera else None,
        image_size=(width, height),
    )
    image = encode_png(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return Sample(meta=meta, image_bytes=image, image_format="png", depth=depth, sky=np.isposinf(depth))


@pytest.fixture
def shards(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        write_shard(folder / f"toy-{shard:06d}.tar", [make_sample(shard * 5 + i, camera=(shard, i) != (1, 2)) for i in range(5)])
    return folder


def student(seed: int = 0) -> Predictor:
    return Predictor(parts.build(parts.STUDENT_NETWORK, seed))


def read(folder: pathlib.Path) -> dict[str, Sample]:
    samples = {}
    for path in list_shards(folder):
        shard = IndexedShard(path)
        samples.update({key: members_to_sample(key, shard.read(i)) for i, key in enumerate(shard.keys)})
    return samples


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_labels_keep_image_and_key_and_say_what_they_are(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    teacher = student()
    result = Labeler(teacher, REQUEST, batch_size=2).label_folder(shards, tmp_path / "pseudo", quiet=True)
    originals, labels = read(shards), read(tmp_path / "pseudo")
    assert (result.labelled, result.rejected, result.reused) == (14, 1, 0)
    assert set(originals) - set(labels) == {"scene/007"}
    assert "camera is unknown" in json.loads((tmp_path / "pseudo" / "rejects.jsonl").read_text())["reason"]
    for key, label in labels.items():
        original = originals[key]
        assert label.image_bytes == original.image_bytes
        assert label.meta.camera == original.meta.camera and label.meta.image_size == original.meta.image_size
        assert (label.meta.label_kind, label.meta.teacher) == (LabelKind.PSEUDO, teacher.fingerprint)
        assert label.depth.shape == original.depth.shape
        assert label.sky is None and np.array_equal(np.isposinf(label.depth), original.sky)
        assert np.isfinite(label.depth[~original.sky]).all()
        assert label.meta.quality is not None and label.meta.quality["abs_rel"] > 0


def test_label_is_the_teachers_depth_whatever_it_was_batched_with(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    Labeler(student(), REQUEST, batch_size=1).label_folder(shards, tmp_path / "one", quiet=True)
    Labeler(student(), REQUEST, batch_size=4).label_folder(shards, tmp_path / "four", quiet=True)
    one, four = read(tmp_path / "one"), read(tmp_path / "four")
    for key in one:
        finite = np.isfinite(one[key].depth)
        np.testing.assert_allclose(one[key].depth[finite], four[key].depth[finite], rtol=5e-4)  # the codec's step is 2e-4


def test_remote_shards_get_the_labels_of_local_ones(shards: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    default_storage.cache_clear()
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "local", quiet=True)
    write_table(shards)
    with nginx(shards, tmp_path / "nginx") as server:
        (shards / "dataset.json").write_text('{"source": "shards"}')  # else a folder is called by its own name
        Labeler(student(), REQUEST).label_folder(shard_path(server.address), tmp_path / "remote", quiet=True)
    default_storage.cache_clear()
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    assert (tmp_path / "remote" / "shards.json").is_file()


def test_interrupted_labelling_continues_to_the_same_bytes(
    shards: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "whole", quiet=True)
    calls = 0
    predict = Labeler.predict

    def interrupted(self: Labeler, group: list) -> dict:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return predict(self, group)

    monkeypatch.setattr(Labeler, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pieces", quiet=True)
    assert len(list((tmp_path / "pieces").glob("*.tar"))) < 3
    result = Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pieces", quiet=True)
    assert result.reused >= 1
    assert digests(tmp_path / "pieces") == digests(tmp_path / "whole")
    assert Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pieces", quiet=True).reused == 3


def test_labels_of_two_teachers_are_never_mixed(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pseudo", quiet=True)
    with pytest.raises(ValueError, match="holds labels with another teacher"):
        Labeler(student(seed=1), REQUEST).label_folder(shards, tmp_path / "pseudo", quiet=True)
    with pytest.raises(ValueError, match="holds labels with another request"):
        Labeler(student(), dataclasses.replace(REQUEST, seed=3)).label_folder(shards, tmp_path / "pseudo", quiet=True)


def test_prompted_teacher_labels_metric_samples_only(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "toy-000000.tar", [make_sample(1), make_sample(2, metric=False), make_sample(4, camera=False)])
    network, preparation = parts.build(parts.TEACHER_NETWORK), parts.build(parts.PREPARATION)
    teacher = Predictor(network, preparation)
    with pytest.raises(ValueError, match="--prompt-count"):
        Labeler(teacher, REQUEST)
    request = dataclasses.replace(REQUEST, prompt=PromptOptions((50, 80)))
    result = Labeler(teacher, request).label_folder(folder, tmp_path / "pseudo", quiet=True)
    assert sorted(read(tmp_path / "pseudo")) == ["scene/001", "scene/004"]
    assert result.rejected == 1
    assert "no metric z-depth" in (tmp_path / "pseudo" / "rejects.jsonl").read_text()


def test_quality_has_its_closed_form() -> None:
    measured = np.full((4, 4), 2.0, dtype=np.float32)
    valid = np.zeros((4, 4), dtype=bool)
    valid[:, :2] = True
    prompt = np.zeros_like(valid)
    prompt[0, 0] = True
    figures = label_quality(measured * 1.1, measured, valid, prompt)
    assert figures == pytest.approx(
        {"measured_fraction": 0.5, "prompt_fraction": 1 / 16, "abs_rel": 0.1, "log_scale": np.log(1.1)}, rel=1e-5
    )
    assert "abs_rel" not in label_quality(measured, measured, prompt, prompt)


@pytest.mark.parametrize("tasks", [2, 5])  # 3 shards: two tasks of five have nothing to do
def test_tasks_of_an_array_write_the_bytes_of_one_call(shards: pathlib.Path, tmp_path: pathlib.Path, tasks: int) -> None:
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "whole", quiet=True)
    order = [*range(1, tasks), 0]
    for number in order:
        result = Labeler(student(), REQUEST).label_folder(shards, tmp_path / "shared", quiet=True, task=Task(number, tasks))
        whole = (tmp_path / "shared" / "shards.json").exists()
        assert whole == (number == 0) == (result.missing == 0)
    assert digests(tmp_path / "shared") == digests(tmp_path / "whole")


def test_a_task_leaves_the_files_that_another_is_writing(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "shared").mkdir()
    in_work = tmp_path / "shared" / "toy-000002.tar.tmp-1-0"
    in_work.write_bytes(b"half a shard")
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "shared", quiet=True, task=Task(0, 2))
    assert in_work.exists()
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "shared", quiet=True)  # alone: what is there was left by a killed call
    assert not in_work.exists()
