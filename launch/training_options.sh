# Sourced by demo.sh, rendered_teacher.sh and distillation.sh: PROCESSES and MACHINE_OPTIONS, what every fit of theirs is given on this machine.
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
