"""Pipelines and submissions against a made-up SLURM: fingerprints, plans, dependencies, and mistakes before anything is queued."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

from launch import pipeline, training_job
from launch.pipeline_file import Stage, command_words, fingerprints, load_pipeline
from launch.resolve_recipe import resolve
from launch.training_job import Submission, submit
from mdpretrain.evaluation.command import evaluation_parser, evaluation_request
from mdpretrain.labeling.label_options import parse_label_options
from mdpretrain.slurm.cluster_file import Cluster

ROOT = pathlib.Path(__file__).resolve().parents[2]

SBATCH = """#!/bin/sh
echo "$@" >> {folder}/submitted
wc -l < {folder}/submitted
"""
SQUEUE = """#!/bin/sh
cat {folder}/states 2>/dev/null || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }}
"""


@pytest.fixture
def slurm(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with ``submitted``, a line per sbatch, and ``states``, what squeue says."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def write(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Shards and labels by arrays, a report at the end; ``changes`` replace stages."""
    (folder / "raw").mkdir(exist_ok=True)
    stages = {
        "report": {"command": "mdpretrain evaluate --shards {folder}/labels", "needs": ["labels"]},
        "shards": {
            "command": "data-shards build simple",
            "array": 4,
            "then": "data-shards merge {folder}/shards",
            "inputs": [str(folder / "raw")],
        },
        "labels": {"command": "mdpretrain label --output {folder}/labels", "array": 2, "needs": ["shards"]},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "p", "folder": str(folder / "out"), "stages": stages | changes}))
    return path


def test_stages_are_chained_and_submitted_once(tmp_path: pathlib.Path, slurm: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    said = pipeline.run_pipeline(path, Cluster(), allow_dirty=True, dry_run=False)
    assert said == "submitted: shards as job 2, labels as job 4, report as job 5"
    lines = (slurm / "submitted").read_text().splitlines()
    after = [match and match[1] for match in (re.search(r"afterok:(\S+)", line) for line in lines)]
    assert after == [None, "1", "2", "3", "4"]
    assert all("--kill-on-invalid-dep=yes" in line for line in lines[1:])
    (slurm / "states").write_text("RUNNING\n")
    assert "on its way" in pipeline.run_pipeline(path, Cluster(), allow_dirty=True, dry_run=False)
    assert len((slurm / "submitted").read_text().splitlines()) == 5
    with pytest.raises(ValueError, match=r"stage labels runs as job 4 with another content"):
        pipeline.run_pipeline(
            write(tmp_path, labels={"command": "mdpretrain label --seed 1", "needs": ["shards"]}),
            Cluster(),
            allow_dirty=True,
            dry_run=False,
        )


def test_done_stages_are_skipped_until_their_command_or_inputs_change(tmp_path: pathlib.Path, slurm: pathlib.Path) -> None:
    path = write(tmp_path)
    done = tmp_path / "out" / "slurm" / "done"
    done.mkdir(parents=True)
    for name, text in fingerprints(load_pipeline(path)).items():
        (done / name).write_text(text + "\n")

    def actions(path: pathlib.Path) -> dict[str, str]:
        return {planned.name: planned.action for planned in pipeline.make_plan(load_pipeline(path))}

    assert actions(path) == {"shards": "done", "labels": "done", "report": "done"}
    more_tasks = {"command": "mdpretrain label --output {folder}/labels", "array": 7, "needs": ["shards"], "time": "1:00:00"}
    assert set(actions(write(tmp_path, labels=more_tasks)).values()) == {"done"}  # the same bytes come out
    changed = write(tmp_path, labels={**more_tasks, "command": "mdpretrain label --output {folder}/labels --seed 1"})
    assert actions(changed) == {"shards": "done", "labels": "submit", "report": "submit"}
    path = write(tmp_path)
    (tmp_path / "raw" / "frame.png").write_bytes(b"new")
    assert set(actions(path).values()) == {"submit"}
    assert pipeline.run_pipeline(path, Cluster(), allow_dirty=True, dry_run=True) == "nothing was submitted"
    assert not (slurm / "submitted").exists()


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ({"comand": "x"}, "stage labels: unknown key 'comand'; do you mean 'command'?"),
        ({}, "give either command or fit"),
        ({"command": "x", "needs": ["nothing"]}, "needs 'nothing', and there is no such stage"),
        ({"command": "x", "needs": ["report"]}, "in a circle"),
        ({"fit": ["a.yaml"]}, "fit needs a run_dir"),
        ({"fit": ["a.yaml"], "run_dir": "b", "array": 3}, "array and then are for commands"),
    ],
)
def test_mistakes_in_a_pipeline_are_named(tmp_path: pathlib.Path, stage: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_pipeline(write(tmp_path, labels=stage))


def test_the_example_pipeline_is_the_demo() -> None:
    stages = load_pipeline(ROOT / "launch" / "pipelines" / "demo.yaml").stages
    assert list(stages)[-1] == "evaluate" and set(stages) == {"shards", "held_out", "prior", "teacher", "label", "student", "evaluate"}
    for stage in stages.values():
        if stage.fit:
            arguments = [word for path in stage.fit for word in ("--config", str(ROOT / path))]
            assert "recipe" in resolve([*arguments, "--run_dir", str(stage.run_dir), *stage.options])


def test_the_pipeline_of_the_published_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = load_pipeline(ROOT / "launch" / "pipelines" / "metric_anything.yaml").stages
    labels = {name: stage for name, stage in stages.items() if name.startswith("label_")}
    assert set(stages) - set(labels) == {"teacher", "student_depthmap", "student_pointmap", "evaluate"} and list(stages)[-1] == "evaluate"
    assert all(stage.array and stage.needs == ["teacher"] for stage in labels.values())
    for stage in labels.values():
        options = parse_label_options(command_words(stage.command or "")[2:])
        assert str(options.checkpoint) == stages["teacher"].run_dir and stage.inputs == [word(stage, "--config")]
    for name, stage in stages.items():
        if stage.fit:
            arguments = [part for path in stage.fit for part in ("--config", str(ROOT / path))]
            answer = resolve([*arguments, "--run_dir", str(stage.run_dir), *stage.options])
            assert "recipe" in answer, answer
            rows = yaml.safe_load(answer["recipe"])["data"]["train"]
            assert {row["path"] for row in rows} == {word(stage, "--shards") for stage in labels.values()}
            if name != "teacher":  # it reads what the label stages write, each beside the shards it was made from
                made = {word(stage, "--shards"): word(stage, "--output") for stage in labels.values()}
                assert {row["path"]: row["sidecars"] for row in rows} == {shards: [made[shards]] for shards in made}
                assert set(stage.needs) == set(labels)
    request = evaluation_request(evaluation_parser().parse_args(command_words(stages["evaluate"].command or "")[2:]))
    trained = {name: [stage.run_dir] for name, stage in stages.items() if stage.fit}
    assert request.named() == trained and request.passes()[0].protocols[0].exclude_prompt_pixels


def word(stage: Stage, option: str) -> str:
    """What follows an option in a stage's command."""
    words = command_words(stage.command or "")
    return words[words.index(option) + 1]


def test_recipes_are_checked_before_anything_is_queued(
    tmp_path: pathlib.Path, slurm: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve_here(commands: list[list[str]]) -> list[str]:
        [answer] = [resolve(arguments) for arguments in commands]
        if "error" in answer:
            raise ValueError(answer["error"])
        return [answer["recipe"]]

    monkeypatch.setattr(training_job, "resolve_recipes", resolve_here)
    recipe = str(ROOT / "recipes" / "debug" / "prior.yaml")
    run_dir = str(tmp_path / "run")
    for wrong, sentence in (
        (["--trainer.max_stepz", "3"], "max_stepz"),
        (["--trainer.max_steps", "many"], "max_steps"),
        (["--model.network.init_args.widht", "3"], "widht"),
    ):
        with pytest.raises(ValueError, match=sentence):
            submit(Submission([recipe], Cluster(), run_dir, wrong, allow_dirty=True))
    with pytest.raises(ValueError, match="there is no recipe"):
        submit(Submission(["nothing.yaml"], Cluster(), run_dir, allow_dirty=True))
    assert not (slurm / "submitted").exists() and not (tmp_path / "run").exists()

    script = submit(Submission([recipe], Cluster(nodes=3), run_dir, ["--data.batch_size", "48"], dry_run=True))
    assert "#SBATCH --nodes=3" in script and not (tmp_path / "run").exists()
    assert submit(Submission([recipe], Cluster(nodes=3), run_dir, ["--data.batch_size", "48"], allow_dirty=True)).startswith("job 1: ")
    resolved = yaml.safe_load((tmp_path / "run" / "slurm" / "recipe.yaml").read_text())
    assert (resolved["trainer"]["num_nodes"], resolved["data"]["batch_size"], resolved["run_dir"]) == (3, 48, run_dir)
    (slurm / "states").write_text("PENDING\n")
    with pytest.raises(ValueError, match="has job 1 already"):
        submit(Submission([recipe], Cluster(), run_dir, allow_dirty=True))
