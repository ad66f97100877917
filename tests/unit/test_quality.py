"""AnyDepth's quality scores against their formulas written out pixel by pixel, and their way into indexes and a mixture's filter."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from shard_samples import make_sample
from synthetic_room import room_sample

from data_shards.cli import main
from data_shards.index import load_index
from data_shards.mixture import MixtureSource
from data_shards.quality import continuity_score, distribution_score, quality_scores, ranks
from data_shards.selection import combine, examine
from data_shards.shard_table import TABLE_FILE, write_table
from data_shards.stats import FIGURES, RANKED, rank_name
from data_shards.writer import write_shard

NAN, INF = math.nan, math.inf


def oracle_distribution(values: list[float]) -> float:
    """The text's formulas in plain floats."""
    low, high, n = min(values), max(values), len(values)
    counts = [0] * 20
    for value in values:
        counts[min(19, int(20 * (value - low) / (high - low)))] += 1
    mean = n / 20
    s_chi = math.exp(-sum((count - mean) ** 2 / mean for count in counts) / n)
    p_max = max(counts) / n
    s_conc = 1.0 if p_max <= 2 / 20 else 1 - min(1.0, (p_max - 2 / 20) / (0.5 - 2 / 20))
    s_range = sum(count > 0 for count in counts) / 20
    return 0.5 * s_chi + 0.3 * s_conc + 0.2 * s_range


def oracle_continuity(depth: np.ndarray) -> float:
    gradients = []
    for y in range(depth.shape[0] - 1):
        for x in range(depth.shape[1] - 1):
            here, right, below = float(depth[y, x]), float(depth[y, x + 1]), float(depth[y + 1, x])
            if all(math.isfinite(v) for v in (here, right, below)):
                gradients.append(math.sqrt((right - here) ** 2 + (below - here) ** 2))
    gradients.sort()
    rest = gradients[: math.ceil(0.9 * len(gradients))]
    mu = sum(rest) / len(rest)
    sigma = math.sqrt(sum((g - mu) ** 2 for g in rest) / len(rest))
    return 1 / (1 + sigma / mu)


@pytest.mark.parametrize("seed", range(5))
def test_scores_against_the_formulas(seed):
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(1, 0.2 + 0.4 * seed, (23, 31))).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1], depth[:2] = NAN, INF
    scores = quality_scores(depth)
    assert scores.depth_distribution == pytest.approx(oracle_distribution([float(v) for v in depth[np.isfinite(depth)]]), rel=1e-12)
    assert scores.gradient_continuity == pytest.approx(oracle_continuity(depth), rel=1e-12)
    assert scores.total == (scores.depth_distribution + scores.gradient_continuity) / 2


def test_scores_in_closed_form():
    even = np.repeat(np.arange(20) + 0.5, 7).astype(np.float32)
    assert distribution_score(even.astype(np.float64)) == pytest.approx(1.0)
    one_bin_of_two = np.array([1.0] * 50 + [2.0] * 50)  # p_max = 1/2: S_conc = 0; chi2/N = 20 * 2 * .45^2 + 18 * .05 = 9
    assert distribution_score(one_bin_of_two) == pytest.approx(0.5 * math.exp(-9) + 0.2 * 2 / 20)
    assert distribution_score(np.full(9, 3.0)) == pytest.approx(0.5 * math.exp(-19) + 0.2 / 20)
    ramp = (1 + np.arange(40, dtype=np.float32)[None] + np.zeros((30, 1), np.float32)).astype(np.float32)
    assert continuity_score(ramp) == pytest.approx(1.0)  # one slope everywhere: sigma = 0
    assert continuity_score(np.full((5, 5), 2, np.float32)) == 1.0


def test_a_step_is_an_edge_and_does_not_count_against_continuity():
    ramp = 1 + 0.01 * np.arange(40, dtype=np.float32)[None] + np.zeros((40, 1), np.float32)
    step = ramp + np.where(np.arange(40) > 20, np.float32(3), np.float32(0))[None]
    assert continuity_score(step.astype(np.float32)) == pytest.approx(1.0, abs=1e-4)
    noisy = ramp + np.random.default_rng(0).normal(0, 0.05, ramp.shape).astype(np.float32)
    assert continuity_score(noisy.astype(np.float32)) < 0.75


def test_scores_do_not_depend_on_the_unit():
    depth = room_sample(0).depth
    in_feet = quality_scores((depth * np.float32(3.28084)).astype(np.float32))
    assert in_feet.depth_distribution == pytest.approx(quality_scores(depth).depth_distribution, abs=2e-3)
    assert in_feet.gradient_continuity == pytest.approx(quality_scores(depth).gradient_continuity, rel=1e-4)


def test_what_cannot_be_scored():
    lonely = np.full((4, 4), NAN, np.float32)
    lonely[1, 1] = lonely[3, 3] = 2
    scores = quality_scores(lonely)
    assert scores.gradient_continuity is None and scores.total is None and 0 <= scores.depth_distribution <= 1
    with pytest.raises(ValueError, match="without a measured pixel"):
        quality_scores(np.full((3, 3), NAN, np.float32))


def test_ranks_keep_four_fifths():
    scores = np.random.default_rng(0).permutation(np.r_[np.arange(50) / 50, NAN])
    ranked = ranks(scores)
    assert np.isnan(ranked).tolist() == np.isnan(scores).tolist()
    assert (ranked >= 0.2).sum() == 40 and scores[ranked >= 0.2].min() == 0.2
    assert ranks(np.array([1.0, 2.0, 2.0, 3.0])).tolist() == [0.125, 0.5, 0.5, 0.875] and ranks(np.ones(1)).tolist() == [0.5]
    assert np.isnan(ranks(np.full(3, NAN))).all() and ranks(np.zeros(0)).size == 0


def sparse(sample):
    depth = np.where(np.arange(sample.depth.size).reshape(sample.depth.shape) % 9 == 0, sample.depth, np.float32(NAN))
    return dataclasses.replace(sample, depth=depth.astype(np.float32))


def test_figures_go_into_the_index_and_a_mixture_filters_by_them(tmp_path, capsys):
    samples = [room_sample(n) for n in range(10)]
    write_shard(tmp_path / "a.tar", samples[:6])
    write_shard(tmp_path / "b.tar", [*samples[6:], sparse(room_sample(10)), make_sample("other/0")])
    before = load_index(tmp_path / "a.tar")
    assert main(["stats", str(tmp_path), "--quiet", "--write-index", "--json", str(tmp_path / "s.json")]) == 0
    assert "figures written into 2 indexes" in capsys.readouterr().out
    indexes = [load_index(tmp_path / "a.tar"), load_index(tmp_path / "b.tar")]
    entries = [entry for index in indexes for entry in index.entries]
    assert [dataclasses.replace(entry, figures=None) for entry in indexes[0].entries] == list(before.entries)
    for sample, entry in zip(samples, entries):
        scores = quality_scores(sample.depth)
        assert entry.figures["depth_distribution"] == scores.depth_distribution
        assert entry.figures["gradient_continuity"] == scores.gradient_continuity and entry.figures["quality"] == scores.total
        assert set(entry.figures) == {*FIGURES, *map(rank_name, RANKED)}
    assert entries[10].figures["valid_fraction"] < 0.2 and entries[10].figures["depth_distribution_rank"] is None
    filter_of_the_paper = {"valid_fraction": (0.2, None)} | {rank_name(name): (0.2, None) for name in RANKED}
    row = MixtureSource(str(tmp_path), figures=filter_of_the_paper)
    kept = combine(row, [examine(row, index) for index in indexes]).places
    scores = [[entry.figures[name] for name in RANKED] for entry in entries[:10]]
    lowest = [set(np.argsort([row[column] for row in scores])[:2].tolist()) for column in range(2)]
    assert set(kept.tolist()) - {11} == set(range(10)) - lowest[0] - lowest[1]
    record = json.loads((tmp_path / "s.json").read_text())["room"]["quality"]
    assert record["kept_by_filter"] == pytest.approx(len(kept[kept < 10]) / 11)
    assert record["quality"]["mean"] == pytest.approx(np.mean([e.figures["quality"] for e in entries[:11] if e.figures["quality"]]))


def test_writing_again_keeps_other_figures_and_needs_every_sample(tmp_path, capsys):
    write_shard(tmp_path / "a.tar", [room_sample(n) for n in range(3)])
    path = tmp_path / "a.index.json"
    record = json.loads(path.read_text())
    record["entries"][1]["figures"] = {"sharpness": 3.5, "quality": -1.0}
    path.write_text(json.dumps(record))
    write_table(tmp_path)
    assert main(["stats", str(tmp_path), "--quiet", "--write-index"]) == 0
    first = path.read_bytes()
    figures = load_index(tmp_path / "a.tar").entries[1].figures
    assert figures["sharpness"] == 3.5 and 0 < figures["quality"] < 1
    (row,) = json.loads((tmp_path / TABLE_FILE).read_text())["shards"]
    assert row["index_sha256"] == hashlib.sha256(first).hexdigest()  # the folder's table follows its indexes
    assert main(["stats", str(tmp_path), "--quiet", "--write-index"]) == 0 and path.read_bytes() == first
    capsys.readouterr()
    assert main(["stats", str(tmp_path), "--quiet", "--write-index", "--max-samples", "2"]) == 2
    assert "leave --max-samples out" in capsys.readouterr().err
