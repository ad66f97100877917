# Sourced by demo.sh, rendered_teacher.sh and distillation.sh: what scripts of several stages share. PROCESSES and MACHINE_OPTIONS are what
# every fit of theirs is given on this machine.
SCRIPT=$(basename "$0" .sh)
STARTED=$SECONDS
say() { printf '\n== %s (%d:%02d since the start)\n' "$1" $(((SECONDS - STARTED) / 60)) $(((SECONDS - STARTED) % 60)); }
fail() { echo "$SCRIPT: $1" >&2; exit 2; }
# `fit` saves at a signal and leaves with exit code 0, so without this a script would go on to the next stage with half a network.
trap 'echo "$SCRIPT: stopped; run it again to continue" >&2; exit 130' INT TERM
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # tasks in the background do not hear Ctrl-C

in_tasks() {  # a command that takes --task-id and --num-tasks, once a process; all at once, and wrong if one of them is
    local task tasks=()
    for task in $(seq 0 $((PROCESSES - 1))); do
        "$@" --task-id "$task" --num-tasks "$PROCESSES" &
        tasks+=($!)
    done
    for task in "${tasks[@]}"; do wait "$task"; done
}

if nvidia-smi -L >/dev/null 2>&1; then
    PROCESSES=1
    MACHINE_OPTIONS="--trainer.precision bf16-mixed"
else
    # Two processes of one thread each, which also read their own data: a step is hundreds of short operations, and two threads that
    # wait for each other in every one of them stand still whenever a third task, such as a data worker, takes one of the cores.
    export OMP_NUM_THREADS=1
    PROCESSES=${PROCESSES:-2}
    MACHINE_OPTIONS="--config recipes/engine/ddp.yaml --trainer.accelerator cpu --trainer.devices $PROCESSES --data.num_workers 0"
    # bfloat16 where the processor computes in it: faster by half and more, and slower where it must be emulated.
    if grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then MACHINE_OPTIONS="$MACHINE_OPTIONS --trainer.precision bf16-mixed"; fi
fi
