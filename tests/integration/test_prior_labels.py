"""Priors as sidecars, the whole road: ``mdpretrain label --as prior`` -> a mixture row's sidecars -> ``StoredPrior`` -> a training step."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch
from test_labeling import digests, make_sample
from transformers_models import tiny_depth_anything

import tests.training_parts as parts
from data_shards.build_tasks import Task
from data_shards.index import IndexedShard, list_shards
from data_shards.mixture import MixtureSource
from data_shards.samples import sample_to_members
from data_shards.schema import DepthType
from data_shards.writer import write_shard
from mdpretrain.cli import main
from mdpretrain.data.collate import collate
from mdpretrain.data.pipeline import PromptOptions, RowOptions, SamplePipeline
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.labeling.prior_labeler import FLOOR, PriorLabeler, PriorRequest, stored_prior
from mdpretrain.networks.module_config import module_config, record_and_build
from mdpretrain.networks.priors import CheckpointPrior, StoredPrior
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining

REQUEST = PriorRequest(long_side=64, multiple=16)
SIZE = ["--long-side", "64", "--multiple", "16", "--quiet", "--device", "cpu"]


@pytest.fixture
def shards(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two shards; the second has a sample whose image is cut short and one whose depth is along the ray."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "toy-000000.tar", [make_sample(number, camera=number != 1) for number in range(3)])
    ray = make_sample(4)
    ray = dataclasses.replace(ray, meta=dataclasses.replace(ray.meta, depth_type=DepthType.RAY))
    damaged = sample_to_members(make_sample(5))
    damaged["image.png"] = damaged["image.png"][:60]
    write_shard(folder / "toy-000001.tar", [make_sample(3, metric=False), ray, ("scene/005", damaged)])
    return folder


def save(network: torch.nn.Module, path: pathlib.Path, **modules: torch.nn.Module) -> pathlib.Path:
    """A checkpoint as the tasks write it."""
    modules = {"network": network, **modules}
    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    torch.save({**{name: module_config(module) for name, module in modules.items()}, "state_dict": state}, path)
    return path


def affine_fit_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance between ``expected`` and the best affine map of ``found``, over the range of ``expected``."""
    design = np.stack([found.flatten().numpy(), np.ones(found.numel())], axis=1).astype(np.float64)
    target = expected.flatten().numpy().astype(np.float64)
    error = design @ np.linalg.lstsq(design, target, rcond=None)[0] - target
    return float(np.abs(error).max() / (target.max() - target.min()))


@pytest.mark.parametrize("kind", ["affine", "student"])
def test_a_stored_prior_is_the_networks_own_up_to_an_affine_map(shards: pathlib.Path, tmp_path: pathlib.Path, kind: str) -> None:
    network = parts.build(parts.PRIOR_NETWORK if kind == "affine" else parts.STUDENT_NETWORK)
    file = save(network, tmp_path / "prior.ckpt")
    output = tmp_path / "priors"
    assert main(["label", "--as", "prior", "--checkpoint", str(file), "--shards", str(shards), "--output", str(output), *SIZE]) == 0
    assert "scene/005" in json.loads((output / "rejects.jsonl").read_text())["key"]
    assert [IndexedShard(path).keys for path in list_shards(output)] == [IndexedShard(path).keys for path in list_shards(shards)]

    reader = SourceReader(MixtureSource(str(shards), sidecars=[str(output)]))
    plain = SourceReader(MixtureSource(str(shards)))
    pipeline = SamplePipeline(None, None, PromptOptions((50, 80)), 0, 64, 16)
    direct = record_and_build(CheckpointPrior, network=network)
    for number in range(5):
        row = pipeline(reader.sample(number), number, RowOptions())
        assert row.prior_depth is not None and plain.sample(number).prior is None
        batch = collate([row])
        assert affine_fit_error(StoredPrior()(batch), direct(batch)) < 1e-3, row.key
        assert torch.equal(batch.depth, collate([pipeline(plain.sample(number), number, RowOptions())]).depth)


def test_a_teacher_trains_from_stored_priors_with_and_without(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    prior = record_and_build(CheckpointPrior, network=parts.build(parts.PRIOR_NETWORK))
    PriorLabeler(prior, REQUEST, batch_size=2).label_folder(shards, tmp_path / "priors", quiet=True)
    reader = SourceReader(MixtureSource(str(shards), sidecars=[str(tmp_path / "priors")]))
    pipeline = SamplePipeline((48, 64), None, PromptOptions((50, 80)), 0)
    samples = [reader.sample(0), dataclasses.replace(reader.sample(2), prior=None)]
    batch = collate([pipeline(sample, number, RowOptions()) for number, sample in enumerate(samples)])
    assert batch.prior_depth is not None and batch.prior_depth[0].all() and not batch.prior_depth[1].any()
    task = PromptedPretraining(parts.build(parts.TEACHER_NETWORK), parts.mae_table(), parts.build(parts.PREPARATION), StoredPrior())
    losses = task.sample_losses(batch)
    sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.network.parameters())


def test_stored_priors_have_their_closed_form() -> None:
    inverse = np.array([[-3.0, -1.0], [0.0, 5.0]], dtype=np.float32)
    stored = stored_prior(inverse)
    np.testing.assert_allclose(1 / stored, FLOOR + (1 - FLOOR) * (inverse + 3) / 8, rtol=1e-6)
    assert stored.dtype == np.float32 and stored.min() == 1.0 and stored.max() == pytest.approx(100)
    assert np.array_equal(stored_prior(np.full((2, 3), 7.0, np.float32)), np.ones((2, 3), np.float32))


def test_the_task_of_an_array_and_another_batch_size_write_the_same_folder(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def labeler(seed: int = 0) -> PriorLabeler:
        return PriorLabeler(record_and_build(CheckpointPrior, network=parts.build(parts.PRIOR_NETWORK, seed)), REQUEST)

    result = labeler().label_folder(shards, tmp_path / "whole", quiet=True)
    assert (result.labelled, result.rejected, result.shards) == (5, 1, 2)
    for number in (1, 0):
        labeler().label_folder(shards, tmp_path / "shared", quiet=True, task=Task(number, 2))
    assert digests(tmp_path / "shared") == digests(tmp_path / "whole")
    assert labeler().label_folder(shards, tmp_path / "whole", quiet=True).reused == 2
    with pytest.raises(ValueError, match="holds labels with another prior"):
        labeler(seed=1).label_folder(shards, tmp_path / "whole", quiet=True)


def test_a_transformers_folder_is_a_prior_too(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = tiny_depth_anything(transformers)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 42, "width": 42}}))
    call = ["label", "--as", "prior", "--prior-model", str(tmp_path / "model"), "--shards", str(shards)]
    assert main([*call, "--output", str(tmp_path / "priors"), *SIZE]) == 0
    sample = SourceReader(MixtureSource(str(shards), sidecars=[str(tmp_path / "priors")])).sample(0)
    assert sample.prior is not None and sample.prior.min() == pytest.approx(1) and sample.prior.max() == pytest.approx(100, rel=1e-3)


def test_mistaken_calls_are_sentences(shards: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = save(parts.build(parts.TEACHER_NETWORK), tmp_path / "teacher.ckpt", preparation=parts.build(parts.PREPARATION))
    rest = ["--shards", str(shards), "--output", str(tmp_path / "out"), *SIZE]
    for call, words in (
        (["--as", "prior", "--checkpoint", str(teacher)], "the network needs a prompt, so it cannot be the prior of one"),
        (["--as", "prior", "--checkpoint", str(teacher), "--prompt-count", "5", "9"], "a prior sees the image alone"),
        (["--prior-model", str(tmp_path)], "makes priors and no labels: add --as prior"),
        (["--as", "prior", "--prior-model", str(tmp_path), "--weights", "ema"], "--weights ema is of a checkpoint"),
    ):
        assert main(["label", *call, *rest]) != 0
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
