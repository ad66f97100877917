#!/usr/bin/env bash
# A prompted teacher trained on rendered scenes alone and measured on real frames, beside what any teacher must beat.
#
#   launch/rendered_teacher.sh DATA       DATA: real frames in the simple layout (docs/sources.md), every folder in it a source
#   launch/rendered_teacher.sh            without any: measured on rendered scenes that it never saw
#
# Training takes at most 45 minutes on two cores; rendering and measuring come on top. Running it again reuses what is done.
# RUN names the folder (default runs/rendered_teacher); RECIPE another recipe than recipes/debug/teacher_rendered.yaml.
set -euo pipefail

DATA=${1:-}
RUN=${RUN:-runs/rendered_teacher}
RECIPE=${RECIPE:-recipes/debug/teacher_rendered.yaml}
SCENES=${SCENES:-1500}            # rendered training scenes, two views each
HELD_OUT_SCENES=${HELD_OUT_SCENES:-40}
WORKERS=${WORKERS:-2}
# the first one's prompts are what the robustness curves vary
PROTOCOLS=${PROTOCOLS:-"points_2000 points_500 table1_x8 table1_lidar"}
ROBUSTNESS=${ROBUSTNESS:-patterns}
FIT_OPTIONS=${FIT_OPTIONS:-}
source "$(dirname "$0")/stages.sh"
[ -z "$DATA" ] || [ -d "$DATA" ] || fail "$DATA is not a folder; name one of frames in the simple layout (docs/sources.md)"

say "1/4 shards"
SIZE="--set views=2 --set width=320 --set height=240 --set quality=0"
# shellcheck disable=SC2086  # options are several words
data-shards build rendered --output "$RUN/shards/train" --workers "$WORKERS" --set scenes="$SCENES" $SIZE
# shellcheck disable=SC2086
data-shards build rendered --output "$RUN/shards/val" --workers "$WORKERS" --set scenes="$HELD_OUT_SCENES" --set first_scene=500000 $SIZE
MEASURED="$RUN/shards/val"
if [ -n "$DATA" ]; then
    MEASURED="$RUN/shards/real_$(basename "$DATA")"
    data-shards build simple --input "$DATA" --output "$MEASURED" --workers "$WORKERS"
fi

say "2/4 teacher"
# shellcheck disable=SC2086
mdpretrain fit --config "$RECIPE" --run_dir "$RUN/teacher" --resume \
    --data.train "[{path: $RUN/shards/train}]" --data.val "[$RUN/shards/val]" $MACHINE_OPTIONS $FIT_OPTIONS

# The teacher reads no prior; the baselines that align one (GMDR, PDSA) get the demo's, trained on the same scenes.
say "3/4 prior of the baselines"
# shellcheck disable=SC2086
mdpretrain fit --config recipes/debug/prior.yaml --run_dir "$RUN/prior" --resume \
    --data.train "[{path: $RUN/shards/train}]" --data.val "[$RUN/shards/val]" $MACHINE_OPTIONS $FIT_OPTIONS

say "4/4 evaluation"
# shellcheck disable=SC2086
mdpretrain evaluate --teacher "$RUN/teacher" --prior "$RUN/prior" --shards "$MEASURED" --long-side 320 --multiple 16 \
    --prompt-protocol $PROTOCOLS --robustness "$ROBUSTNESS" --output "$RUN/report"
say "done: open $RUN/report/index.html"
