"""Learning-rate schedules against their closed forms, and optimiser groups that lose nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from mdpretrain.tasks.optimizer import AdamW, build_optimizer
from mdpretrain.tasks.schedule import Schedule


def test_warm_up_is_linear_and_reaches_one() -> None:
    schedule = Schedule(kind="constant", warmup_steps=4)
    assert [schedule.factor(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Schedule(kind="cosine"), 50, 0.5),
        (Schedule(kind="cosine", final_factor=0.2), 100, 0.2),
        (Schedule(kind="cosine", warmup_steps=20), 60, 0.5),
        (Schedule(kind="poly", power=0.9), 75, 0.25**0.9),
        (Schedule(kind="poly", power=2.0, final_factor=0.1), 50, 0.1 + 0.9 * 0.25),
        (Schedule(kind="drop"), 80, 1.0),
        (Schedule(kind="drop"), 81, 0.1),
        (Schedule(kind="constant"), 99, 1.0),
    ],
)
def test_shapes_equal_their_formulas(schedule: Schedule, step: int, expected: float) -> None:
    assert math.isclose(schedule.factor(step, 100), expected, rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "poly"])
def test_decay_never_rises_nor_turns_negative_past_the_end(kind: str) -> None:
    factors = [Schedule(kind=kind).factor(step, 50) for step in range(60)]  # type: ignore[arg-type]
    assert all(b <= a for a, b in itertools.pairwise(factors)) and factors[-1] == 0.0


def test_length_is_the_recipes_or_the_trainers() -> None:
    assert Schedule(total_steps=7).resolved_total(100) == 7
    assert Schedule().resolved_total(100) == 100
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        Schedule().resolved_total(-1)
    with pytest.raises(ValueError, match="warmup_steps 50"):
        Schedule(warmup_steps=50).resolved_total(50)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    first, second = list(model[0].parameters()), list(model[1].parameters())
    build_optimizer(model, [{"params": first}, {"params": second}], AdamW())
    with pytest.raises(ValueError, match=r"2 parameters are in no optimiser group: 1\.bias, 1\.weight"):
        build_optimizer(model, [{"params": first}], AdamW())
    with pytest.raises(ValueError, match=r"in two optimiser groups: 0\.bias, 0\.weight"):
        build_optimizer(model, [{"params": first + second}, {"params": first}], AdamW())
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="not trainable"):
        build_optimizer(model, [{"params": first}, {"params": second}], AdamW())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(model, [], AdamW())


def test_adamw_takes_the_recipes_numbers() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, [{"params": list(model.parameters())}], AdamW(lr=0.5, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.5, 0.1, (0.8, 0.95), 1e-6)
    assert isinstance(optimizer, torch.optim.AdamW) and group["fused"]
