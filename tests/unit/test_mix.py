"""``data-shards mix``: the printed draws are the drawn ones, and recipes are read as ``mdpretrain fit`` reads them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from shard_samples import full_sample, make_sample
from test_recipes import parse

from data_shards.cli import main
from data_shards.index import IndexedShard, index_path, load_index
from data_shards.mix import MixPlan, plan
from data_shards.recipe import load_recipe, read_run, stacked
from data_shards.samples import sample_to_members
from data_shards.schedule import Schedule
from data_shards.writer import write_shard
from mdpretrain.data.shard_folder import ShardFolder

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def folder(path: Path, sizes: list[int], **changes: object) -> Path:
    path.mkdir(parents=True)
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        made = [make_sample(f"{path.name}/{next(numbers)}", seed=shard * 100 + k) for k in range(size)]
        write_shard(path / f"{shard:03d}.tar", [dataclasses.replace(s, meta=dataclasses.replace(s.meta, **changes)) for s in made])
    return path


def recipe(path: Path, rows: list[dict], **run: object) -> Path:
    trainer = {key: run.pop(key) for key in ("max_steps", "max_epochs", "accumulate_grad_batches") if key in run}
    data = {"train": rows, "val": [], "image_size": [16, 16], "batch_size": 4} | run
    path.write_text(yaml.safe_dump({"data": data, "trainer": trainer}))
    return path


def planned(path: Path, *changes: str) -> MixPlan:
    return plan(read_run([path], changes), quiet=True)


def test_draws_passes_and_unique_samples_are_those_of_the_training_schedule(tmp_path):
    sizes = {"a": [5, 3], "b": [40], "c": [7, 7, 7]}
    weights = {"a": 3.0, "b": 1.0, "c": 0.5}
    rows = [{"path": str(folder(tmp_path / name, sizes[name])), "weight": weights[name]} for name in sizes]
    mix = planned(recipe(tmp_path / "r.yaml", rows, max_steps=25))
    schedule = Schedule(list(weights.values()))
    drawn = collections.Counter(schedule(position)[0] for position in range(100))
    assert [source.draws for source in mix.sources] == [drawn[0], drawn[1], drawn[2]]
    assert (mix.positions, mix.batches, mix.given, mix.leaves, mix.end) == (100, 25, True, {}, None)
    for source, own in zip(mix.sources, sizes.values()):
        seen = {draw % sum(own) for draw in range(source.draws)}
        assert source.unique == len(seen) and source.passes == pytest.approx(source.draws / sum(own))
        assert source.shards == len(own)


def test_bytes_are_those_that_training_reads_and_disk_those_of_the_tars(tmp_path):
    (tmp_path / "a").mkdir()
    samples = [make_sample("a/0"), full_sample()]
    write_shard(tmp_path / "a" / "0.tar", samples)
    (source,) = planned(recipe(tmp_path / "r.yaml", [{"path": str(tmp_path / "a")}], max_steps=1)).sources
    opened = ShardFolder(tmp_path / "a")
    read = [sum(map(len, opened.read_members(number)[1].values())) for number in range(2)]
    assert source.bytes_per_sample == np.mean(read) and read[1] == sum(map(len, sample_to_members(samples[1]).values()))
    fewer = ShardFolder(tmp_path / "a", fields=("prior",))  # what is not asked for stays on disk
    assert sum(map(len, fewer.read_members(1)[1].values())) < read[1]
    assert source.disk == (tmp_path / "a" / "0.tar").stat().st_size


def test_sidecars_add_their_bytes(tmp_path):
    base = folder(tmp_path / "a", [3, 2])
    side = folder(tmp_path / "side", [3, 2])
    rows = [{"path": str(base), "sidecars": [str(side)]}]
    (joined,) = planned(recipe(tmp_path / "r.yaml", rows, max_steps=1)).sources
    alone = [planned(recipe(tmp_path / "s.yaml", [{"path": str(path)}], max_steps=1)).sources[0] for path in (base, side)]
    assert joined.bytes_per_sample == pytest.approx(sum(source.bytes_per_sample for source in alone))
    assert joined.disk == sum(source.disk for source in alone)
    rows[0]["sidecars"] = [str(folder(tmp_path / "few", [3]))]
    with pytest.raises(ValueError, match=r"few: has no 001.tar for .*a/001.tar; make the sidecar of every shard"):
        planned(recipe(tmp_path / "r.yaml", rows, max_steps=1))
    rows[0]["sidecars"] = [str(folder(tmp_path / "short", [3, 1]))]
    with pytest.raises(ValueError, match=r"short/001.tar: holds 1 samples, .*a/001.tar 2; make this sidecar again"):
        planned(recipe(tmp_path / "r.yaml", rows, max_steps=1))


def test_filters_and_repeat_caps(tmp_path, capsys):
    free, closed = folder(tmp_path / "free", [6], licence="CC-BY-4.0"), folder(tmp_path / "closed", [4])
    both = tmp_path / "both"
    both.mkdir()
    for number, path in enumerate((free / "000.tar", closed / "000.tar")):
        shard = IndexedShard(path)
        write_shard(both / f"{number}.tar", [(key, shard.read(place)) for place, key in enumerate(shard.keys)])
    rows = [{"path": str(both), "licences": ["CC-*"], "max_passes": 2}, {"path": str(free), "name": "rest"}]
    path = recipe(tmp_path / "r.yaml", rows, max_steps=20)
    mix = planned(path)
    capped, rest = mix.sources
    assert (capped.in_folder, capped.samples, capped.draws, capped.passes, capped.unique) == (10, 6, 12, 2.0, 6)
    assert rest.draws == 80 - 12 and list(mix.leaves.values()) == [["both"]]
    assert main(["mix", str(path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "6 of 10" in out and "both: max_passes is used up at step 6" in out
    rows[1]["max_passes"] = 1.5
    assert main(["mix", str(recipe(path, rows, max_steps=20)), "--quiet"]) == 1
    assert "the mixture ends after 21 samples, before the run does" in capsys.readouterr().out
    rows[0]["licences"] = ["MIT"]
    assert main(["mix", str(recipe(path, rows, max_steps=20)), "--quiet"]) == 2
    assert "none of its 10 samples passes licences ['MIT']" in capsys.readouterr().err


def test_figures_filter_by_the_index(tmp_path):
    path = folder(tmp_path / "a", [4])
    index = load_index(path / "000.tar")
    entries = tuple(dataclasses.replace(entry, figures={"sharpness": float(n)}) for n, entry in enumerate(index.entries))
    index_path(path / "000.tar").write_bytes(dataclasses.replace(index, entries=entries).to_bytes())
    rows = [{"path": str(path), "figures": {"sharpness": [1.0, None]}}]
    assert planned(recipe(tmp_path / "r.yaml", rows, max_steps=1)).sources[0].samples == 3


def test_speed_duration_and_json(tmp_path, capsys):
    path = recipe(tmp_path / "r.yaml", [{"path": str(folder(tmp_path / "a", [8]))}], max_steps=900, accumulate_grad_batches=2)
    call = ["mix", str(path), "--quiet", "--json", str(tmp_path / "mix.json")]
    assert main([*call, "--samples-per-second", "2"]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "mix.json").read_text())
    assert record["samples"] == 900 * 2 * 4 and record["sources"][0]["passes"] == 900
    assert out.startswith("900 steps of 2 x 4 samples, 7,200 in all\n")
    assert f"at 2 samples/s: 1 h 00 min, reading {2 * record['bytes_per_sample'] / 1000:.3g} kB/s" in out
    assert main([*call, "--samples-per-second", "0"]) == 2


def test_runs_without_a_last_step(tmp_path, capsys):
    rows = [{"path": str(folder(tmp_path / "a", [9]))}]
    assert [planned(recipe(tmp_path / "r.yaml", rows)).batches, planned(recipe(tmp_path / "r.yaml", rows, steps_per_epoch=5)).batches] == [
        2,
        5,
    ]
    assert planned(recipe(tmp_path / "r.yaml", rows, max_epochs=3)).batches == 6
    assert planned(recipe(tmp_path / "r.yaml", rows, max_epochs=3, max_steps=5)).batches == 5
    assert planned(recipe(tmp_path / "r.yaml", rows, max_steps=-1), "trainer.max_steps=7", "data.batch_size=2").positions == 14
    assert main(["mix", str(recipe(tmp_path / "r.yaml", rows)), "--quiet"]) == 0
    assert "no trainer.max_steps, so for one epoch: 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [{"path": "a", "wieght": 1}]}, r"data.train\[0\]: unknown key 'wieght'; a row has path, weight"),
        ({"train": ["a"]}, r"data.train\[0\]: a row is like"),
        ({"train": [{"path": "a", "weight": "much"}]}, "weight is 'much', expected a number"),
        ({"train": [{"path": "a", "weight": 0}]}, "weight 0 must be positive"),
        ({"train": [{"path": "a"}, {"path": "b/a"}]}, "two sources of the mixture are called 'a'"),
        ({"train": []}, "no mixture under data.train; stack a recipe"),
        ({"train": [{"path": "no/such"}]}, "no such folder"),
        ({"batch_size": None}, "data.batch_size is None, expected a whole number of at least 1"),
        ({"max_steps": "many"}, "trainer.max_steps is 'many', expected a whole number"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, change, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path / "r.yaml", **({"rows": change.pop("train", [{"path": str(folder(tmp_path / "x", [2]))}])} | change))
    assert main(["mix", str(path), "--quiet"]) == 2
    captured = capsys.readouterr()
    with pytest.raises(ValueError, match=message):
        main(["mix", str(path), "--quiet", "--debug"])
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_recipes_that_are_none(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for path, message in (("list.yaml", "holds keys"), ("broken.yaml", "not YAML"), ("none.yaml", "there is no recipe")):
        assert main(["mix", str(tmp_path / path), "--quiet"]) == 2
        assert message in capsys.readouterr().err


def test_stacks_are_read_as_the_command_line_reads_them(tmp_path):
    """The oracle is jsonargparse, behind ``mdpretrain fit``: overriding, appending, sections in files of their own, YAML 1.2 floats."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "section.yaml").write_text("{train: [{path: z}], val: [], image_size: [8, 8], batch_size: 9}\n")
    (tmp_path / "own" / "file.yaml").write_text("data: section.yaml\n")
    (tmp_path / "more.yaml").write_text("data: {train+: [{path: added, weight: 1e3, max_passes: 2}]}\ntrainer: {max_steps: 77}\n")
    (tmp_path / "other.yaml").write_text("data: {val: [], batch_size: 96, train: [{path: only, name: o, max_depth_m: 8}]}\n")
    base, mixture = RECIPES / "metric_anything" / "student_depthmap_vits_518.yaml", RECIPES / "mixtures" / "any_depth.yaml"
    more, other, file = tmp_path / "more.yaml", tmp_path / "other.yaml", tmp_path / "own" / "file.yaml"
    changed = ["data.batch_size=48", "trainer.max_steps=3", "trainer.accumulate_grad_batches=2"]
    for stack, changes in (([base, mixture, file, more], []), ([base, mixture, other], changed)):
        theirs, ours = parse(*stack, extra=tuple(f"--{change}" for change in changes)), read_run(stack, changes)
        assert [vars(row) for row in theirs.data.train] == [dataclasses.asdict(source) for source in ours.sources], stack
        assert (theirs.data.batch_size, theirs.data.steps_per_epoch) == (ours.batch_size, ours.epoch_batches)
        assert (theirs.trainer.max_steps, theirs.trainer.accumulate_grad_batches) == (ours.max_steps, ours.accumulate)


def test_every_recipe_of_the_repository_is_read():
    for path in sorted(RECIPES.rglob("*.yaml")):
        content = stacked([load_recipe(path)])
        assert content == yaml.safe_load(path.read_text()), path


def test_needs_no_training_stack(tmp_path):
    path = recipe(tmp_path / "r.yaml", [{"path": str(folder(tmp_path / "a", [3]))}], max_steps=2)
    script = f"from data_shards.cli import main; main(['mix', {str(path)!r}])"
    script += "; import sys; print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[]\n") and "2 steps of 4 samples" in result.stdout
