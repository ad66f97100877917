"""A folder of images: nothing done twice, nothing half done, one bad image survived."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from inference_parts import Brightness, InverseRamp, model_of, save_image

from mdpretrain.inference import folder as folder_module
from mdpretrain.inference.batches import NetworkSize
from mdpretrain.inference.folder import FolderRequest, list_jobs, predict_folder
from mdpretrain.inference.formats import WriteOptions
from mdpretrain.structures import DepthSpace

SETTINGS = {"network": "abc", "precision": "32"}


def grey(level, height=16, width=24):
    return np.full((height, width, 3), level, np.uint8)


def request(**changes):
    return FolderRequest(NetworkSize(None), WriteOptions(("npy",)), **{"settings": SETTINGS, "batch_size": 4, "quiet": True, **changes})


class Counting(Brightness):
    """Counts the images that go through it, and the largest batch."""

    def __init__(self):
        super().__init__()
        self.images, self.largest = 0, 0

    def forward(self, batch):
        self.images += len(batch)
        self.largest = max(self.largest, len(batch))
        return super().forward(batch)


@pytest.fixture
def images(tmp_path):
    """Eleven images of two sizes, one of them in a folder of its own, one damaged, and a text."""
    for number in range(9):
        save_image(tmp_path / f"in/{number}.png", grey(20 * number, 16 if number % 3 else 20))
    save_image(tmp_path / "in/deep/er/9.JPG", grey(180))
    (tmp_path / "in/bad.jpg").write_bytes(b"no image")
    (tmp_path / "in/notes.txt").write_text("no image either")
    return tmp_path / "in"


def test_every_image_is_predicted_and_the_bad_one_named(images, tmp_path, capfd):
    network = Counting()
    jobs = list_jobs(images, tmp_path / "out", recursive=True)
    result = predict_folder(model_of(network), jobs, request())
    assert (result.predicted, result.kept, network.images, network.largest) == (10, 0, 10, 4)
    assert [path.name for path, _ in result.failed] == ["bad.jpg"] and "cannot be read as an image" in result.failed[0][1]
    assert "not predicted" in capfd.readouterr().err
    for number in range(9):
        depth = np.load(tmp_path / f"out/{number}.npy")
        assert depth.shape == (16 if number % 3 else 20, 24)
        np.testing.assert_allclose(depth, 1 + 8 * 20 * number / 255, rtol=1e-5)
    assert (tmp_path / "out/deep/er/9.npy").exists() and not (tmp_path / "out/bad.npy").exists()
    assert [job.image.name for job in list_jobs(images, tmp_path / "o", recursive=False)] == [*(f"{n}.png" for n in range(9)), "bad.jpg"]


def test_an_interrupted_folder_is_continued(images, tmp_path, monkeypatch):
    jobs = list_jobs(images, tmp_path / "out", recursive=True)
    real, calls = folder_module.write_prediction, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(folder_module, "write_prediction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(model_of(Brightness()), jobs, request())
    monkeypatch.undo()
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    done = {path.stem for path in left if path.suffix == ".json"}
    assert 3 <= len(done) < 10 and not [path for path in left if ".tmp-" in path.name]
    before = {path: path.read_bytes() for path in left}
    network = Counting()
    result = predict_folder(model_of(network), jobs, request())
    assert result.kept == len(done) and network.images == result.predicted == 10 - len(done)
    assert all(path.read_bytes() == content for path, content in before.items() if path.stem in done)
    again = predict_folder(model_of(network), jobs, request())
    assert (again.kept, again.predicted, len(again.failed)) == (10, 0, 1)
    assert predict_folder(model_of(network), jobs, request(overwrite=True)).predicted == 10
    late = (tmp_path / "out/3.json").stat().st_mtime + 10
    os.utime(images / "3.png", (late, late))  # the image was changed since
    assert predict_folder(model_of(network), jobs, request()).predicted == 1


def test_another_networks_predictions_are_not_mixed_in(images, tmp_path):
    jobs = list_jobs(images, tmp_path / "out", recursive=False)
    predict_folder(model_of(Brightness()), jobs, request())
    with pytest.raises(ValueError, match=r"another precision .*--overwrite"):
        predict_folder(model_of(Brightness()), jobs, request(settings={**SETTINGS, "precision": "bf16"}))


class Relative(Brightness):
    """Inverse depth without metres."""

    def forward(self, batch):
        return dataclasses.replace(super().forward(batch), space=DepthSpace.AFFINE_INVARIANT)


def test_a_network_that_suits_no_image_ends_the_call(images, tmp_path):
    jobs = list_jobs(images, tmp_path / "out", recursive=False)
    with pytest.raises(ValueError, match=r"Relative predicts .* no metres"):
        predict_folder(model_of(Relative()), jobs, request())
    with pytest.raises(ValueError, match="--focal-from Brightness: this network does not estimate"):
        predict_folder(model_of(InverseRamp(), focal_model=model_of(Brightness())), jobs, request())
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_images_without_focal_length_fail_by_themselves(images, tmp_path):
    save_image(images / "exif.jpg", grey(5), focal_35mm=36)
    jobs = list_jobs(images, tmp_path / "out", recursive=False)
    result = predict_folder(model_of(InverseRamp()), jobs, request())
    assert result.predicted == 1 and (tmp_path / "out/exif.npy").exists() and len(result.failed) == 10
    assert all("--focal-from" in reason for path, reason in result.failed if path.name != "bad.jpg")
    assert predict_folder(model_of(InverseRamp()), jobs, request(focal_px=30.0, settings={**SETTINGS}, overwrite=True)).predicted == 10


def test_what_fails_in_a_batch_takes_nothing_with_it(images, tmp_path):
    class Picky(Brightness):
        def forward(self, batch):
            if any(key.endswith("4.png") for key in batch.key):
                raise ValueError("four is not predicted")
            return super().forward(batch)

    result = predict_folder(model_of(Picky()), list_jobs(images, tmp_path / "out", recursive=False), request())
    assert result.predicted == 8 and sorted(path.name for path, _ in result.failed) == ["4.png", "bad.jpg"]


def test_few_pixels_wait_however_many_sizes_there_are(tmp_path, monkeypatch):
    for number in range(60):
        save_image(tmp_path / f"in/{number:02d}.png", grey(10, 8 + number, 8))
    network, waiting, real = Counting(), [], folder_module.read_photograph

    def counted(*arguments):
        waiting.append(len(waiting) + 1 - network.images)
        return real(*arguments)

    monkeypatch.setattr(folder_module, "read_photograph", counted)
    jobs = list_jobs(tmp_path / "in", tmp_path / "out", recursive=False)
    assert predict_folder(model_of(network), jobs, request(batch_size=2)).predicted == 60
    assert max(waiting) <= 4 * 2 + 3 * folder_module.READERS + 2  # of 60 that fill no batch


def test_a_full_disk_ends_the_call(images, tmp_path, monkeypatch):
    def full(*arguments):
        raise ValueError("out: cannot be written (No space left on device)")

    monkeypatch.setattr(folder_module, "write_prediction", full)
    with pytest.raises(ValueError, match="No space left"):
        predict_folder(model_of(Brightness()), list_jobs(images, tmp_path / "out", recursive=False), request())


def test_folders_that_cannot_work_are_refused_at_once(images, tmp_path):
    for output, recursive in ((images, False), (images / "deep", True)):
        with pytest.raises(ValueError, match="choose a folder beside it"):
            list_jobs(images, output, recursive)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        list_jobs(tmp_path / "none", tmp_path / "out", recursive=False)
    save_image(images / "3.jpg", grey(0))
    with pytest.raises(ValueError, match=r"3\.jpg and .*3\.png: their files would have one name"):
        list_jobs(images, tmp_path / "out", recursive=False)


def test_failures_are_written_down_and_forgotten_when_mended(tmp_path):
    listed = tmp_path / "out/failed.jsonl"  # where all failed, nothing has made the folder yet
    folder_module.write_failures(listed, [(tmp_path / "a.jpg", "why")])
    assert json.loads(listed.read_text()) == {"image": str(tmp_path / "a.jpg"), "reason": "why"}
    folder_module.write_failures(listed, [])
    assert not listed.exists()
