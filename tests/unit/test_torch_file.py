"""torch's own files: what is written is what was given, and a file system that refuses is an OSError with the file's name."""

from __future__ import annotations

import errno
import pathlib
import pickle

import pytest
import torch

from mdpretrain.networks.torch_file import write_torch_file

FULL = pathlib.Path("/dev/full")


def test_what_is_written_is_read_again(tmp_path: pathlib.Path) -> None:
    content = {"global_step": 3, "state_dict": {"weight": torch.randn(5, 7), "half": torch.ones(2, dtype=torch.bfloat16)}}
    write_torch_file(tmp_path / "a.ckpt", content)
    for mmap in (False, True):
        again = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mmap)
        assert again["global_step"] == 3
        torch.testing.assert_close(again["state_dict"], content["state_dict"], rtol=0, atol=0)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("count", [1, 3_000_000])  # refused when the file is closed, or while a tensor is written
def test_a_full_disk_is_named(count: int) -> None:
    with pytest.raises(OSError) as caught:
        write_torch_file(FULL, {"weight": torch.zeros(count)})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(FULL))


def test_an_error_of_torch_stays_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_torch_file(tmp_path / "a.ckpt", {"function": lambda: None})
