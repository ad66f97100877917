"""``fraction`` of a row and of the whole mixture: the same samples in every run, smaller ones inside larger ones, and read alike by all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stream_runs import make_module, stream
from tiny_shards import write_folder
from training_runs import audit

from data_shards.cli import main
from data_shards.mixture import MixtureSource, place_of, scaled
from data_shards.recipe import read_run
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.planning.recipe import read_recipe
from mdpretrain.planning.sources import plan_sources

SAMPLES = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fraction")
    write_folder(root / "one", [25, 35], "one")
    write_folder(root / "two", [5], "two")
    return root


def kept(root: Path, fraction: float | None, name: str = "one", **options: Any) -> list[str]:
    return SourceReader(MixtureSource(str(root / name), fraction=fraction, **options)).keys()


def test_places_are_evenly_spread_and_pinned() -> None:
    """Kolmogorov-Smirnov at a level of 1e-4, and two values written down: another hash would be another subset of every run."""
    places = np.sort([place_of(f"scene_{k // 50}/view_{k % 50}") for k in range(20_000)])
    assert places[0] >= 0 and places[-1] < 1
    assert np.abs(places - (np.arange(20_000) + 0.5) / 20_000).max() < 2.23 / np.sqrt(20_000)
    assert (place_of("one/0000"), place_of("")) == (0.1338005859770619, 0.5056088790503133)


def test_a_smaller_fraction_lies_inside_a_larger_one(shards: Path) -> None:
    by_fraction = {fraction: kept(shards, fraction) for fraction in (0.125, 0.25, 0.5, 0.75, 1.0)}
    for small, large in zip(list(by_fraction)[:-1], list(by_fraction)[1:]):
        assert set(by_fraction[small]) < set(by_fraction[large])
    for fraction, keys in by_fraction.items():
        assert keys == sorted(keys)  # the folder's own order
        assert abs(len(keys) - fraction * SAMPLES) <= 4 * np.sqrt(fraction * (1 - fraction) * SAMPLES)
    assert by_fraction[1.0] == kept(shards, None)


def test_only_the_fraction_is_drawn_and_every_pass_shows_all_of_it(shards: Path, tmp_path: Path) -> None:
    wanted = kept(shards, 0.25)
    row = MixtureSource(str(shards / "one"), fraction=0.25)
    keys = stream(tmp_path / "run", make_module(shards, train=[row], batch_size=len(wanted)), 4)
    assert Counter(keys) == dict.fromkeys(wanted, 4)


def test_the_fraction_is_part_of_the_order_and_one_is_none(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = [MixtureSource(str(shards / "one"), fraction=0.5), MixtureSource(str(shards / "two"))]
    stream(tmp_path / "run", make_module(shards, train=half), 4)
    code, text = audit(tmp_path / "run", capsys)
    assert code == 0, text
    other = [MixtureSource(str(shards / "one"), fraction=0.75), half[1]]
    with pytest.raises(ValueError, match=r"mixture\.one\.fraction = 0\.5, but the recipe says 0\.75"):
        stream(tmp_path / "run", make_module(shards, train=other), 2, resume=True)
    identities = [SourceReader(MixtureSource(str(shards / "one"), fraction=fraction)).identity() for fraction in (None, 1.0)]
    assert identities[0] == identities[1]


def test_the_recipes_fraction_multiplies_every_rows(shards: Path, tmp_path: Path) -> None:
    rows = [MixtureSource(str(shards / "one"), fraction=0.5), MixtureSource(str(shards / "two"))]
    assert [row.fraction for row in scaled(rows, 0.5)] == [0.25, 0.5] and scaled(rows, 1.0) == rows
    module = make_module(shards, train=rows[:1], fraction=0.5, batch_size=2)
    assert set(stream(tmp_path / "run", module, 12)) <= set(kept(shards, 0.25))


def test_the_plan_and_the_mix_read_what_training_reads(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"train": [{"path": str(shards / "one"), "fraction": 0.5}], "val": [], "image_size": [12, 16], "batch_size": 4, "fraction": 0.5}
    content = yaml.safe_load((Path(__file__).parents[2] / "recipes/debug/student_depthmap.yaml").read_text())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | {"data": data}))
    size = len(kept(shards, 0.25))
    assert main(["mix", str(path), "--quiet", "--json", str(tmp_path / "mix.json")]) == 0
    printed = capsys.readouterr().out
    assert f"{size} of {SAMPLES}" in printed and "one: the 0.25 of its samples that their keys choose" in printed
    assert json.loads((tmp_path / "mix.json").read_text())["sources"][0]["samples"] == size
    assert main(["mix", str(path), "--quiet", "--set", "data.fraction=1"]) == 0
    assert f"{len(kept(shards, 0.5))} of {SAMPLES}" in capsys.readouterr().out
    planned = read_recipe([str(path)])
    assert planned.sources == read_run([path]).sources
    assert plan_sources(planned.sources, {}, 100).sources[0].samples == size
    assert plan_sources(planned.sources, {"one": 1000}, 100).sources[0].samples == 250  # what is told is the whole folder


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"source somewhere: fraction .* must lie in \(0, 1\]"):
        MixtureSource("somewhere", fraction=fraction)
    with pytest.raises(ValueError, match=r"data\.fraction is .* must lie in \(0, 1\]"):
        scaled([MixtureSource("somewhere")], fraction)


def test_a_fraction_without_a_sample_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"two: none of its 5 samples passes .* fraction 1e-06"):
        kept(shards, 1e-6, "two")
