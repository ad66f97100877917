"""Pipelines on a real SLURM cluster: a labelling array that loses a task, and the whole road from rendering to the report."""

from __future__ import annotations

import hashlib
import os
import pathlib
import sys
from typing import Any

import pytest
import yaml
from shard_parts import write_folder
from slurm_parts import Slurm, launcher, newest_job, resolve_here, run_log, two_nodes, wait_for, wait_for_end
from training_runs import audit, losses, recipe, run, write_recipe

import tests.training_parts as parts
from launch import job_queue, pipeline
from launch.job_queue import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
LABELS = ["--long-side", "64", "--multiple", "16", "--quiet"]


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("slurm")
def test_array_that_labels_shards_with_one_task_killed(kept: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shards = write_folder(tmp_path / "shards" / "train", 10, per_shard=2)
    write_folder(tmp_path / "shards" / "val", 1)
    teacher = write_recipe(kept / "teacher.yaml", recipe(tmp_path / "shards", trainer={"max_steps": 2, "val_check_interval": None}))
    assert run(["fit", "--config", teacher, "--run_dir", str(kept / "teacher")]) == [0]
    label = ["--checkpoint", str(kept / "teacher"), "--shards", str(shards), *LABELS, "--batch-size", "2", "--device", "cpu"]
    assert run(["label", *label, "--output", str(tmp_path / "undisturbed")]) == [0]

    command = " ".join([sys.executable, "-m", "tests.killed_labelling", str(kept / "killed"), *label, "--output", str(kept / "pseudo")])
    stages = {"label": {"command": command, "array": 2}}
    file = write_recipe(kept / "pipeline.yaml", {"name": "labels", "folder": str(kept / "labels"), "stages": stages})
    print(pipeline.run_pipeline(pathlib.Path(file), two_nodes(), allow_dirty=True, dry_run=False))
    array, end = (record.job for record in records(kept / "labels"))
    wait_for("the array to end", lambda: not job_queue.is_active(array))
    assert sorted(job_queue.states(array)) == ["COMPLETED", "FAILED"] and (kept / "killed").exists()
    wait_for_end(end, "CANCELLED")  # what hangs on a failed job does not wait for ever
    assert not (kept / "pseudo" / "shards.json").exists()

    print(pipeline.run_pipeline(pathlib.Path(file), two_nodes(), allow_dirty=True, dry_run=False))
    wait_for_end(newest_job(kept / "labels"))
    assert "1 of 2 shards were there already" in run_log(kept / "labels")
    assert digests(kept / "pseudo") == digests(tmp_path / "undisturbed")


@pytest.mark.usefixtures("slurm")
def test_array_task_at_its_time_limit_is_requeued_alone(kept: pathlib.Path) -> None:
    script = kept / "work.sh"
    script.write_text('[ "$SLURM_ARRAY_TASK_ID" = 0 ] || [ "${SLURM_RESTART_COUNT:-0}" = 1 ] || sleep 600\necho finished\n')
    stages = {"work": {"command": f"bash {script}", "array": 2}}
    file = write_recipe(kept / "pipeline.yaml", {"name": "limit", "folder": str(kept / "limit"), "stages": stages})
    cluster = two_nodes(time="0:10:00", signal_before_end_s=570)  # SLURM looks at limits twice a minute
    print(pipeline.run_pipeline(pathlib.Path(file), cluster, allow_dirty=True, dry_run=False))
    wait_for_end(newest_job(kept / "limit"))
    logs = [path.read_text() for path in sorted((kept / "limit" / "slurm" / "log").glob("work-*_*.log"))]
    assert [log.count("finished") for log in logs] == [1, 1] and [log.count("near: requeued") for log in logs] == [0, 1]


def small(model: dict[str, Any], folder: pathlib.Path, **data: Any) -> dict[str, Any]:
    """A training stage of a few steps."""
    content = recipe(folder, trainer={"max_steps": 4, "val_check_interval": 4}, data=data)
    return {**content, "model": model}


def model(task: str, network: dict[str, Any], loss: str, **more: Any) -> dict[str, Any]:
    table = {"class_path": "mdpretrain.losses.table.LossTable", "init_args": {"terms": {"default": [{"name": loss}]}}}
    return {"class_path": f"mdpretrain.tasks.{task}", "init_args": {"network": network, "loss": table, **more}}


def write_pipeline(kept: pathlib.Path) -> pathlib.Path:
    """All stages of launch/pipelines/demo.yaml on 24 small images; the student trains on two nodes."""
    folder = kept / "road"
    prior = {"class_path": "mdpretrain.networks.priors.CheckpointPrior", "init_args": {"checkpoint": str(folder / "prior")}}
    write_recipe(kept / "prior.yaml", small(model("affine_invariant.AffineInvariantTraining", parts.PRIOR_NETWORK, "ssi_mae"), folder))
    teacher = model("prompted_pretraining.PromptedPretraining", parts.TEACHER_NETWORK, "mae", preparation=parts.PREPARATION, prior=prior)
    write_recipe(kept / "teacher.yaml", small(teacher, folder, prompt={"count": [30, 60]}))
    student = model("distillation.Distillation", parts.STUDENT_NETWORK, "mae")
    write_recipe(kept / "student.yaml", {**small(student, folder)})
    content = yaml.safe_load((pathlib.Path(__file__).parents[2] / "launch/pipelines/demo.yaml").read_text())
    content["folder"] = str(folder)
    stages = content["stages"]
    sizes = "--set views=2 --set width=64 --set height=48 --set quality=0"
    stages["shards"]["command"] = (
        f"data-shards build rendered --output {{folder}}/train --quiet --set scenes=12 {sizes} --items-per-shard 6"
    )
    stages["shards"]["then"] = "data-shards merge {folder}/train"
    val = "data-shards build rendered --output {folder}/val --quiet --set scenes=2 --set first_scene=300000"
    stages["held_out"]["command"] = f"{val} {sizes}"
    stages["label"]["command"] = " ".join(
        ["mdpretrain label --checkpoint {folder}/teacher --shards {folder}/train --output {folder}/pseudo --prompt-count 30 60", *LABELS]
    )
    stages["evaluate"]["command"] = (
        "mdpretrain evaluate --teacher {folder}/teacher --student {folder}/student --shards {folder}/val --training-shards {folder}/train "
        "--image-size 48 64 --prompt-count 30 60 --output {folder}/report"
    )
    stages["shards"]["array"] = stages["label"]["array"] = 2
    for name in ("prior", "teacher", "student"):
        stages[name] |= {"fit": [str(kept / f"{name}.yaml")], "options": []}
    stages["student"] |= {"nodes": 2, "fit": [str(kept / "student.yaml"), "recipes/engine/ddp.yaml"]}
    stages["student"]["options"] = ["--data.train", "[{path: {folder}/train, sidecars: [{folder}/pseudo], name: pseudo}]"]
    return pathlib.Path(write_recipe(kept / "pipeline.yaml", content))


def test_whole_pipeline(
    slurm: Slurm,
    repository: pathlib.Path,
    kept: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, folder = write_pipeline(kept), kept / "road"
    monkeypatch.setattr(pipeline, "resolve_recipes", resolve_here)
    print(pipeline.run_pipeline(file, two_nodes(), allow_dirty=True, dry_run=False))
    plan = capfd.readouterr().out
    assert plan.count("submit") >= 7 and "2 tasks" in plan
    again = launcher("pipeline", str(file), "--cluster", "launch/clusters/local_test.yaml", "--allow-dirty")
    assert "every stage is done or on its way" in again  # submitted once, however often it is asked for
    last = newest_job(folder)
    wait_for_end(last)
    assert "done: evaluate, held_out, label, prior, shards, student, teacher" in launcher("status", str(folder))
    assert (folder / "report" / "index.html").stat().st_size > 10_000

    for name, ranks in (("prior", 1), ("teacher", 1), ("student", 2)):
        code, text = audit(folder / name, capfd)
        assert code == 0 and f"PROVEN: steps 0 to 3 in 1 starts on {ranks} processes: 16 samples" in text, text
    arguments = ["--config", str(kept / "student.yaml"), "--config", str(repository / "recipes/engine/ddp.yaml"), "--trainer.devices", "2"]
    arguments += [
        "--data.train",
        f"[{{path: {folder / 'train'}, sidecars: [{folder / 'pseudo'}], name: pseudo}}]",
        "--run_dir",
        str(tmp_path / "alone"),
    ]
    assert run(["fit", *arguments], ranks=2) == [0, 0]
    assert losses(folder / "student") == losses(tmp_path / "alone")

    # A changed recipe is a stage to do again, with all that hang on it; the others stay done.
    os.utime(kept / "prior.yaml")
    with (kept / "student.yaml").open("a") as recipe_file:
        recipe_file.write("# another remark\n")
    planned = {stage.name: stage.action for stage in pipeline.make_plan(pipeline.load_pipeline(file))}
    assert planned == dict.fromkeys(("shards", "held_out", "prior", "teacher", "label"), "done") | {
        "student": "submit",
        "evaluate": "submit",
    }
