"""A video in, a depth video out: the same frames at the same times, one scale, one camera; read by cv2 as a second opinion."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from inference_parts import Brightness, FocalEstimating, InverseRamp, greys, model_of, write_video
from training_parts import PREPARATION, build

from data_shards.colour import DepthScale
from mdpretrain.inference import video_files
from mdpretrain.inference.batches import NetworkSize
from mdpretrain.inference.formats import WriteOptions
from mdpretrain.inference.video import VideoRequest, predict_video
from mdpretrain.inference.video_files import open_video
from mdpretrain.tasks.predictor import Predictor


def request(**changes):
    return VideoRequest(NetworkSize(None), quiet=True, **{"batch_size": 4, **changes})


def read_back(path):
    with av.open(str(path)) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        return frames, container.streams.video[0].average_rate


def test_frames_and_times_are_kept_and_depth_has_one_scale(tmp_path):
    times = [0, 1001, 2002, 4004, 5005, 9009]  # a phone records at a varying rate
    source = write_video(tmp_path / "walk.mp4", greys(), times)
    result = predict_video(model_of(Brightness()), open_video(source), tmp_path / "out", request(scale=DepthScale(1.0, 9.0)))
    assert result.path.name == "walk_depth.mp4" and result.frames == 6 and result.f_px is None
    frames, _ = read_back(result.path)
    original, _ = read_back(source)
    assert [time for time, _ in frames] == pytest.approx([time for time, _ in original])
    assert [time for time, _ in original] == pytest.approx([time / 30000 for time in times])
    for (_, picture), (_, seen) in zip(frames, original):
        expected = DepthScale(1.0, 9.0).colour(1 + 8 * seen.astype(np.float32).mean(axis=2) / 255)
        assert np.abs(picture.astype(int) - expected).mean() < 6
    assert np.abs(frames[1][1].astype(int) - frames[5][1]).mean() < 2  # equal depth, equal colour
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["walk_depth.mp4"]
    reader = cv2.VideoCapture(str(result.path))
    assert int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) == 6 and reader.read()[1].shape == (32, 48, 3)


def test_the_scale_is_taken_from_the_whole_video(tmp_path):
    source = write_video(tmp_path / "v.mp4", greys(levels=[20] * 30 + [230] * 30))
    result = predict_video(model_of(Brightness()), open_video(source), tmp_path, request())
    assert result.scale.near < 1.8 and result.scale.far > 8
    assert result.frames == 60


def test_side_by_side_odd_sizes_and_files_of_every_frame(tmp_path):
    source = write_video(tmp_path / "v.mp4", greys(30, 46)[:3])
    options = WriteOptions(("npy", "png16", "colour"))
    result = predict_video(model_of(Brightness()), open_video(source), tmp_path / "o", request(side_by_side=True, frame_options=options))
    frames, rate = read_back(result.path)
    original, original_rate = read_back(source)
    assert rate == original_rate == Fraction(30000, 1001)
    assert frames[0][1].shape == (30, 92, 3)
    assert np.abs(frames[2][1][:, :46].astype(int) - original[2][1]).mean() < 4
    names = [f"{number:06d}{end}" for number in range(3) for end in (".json", ".npy", "_colour.png", "_mm.png")]
    assert sorted(path.name for path in (tmp_path / "o/v_frames").iterdir()) == names
    depth = np.load(tmp_path / "o/v_frames/000002.npy")
    np.testing.assert_allclose(depth, 1 + 8 * original[2][1].astype(np.float32).mean(axis=2) / 255, rtol=1e-3)
    odd = write_video(tmp_path / "odd.mp4", [np.full((31, 45, 3), 99, np.uint8)])
    assert read_back(odd)[0][0][1].shape == (32, 46, 3)  # H.264 has even sides


def test_one_camera_for_all_frames(tmp_path):
    source = open_video(write_video(tmp_path / "v.mp4", greys()))
    estimated = predict_video(model_of(FocalEstimating()), source, tmp_path / "a", request(frame_options=WriteOptions(("npy",))))
    assert estimated.f_px == pytest.approx(0.8 * 48) and estimated.f_px_source == "estimated by FocalEstimating, median of 6 frames"
    assert "median of 6 frames" in (tmp_path / "a/v_frames/000000.json").read_text()
    given = predict_video(model_of(FocalEstimating()), source, tmp_path / "b", request(focal_px=96.0, frame_options=WriteOptions(("npy",))))
    assert (given.f_px, given.f_px_source) == (96.0, "--focal-px")
    np.testing.assert_allclose(np.load(tmp_path / "b/v_frames/000003.npy")[:, 12:], 20.0, rtol=1e-6)
    from_other = model_of(InverseRamp(), focal_model=model_of(FocalEstimating()))
    assert predict_video(from_other, source, tmp_path / "c", request()).f_px == pytest.approx(0.8 * 48)
    with pytest.raises(ValueError, match=r"v\.mp4 frame 0: .*--focal-px"):
        predict_video(model_of(InverseRamp()), source, tmp_path / "d", request())
    teacher = Predictor(Brightness(), build(PREPARATION))
    teacher_model = model_of(Brightness())
    teacher_model.predictor = teacher
    with pytest.raises(ValueError, match="has no prompt to give it"):
        predict_video(teacher_model, source, tmp_path / "d", request())


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_phone_that_was_turned_is_turned_back(tmp_path, quarter_turns):
    """The display matrix is written into the file; cv2 turns frames by it on its own."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32] = 250  # the upper left corner is bright
    data = bytearray(write_video(tmp_path / "v.mp4", [picture] * 3).read_bytes())
    one = 1 << 16
    cosine, sine = [(one, 0), (0, one), (-one, 0), (0, -one)][quarter_turns]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30]
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    (tmp_path / "turned.mp4").write_bytes(data)
    reader = cv2.VideoCapture(str(tmp_path / "turned.mp4"))
    expected = cv2.cvtColor(reader.read()[1], cv2.COLOR_BGR2RGB).astype(int)
    frame = next(open_video(tmp_path / "turned.mp4").frames()).pixels
    assert frame.shape == expected.shape == ((64, 32, 3) if quarter_turns % 2 else (32, 64, 3))
    assert np.abs(frame - expected).mean() < 3


def test_broken_videos_are_one_sentence_and_leave_nothing(tmp_path):
    rng = np.random.default_rng(0)
    source = write_video(tmp_path / "v.mp4", [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(40)])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(source.read_bytes()[:2000])
    for name, words in (("gone.mp4", "there is no such video"), ("text.mp4", "cannot be read as a video"), ("cut.mp4", "cut.mp4")):
        with pytest.raises(ValueError, match=words):
            open_video(tmp_path / name)
    data = bytearray(source.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 3000 : start + 9000] = bytes(6000)
    (tmp_path / "holes.mp4").write_bytes(data)
    with pytest.raises(ValueError, match=r"holes\.mp4: damaged after frame \d+ of 40"):
        predict_video(model_of(Brightness()), open_video(tmp_path / "holes.mp4"), tmp_path / "out", request())
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_video_leaves_nothing(tmp_path):
    class Stopped(Brightness):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 4:  # two batches are looked at first
                raise KeyboardInterrupt
            return super().forward(batch)

    source = open_video(write_video(tmp_path / "v.mp4", greys()))
    with pytest.raises(KeyboardInterrupt):
        predict_video(model_of(Stopped()), source, tmp_path / "out", request())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(video_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"PyAV.*mdpretrain\[predict\]"):
        open_video(tmp_path / "v.mp4")
