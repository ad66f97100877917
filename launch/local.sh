#!/usr/bin/env bash
# The one-machine twin of launch/slurm.py: trains on N local processes and continues a run that is there already.
#
#   launch/local.sh N --config RECIPE [--config ...] [--key value ...]
#
# N is the number of GPUs to use, or of processes on a CPU (--trainer.accelerator cpu). Ctrl-C saves and ends; the same command goes on.
# For several processes stack recipes/engine/ddp.yaml or deepspeed_zero2.yaml.
set -euo pipefail
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || { echo "usage: launch/local.sh N --config RECIPE [--key value ...]" >&2; exit 2; }
processes=$1
shift
PYTHON=${PYTHON:-python3}
fit=(mdpretrain.cli fit --resume "$@" --trainer.devices "$processes")
if [ "$processes" = 1 ]; then exec "$PYTHON" -m "${fit[@]}"; fi
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$processes" --max-restarts=0 -m "${fit[@]}"
