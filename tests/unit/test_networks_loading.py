"""Networks out of checkpoints, and optimiser groups: what comes back is what was saved, and wrong files are sentences."""

from __future__ import annotations

import pathlib

import pytest
import torch
from network_parts import TINY_ANY_DEPTH, TINY_ENCODER, TINY_STUDENT, TINY_TEACHER, built, made_batch

from mdpretrain.networks.loading import load_network, network_to_config
from mdpretrain.networks.parameter_groups import parameter_groups


def saved(module: torch.nn.Module, file: pathlib.Path, **changes: object) -> pathlib.Path:
    """A checkpoint as the tasks write it."""
    state = {f"network.{key}": value for key, value in module.state_dict().items()}
    torch.save({"network": network_to_config(module), "state_dict": state, **changes}, file)
    return file


@pytest.mark.parametrize("config", [TINY_ANY_DEPTH, TINY_TEACHER, TINY_STUDENT])
def test_a_network_comes_back_with_the_same_output_to_the_bit(config, tmp_path):
    network = built(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(7)
    loaded = load_network(saved(network, tmp_path / "n.ckpt"))
    assert not loaded.training
    assert torch.equal(loaded(made_batch()).values, network.eval()(made_batch()).values)
    assert network_to_config(loaded) == network_to_config(network)


def test_a_compiled_networks_keys_load(tmp_path):
    network = built(TINY_STUDENT)
    state = {f"network._orig_mod.{key}": value for key, value in network.state_dict().items()}
    loaded = load_network(saved(network, tmp_path / "n.ckpt", state_dict=state))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values()))


def test_checkpoints_of_other_networks_are_refused_by_name(tmp_path):
    network = built(TINY_STUDENT)
    wide = network_to_config(built(TINY_STUDENT, features=32))
    with pytest.raises(ValueError, match=r"wide\.ckpt .*reassemble\.0\.project\.weight' has shape"):
        load_network(saved(network, tmp_path / "wide.ckpt", network=wide))
    teacher = network_to_config(built(TINY_TEACHER))
    with pytest.raises(ValueError, match=r"other\.ckpt does not hold the weights of .*MetricAnythingTeacher .*has shape"):
        load_network(saved(network, tmp_path / "other.ckpt", network=teacher))
    extra = {f"network.{key}": value for key, value in network.state_dict().items()} | {"network.more": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"'more' is not part of this network"):
        load_network(saved(network, tmp_path / "extra.ckpt", state_dict=extra))
    with pytest.raises(ValueError, match=r"holds no 'prior'"):
        load_network(saved(network, tmp_path / "n.ckpt"), "prior")
    with pytest.raises(ValueError, match=r"absent\.ckpt does not exist"):
        load_network(tmp_path / "absent.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "n.ckpt").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"cut\.ckpt cannot be read"):
        load_network(tmp_path / "cut.ckpt")


def test_only_this_packages_classes_are_built_at_any_depth(tmp_path):
    network = built(TINY_STUDENT)
    foreign = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "ran")]}}
    for config in (foreign, {**TINY_STUDENT, "init_args": {"encoder": foreign}}, {**TINY_STUDENT, "init_args": {"scales": [foreign]}}):
        with pytest.raises(ValueError, match=r"asks for the class 'subprocess\.Popen'"):
            load_network(saved(network, tmp_path / "evil.ckpt", network=config))
    assert not (tmp_path / "ran").exists()
    not_a_network = {"class_path": "mdpretrain.networks.encoders.padding.Padding", "init_args": {}}
    with pytest.raises(ValueError, match=r"n\.ckpt.*Padding"):
        load_network(saved(network, tmp_path / "n.ckpt", network=not_a_network))


@pytest.mark.parametrize("config", [TINY_ANY_DEPTH, TINY_TEACHER, TINY_STUDENT])
def test_groups_hold_every_trainable_parameter_once(config):
    network = built(config)
    groups = parameter_groups(network, lr=1e-3, encoder_lr=1e-5, weight_decay=0.1)
    assert [g["name"] for g in groups] == ["encoder", "encoder (no decay)", "decoder", "decoder (no decay)"]
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    encoder = {id(p) for p in network.encoder.parameters()}
    decayed_kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    decayed = {id(m.weight) for m in network.modules() if isinstance(m, decayed_kinds)}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (1e-5 if id(parameter) in encoder else 1e-3)
            assert group["weight_decay"] == (0.1 if id(parameter) in decayed else 0.0)
    assert all(g["weight_decay"] == 0.1 for g in parameter_groups(network, 1e-3, weight_decay=0.1, decay_vectors=True))


def test_a_frozen_encoder_is_in_no_group():
    frozen = {**TINY_ENCODER, "init_args": {**TINY_ENCODER["init_args"], "frozen": True}}
    network = built(TINY_STUDENT, encoder=frozen)
    assert [g["name"] for g in parameter_groups(network, lr=1e-3)] == ["decoder", "decoder (no decay)"]
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(network, lr=1e-3)


def test_rules_must_cover_each_parameter_exactly_once():
    network = built(TINY_STUDENT)
    groups = parameter_groups(network, 1.0, rules={r"^encoder\.": 1e-5, r"^decoder\.": 1e-4, r"^head\.": 1e-3})
    assert {g["lr"] for g in groups} == {1e-5, 1e-4, 1e-3}
    with pytest.raises(ValueError, match=r"under no optimiser rule .*head\.reduce\.weight"):
        parameter_groups(network, 1.0, rules={r"^encoder\.": 1e-5, r"^decoder\.": 1e-4})
    with pytest.raises(ValueError, match=r"under more than one optimiser rule .*encoder\.backbone"):
        parameter_groups(network, 1.0, rules={r"coder\.": 1e-5, r"^encoder\.": 1e-4, r"^head\.": 1e-3})
    with pytest.raises(ValueError, match="not a regular expression"):
        parameter_groups(network, 1.0, rules={"(": 1e-3})
