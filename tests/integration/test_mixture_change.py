"""A resume whose recipe has another mixture: refused, continued or restarted, as asked, and proven by the audit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stream_runs import make_module, stream
from tiny_shards import write_folder
from training_runs import audit

from data_shards.mixture import MixtureSource
from mdpretrain.data.order import ShuffleOptions


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_folder(tmp_path / "one", [5, 7], "one")
    write_folder(tmp_path / "two", [5], "two")
    write_folder(tmp_path / "three", [9], "three")
    return tmp_path


def rows(root: Path, **weights: float) -> list[MixtureSource]:
    return [MixtureSource(str(root / name), weight=weight) for name, weight in weights.items()]


def of(source: str, keys: list[str]) -> list[str]:
    return [key for key in keys if key.startswith(source + "/")]


def test_continue_goes_on_in_every_pass_under_the_new_weights(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run draws 2 : 1; the second 1 : 2 with a third source; each source's own sequence has no seam."""
    alone = {name: stream(shards / name, make_module(shards, train=rows(shards, **{name: 1.0})), 20) for name in ("one", "two", "three")}
    first = stream(shards / "run", make_module(shards), 6)
    changed = {"train": rows(shards, three=1.0, one=1.0, two=2.0), "on_mixture_change": "continue"}
    second = stream(shards / "run", make_module(shards, **changed), 10, resume=True)
    for name in ("one", "two", "three"):
        drawn = of(name, first + second)
        assert drawn == alone[name][: len(drawn)], name
    assert Counter(key.split("/")[0] for key in second) in (Counter(two=15, one=8, three=7), Counter(two=15, one=7, three=8))
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "steps 0 to 15 in 2 starts" in text
    # the mixture has not changed any more: nothing has to be asked for, and the legs stay two
    third = stream(shards / "run", make_module(shards, train=rows(shards, one=1.0, three=1.0, two=2.0)), 4, resume=True)
    assert of("two", first + second + third) == alone["two"][: len(of("two", first + second + third))]
    code, text = audit(shards / "run", capsys, "--keys", str(shards / "keys.txt"))
    assert code == 0 and "steps 0 to 19 in 3 starts" in text
    assert [line.split()[2] for line in (shards / "keys.txt").read_text().splitlines()] == first + second + third
    (shards / "run/ledger").rename(shards / "ledger")
    code, text = audit(shards / "run", capsys)
    assert code == 0 and "by the hashes alone" in text


def test_restart_begins_every_pass_anew(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream(shards / "run", make_module(shards), 6)
    train = rows(shards, one=1.0, two=2.0)
    fresh = stream(shards / "fresh", make_module(shards, train=train), 5)
    assert stream(shards / "run", make_module(shards, train=train, on_mixture_change="restart"), 5, resume=True) == fresh
    assert audit(shards / "run", capsys)[0] == 0


@pytest.mark.parametrize("changes", [{"seed": 9}, {"shuffle": ShuffleOptions(2, 16)}, {"batch_size": 5}])
def test_seed_shuffle_and_batch_may_change_too(shards: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]) -> None:
    """Another seed or shuffle is another order inside the sources, which begin a first pass; another batch only cuts otherwise."""
    first = stream(shards / "run", make_module(shards), 6)
    with pytest.raises(ValueError, match=r"but the recipe says .*--data\.on_mixture_change=continue"):
        stream(shards / "run", make_module(shards, **changes), 3, resume=True)
    second = stream(shards / "run", make_module(shards, **changes, on_mixture_change="continue"), 4, resume=True)
    if "batch_size" in changes:
        undisturbed = stream(shards / "undisturbed", make_module(shards), 13)
        # the schedule's table begins anew, so the sources may take turns otherwise, but each goes on in its own sequence
        assert len(second) == 20
        for name in ("one", "two"):
            drawn = of(name, first + second)
            assert drawn[: len(of(name, undisturbed))] == of(name, undisturbed)[: len(drawn)]
    else:
        assert second == stream(shards / "fresh", make_module(shards, **changes), 4)
    assert audit(shards / "run", capsys)[0] == 0


def test_a_source_whose_shards_changed_begins_anew(shards: Path) -> None:
    first = stream(shards / "run", make_module(shards), 6)
    write_folder(shards / "elsewhere" / "two", [6], "two")
    train = [MixtureSource(str(shards / "one"), weight=2.0), MixtureSource(str(shards / "elsewhere" / "two"))]
    second = stream(shards / "run", make_module(shards, train=train, on_mixture_change="continue"), 6, resume=True)
    assert len(set(of("two", second))) == 6 == len(of("two", second))  # a whole pass over what is there now
    alone = stream(shards / "alone", make_module(shards, train=rows(shards, one=1.0)), 10)
    drawn = of("one", first + second)
    assert drawn == alone[: len(drawn)]


def test_a_cap_counts_the_draws_of_earlier_mixtures(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = stream(shards / "run", make_module(shards), 6)
    train = [MixtureSource(str(shards / "one"), weight=2.0), MixtureSource(str(shards / "two"), max_passes=2.0)]
    second = stream(shards / "run", make_module(shards, train=train, on_mixture_change="continue"), 10, resume=True)
    assert len(of("two", first)) == 6 and len(of("two", first + second)) == 10
    assert audit(shards / "run", capsys)[0] == 0


def test_a_moved_folder_and_another_order_of_rows_change_nothing(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed = stream(shards / "undisturbed", make_module(shards), 10)
    first = stream(shards / "run", make_module(shards), 4)
    (shards / "one").rename(shards / "moved")
    train = [MixtureSource(str(shards / "two")), MixtureSource(str(shards / "moved"), weight=2.0, name="one")]
    assert first + stream(shards / "run", make_module(shards, train=train), 6, resume=True) == undisturbed
    code, text = audit(shards / "run", capsys)  # the first session's plan still names the old folder
    assert code == 2 and "--shards one=FOLDER" in text
    code, text = audit(shards / "run", capsys, "--shards", f"one={shards / 'moved'}")
    assert code == 0, text


def test_states_of_another_version_are_refused(shards: Path) -> None:
    module = make_module(shards)
    module.setup("fit")
    with pytest.raises(ValueError, match="data state has version 1, this code reads 2"):
        module.load_state_dict({"state_version": 1, "steps": 3, "identity": {}})
