"""``mdpretrain predict`` from arguments to files and exit codes, with closed-form networks in the place of trained ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inference_parts import Brightness, FocalEstimating, InverseRamp, NamedPredictor, greys, noise_image, save_image, write_video
from torch import nn

from mdpretrain.cli import main
from mdpretrain.inference import command, loading
from mdpretrain.inference.command import predict_command
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthPrediction, DepthSpace


class Interpolated(nn.Module):
    """The interpolated prompt as metric depth."""

    def forward(self, batch):
        return DepthPrediction(1.0 / batch.prepared.named("interpolated"), DepthSpace.METRIC)


PREDICTORS = {
    "student": lambda: NamedPredictor(InverseRamp()),
    "pointmap": lambda: NamedPredictor(FocalEstimating()),
    "metric": lambda: NamedPredictor(Brightness()),
    "teacher": lambda: NamedPredictor(Interpolated(), PromptPreparation(maps=["interpolated"])),
}


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    monkeypatch.setattr(loading, "load_predictor", lambda checkpoint, device="cpu", weights="trained": PREDICTORS[str(checkpoint)]())


@pytest.fixture
def image(tmp_path):
    return save_image(tmp_path / "photo.png", noise_image(36, 48))


def arguments(source, output, checkpoint, *more):
    return [str(source), "--checkpoint", checkpoint, "--output", str(output), "--device", "cpu", "--quiet", *more]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_predict_writes_its_files_and_asks_for_the_focal_length(image, tmp_path, capsys):
    common = arguments(image, tmp_path / "out", "student", "--image-size", "36", "48")
    with pytest.raises(ValueError, match="--focal-px"):
        predict_command(common)
    assert predict_command([*common, "--focal-px", "96"]) == 0
    assert "focal length: 96.0 px (--focal-px)" in capsys.readouterr().out
    assert names(tmp_path / "out") == ["photo.json", "photo.npy", "photo.ply", "photo_colour.png", "photo_mm.png"]
    inverse = 0.2 + 0.1 * (np.arange(48) + 0.5) / 48
    np.testing.assert_allclose(np.load(tmp_path / "out/photo.npy")[7], 96 / (48 * inverse), rtol=1e-5)
    settings = json.loads((tmp_path / "out/photo.json").read_text())["settings"]
    assert settings["image_size"] == [36, 48] and settings["long_side"] is None and settings["focal_px"] == 96


def test_predict_with_a_prompt(image, tmp_path, capsys):
    np.save(tmp_path / "prompt.npy", np.full((9, 12), 2.5, dtype=np.float32))
    common = arguments(image, tmp_path / "out", "teacher", "--long-side", "48")
    with pytest.raises(ValueError, match="--prompt"):
        predict_command(common)
    assert predict_command([*common, "--prompt", str(tmp_path / "prompt.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out/photo.npy"), 2.5, rtol=1e-4)
    out = capsys.readouterr().out
    assert "unknown" in out and "not written" in out and not (tmp_path / "out/photo.ply").exists()


def test_a_focal_length_from_another_network(image, tmp_path, capsys):
    common = arguments(image, tmp_path / "out", "student", "--native-size", "--write", "npy,glb,exr")
    assert predict_command([*common, "--focal-from", "pointmap"]) == 0
    assert "focal length: 38.4 px (estimated by pointmap)" in capsys.readouterr().out
    assert names(tmp_path / "out") == ["photo.exr", "photo.glb", "photo.json", "photo.npy"]
    camera = json.loads((tmp_path / "out/photo.json").read_text())["camera"]
    assert camera["f_px"] == pytest.approx(38.4) and camera["f_px_is_estimate"] is True


def test_a_folder_counts_names_survives_and_continues(image, tmp_path, capsys):
    save_image(tmp_path / "in/a.jpg", noise_image(20, 30))
    save_image(tmp_path / "in/deep/b.png", noise_image(20, 30))
    (tmp_path / "in/c.jpg").write_bytes(b"?")
    common = arguments(tmp_path / "in", tmp_path / "out", "metric", "--recursive", "--batch-size", "2", "--write", "npy")
    assert predict_command(common) == 1
    shown = capsys.readouterr()
    assert "2 of 3 images predicted" in shown.out and "1 not predicted" in shown.err and "c.jpg" in shown.err
    assert names(tmp_path / "out") == ["a.json", "a.npy", "deep", "failed.jsonl"] and names(tmp_path / "out/deep") == ["b.json", "b.npy"]
    save_image(tmp_path / "in/c.jpg", noise_image(20, 30))
    assert predict_command(common) == 0
    assert "1 of 3 images predicted, 2 were there already" in capsys.readouterr().out
    assert not (tmp_path / "out/failed.jsonl").exists()
    with pytest.raises(ValueError, match=r"another long_side \(518, now 28\)"):
        predict_command([*common, "--long-side", "28"])
    assert predict_command([*common, "--long-side", "28", "--overwrite"]) == 0


def test_a_video(tmp_path, capsys):
    source = write_video(tmp_path / "walk.mp4", greys()[:3])
    assert predict_command(arguments(source, tmp_path / "out", "metric", "--range", "1", "9", "--native-size", "--side-by-side")) == 0
    assert "walk_depth.mp4: 3 frames, 1 m (warm) to 9 m (cold)" in capsys.readouterr().out
    assert names(tmp_path / "out") == ["walk_depth.mp4"]


def test_mistakes_are_one_sentence(image, tmp_path, capfd):
    for more, words in [
        (["--write", "npz"], "--write npz: there is no such format"),
        (["--range", "3", "2"], "--range 3 2: give metres with 0 < NEAR < FAR"),
        (["--precision", "16"], "--precision 16 needs a GPU"),
        (["--prompt", "gone.png"], "gone.png: there is no such prompt"),
        (["--long-side", "0"], "--long-side 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--focal-px", "0"], "--focal-px 0.0"),
        (["--focal-from", "teacher"], "--focal-from teacher: a prompted network cannot"),
        (["--device", "cuda:77"], "--device cuda:77"),
    ]:
        assert main(["predict", *arguments(image, tmp_path / "out", "metric", *more)]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and words in lines[0]
    (tmp_path / "in").mkdir()
    assert main(["predict", *arguments(tmp_path / "in", tmp_path / "out", "metric", "--prompt", "p.png")]) == 2
    assert "belongs to one image" in capfd.readouterr().err


def test_options_of_another_input_are_refused(image, tmp_path):
    (tmp_path / "in").mkdir()
    for source, option, words in (
        (image, "--side-by-side", "--side-by-side is for a video, and .*photo.png is an image"),
        (tmp_path / "in", "--side-by-side", "is a folder; leave it out"),
        (image, "--recursive", "--recursive is for a folder"),
        (tmp_path / "v.mp4", "--recursive", "is a video; leave it out"),
    ):
        with pytest.raises(ValueError, match=words):
            predict_command(arguments(source, tmp_path / "out", "metric", option))
    assert not (tmp_path / "out").exists()


def test_the_command_shows_a_network_what_it_works_at(image, tmp_path, monkeypatch):
    class Sized(Brightness):
        encoder = nn.Identity()
        encoder.input_size = (600, 900)

    monkeypatch.setitem(PREDICTORS, "sized", lambda: NamedPredictor(Sized()))
    for name, more, side in (("sized", (), 900), ("metric", (), 518), ("sized", ("--long-side", "60"), 60)):
        assert predict_command(arguments(image, tmp_path / f"{name}{len(more)}", name, "--write", "npy", *more)) == 0
        record = json.loads((tmp_path / f"{name}{len(more)}/photo.json").read_text())
        assert record["settings"]["long_side"] == side and record["network"]["width"] == side


def test_ctrl_c_says_what_is_left(image, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_folder", interrupted)
    save_image(tmp_path / "in/a.jpg", noise_image(20, 30))
    assert predict_command(arguments(tmp_path / "in", tmp_path / "out", "metric")) == 130
    assert "the same call continues a folder" in capsys.readouterr().err
