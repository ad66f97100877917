"""What launch/ writes without a cluster: strict cluster files, readable scripts that bash accepts, snapshots of the code."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import socket
import subprocess

import pytest

from launch.snapshot import code_version, take_snapshot
from mdpretrain.slurm.batch_script import AFTER_TRAINING, NODE, RENDEZVOUS, Job, command_script, training_script
from mdpretrain.slurm.cluster_file import Cluster, Container, load_cluster

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "launch" / "clusters").glob("*.yaml"))
JOB = Job("teacher", pathlib.Path("/runs/my teacher"), pathlib.Path("/work dir"), pathlib.Path("/runs/my teacher/slurm/code/abc"))


def options(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_renders_scripts_that_bash_accepts(path: pathlib.Path) -> None:
    cluster = load_cluster(path)
    scripts = [training_script(JOB, cluster, ["--config", "/runs/my teacher/slurm/recipe.yaml"])]
    array = dataclasses.replace(JOB, array=4, done_marker=pathlib.Path("/runs/my teacher/done"), done_text="abc")
    scripts += [command_script(array, cluster, ["mdpretrain", "label", "--output", "a b"]), command_script(array, cluster, None)]
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "--requeue" in options(script) and "--open-mode=append" in options(script) and f"--time={cluster.time}" in options(script)
        assert '"--chdir=/work dir"' in options(script)
    assert f"--signal=USR1@{cluster.signal_before_end_s}" in options(scripts[0])
    assert f"--signal=B:USR1@{cluster.signal_before_end_s}" in options(scripts[1]) and "--array=0-3" in options(scripts[1])
    assert "mdpretrain.cli label --output 'a b'" in scripts[1] and "srun" not in scripts[2]
    assert "--kill-on-bad-exit=1" in scripts[0] and "--cpus-per-task=$SLURM_CPUS_PER_TASK" in scripts[0]


def test_srun_starts_a_task_per_gpu_and_torchrun_an_agent_per_node() -> None:
    recipe = pathlib.Path("/r.yaml")
    cluster = Cluster(nodes=2, gpus_per_node=4, cpus_per_process=6)
    tasks = options(training_script(JOB, cluster, ["--config", str(recipe)]))
    assert {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=6", "--gpus-per-node=4"} <= set(tasks)
    agents = training_script(JOB, dataclasses.replace(cluster, launcher="torchrun", gpu_request="gres"), ["--config", str(recipe)])
    assert {"--ntasks-per-node=1", "--cpus-per-task=24", "--gres=gpu:4"} <= set(options(agents)) and "--nproc-per-node=4" in agents


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("apptainer", "apptainer exec --nv --pwd '/work dir' --bind /data image python -u -m mdpretrain.cli fit"),
        ("pyxis", "--container-image=image --container-mounts=/data"),
        ("enroot", "enroot start --rw --mount /data --env PYTHONPATH"),
    ],
)
def test_containers_are_entered_inside_the_task(kind: str, words: str) -> None:
    cluster = Cluster(gpus_per_node=1, container=Container(kind, "image", ["/data"]))  # type: ignore[arg-type]
    assert words in training_script(JOB, cluster, ["--config", "/r.yaml"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitoin: gpu", "unknown key 'partitoin'; do you mean 'partition'?"),
        ("nodes: two", "nodes is 'two'; it must be a whole number"),
        ("time: 24:00:00", "write it in quotes"),
        ("launcher: mpirun", "launcher is 'mpirun'; it can be srun, torchrun"),
        ("container: {kind: apptainer}", "container: image is missing"),
        ("container: {kind: apptainer, image: a.sif}\nlauncher: torchrun", "use launcher: srun"),
        ("nodes: 0", "nodes is 0; give at least 1"),
        ("- a\n- b", "expected keys and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(tmp_path: pathlib.Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_cluster(path)
    assert "mine.yaml" in str(caught.value)
    with pytest.raises(ValueError, match="gpu_venv"):
        load_cluster(tmp_path / "other.yaml")


def test_rendezvous_takes_an_address_that_resolves_and_a_port_that_is_free(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "scontrol"
    script.write_text("#!/bin/sh\necho no.such.host.invalid\n")
    script.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "41"}

    def meet(nodes: str) -> tuple[str, int]:
        text = RENDEZVOUS.replace("@ADDRESS@", "") + '\necho "$MASTER_ADDR $MASTER_PORT"'
        answer = subprocess.run(
            ["bash", "-c", text], env=environment | {"SLURM_NNODES": nodes}, capture_output=True, text=True, check=True
        ).stdout
        address, port = answer.splitlines()[-1].split()
        return address, int(port)

    address, port = meet("1")
    assert address == "127.0.0.1"
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert meet("1")[1] > port  # somebody else has it
    several, _ = meet("2")
    assert re.fullmatch(r"[0-9a-f.:]+", several) and several != "no.such.host.invalid"


def test_a_nodes_script_hands_the_signal_to_the_workers_and_not_to_the_agent(tmp_path: pathlib.Path) -> None:
    worker = f'trap "touch {tmp_path}/heard; exit 0" USR1; touch {tmp_path}/ready; while :; do sleep 0.05; done'
    agent = tmp_path / "agent.py"  # starts a worker and dies of the signal, as torchrun would, where it is not ignored
    agent.write_text(
        "import signal, subprocess, sys\n"
        "listen = lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # a shell cannot trap what it inherits as ignored\n"
        f"sys.exit(subprocess.run(['bash', '-c', {worker!r}], preexec_fn=listen).returncode + 3)\n"
    )
    node = NODE.replace("@PROGRAM@", "")
    process = subprocess.Popen(["bash", "-c", node, "node", "python3", str(agent)], env=os.environ | {"SLURM_NODEID": "0"})
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    process.send_signal(10)
    assert process.wait(60) == 3 and (tmp_path / "heard").exists()


@pytest.mark.parametrize(
    ("stopped", "state", "calls"),
    [
        ("", "RUNNING Reason=None", 2),
        ("", "COMPLETING Reason=TimeLimit", 2),
        ("", "COMPLETING Reason=None", 1),
        ("requeued\n", "RUNNING Reason=None", 0),
        (None, "RUNNING Reason=None", 0),
    ],
)
def test_a_run_that_only_stopped_is_requeued_and_not_called_done(
    tmp_path: pathlib.Path, stopped: str | None, state: str, calls: int
) -> None:
    """Also where the processes cannot reach scontrol themselves; a cancelled or already requeued job is COMPLETING."""
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "JobId=7 JobState={state} Dependency=(null)"\n')
    script.chmod(0o755)
    marker = tmp_path / "stopped"
    if stopped is not None:
        marker.write_text(stopped)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MDPRETRAIN_STOPPED_FILE": str(marker), "SLURM_JOB_ID": "7"}
    text = f"true\n{AFTER_TRAINING}\necho done"
    result = subprocess.run(["bash", "-uc", text], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and ("done" in result.stdout) == (stopped is None)
    made = (tmp_path / "calls").read_text().splitlines() if calls else []
    assert made == ["show job -o 7", "requeue 7"][:calls] and not marker.exists()


def git(folder: pathlib.Path, *arguments: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


def test_snapshot_is_what_was_committed_or_says_that_it_is_not(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "a.py").write_text("one")
    (root / ".gitignore").write_text("runs/\n")
    with pytest.raises(ValueError, match="not a git checkout"):
        code_version(root, allow_dirty=False)
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    clean = code_version(root, allow_dirty=False)
    assert re.fullmatch(r"[0-9a-f]{12}", clean.name)
    assert (take_snapshot(clean, tmp_path / "code") / "a.py").read_text() == "one"

    (root / "a.py").write_text("two")
    (root / "new.py").write_text("new")
    (root / "runs").mkdir()
    (root / "runs" / "large").write_text("ignored")
    with pytest.raises(ValueError, match=r"a\.py"):
        code_version(root, allow_dirty=False)
    dirty = code_version(root, allow_dirty=True)
    assert dirty.name.startswith(f"{clean.name}-dirty-")
    copy = take_snapshot(dirty, tmp_path / "code")
    assert sorted(path.name for path in copy.iterdir()) == [".gitignore", "a.py", "new.py"] and (copy / "a.py").read_text() == "two"
    (root / "a.py").write_text("three")
    assert code_version(root, allow_dirty=True).name != dirty.name
    assert (take_snapshot(clean, tmp_path / "code") / "a.py").read_text() == "one"  # what a waiting job will run has not changed
