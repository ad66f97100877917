"""A checkpoint by parameter name: filled into parameters with another order of memory, and refused where it does not fit."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import nn

from mdpretrain.engine.deepspeed_files import DeepSpeedFolder
from mdpretrain.engine.state_filling import fill_optimizer
from mdpretrain.engine.training_state import PARAMETER_NAMES, LightningFile


def _network(seed: int, channels_last: bool) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    return network.to(memory_format=torch.channels_last) if channels_last else network  # type: ignore[call-overload]


def _optimizer(network: nn.Module, **options: Any) -> torch.optim.AdamW:
    groups = [{"params": [p for p in network.parameters() if p.dim() > 1]}, {"params": [p for p in network.parameters() if p.dim() == 1]}]
    return torch.optim.AdamW(groups, lr=0.1, fused=True, **options)


def _names(network: nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in network.named_parameters()}


def _step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _content(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = [[_names(network)[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    return {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], PARAMETER_NAMES: names}


def test_moments_take_the_memory_order_of_their_parameter() -> None:
    first = _network(1, channels_last=False)
    first_optimizer = _optimizer(first)
    _step(first, first_optimizer)
    state = LightningFile(pathlib.Path("a.ckpt"), _content(first, first_optimizer))
    second = _network(2, channels_last=True)
    second.load_state_dict(first.state_dict())
    second_optimizer = _optimizer(second)
    fill_optimizer(second_optimizer, _names(second), state)
    for parameter in second.parameters():
        assert second_optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()
    for network, optimizer in ((first, first_optimizer), (second, second_optimizer)):
        _step(network, optimizer)
    for one, two in zip(first.parameters(), second.parameters()):
        torch.testing.assert_close(one, two)


def test_groups_in_another_order_and_options_of_the_run() -> None:
    network = _network(1, channels_last=False)
    optimizer = _optimizer(network)
    _step(network, optimizer)
    optimizer.param_groups[1]["lr"] = 0.025
    state = LightningFile(pathlib.Path("a.ckpt"), _content(network, optimizer))
    parameters = list(network.parameters())
    other = torch.optim.AdamW([{"params": parameters[1::2]}, {"params": parameters[0::2][::-1]}], lr=9.0, foreach=True)
    fill_optimizer(other, _names(network), state)
    assert [group["lr"] for group in other.param_groups] == [0.025, 0.1]
    assert other.param_groups[0]["foreach"] and not other.param_groups[0]["fused"]
    for parameter in parameters:
        assert torch.equal(other.state[parameter]["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])


def test_what_does_not_fit_is_named(tmp_path: pathlib.Path) -> None:
    network = _network(1, channels_last=False)
    optimizer = _optimizer(network)
    _step(network, optimizer)
    content = _content(network, optimizer)
    bigger = nn.Sequential(*network, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'2\.bias' is trained by the run only"):
        fill_optimizer(_optimizer(bigger), _names(bigger), LightningFile(tmp_path / "a.ckpt", content))
    with pytest.raises(ValueError, match=r"a\.ckpt does not name the parameters of one optimiser"):
        fill_optimizer(optimizer, _names(network), LightningFile(tmp_path / "a.ckpt", {**content, PARAMETER_NAMES: None}))
    with pytest.raises(ValueError, match=r"DeepSpeed's files \*model_states\.pt are missing"):
        DeepSpeedFolder(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt cannot be read"):
        DeepSpeedFolder(tmp_path)
