"""ZeRO-3 networks are whole nowhere but in process 0: the others build on the meta device and are handed their parts."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
import torch
from sharded_runs import in_group
from torch import nn
from training_parts import PRIOR_NETWORK

from mdpretrain.engine.deepspeed_strategy import make_importable
from mdpretrain.engine.meta_build import STRATEGY, building_device, hand_out_parameters, hands_out_parameters
from mdpretrain.networks.loading import load_network
from mdpretrain.networks.module_config import build_module

CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


@pytest.fixture(scope="module", autouse=True)
def deepspeed_once() -> None:
    """Imported here, so that no forked process has to."""
    make_importable(on_gpu=False)


def built(config: dict[str, Any], on_meta: bool) -> nn.Module:
    torch.manual_seed(7)
    with building_device(on_meta):
        return build_module(config)


def gathered(module: nn.Module) -> dict[str, torch.Tensor]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("half", [False, True])
def test_every_process_gets_its_part_of_what_process_0_built(tmp_path: pathlib.Path, half: bool) -> None:
    config = PRIOR_NETWORK

    def work(rank: int) -> bool:
        torch.distributed.init_process_group("gloo")
        whole = built(config, on_meta=False)
        network = built(config, on_meta=True)
        before = list(network.parameters())
        before[0].marked = "kept"
        assert [parameter.is_meta for parameter in before] == [rank != 0] * len(before)
        optimizer = torch.optim.AdamW(before)
        hand_out_parameters(network, CONFIG | ({"bf16": {"enabled": True}} if half else {}), torch.device("cpu"))
        assert all(now is then for now, then in zip(network.parameters(), before, strict=True)) and before[0].marked == "kept"
        assert all(now is then for now, then in zip(optimizer.param_groups[0]["params"], before, strict=True))
        parts = [parameter.ds_tensor.numel() for parameter in before]
        sizes = [parameter.numel() for parameter in whole.parameters()]
        assert parts == [-(-size // 2) for size in sizes] and sum(parameter.numel() for parameter in before) == 0
        values = gathered(network)
        dtype = torch.bfloat16 if half else torch.float32
        for name, value in whole.named_parameters():
            assert torch.equal(values[name], value.to(dtype)) and values[name].dtype == dtype, name
        buffers = dict(network.named_buffers())
        assert buffers
        for name, buffer in whole.named_buffers():
            assert torch.equal(buffers[name], buffer) and buffers[name].dtype == buffer.dtype, name
        assert network.state_dict().keys() == whole.state_dict().keys()
        return True

    assert in_group(2, work, tmp_path)


def test_a_network_out_of_a_checkpoint_is_handed_out_too(tmp_path: pathlib.Path) -> None:
    network = built(PRIOR_NETWORK, on_meta=False)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"network": PRIOR_NETWORK, "state_dict": weights, "pytorch-lightning_version": "2.5"}, tmp_path / "some.ckpt")

    def work(rank: int) -> bool:
        torch.distributed.init_process_group("gloo")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with building_device(True):
                loaded = load_network(tmp_path / "some.ckpt")
        assert next(loaded.parameters()).is_meta == (rank != 0)
        hand_out_parameters(loaded, CONFIG, torch.device("cpu"))
        values = gathered(loaded)
        return all(torch.equal(values[name], value) for name, value in network.named_parameters())

    assert in_group(2, work, tmp_path / "log")


class Careless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.table = torch.arange(3)


def test_a_tensor_that_cannot_be_handed_out_is_named(tmp_path: pathlib.Path) -> None:
    def work(rank: int) -> bool:
        torch.distributed.init_process_group("gloo")
        with building_device(True):
            network = nn.Sequential(Careless())
        with pytest.raises(ValueError, match=r"Careless \(0\) keeps the tensor table outside its buffers"):
            hand_out_parameters(network, CONFIG, torch.device("cpu"))
        return True

    assert in_group(2, work, tmp_path)


def test_only_zero_3_hands_out() -> None:
    assert hands_out_parameters({"class_path": STRATEGY, "init_args": {"stage": 3}})
    assert not hands_out_parameters({"class_path": STRATEGY, "init_args": {"stage": 2}})
    assert not hands_out_parameters("ddp") and not hands_out_parameters(None)
