"""Any checkpoint resumes under any strategy, on any number of processes: {DDP, ZeRO-1, 2, 3} x {1, 2, 4}, from each to each."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import lightning
import pytest
import torch
from sharded_runs import SAVED_STEP, STEPS, STRATEGIES, fit, in_group, validate

from mdpretrain.engine.checkpoint_pace import CheckpointOptions
from mdpretrain.engine.deepspeed_files import DeepSpeedFolder
from mdpretrain.engine.deepspeed_strategy import make_importable
from mdpretrain.engine.training_state import LightningFile, TrainingState, read_mapped
from mdpretrain.networks.checkpoint_files import EMA_KEY, checkpoint_name
from mdpretrain.networks.checkpoint_manifest import check

PROCESSES = (1, 2, 4)
LAYOUTS = list(itertools.product(STRATEGIES, PROCESSES))


@pytest.fixture(scope="module", autouse=True)
def deepspeed_once() -> None:
    """Imported here, so that no forked process has to."""
    make_importable(on_gpu=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[int, Any]]:
    """One run in every layout, with its checkpoints: where they are, and processes -> strategy -> what it did."""
    root = tmp_path_factory.mktemp("undisturbed")

    def runs(processes: int) -> dict[str, Any]:
        return {strategy: fit(_folder(root, strategy, processes), strategy, processes) for strategy in STRATEGIES}

    return root, {count: in_group(count, lambda rank: runs(count), root / f"log_{count}") for count in PROCESSES}  # noqa: B023


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", PROCESSES)
def test_every_checkpoint_resumes_under_every_strategy_on(
    tmp_path: pathlib.Path, undisturbed: tuple[pathlib.Path, dict[int, Any]], processes: int
) -> None:
    root, firsts = undisturbed
    pairs = list(itertools.product(LAYOUTS, STRATEGIES))

    def target(origin: tuple[str, int], strategy: str) -> pathlib.Path:
        return tmp_path / f"from_{origin[0]}_{origin[1]}" / strategy / "checkpoints"

    def resumed_runs(rank: int) -> list[dict[str, Any]]:
        saved = checkpoint_name(SAVED_STEP)
        return [fit(target(origin, strategy), strategy, processes, resume=_folder(root, *origin) / saved) for origin, strategy in pairs]

    reference = firsts[1]["ddp"]
    assert sorted(reference["losses"]) == [str(step) for step in range(STEPS)]
    last = _state(_folder(root, "ddp", 1) / checkpoint_name(STEPS))
    wrong = []
    for (origin, strategy), result in zip(pairs, in_group(processes, resumed_runs, tmp_path / "log"), strict=True):
        exact = origin == (strategy, processes)
        differences = _differences(result, firsts[processes][strategy] if exact else reference, exact)
        differences += _state_differences(_state(target(origin, strategy) / checkpoint_name(STEPS)), last)
        wrong += [f"{origin} -> {strategy} on {processes}: {text}" for text in differences]
    assert not wrong, "\n".join(wrong)


def test_one_conversion_each_way(tmp_path: pathlib.Path) -> None:
    """The bridge that DeepSpeed lacks, there and back, in seconds; and that the test above would notice lost moments."""

    def work(rank: int) -> list[dict[str, Any]]:
        first = fit(tmp_path / "zero3", "zero3", 2)
        later = CheckpointOptions(every_n_steps=1000, every_minutes=1e-7, keep=9)  # after every step, by one process's clock
        second = fit(tmp_path / "zero2", "zero2", 2, resume=tmp_path / "zero3" / checkpoint_name(SAVED_STEP), options=later)
        third = fit(tmp_path / "ddp", "ddp", 2, resume=tmp_path / "zero2" / checkpoint_name(SAVED_STEP + 1))
        return [first, second, third]

    first, second, third = in_group(2, work, tmp_path / "log")
    assert not _differences(second, first, exact=False)
    assert not _differences(third, first, exact=False, since=SAVED_STEP + 1)

    content = read_mapped(tmp_path / "ddp" / checkpoint_name(STEPS))
    for state in content["optimizer_states"][0]["state"].values():
        state["exp_avg"].zero_()
    torch.save(content, tmp_path / "forgetful.ckpt")
    assert _state_differences(_state(tmp_path / "forgetful.ckpt"), _state(tmp_path / "zero3" / checkpoint_name(STEPS)))


def test_one_changed_bit_in_one_process_s_file_is_found_and_an_older_checkpoint_used_by_all(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoints"
    options = CheckpointOptions(every_n_steps=1, keep=3)
    whole = in_group(2, lambda rank: fit(folder, "zero2", 2, options=options), tmp_path / "log")
    newest = folder / checkpoint_name(STEPS)
    shard = max((newest / "checkpoint").glob("*rank_1_*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again = in_group(2, lambda rank: fit(folder, "zero2", 2, resume=newest, automatic=True), tmp_path / "log_again")
    assert list(again["losses"]) == [str(STEPS - 1)] and again["losses"].items() <= whole["losses"].items()
    assert newest.with_name(newest.name + ".damaged").is_dir() and check(newest)
    said = (tmp_path / "log_again" / "rank_0.log").read_text()
    assert shard.name in said and "resuming from the older" in said


def test_every_strategy_validates_the_checkpoints_of_every_other(tmp_path: pathlib.Path) -> None:
    """Also ZeRO-3, which by itself cannot validate from a checkpoint."""

    def work(rank: int) -> dict[str, float]:
        for strategy in STRATEGIES:
            fit(tmp_path / strategy, strategy, 2)
        pairs = itertools.product(STRATEGIES, STRATEGIES)
        return {f"{one} -> {two}": validate(two, 2, tmp_path / one / checkpoint_name(STEPS)) for one, two in pairs}

    sums = in_group(2, work, tmp_path / "log")
    assert len(sums) == 16 and sums["ddp -> ddp"] != 0
    assert sums == pytest.approx(dict.fromkeys(sums, sums["ddp -> ddp"]), rel=1e-5)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_float32_masters_and_moments_of_a_bfloat16_run_travel(tmp_path: pathlib.Path, stage: str) -> None:
    """Against DeepSpeed's own readers, of files and of the live engine, as the oracle."""
    other = "zero1" if stage == "zero3" else "zero3"
    saved = tmp_path / stage / checkpoint_name(SAVED_STEP)
    in_group(2, lambda rank: fit(tmp_path / stage, stage, 2, precision="bf16-mixed"), tmp_path / "log")
    state = DeepSpeedFolder(saved)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    oracle = get_fp32_state_dict_from_zero_checkpoint(str(saved), tag="checkpoint")
    assert sorted(oracle) == sorted(state.weight_names())
    for name, value in oracle.items():
        torch.testing.assert_close(state.weight(name).float(), value.float(), rtol=0, atol=0, msg=name)
    trained = state.weight("network.first.weight")
    assert not torch.equal(trained, trained.bfloat16().float()), "the masters must hold more than bfloat16 does, or this proves nothing"

    def differences(trainer: lightning.Trainer) -> list[str]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        engine, found = trainer.strategy.deepspeed_engine, []  # type: ignore[attr-defined]
        if other != "zero3":
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in engine.module.named_parameters():
            if parameter.requires_grad:
                live = {key: safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")}
                if not torch.equal(safe_get_full_fp32_param(parameter), state.weight(name)):
                    found.append(f"{name}: weight")
                found += [f"{name}: {key}" for key, value in live.items() if not torch.equal(value, state.optimizer_state(name)[key])]
        return found

    def resume(rank: int) -> dict[str, Any]:
        return fit(tmp_path / other, other, 2, resume=saved, precision="bf16-mixed", look=differences)

    assert in_group(2, resume, tmp_path / "second_log")["seen_at_start"] == []


def _folder(root: pathlib.Path, strategy: str, processes: int) -> pathlib.Path:
    return root / f"{strategy}_{processes}" / "checkpoints"


def _state(path: pathlib.Path) -> TrainingState:
    return DeepSpeedFolder(path) if path.is_dir() else LightningFile(path, read_mapped(path))


def _differences(result: dict[str, Any], expected: dict[str, Any], exact: bool, since: int = SAVED_STEP) -> list[str]:
    """What a run that resumed at step ``since`` did otherwise than one that was never stopped."""
    steps = [str(step) for step in range(since, STEPS)]
    if sorted(result["losses"]) != steps:
        return [f"took the steps {sorted(result['losses'])}"]
    wanted = [expected["losses"][step] for step in steps]
    found = [result["losses"][step] for step in steps]
    same = found == wanted if exact else found == pytest.approx(wanted, rel=2e-6)
    texts = [] if same else [f"losses {found} instead of {wanted}"]
    return texts + [f"{key} {result[key]} instead of {expected[key]}" for key in ("lr", "extra", "seen") if result[key] != expected[key]]


def _state_differences(own: TrainingState, other: TrainingState) -> list[str]:
    """Weights, buffers, moments, counters, averages and hyper-parameters that two checkpoints do not share."""
    if sorted(own.weight_names()) != sorted(other.weight_names()):
        return [f"weights {own.weight_names()} and {other.weight_names()}"]
    names = own.weight_names()
    texts = [f"{name}" for name in names if not torch.allclose(own.weight(name).float(), other.weight(name).float(), rtol=1e-5, atol=1e-6)]
    groups = [
        sorted((sorted(group.names), group.options["lr"], group.options["weight_decay"]) for group in state.optimizer_groups())
        for state in (own, other)
    ]
    texts += [] if groups[0] == groups[1] else [f"groups {groups[0]} and {groups[1]}"]
    averages = own.client[EMA_KEY], other.client[EMA_KEY]
    assert averages[0].keys() == averages[1].keys() == {name for group in own.optimizer_groups() for name in group.names}
    texts += [f"ema of {key}" for key, value in averages[0].items() if not torch.allclose(value, averages[1][key], rtol=1e-5, atol=1e-6)]
    for name in averages[0]:
        one, two = own.optimizer_state(name), other.optimizer_state(name)
        assert sorted(one) == ["exp_avg", "exp_avg_sq", "step"] == sorted(two)
        close = (torch.allclose(torch.as_tensor(one[key]), torch.as_tensor(two[key]), rtol=1e-4, atol=1e-6) for key in one)
        texts += [f"{name} {key}" for key, good in zip(one, close) if not good]
    return texts
