"""Renders what sbatch runs, as a script that a person can read: a training run on many processes, or one command (also as a job array).

A training job gets SIGUSR1 some time before its limit, saves, and is requeued (``mdpretrain/engine/preemption.py``); a command is
resumed by running it again, so its script has the job requeued at once.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from mdpretrain.slurm.cluster_file import Cluster

PROGRAMS = {"mdpretrain": "mdpretrain.cli", "data-shards": "data_shards.cli"}  # console scripts would import the installed code

# enroot starts containers with an environment of their own; this is what mdpretrain and Lightning read of the job's.
ENROOT_VARIABLES = (
    *("PYTHONPATH", "PYTHONSAFEPATH", "MASTER_ADDR", "MASTER_PORT", "MDPRETRAIN_STOPPED_FILE", "XDG_CACHE_HOME", "SLURM_JOB_ID"),
    *("SLURM_JOB_NAME", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
)
ARRAY_VARIABLES = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP"))

# Ranks meet where the batch script runs: the first node. Its name may not resolve on the others, so they are told an address; and other
# jobs of the node may hold the port, so a free one is taken.
RENDEZVOUS = r"""
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=@ADDRESS@
[ -n "$MASTER_ADDR" ] || MASTER_ADDR=$(getent ahostsv4 "$first" | awk '$1 !~ /^127\./ {print $1; exit}')
[ -n "$MASTER_ADDR" ] || MASTER_ADDR=$(hostname -I | awk '{print $1}')
[ "$SLURM_NNODES" -gt 1 ] || MASTER_ADDR=127.0.0.1
MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0} * 101) % 12000))
taken() { (exec 3<>"/dev/tcp/$1/$MASTER_PORT") 2>/dev/null; }
while taken 127.0.0.1 || taken "$MASTER_ADDR"; do MASTER_PORT=$((MASTER_PORT + 1)); done
export MASTER_ADDR MASTER_PORT
echo "rendezvous: $MASTER_ADDR:$MASTER_PORT on $first"
""".strip()

# Python needs a moment to listen: until then SIGUSR1 is ignored instead of deadly.
TASK = 'trap "" USR1; exec "$@"'

# torchrun dies of SIGUSR1 and knows no way to pass it on, so the node's script hands it to the workers.
NODE = """
trap "" USR1
"$@" --node-rank="$SLURM_NODEID" @PROGRAM@ & agent=$!
trap "pkill -USR1 -P $agent" USR1
trap "kill -TERM $agent" TERM
while kill -0 "$agent" 2>/dev/null; do wait "$agent"; code=$?; done
exit "$code"
""".strip()

# The number of one task of an array may be the number of the array, and requeue tasks that are done.
REQUEUE_AT_LIMIT = r"""
own=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || own=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap 'echo "the time limit is near: requeued"; scontrol requeue "$own"' USR1
""".strip()

# Exit code 0 with this file means: saved, not finished. Usually the run has asked SLURM for its requeueing itself.
AFTER_TRAINING = """
code=$?
if [ -e "$MDPRETRAIN_STOPPED_FILE" ]; then
    grep -q requeued "$MDPRETRAIN_STOPPED_FILE" || state=$(scontrol show job -o "$SLURM_JOB_ID")
    rm -f "$MDPRETRAIN_STOPPED_FILE"
    case "${state:-}" in *"JobState=RUNNING "* | *"JobState=COMPLETING Reason=TimeLimit "*) scontrol requeue "$SLURM_JOB_ID" ;; esac
    exit "$code"
fi
""".strip()


@dataclasses.dataclass(frozen=True)
class Job:
    """What a script is for.

    Args:
        name: of the job.
        folder: the run's (or pipeline's) folder.
        working_dir: where relative paths of recipes begin.
        code: snapshot of the code; None runs what is installed.
        script_name: base name of script and logs.
        array: tasks of a job array; 0 for a plain job.
        done_marker: file to write ``done_text`` into when all went well; None for none.
        log_folder: for the output, and must be there when the job starts; None for the run's own.
        title: what the script says of itself, after the job's name.
    """

    name: str
    folder: Path
    working_dir: Path
    code: Path | None
    script_name: str = "job"
    array: int = 0
    done_marker: Path | None = None
    done_text: str = ""
    log_folder: Path | None = None
    title: str = "written by launch/slurm.py for {folder}; the command that wrote it also continues it."

    @property
    def slurm_folder(self) -> Path:
        return self.folder / "slurm"

    @property
    def log_pattern(self) -> Path:
        """Where output goes; %j, %A and %a are SLURM's."""
        return (self.log_folder or self.slurm_folder / "log") / f"{self.script_name}-{'%A_%a' if self.array else '%j'}.log"


def training_script(job: Job, cluster: Cluster, arguments: list[str]) -> str:
    """The script that runs ``mdpretrain fit`` with these arguments (recipe, run folder, layout) and continues the run at every start."""
    torchrun = cluster.launcher == "torchrun"
    tasks, cpus = (1, cluster.cpus_per_process * cluster.processes) if torchrun else (cluster.processes, cluster.cpus_per_process)
    head = _head(job, cluster, cluster.nodes, tasks, cpus, f"USR1@{cluster.signal_before_end_s}")
    program = _quote(["-m", "mdpretrain.cli", "fit", *arguments, "--resume"])
    srun = _srun(cluster, "--kill-on-bad-exit=1")
    if torchrun:
        agent = f'{shlex.quote(cluster.python)} -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node={cluster.processes}'
        agent += ' \\\n    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" --max-restarts=0'
        step = f'node={shlex.quote(NODE.replace("@PROGRAM@", program))}\n{srun} \\\n    bash -c "$node" node {agent}'
    else:
        step = f"{srun} \\\n    bash -c {shlex.quote(TASK)} task {_inside(cluster, job)} -u {program}"
    interface = cluster.interface
    address = f"$(ip -4 -o addr show dev {interface} | awk '{{split($4, a, \"/\"); print a[1]; exit}}')" if interface else ""
    parts = [
        head,
        _environment(job, cluster),
        f"mkdir -p {_quote([str(job.slurm_folder)])}\n"
        f"export MDPRETRAIN_STOPPED_FILE={_quote([str(job.slurm_folder / 'stopped')])}-$SLURM_JOB_ID\n"
        'rm -f "$MDPRETRAIN_STOPPED_FILE"',
        RENDEZVOUS.replace("@ADDRESS@", address),
        "trap : TERM USR1  # the processes are told as well: wait for them",
        step,
        AFTER_TRAINING,
        _end(job),
    ]
    return "\n\n".join(parts) + "\n"


def command_script(job: Job, cluster: Cluster, command: list[str] | None) -> str:
    """The script of one command on one node, or of each task of an array; without a command it only marks what it waited for as done."""
    head = _head(job, cluster, 1, 1, cluster.cpus_per_process * cluster.processes, f"B:USR1@{cluster.signal_before_end_s}")
    if command is None:
        return "\n\n".join([head, "code=0", _end(job)]) + "\n"
    python = _inside(cluster, job)
    words = f"{python} -u -m {PROGRAMS[command[0]]} {_quote(command[1:])}" if command[0] in PROGRAMS else _quote(command)
    if command[0] not in PROGRAMS and cluster.container is not None:
        words = f"{python.removesuffix(shlex.quote(cluster.python))}{words}"
    requeue = REQUEUE_AT_LIMIT if cluster.requeue else "trap : USR1"
    run = f'{_srun(cluster)} \\\n    {words} &\nstep=$!\nwhile kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done'
    return "\n\n".join([head, _environment(job, cluster), requeue, run, _end(job)]) + "\n"


def _head(job: Job, cluster: Cluster, nodes: int, tasks: int, cpus: int, signal: str) -> str:
    lines = [
        f"--job-name={job.name}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cpus}",
        f"--time={cluster.time}",
    ]
    lines += [f"--array=0-{job.array - 1}"] if job.array else []
    for name, value in (("partition", cluster.partition), ("account", cluster.account), ("qos", cluster.qos)):
        lines += [f"--{name}={value}"] if value else []
    lines += [f"--constraint={cluster.constraint}"] if cluster.constraint else []
    lines += [f"--mem={cluster.memory}"] if cluster.memory else []
    gpus = {"gpus-per-node": f"--gpus-per-node={cluster.gpus_per_node}", "gres": f"--gres=gpu:{cluster.gpus_per_node}"}
    lines += [gpus[cluster.gpu_request]] if cluster.gpus_per_node and cluster.gpu_request in gpus else []
    lines += [f"--signal={signal}", "--requeue" if cluster.requeue else "--no-requeue", "--open-mode=append"]
    lines += [f"--chdir={job.working_dir}", f"--output={job.log_pattern}", *cluster.sbatch]
    title = f"#!/bin/bash\n# {job.name}: {job.title.format(folder=job.folder)}"
    return title + "\n" + "\n".join(f"#SBATCH {_sbatch_word(line)}" for line in lines)


def _sbatch_word(option: str) -> str:
    return option if not any(character.isspace() for character in option) else f'"{option}"'


def _environment(job: Job, cluster: Cluster) -> str:
    lines = ['echo "== $(date -Is) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start ${SLURM_RESTART_COUNT:-0}"']
    lines += [f"module load {_quote(cluster.modules)}"] if cluster.modules else []
    lines += cluster.setup
    if job.code is not None:
        lines += [f"export PYTHONPATH={_quote([str(job.code)])} PYTHONSAFEPATH=1  # the snapshot, whatever is installed or lies here"]
    variables: dict[str, str] = {}
    if cluster.gpus_per_node:
        variables |= {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    if cluster.interface:
        variables |= {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in (variables | cluster.variables).items()]
    lines += [f'export XDG_CACHE_HOME="{cluster.local_cache}"'] if cluster.local_cache else []
    return "\n".join(lines)


def _srun(cluster: Cluster, *options: str) -> str:
    words = ["srun", *options, "--cpus-per-task=$SLURM_CPUS_PER_TASK"]
    words += [f"--mpi={cluster.mpi}"] if cluster.mpi else []
    words += [f"--cpu-bind={cluster.cpu_bind}"] if cluster.cpu_bind else []
    if cluster.container is not None and cluster.container.kind == "pyxis":
        words += [f"--container-image={shlex.quote(cluster.container.image)}"]
        words += [f"--container-mounts={shlex.quote(','.join(cluster.container.mounts))}"] if cluster.container.mounts else []
        words += cluster.container.options
    return " ".join(words)


def _inside(cluster: Cluster, job: Job) -> str:
    """The words that start the interpreter, in its container if there is one."""
    container, python = cluster.container, shlex.quote(cluster.python)
    if container is None or container.kind == "pyxis":
        return python
    if container.kind == "apptainer":
        words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), "--pwd", str(job.working_dir)]
        words += [word for mount in container.mounts for word in ("--bind", mount)]
    else:
        words = ["enroot", "start", "--rw", *(word for mount in container.mounts for word in ("--mount", mount))]
        names = [*ENROOT_VARIABLES, *(ARRAY_VARIABLES if job.array else ()), *cluster.variables]
        words += [word for name in names for word in ("--env", name)]
    return f"{_quote([*words, *container.options, container.image])} {python}"


def _end(job: Job) -> str:
    lines = []
    if job.done_marker is not None:
        aside = f"{job.done_marker}.partial"
        lines += [
            f'if [ "$code" = 0 ]; then printf "%s\\n" {job.done_text} >{_quote([aside])} && mv {_quote([aside, str(job.done_marker)])}; fi'
        ]
    return "\n".join([*lines, 'exit "$code"'])


def _quote(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)
