"""What is counted on fake tensors against what a real step does: FLOPs by torch's counter, memory by the allocator's own account."""

from __future__ import annotations

import gc

import pytest
import torch
from network_parts import TINY_STUDENT, TINY_TEACHER, built
from test_networks_multi_scale import ENCODER as CROPS
from torch.utils.flop_counter import FlopCounterMode

from mdpretrain.losses.table import LossTable
from mdpretrain.networks.blank_batch import blank_batch
from mdpretrain.networks.fake_step import FakeNetwork, set_checkpointing
from mdpretrain.networks.live_memory import LiveMemory

LOSS = LossTable({"default": [{"name": "mae"}]})
WIDER = {
    "class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder",
    "init_args": {
        "model_name": "vit_tiny_patch16_dinov3_qkvb",
        "layers": [1, 3, 5, 7],
        "model_args": {"embed_dim": 96, "depth": 8, "num_heads": 3},
    },
}
CASES = [(TINY_TEACHER, {"encoder": WIDER, "output": "direct"}), (TINY_STUDENT, {"encoder": CROPS})]


def loss_of(prediction, batch):
    return LOSS(prediction, batch)[0]


def allocator_peak(function) -> int:
    """The most bytes that torch's CPU allocator had handed out at once while ``function`` ran, by its own log."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert events and peak > 0
    return peak


@pytest.mark.parametrize(
    ("case", "checkpointing", "precision"),
    [(0, False, torch.float32), (0, True, torch.bfloat16), (1, False, torch.bfloat16), (1, True, torch.float32)],
)
def test_counted_activations_are_those_of_a_real_step(case, checkpointing, precision):
    """Within 25 %."""
    config, changes = CASES[case]
    images, height, width = 2, 96, 128
    network = built(config, **changes).train()
    fake = FakeNetwork(lambda: built(config, **changes))
    assert fake.parameters == sum(parameter.numel() for parameter in network.parameters()) == fake.trainable
    counted = fake.train_step(loss_of, images, height, width, precision, checkpointing)

    set_checkpointing(network, checkpointing)
    batch = blank_batch(images, height, width, fake.maps)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step():
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            value = loss_of(network(batch), batch)
        value.backward()

    step()
    measured = allocator_peak(step)
    print(f"counted {counted.peak_bytes}, measured {measured}: {counted.peak_bytes / measured:.3f}")
    assert counted.peak_bytes == pytest.approx(measured, rel=0.25), f"counted {counted.peak_bytes}, measured {measured}"
    assert counted.peak_bytes > counted.weight_copy_bytes and (counted.weight_copy_bytes > 0) == (precision is torch.bfloat16)


@pytest.mark.parametrize(("config", "changes"), CASES)
def test_flops_are_torchs_own_count_of_a_real_step(config, changes):
    network = built(config, **changes).train()
    fake = FakeNetwork(lambda: built(config, **changes))
    batch = blank_batch(1, 64, 64, fake.maps)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # torch's counter does not know the CPU's fused attention
        with FlopCounterMode(display=False) as counter:
            value = loss_of(network(batch), batch)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            value.backward()
    cost = fake.train_step(loss_of, 1, 64, 64)
    assert cost.forward_flops == forward
    # fused attention computes its score matrix again in the backward pass: one product more than the plain one
    assert counter.get_total_flops() <= cost.backward_flops < 1.1 * counter.get_total_flops()
    again = fake.train_step(loss_of, 1, 64, 64, checkpointing=True)
    assert again.forward_flops == forward and cost.backward_flops < again.backward_flops < cost.backward_flops + forward


def test_memory_and_flops_grow_with_the_images_and_checkpointing_saves_memory():
    fake = FakeNetwork(lambda: built(CASES[0][0], **CASES[0][1]))
    one, three = (fake.train_step(loss_of, images, 96, 128) for images in (1, 3))
    assert three.forward_flops == 3 * one.forward_flops
    assert three.peak_bytes == pytest.approx(3 * one.peak_bytes, rel=0.05)
    assert fake.train_step(loss_of, 3, 96, 128, checkpointing=True).peak_bytes < 0.8 * three.peak_bytes
    inference = fake.inference(3, 96, 128)
    assert inference.forward_flops == three.forward_flops and inference.backward_flops == 0
    assert inference.peak_bytes < 0.7 * three.peak_bytes


def test_live_memory_follows_tensors_until_they_are_gone():
    held = torch.zeros(1000)
    with LiveMemory([], [held]) as memory:
        view, copy = held.view(10, 100), held.double()
        held += 1
        assert (memory.live_bytes, memory.weight_copy_bytes) == (8000, 8000)
        other = copy + 1
        del copy
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 16000)
        del other, view
    assert (memory.live_bytes, memory.peak_bytes) == (0, 16000)
