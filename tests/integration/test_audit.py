"""``mdpretrain audit``: what was delivered is proven, and a planted loss, repetition or substitution is named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stream_runs import make_module, stream
from tiny_shards import damage_image, write_folder
from training_runs import audit

from data_shards.mixture import MixtureSource
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.training_stream import TrainingBatches


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_folder(tmp_path / "one", [5, 7], "one")
    write_folder(tmp_path / "two", [5], "two")
    return tmp_path


def ledger_text(path: Path) -> str:
    """A process's file as it stands, also one that was cut short."""
    return zlib.decompressobj(31).decompress(path.read_bytes()).decode()


def test_an_undisturbed_and_a_killed_run_are_proven(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = stream(shards / "run", make_module(shards), 9)
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "PROVEN: steps 0 to 8 in 1 starts on 1 processes: 27 samples" in text and "steps 2, 4, 6, 8 agree" in text
    stream(shards / "killed", make_module(shards), 5, killed=True)
    stream(shards / "killed", make_module(shards, num_workers=2), 3, resume=True, killed=True)
    stream(shards / "killed", make_module(shards), 3, resume=True)  # from 4, then from 6
    code, text = audit(shards / "killed", capsys, "--keys", str(shards / "keys.txt"))
    assert code == 0 and "steps 0 to 8 in 3 starts" in text
    lines = (shards / "keys.txt").read_text().splitlines()
    assert [line.split()[2] for line in lines] == keys and [int(line.split()[0]) for line in lines] == list(range(27))
    one, killed = (torch.load(shards / run / "checkpoints/step_00000008.ckpt", weights_only=True) for run in ("run", "killed"))
    assert one["ShardDataModule"]["delivered"] == killed["ShardDataModule"]["delivered"]


def test_a_loader_made_again_in_one_process_goes_on_with_the_account(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As strategies do that ask for the loader once more than they use it, and as a second fit does."""
    module = make_module(shards)
    module.setup("fit")
    module.train_dataloader()
    first = stream(shards / "run", module, 3)
    second = stream(shards / "run", module, 5)
    undisturbed = stream(shards / "alone", make_module(shards), 8)
    assert first + second == undisturbed
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "steps 0 to 7 in 2 starts" in text and "steps 2, 4, 6, 8 agree" in text, text


def test_the_ledger_is_readable_and_small(shards: Path) -> None:
    write_folder(shards / "many", [120], "many_samples_with_a_long_name")
    module = make_module(shards, train=[MixtureSource(str(shards / "many"))], batch_size=8)
    keys = stream(shards / "run", module, 30, save_every=1000)
    path = shards / "run/ledger/session_0001/rank_0000.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()  # what zcat prints
    assert lines[3] == f"3 24 {' '.join(f'0:{key}' for key in keys[24:32])}" and len(lines) == 30
    assert path.stat().st_size < 7 * len(keys)


def test_substitutes_of_bad_samples_are_proven_too(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_image(shards / "one", "one/0003")
    damage_image(shards / "one", "one/0004")
    stream(shards / "run", make_module(shards, faults=FaultBudget(max_fraction=1.0)), 12)
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "deliveries stood in for bad samples, all of them listed" in text
    (shards / "run/ledger").rename(shards / "ledger")
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "by the hashes alone" in text and "steps 2, 4, 6, 8, 10, 12 agree" in text
    (shards / "ledger").rename(shards / "run/ledger")
    (shards / "run/bad_samples.jsonl").unlink()  # now the substitution is unexplained
    code, text = audit(shards / "run", capsys)
    assert code == 1 and "was substituted: the order says one:one/000" in text and "does not say why" in text


def test_a_fault_of_the_loader_is_named(shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream itself loses, repeats or swaps something; ledger and hashes both tell."""
    honest = TrainingBatches.__getitem__

    def losing(self: TrainingBatches, step: int):
        return honest(self, step + (step >= 5))

    def repeating(self: TrainingBatches, step: int):
        return honest(self, step - (step >= 5))

    def swapping(self: TrainingBatches, step: int):
        delivery = honest(self, step)
        if step == 5:
            delivery.batch.key[1], delivery.batch.key[2] = delivery.batch.key[2], delivery.batch.key[1]
            delivery.rows[1], delivery.rows[2] = delivery.rows[2], delivery.rows[1]
        return delivery

    for name, fault, sentence in (
        ("losing", losing, "position 15 is lost: positions 18 to 20 were delivered in step 5"),
        ("repeating", repeating, "position 15 is lost, for others are repeated: positions 12 to 14 were delivered in step 5"),
        ("swapping", swapping, "position 16 was substituted: the order says "),
    ):
        monkeypatch.setattr(TrainingBatches, "__getitem__", fault)
        stream(shards / name, make_module(shards), 9)
        code, text = audit(shards / name, capsys)
        first = 16 if name == "swapping" else 15
        assert code == 1 and "NOT PROVEN: " in text and f"the first position that differs is {first}" in text and sentence in text, text
        (shards / name / "ledger").rename(shards / f"{name}_ledger")
        code, text = audit(shards / name, capsys)
        assert code == 1 and "the checkpoint of step 6 has counted 18 samples" in text and "between steps 4 and 6" in text


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in change(ledger_text(path).splitlines())).encode()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:3] + lines[4:], "position 9 is lost: step 4 follows where step 3 should"),
        (lambda lines: lines[:4] + lines[3:], "position 12 comes after a repetition: step 3 follows again where step 4 should"),
        (lambda lines: lines[:-1], "position 24 is lost: steps 8 were in no ledger|position 24 is lost: the ledger ends at step 8"),
        (lambda lines: [line.replace("one/0001", "one/0002") for line in lines], "was substituted: the order says one:one/0001"),
        (lambda lines: [*lines[:3], lines[3].replace(" 0:", " 7:").replace(" 1:", " 7:"), *lines[4:]], "was given no source:"),
        (lambda lines: [*lines[:3], lines[3].rsplit(" ", 1)[0], *lines[4:]], "position 9 is lost: positions 9 to 10 were delivered"),
    ],
)
def test_a_changed_ledger_is_found(shards: Path, capsys: pytest.CaptureFixture[str], change: Callable, sentence: str) -> None:
    stream(shards / "run", make_module(shards), 9, save_every=3)
    rewrite(shards / "run/ledger/session_0001/rank_0000.txt.gz", change)
    code, text = audit(shards / "run", capsys)
    assert code == 1 and any(one in text for one in sentence.split("|")), text


def test_what_lies_between_two_sessions_is_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream(shards / "run", make_module(shards), 4)
    stream(shards / "run", make_module(shards), 4, resume=True)
    rewrite(shards / "run/ledger/session_0001/rank_0000.txt.gz", lambda lines: lines[:3])
    code, text = audit(shards / "run", capsys)
    assert code == 1 and "positions 9 to 11 are lost: step 3 was in no ledger when session_0002 went on at 4" in text


def test_what_cannot_be_audited_is_said(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, sentence in (("nowhere", "no such run folder"), ("one", "neither a ledger nor a checkpoint")):
        code, text = audit(shards / folder, capsys)
        assert code == 2 and sentence in text
    stream(shards / "run", make_module(shards), 4)
    (shards / "one").rename(shards / "moved")
    code, text = audit(shards / "run", capsys)
    assert code == 2 and "source 'one'" in text and "--shards one=FOLDER" in text
    code, text = audit(shards / "run", capsys, "--shards", f"one={shards / 'moved'}")
    assert code == 0
    write_folder(shards / "one", [12], "other")
    code, text = audit(shards / "run", capsys)
    assert code == 2 and "holds other shards than the run was trained on" in text
    code, text = audit(shards / "run", capsys, "--shards", "one")
    assert code == 2 and "write NAME=FOLDER" in text
    (shards / "run/checkpoints/step_00000004.ckpt").write_bytes(b"nonsense")
    code, text = audit(shards / "run", capsys, "--shards", f"one={shards / 'moved'}")
    assert code == 2 and "step_00000004.ckpt: has no data state" in text
