"""Shared by all tests: the torchvision cure before anything imports timm, one thread per process, the real frames."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import mdpretrain.compat

assert mdpretrain.compat  # imported for what it does
torch.set_num_threads(1)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder with `rgbd_frames/` and `rgbd_raw/`; skips, saying so, where it is absent."""
    folder = pathlib.Path(os.environ.get("MDPRETRAIN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real frames at {folder}; set MDPRETRAIN_REAL_DATA to the folder that holds rgbd_frames/")
    return folder
