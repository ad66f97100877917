"""``mdpretrain.load``: one image, a batch, the evaluation's pipeline and every way to hand an image over give the same depth."""

from __future__ import annotations

import doctest
import json

import cv2
import numpy as np
import pytest
import torch
from inference_parts import (
    Brightness,
    CanonicalEstimating,
    FocalEstimating,
    InverseRamp,
    Overflowing,
    model_of,
    noise_image,
    save_image,
    write_student,
)
from PIL import Image
from tiny_shards import CAMERA, HEIGHT, WIDTH, coordinate_image, make_sample, png
from training_parts import PREPARATION, TEACHER_NETWORK, build
from transformers_models import tiny_depth_anything, tiny_depth_pro

import mdpretrain
from mdpretrain.data.pipeline import RowOptions, SamplePipeline
from mdpretrain.inference import loading
from mdpretrain.inference.batches import NetworkSize, enlarge_depth, photograph_batch
from mdpretrain.inference.loading import check_precision
from mdpretrain.inference.model import DepthModel, UnknownFocalLength
from mdpretrain.inference.photographs import Photograph, as_photograph
from mdpretrain.tasks.predictor import Predictor


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A checkpoint of random weights whose depth depends on every pixel."""
    return write_student(tmp_path_factory.mktemp("student") / "student.ckpt")


def test_the_newcomers_example_runs(tmp_path, monkeypatch):
    write_student(tmp_path / "runs/student/checkpoints/step_00000010.ckpt")
    for name in ("photo.jpg", "other.jpg"):
        save_image(tmp_path / name, noise_image(96, 128))
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder().find(mdpretrain.load, "load", globs={})
    assert sum(len(example.examples) for example in examples) >= 8
    for example in examples:
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0


def test_the_network_sees_what_evaluation_shows_it():
    image = coordinate_image(WIDTH, HEIGHT)
    row = SamplePipeline(None, None, None, 0, long_side=32, multiple=8)(make_sample("a/0"), 0, RowOptions())
    photo = Photograph("a/0", cv2.cvtColor(cv2.imdecode(np.frombuffer(png(image), np.uint8), 1), cv2.COLOR_BGR2RGB), CAMERA.fx, "given")
    size = NetworkSize(32)
    batch = photograph_batch([photo], [size.view(photo.size, 8)])
    np.testing.assert_array_equal(batch.image[0].permute(1, 2, 0).numpy(), row.image)
    assert batch.intrinsics[0, 0, 0] == pytest.approx(row.intrinsics[0, 0])  # the sample's own centre and fy are not a photograph's
    assert batch.image.shape[-2:] == (24, 32) and batch.camera_known.all() and not batch.valid.any()
    unknown = photograph_batch([as_photograph(image, None, 0)], [size.view((WIDTH, HEIGHT), 8)])
    assert not unknown.camera_known.any() and unknown.intrinsics[0, :2, :].isnan().any()


def test_sizes():
    assert [NetworkSize(518).view((1920, 1080), 14).out_height, NetworkSize(518).view((1920, 1080), 14).out_width] == [294, 518]
    assert NetworkSize(518).view((2000, 10), 14).out_height == 14
    native = NetworkSize(None).view((101, 60), 16)
    assert (native.out_height, native.out_width) == (64, 96)
    squeezed = NetworkSize(518, (32, 32)).view((100, 50), 16)
    assert (squeezed.out_height, squeezed.out_width, squeezed.width, squeezed.height) == (32, 32, 100, 50)
    assert NetworkSize(5).view((100, 50), 16).out_width == 16  # never below what the network works in
    for wrong in ({"long_side": 0}, {"image_size": (0, 5)}):
        with pytest.raises(ValueError, match="positive"):
            NetworkSize(**wrong)


class Resizing(Brightness):
    """Metric depth by brightness, of a network that resizes every image to one size."""

    def __init__(self, input_size):
        super().__init__()
        self.encoder = torch.nn.Identity()
        self.encoder.input_size = input_size


def test_a_network_of_one_size_is_not_given_less_than_that_size():
    stripes = np.zeros((12, 1600, 3), np.uint8)
    stripes[:, ::2] = 255  # a long side of 518 would leave one grey
    assert model_of(Brightness()).long_side == model_of(Resizing((96, 128))).long_side == 518
    fine = model_of(Resizing((900, 1600))).predict(stripes)
    assert fine.how.network_size == (12, 1600) and np.ptp(fine.depth_m) > 7.9
    assert model_of(Resizing((900, 1600))).predict(stripes, long_side=400).how.network_size == (3, 400)


def test_models_of_transformers_are_given_what_they_shrink(tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, model, short_side, long_side in (
        ("pro", tiny_depth_pro(transformers), 64, 518),
        ("anything", tiny_depth_anything(transformers, "metric"), 700, 1400),
    ):
        model.save_pretrained(tmp_path / name)
        settings = {"size": {"height": short_side, "width": short_side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(settings))
        assert mdpretrain.load(tmp_path / name, device="cpu").long_side == long_side


def test_one_image_a_batch_and_the_command_before_it_agree(student):
    """The oracle is the road that ``predict`` took before it had batches: cv2's area means, the network, inverse depth enlarged."""
    model = mdpretrain.load(student, device="cpu")
    images = [noise_image(96, 128, seed) for seed in range(3)]
    together = model.predict(images, focal_px=[100, 110, 120], long_side=64)
    for image, f_px, depth in zip(images, (100, 110, 120), together):
        alone = model.predict(image, focal_px=f_px, long_side=64)
        np.testing.assert_allclose(depth.depth_m, alone.depth_m, rtol=2e-5)
        small = torch.from_numpy(cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None].float() / 255.0
        batch = photograph_batch([as_photograph(image, f_px, 0)], [NetworkSize(64).view((128, 96), 16)])
        batch.image = small
        before = enlarge_depth(model.predictor.depth_m(batch), 96, 128)[0, 0].numpy()
        np.testing.assert_allclose(alone.depth_m, before, rtol=2e-5)
    assert np.ptp(together[0].depth_m) > 1e-3 and not np.allclose(together[0].depth_m / 100, together[1].depth_m / 110, rtol=1e-4)


def test_every_way_to_hand_an_image_over_gives_the_same(student, tmp_path):
    model = mdpretrain.load(student, device="cpu")
    path = save_image(tmp_path / "p.png", noise_image(32, 48))
    depths = model.predict([path, str(path), Image.open(path), noise_image(32, 48)], focal_px=50, long_side=48)
    for depth in depths[1:]:
        np.testing.assert_array_equal(depth.depth_m, depths[0].depth_m)
    assert depths[0].depth_m.dtype == np.float32 and depths[0].depth_m.shape == (32, 48)
    assert "p.png, 48 x 32" in repr(depths[0]) and "focal length 50.0 px: focal_px" in repr(depths[0])
    files = depths[3].save(tmp_path / "out", write=["npy", "glb"])
    assert [file.name for file in files] == ["image_3.npy", "image_3.glb", "image_3.json"]
    np.testing.assert_array_equal(np.load(files[0]), depths[3].depth_m)


def test_images_of_many_sizes_come_back_in_order(student):
    model = model_of(Brightness())
    images = [np.full((8 + 4 * (n % 3), 16, 3), 20 * n, np.uint8) for n in range(9)]
    depths = model.predict(images, focal_px=[None, 30] * 4 + [None], batch_size=2, long_side=None)
    for number, depth in enumerate(depths):
        np.testing.assert_allclose(depth.depth_m, np.full((8 + 4 * (number % 3), 16), 1 + 8 * 20 * number / 255), rtol=1e-5)
        assert (depth.f_px is None) == (number % 2 == 0)
    groups = model.groups([as_photograph(image, None, 0) for image in images], NetworkSize(None), 2)
    assert [len(group) for group in groups] == [2, 1, 2, 1, 2, 1]
    with pytest.raises(ValueError, match="batch_size 0"):
        model.predict(images, batch_size=0)
    with pytest.raises(ValueError, match="focal_px has 2 entries for 9 images"):
        model.predict(images, focal_px=[1, 2])


def test_depth_comes_back_at_the_images_size_with_the_camera_scaled():
    depth = model_of(InverseRamp()).predict(np.zeros((480, 640, 3), np.uint8), focal_px=700.0, image_size=(144, 192))
    inverse = (0.2 + 0.1 * (np.arange(640) + 0.5) / 640) * 640 / 700
    assert depth.depth_m.shape == (480, 640) and depth.depth_m.dtype == np.float32
    np.testing.assert_allclose(depth.depth_m[:, 4:-4], np.tile(1 / inverse, (480, 1))[:, 4:-4], rtol=1e-5)
    points = depth.points()
    np.testing.assert_allclose(points[10, 20], np.array([(20.5 - 320) / 700, (10.5 - 240) / 700, 1]) * depth.depth_m[10, 20], rtol=1e-5)


def test_a_focal_length_that_is_needed_and_missing_is_asked_for():
    model = model_of(InverseRamp())
    for _ in range(2):  # the second time before the network runs
        with pytest.raises(UnknownFocalLength, match=r"--focal-px .* or --focal-from CHECKPOINT"):
            model.predict(np.zeros((16, 16, 3), np.uint8))
    depth = model_of(Brightness()).predict(np.zeros((16, 16, 3), np.uint8))
    assert depth.f_px is None and depth.f_px_source == "unknown"
    with pytest.raises(ValueError, match="focal_px"):
        depth.points()


def test_a_networks_own_estimate_is_used_and_called_an_estimate(tmp_path):
    depth = model_of(FocalEstimating()).predict(np.zeros((100, 200, 3), np.uint8), image_size=(32, 48))
    assert depth.f_px == pytest.approx(0.8 * 200) and depth.photo.f_px_is_estimate  # in pixels of the image, not of the batch
    assert depth.f_px_source == "estimated by FocalEstimating"
    np.testing.assert_allclose(depth.depth_m[:, 50:], 8.0, rtol=1e-6)
    assert np.isnan(depth.depth_m[:, :50]).all()  # where the network sees no surface
    assert np.isnan(depth.points()[:, :50]).all() and np.isfinite(depth.points()[:, 50:]).all()
    record = (depth.save(tmp_path, "x", ["npy"])[-1]).read_text()
    assert '"f_px_is_estimate": true' in record and "estimated by FocalEstimating" in record
    given = model_of(FocalEstimating()).predict(np.zeros((100, 200, 3), np.uint8), focal_px=100)
    assert given.f_px == 100 and not given.photo.f_px_is_estimate
    np.testing.assert_allclose(given.depth_m[:, 50:], 5.0, rtol=1e-6)


def test_an_estimate_turns_canonical_depth_into_metres():
    depths = model_of(CanonicalEstimating()).predict([np.zeros((16, 32, 3), np.uint8)] * 2, focal_px=[None, 64])
    assert [depth.f_px for depth in depths] == [pytest.approx(0.8 * 32), 64]
    np.testing.assert_allclose(depths[0].depth_m, 8.0, rtol=1e-5)  # f / (W * 0.1)
    np.testing.assert_allclose(depths[1].depth_m, 20.0, rtol=1e-5)


def test_another_network_estimates_the_focal_length_of_those_that_have_none():
    model = model_of(InverseRamp(), focal_model=model_of(FocalEstimating()))
    depths = model.predict([np.zeros((16, 32, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)], focal_px=[None, 40])
    assert depths[0].f_px == pytest.approx(0.8 * 32) and depths[0].f_px_source == "estimated by FocalEstimating"
    assert depths[1].f_px == 40 and not depths[1].photo.f_px_is_estimate
    np.testing.assert_allclose(depths[0].depth_m / depths[1].depth_m, 0.8 * 32 / 40, rtol=1e-5)
    with pytest.raises(ValueError, match="--focal-from Brightness: this network does not estimate"):
        model_of(InverseRamp(), focal_model=model_of(Brightness())).predict(np.zeros((16, 16, 3), np.uint8))


def test_prompts_go_to_prompted_networks_only(tmp_path):
    teacher = Predictor(build(TEACHER_NETWORK), build({**PREPARATION, "init_args": {"maps": ["interpolated"]}}))
    prompted = DepthModel(teacher, "teacher", torch.device("cpu"))
    image = noise_image(32, 48)
    with pytest.raises(ValueError, match=r"teacher is a prompted network; .*--prompt"):
        prompted.predict(image)
    with pytest.raises(ValueError, match="Brightness sees the image alone"):
        model_of(Brightness()).predict(image, prompt_m=np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="prompt_m of image_0: not one pixel"):
        prompted.predict(image, prompt_m=np.zeros((4, 4), np.float32))


def test_precision_is_refused_where_it_is_not_had(student, monkeypatch):
    with pytest.raises(ValueError, match="--precision 16 needs a GPU, and this is cpu"):
        mdpretrain.load(student, device="cpu", precision="16")
    with pytest.raises(ValueError, match="--precision bf16: mps has no bfloat16"):
        check_precision("bf16", torch.device("mps"))
    with pytest.raises(ValueError, match="--precision 8"):
        check_precision("8", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(ValueError, match="cuda has no bfloat16; use 16 or 32"):
        check_precision("bf16", torch.device("cuda"))
    check_precision("16", torch.device("cuda"))


def test_half_precision_is_near_and_float32_comes_back(student):
    image = noise_image(48, 64)
    whole = mdpretrain.load(student, device="cpu").predict(image, focal_px=60, long_side=64).depth_m
    half = mdpretrain.load(student, device="cpu", precision="bf16").predict(image, focal_px=60, long_side=64).depth_m
    assert half.dtype == np.float32 and not np.array_equal(half, whole)
    np.testing.assert_allclose(half, whole, rtol=0.05)


def test_a_prediction_without_one_finite_pixel_is_an_error():
    with pytest.raises(ValueError, match=r"image_0: not one pixel of the predicted depth is finite and positive$"):
        model_of(Overflowing()).predict(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="half precision may overflow"):
        model_of(Overflowing(), "bf16").predict(np.zeros((16, 16, 3), np.uint8))


def test_too_little_memory_is_one_sentence():
    class Greedy(Brightness):
        def forward(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match=r"a batch of 1 at 518 x 518 does not fit .*--batch-size"):
        model_of(Greedy()).predict(np.zeros((16, 16, 3), np.uint8))


def test_load_names_what_it_cannot_load(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        mdpretrain.load(tmp_path / "nothing", device="cpu")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        mdpretrain.laod  # noqa: B018
    assert mdpretrain.load is loading.load


def test_enlarging_keeps_a_constant_depth():
    torch.testing.assert_close(enlarge_depth(torch.full((1, 1, 3, 4), 2.5), 7, 9), torch.full((1, 1, 7, 9), 2.5))
