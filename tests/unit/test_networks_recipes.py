"""Every network can be written in a recipe: jsonargparse builds it from YAML and refuses a typo by name."""

from __future__ import annotations

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from network_parts import TINY_ANY_DEPTH, TINY_STUDENT, TINY_TEACHER, made_batch
from torch import nn

from mdpretrain.networks.module_config import module_config, record_and_build


def parsed(config: dict) -> nn.Module:
    """The network as the command line builds it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    parser.add_instantiator(record_and_build, nn.Module)
    return parser.instantiate_classes(parser.parse_string(yaml.safe_dump({"network": config}))).network


@pytest.mark.parametrize("config", [TINY_ANY_DEPTH, TINY_TEACHER, TINY_STUDENT])
def test_a_network_from_yaml(config):
    network = parsed(config)
    assert network.eval()(made_batch()).values.isfinite().all()
    recorded = module_config(network)
    assert recorded["class_path"] == config["class_path"]
    assert recorded["init_args"]["encoder"]["init_args"]["layers"] == [0, 1, 2, 3]


def test_typos_are_named():
    for wrong, named in (
        ({**TINY_TEACHER, "init_args": {**TINY_TEACHER["init_args"], "featuers": 3}}, "featuers"),
        ({**TINY_TEACHER, "init_args": {**TINY_TEACHER["init_args"], "output": "residuall"}}, "residuall"),
    ):
        with pytest.raises(ArgumentError, match=named):
            parsed(wrong)
