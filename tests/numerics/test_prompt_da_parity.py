"""PromptDA against transformers' PromptDepthAnything with the same random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from network_parts import made_batch
from prompt_da_parts import random_transformers_model, tiny_prompt_da

from mdpretrain.structures import DepthBatch, PreparedPrompt, SparsePrompt

pytest.importorskip("transformers")


def batch_with_prompt(prompt_m: torch.Tensor) -> DepthBatch:
    """A batch with a dense prompt at the image's size."""
    batch = made_batch(prompt_m.shape[-2], prompt_m.shape[-1], batch=len(prompt_m))
    prompt = SparsePrompt(prompt_m, torch.ones_like(prompt_m, dtype=torch.bool))
    prepared = PreparedPrompt(1 / prompt_m, ("filled",), prompt, torch.ones(len(prompt_m), dtype=torch.bool))
    return dataclasses.replace(batch, prompt=prompt, prepared=prepared)


@torch.no_grad()
def theirs_and_ours(model, network, batch, prompt_m):
    image = (batch.image - network.encoder.mean) / network.encoder.std
    return model(image, prompt_depth=prompt_m).predicted_depth, network(batch).values[:, 0]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("height", "width"), [(70, 70), (42, 98), (126, 56)])
def test_depth_equals_transformers_with_the_same_random_weights(tmp_path, gated, height, width):
    """At other sizes than the position embeddings' own (70), with odd numbers of patches, for both kinds of MLP."""
    model = random_transformers_model(gated)
    network = tiny_prompt_da(model, tmp_path)
    prompt_m = 0.5 + 4 * torch.rand(2, 1, height, width)
    expected, found = theirs_and_ours(model, network, batch_with_prompt(prompt_m), prompt_m)
    assert expected.std() > 0.05, "the oracle must say something"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_prompt_at_a_sensors_own_size_equals_transformers(tmp_path):
    """A low-resolution prompt, enlarged to the image by repetition and read with ``prompt_size``, is the sensor's prompt again."""
    model = random_transformers_model()
    network = tiny_prompt_da(model, tmp_path, prompt_size=[7, 14])
    prompt_m = 1 + torch.rand(1, 1, 7, 14)
    batch = batch_with_prompt(prompt_m.repeat_interleave(10, dim=2).repeat_interleave(5, dim=3))
    torch.testing.assert_close(*theirs_and_ours(model, network, batch, prompt_m), rtol=0, atol=1e-4)


def test_position_embeddings_must_be_resized_as_the_weights_were_trained(tmp_path):
    """With timm's antialiased resize the same weights are another network at another size: the option is not decoration."""
    model = random_transformers_model()
    network = tiny_prompt_da(model, tmp_path, encoder={"position_resize": "antialiased"})
    for size, equal in ((70, True), (42, False)):
        prompt_m = 1 + torch.rand(1, 1, size, size)
        expected, found = theirs_and_ours(model, network, batch_with_prompt(prompt_m), prompt_m)
        assert torch.allclose(found, expected, rtol=0, atol=1e-4) == equal
