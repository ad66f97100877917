"""Pseudo-labels: same keys and images, a teacher's depth, continued after an interruption with the same bytes, never mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from storage_servers import nginx

import tests.training_parts as parts
from data_shards.build_tasks import Task
from data_shards.codecs import encode_png
from data_shards.index import IndexedShard, list_shards
from data_shards.mixture import MixtureSource
from data_shards.samples import members_to_sample
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from data_shards.shard_table import write_table
from data_shards.storage.address import shard_path
from data_shards.storage.storage import default_storage
from data_shards.writer import ShardWriter, write_shard
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.labeling.label_folder import LOCK_FILE, LabelFolder
from mdpretrain.labeling.labeler import Labeler, LabelMaps
from mdpretrain.labeling.prior_labeler import PriorLabeler, PriorRequest
from mdpretrain.labeling.requests import LabelRequest
from mdpretrain.labeling.shard_in_work import ShardInWork
from mdpretrain.labeling.source_shards import SourceShards
from mdpretrain.networks.module_config import record_and_build
from mdpretrain.networks.priors import CheckpointPrior, StoredPrior
from mdpretrain.tasks.predictor import Predictor

ROOT = pathlib.Path(__file__).resolve().parents[2]
REQUEST = LabelRequest(prompt=None, long_side=64, multiple=16, whole=True)
SIDECARS = dataclasses.replace(REQUEST, whole=False)


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
    compute = Labeler.compute

    def interrupted(self: Labeler, group: list) -> LabelMaps:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return compute(self, group)

    monkeypatch.setattr(Labeler, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pieces", quiet=True)
    assert len(list((tmp_path / "pieces").glob("*.tar"))) < 3 and not list((tmp_path / "pieces").glob("*.tmp-*"))
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
    for damaged in ("{", "[]"):
        (tmp_path / "pseudo" / "dataset.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"pseudo/dataset\.json: .*choose another --output"):
            Labeler(student(), REQUEST).label_folder(shards, tmp_path / "pseudo", quiet=True)


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


@pytest.mark.parametrize("tasks", [2, 5])  # 3 shards: two tasks of five have nothing to do
def test_tasks_of_an_array_write_the_bytes_of_one_call(shards: pathlib.Path, tmp_path: pathlib.Path, tasks: int) -> None:
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "whole", quiet=True)
    order = [*range(1, tasks), 0]
    for number in order:
        result = Labeler(student(), REQUEST).label_folder(shards, tmp_path / "shared", quiet=True, task=Task(number, tasks))
        whole = (tmp_path / "shared" / "shards.json").exists()
        assert whole == (number == 0) == (result.missing == 0)
    assert digests(tmp_path / "shared") == digests(tmp_path / "whole")


HOLDER = """
import pathlib, sys
from data_shards.file_locks import LockFile
lock = LockFile(pathlib.Path(sys.argv[1]))
assert lock.take(int(sys.argv[2])) is True
print("held", flush=True)
sys.stdin.read()
"""


def test_a_shard_that_another_process_writes_is_left_to_it(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The lock is the kernel's: it ends with the process, and then what that left behind goes, too."""
    output = tmp_path / "shared"
    output.mkdir()
    in_work = output / "toy-000002.tar.tmp-1-0"
    in_work.write_bytes(b"half a shard")
    command = [sys.executable, "-c", HOLDER, str(output / LOCK_FILE), "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        result = Labeler(student(), SIDECARS).label_folder(shards, output, quiet=True)
        assert (result.shards, result.missing) == (2, 1) and in_work.exists()
        assert not (output / "shards.json").exists()
        other.kill()
    result = Labeler(student(), SIDECARS).label_folder(shards, output, quiet=True)
    assert (result.shards, result.missing, result.reused) == (3, 0, 2)
    assert not list(output.glob("*.tmp-*"))


def test_a_shard_that_is_done_is_not_taken_again(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Also where two processes saw it missing: who comes second finds it finished when it has the lock, or when it would publish."""
    Labeler(student(), SIDECARS).label_folder(shards, tmp_path / "done", quiet=True)
    before = {path: path.stat().st_ino for path in (tmp_path / "done").glob("*.tar")}
    labeler = Labeler(student(), SIDECARS)
    source = SourceShards(shards)
    with LabelFolder(tmp_path / "done", labeler._arguments(source), source.names) as folder:
        assert not folder.take(1)
        late = ShardInWork(folder, 1, source.open(1))  # as on a file system without locks
        for position in range(5):
            late.add(position, source.open(1).stand_in(position))
        assert late.is_published
    assert {path: path.stat().st_ino for path in (tmp_path / "done").glob("*.tar")} == before
    assert not list((tmp_path / "done").glob("*.tmp-*"))


def test_sidecars_join_and_hold_what_whole_shards_hold(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    Labeler(student(), REQUEST).label_folder(shards, tmp_path / "whole", quiet=True)
    result = Labeler(student(), SIDECARS).label_folder(shards, tmp_path / "beside", quiet=True)
    assert (result.labelled, result.rejected) == (14, 1)
    reader = SourceReader(MixtureSource(str(shards), sidecars=[str(tmp_path / "beside")]))
    whole = read(tmp_path / "whole")
    assert len(reader) == 14 and reader.unlabelled == 1 and reader.keys() == list(whole)
    for number, (key, expected) in enumerate(whole.items()):
        found = reader.sample(number)
        assert found.meta == dataclasses.replace(expected.meta, encodings=found.meta.encodings) and found.meta.key == key
        assert np.array_equal(found.depth, expected.depth) and found.image_bytes == expected.image_bytes
        assert found.confidence is not None and np.array_equal(found.confidence, expected.confidence)
    own = [IndexedShard(path) for path in list_shards(tmp_path / "beside")]
    assert [shard.keys for shard in own] == [IndexedShard(path).keys for path in list_shards(shards)]
    entries = [entry for shard in own for entry in shard.index.entries if not entry.is_stand_in]
    assert all(set(entry.members) == {"depth.pco", "confidence.png", "meta.json"} for entry in entries)
    for entry in entries:  # the figures of the meta stand in the index, so that a row filters without relabelling
        assert entry.figures == whole[entry.key].meta.quality and entry.figures["abs_rel"] is not None
    sharp = sorted(entry.figures["abs_rel"] for entry in entries)[6]
    chosen = SourceReader(MixtureSource(str(shards), sidecars=[str(tmp_path / "beside")], figures={"abs_rel": (None, sharp)}))
    assert len(chosen) == 7


def test_an_error_in_a_writing_thread_ends_the_call_and_leaves_no_half_shard(
    shards: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise ValueError("out/toy-000001.tar: cannot be written (No space left on device)")

    monkeypatch.setattr(ShardWriter, "publish", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        Labeler(student(), SIDECARS, batch_size=1).label_folder(shards, tmp_path / "out", quiet=True)
    assert not list((tmp_path / "out").glob("*.tmp-*")) and not list((tmp_path / "out").glob("*.tar"))


def test_stored_priors_are_found_in_sidecars(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A teacher whose prior is stored sees what a mixture's row would show it, and other priors are other labels."""
    prior = record_and_build(CheckpointPrior, network=parts.build(parts.PRIOR_NETWORK))
    PriorLabeler(prior, PriorRequest(64, 16)).label_folder(shards, tmp_path / "priors", quiet=True)
    teacher = Predictor(parts.build(parts.TEACHER_NETWORK), parts.build(parts.PREPARATION), record_and_build(StoredPrior))
    labeler = Labeler(teacher, dataclasses.replace(SIDECARS, prompt=PromptOptions((50, 80))))
    labeler.label_folder(shards, tmp_path / "with", quiet=True, sidecars=[tmp_path / "priors"])
    labeler.label_folder(shards, tmp_path / "without", quiet=True)
    readers = [SourceReader(MixtureSource(str(shards), sidecars=[str(tmp_path / name)])) for name in ("with", "without")]
    assert not np.allclose(readers[0].sample(0).depth[6:], readers[1].sample(0).depth[6:], rtol=1e-2)
    with pytest.raises(ValueError, match="holds labels with another sidecars_sha256"):
        labeler.label_folder(shards, tmp_path / "without", quiet=True, sidecars=[tmp_path / "priors"])


def test_a_sample_with_a_damaged_meta_is_one_reject_and_has_a_stand_in(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tar = shards / "toy-000000.tar"
    index = IndexedShard(tar).index
    offset, size, *_ = index.entries[2].members["meta.json"]
    damaged = bytearray(tar.read_bytes())
    damaged[offset : offset + size] = b"x" * size
    tar.write_bytes(damaged)
    result = Labeler(student(), SIDECARS, batch_size=2).label_folder(shards, tmp_path / "pseudo", quiet=True)
    assert (result.labelled, result.rejected) == (13, 2)
    labels = IndexedShard(tmp_path / "pseudo" / "toy-000000.tar")
    assert labels.keys == [entry.key for entry in index.entries]
    assert [entry.is_stand_in for entry in labels.index.entries] == [False, False, True, False, False]
    assert labels.index.entries[2].group == index.entries[2].group
