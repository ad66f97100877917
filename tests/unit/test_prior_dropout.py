"""No prior: what the preparation makes of it, alone and in a batch with others, in training by drop-out and in use."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_parts import PREPARATION, PRIOR_NETWORK, TEACHER_NETWORK, batch_loader, build, mae_table, make_batch, make_trainer

from mdpretrain.networks.priors import StoredPrior
from mdpretrain.prompts.preparation import MAPS, PromptPreparation
from mdpretrain.structures import DepthBatch, DepthPrediction, PreparedPrompt
from mdpretrain.tasks.predictor import Predictor, load_predictor
from mdpretrain.tasks.prior_dropout import drop_prior, dropped
from mdpretrain.tasks.prompted_pretraining import PromptedPretraining
from mdpretrain.tasks.prompting import prepare_batch

CHECKPOINT_PRIOR = {
    "class_path": "mdpretrain.networks.priors.CheckpointPrior",
    "init_args": {"checkpoint": None, "network": PRIOR_NETWORK},
}


def split_mix(seed: int) -> float:
    """SplitMix64's first output after ``seed``, in [0, 1), in Python's own whole numbers."""
    mask = (1 << 64) - 1
    state = seed * 0x9E3779B97F4A7C15 & mask
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return ((state ^ state >> 31) >> 11) / 2**53


def test_which_samples_lose_their_prior_is_a_function_of_their_position():
    positions = torch.tensor([-1, 0, 1, 2, 17, 10**6, 2**40 + 3])
    for probability in (0.1, 0.5, 0.9):
        expected = [split_mix(position + 0x7072696F72) < probability for position in positions.tolist()]
        assert dropped(positions, probability).tolist() == expected
    assert torch.equal(dropped(positions.flip(0), 0.5).flip(0), dropped(positions, 0.5))
    assert not dropped(positions, 0.0).any() and dropped(positions, 1.0).all()


def test_the_share_that_is_dropped_is_the_probability():
    many = torch.arange(40_000)
    for probability in (0.05, 0.3):
        lost = dropped(many, probability).double()
        error = (probability * (1 - probability) / len(many)) ** 0.5
        assert abs(lost.mean() - probability) < 4 * error
        neighbours = (lost[1:] * lost[:-1]).mean()  # one position says nothing about the next
        assert abs(neighbours - probability**2) < 4 * (probability**2 / len(many)) ** 0.5


def test_dropping_makes_the_host_wait_for_nothing():
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with NoWaiting():
        kept = drop_prior(torch.rand(4, 1, 3, 5), torch.arange(4), 0.5)
    assert kept.isnan().any() and not kept.isnan().all()


def test_an_image_whose_prior_is_nan_is_prepared_as_without_a_prior():
    """In a batch with images that have one, which do not change by it."""
    preparation = PromptPreparation(maps=MAPS)
    batch = make_batch(size=3, prompt_points=80)
    prior = 1 / batch.depth + 0.05 * torch.rand(batch.depth.shape)
    mixed = prior.clone()
    mixed[1] = torch.nan
    found, alone, whole = (preparation(batch.prompt, p).inverse_depth_maps for p in (mixed, None, prior))
    torch.testing.assert_close(found[1], alone[1])
    torch.testing.assert_close(found[::2], whole[::2])
    assert not torch.allclose(whole[1], alone[1], rtol=0.01)


def test_stored_priors_of_some_images_only_share_a_batch():
    batch = make_batch(size=2, prompt_points=80)
    stored = torch.cat([1.3 * batch.depth[:1], torch.zeros_like(batch.depth[1:])])
    preparation = PromptPreparation()
    found = prepare_batch(dataclasses.replace(batch, prior_depth=stored), StoredPrior(), preparation).prepared
    alone = prepare_batch(batch, None, preparation).prepared
    assert found is not None and alone is not None
    torch.testing.assert_close(found.inverse_depth_maps[1], alone.inverse_depth_maps[1])
    torch.testing.assert_close(found.named("global")[0], 1 / batch.depth[0], rtol=1e-3, atol=1e-4)  # a perfect prior but for its scale
    assert not torch.allclose(alone.named("global")[0], 1 / batch.depth[0], rtol=0.1)


class Watched(torch.nn.Module):
    """A network that notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: PreparedPrompt | None = None

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        self.seen = batch.prepared
        return build(TEACHER_NETWORK)(batch)


def test_training_drops_priors_by_position_and_validation_drops_none():
    network, prior = Watched(), build(CHECKPOINT_PRIOR, seed=1)
    task = PromptedPretraining(network, mae_table(), build(PREPARATION), prior, prior_dropout=0.5)
    batch = make_batch(size=6, prompt_points=60)
    lost = dropped(batch.position, 0.5)
    assert lost.any() and not lost.all()
    with_prior = prepare_batch(batch, prior, task.preparation).prepared.inverse_depth_maps
    without = prepare_batch(batch, None, task.preparation).prepared.inverse_depth_maps
    expected = torch.where(lost[:, None, None, None], without, with_prior)
    for _ in range(2):  # a step that is computed again drops the same ones, whatever torch's generator did meanwhile
        torch.rand(7)
        task.train().predict_depth(batch)
        torch.testing.assert_close(network.seen.inverse_depth_maps, expected)
    task.predict_depth(batch.rows(slice(2, 4)))  # nor does it matter which process they are on
    torch.testing.assert_close(network.seen.named("global"), expected[2:4, :1])  # ("local" may choose another of equally near points)
    task.eval().predict_depth(batch)
    torch.testing.assert_close(network.seen.inverse_depth_maps, with_prior)


def test_a_dropout_that_cannot_be_is_refused():
    for value in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"prior_dropout is {value}; give a probability"):
            PromptedPretraining(build(TEACHER_NETWORK), mae_table(), build(PREPARATION), StoredPrior(), prior_dropout=value)
    with pytest.raises(ValueError, match="there is no prior to drop"):
        PromptedPretraining(build(TEACHER_NETWORK), mae_table(), build(PREPARATION), None, prior_dropout=0.1)


def test_a_teacher_trained_with_dropout_predicts_without_its_prior(tmp_path: pathlib.Path):
    prior = build(CHECKPOINT_PRIOR, seed=1)
    task = PromptedPretraining(build(TEACHER_NETWORK), mae_table(), build(PREPARATION), prior, prior_dropout=0.5)
    trainer = make_trainer(tmp_path, 4)
    trainer.fit(task, batch_loader(4, prompt_points=60))
    trainer.save_checkpoint(tmp_path / "step_00000004.ckpt")
    batch = make_batch(9, prompt_points=60)
    bare, whole = load_predictor(tmp_path, without_prior=True), load_predictor(tmp_path)
    assert bare.prior is None and bare.needs_prompt and bare.fingerprint != whole.fingerprint
    expected = Predictor(whole.network, whole.preparation, None).depth_m(batch)
    assert torch.equal(bare.depth_m(batch), expected) and not torch.allclose(expected, whole.depth_m(batch), rtol=1e-3)
    empty = dataclasses.replace(batch, prompt=dataclasses.replace(batch.prompt, mask=torch.zeros_like(batch.prompt.mask)))
    assert bare.depth_m(empty).isfinite().all()
