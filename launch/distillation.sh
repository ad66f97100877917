#!/usr/bin/env bash
# Distillation on rendered scenes whose truth is known: does a student of a teacher's labels beat one of the raw, noisy depth itself?
#
#   launch/distillation.sh                the comparison: at most 45 minutes on two cores
#   ABLATIONS=all launch/distillation.sh  and the loss forms, and Deep-to-Deep on and off: one student more for each
#   DATA=folder launch/distillation.sh    also measured on your own frames in the simple layout (docs/sources.md)
#
# A stereo camera that is simulated on the rendered frames (data_shards/rendering/depth_sensor.py) stands for raw recordings: noise,
# holes, fat edges, a range, a calibration that is off for a whole scene. The teacher learns from other scenes, of which it knows the
# exact depth and points of the sensor's; of the recorded scenes nobody is ever shown the truth.
# Running it again reuses what is done. RUN names the folder (default runs/distillation).
set -euo pipefail

DATA=${DATA:-}
RUN=${RUN:-runs/distillation}
SCENES=${SCENES:-960}             # rendered scenes the teacher learns from, three views each
RECORDED_SCENES=${RECORDED_SCENES:-1280}
HELD_OUT_SCENES=${HELD_OUT_SCENES:-64}
PROMPT=${PROMPT:-"400 1200"}      # points of a sparse prompt: 3 to 10 % of these few pixels
ABLATIONS=${ABLATIONS:-}          # names of recipes/ablations/NAME.yaml, or all
WORKERS=${WORKERS:-2}
FIT_OPTIONS=${FIT_OPTIONS:-}
source "$(dirname "$0")/stages.sh"
FIT_OPTIONS="$MACHINE_OPTIONS $FIT_OPTIONS"
[ -z "$DATA" ] || [ -d "$DATA" ] || fail "$DATA is not a folder; name one of frames in the simple layout (docs/sources.md)"

say "1/7 shards"
FRAMES="--set views=3 --set width=128 --set height=96 --set cameras=handheld --set quality=0"
# shellcheck disable=SC2086  # options are several words
data-shards build rendered --output "$RUN/shards/rendered" --workers "$WORKERS" --set scenes="$SCENES" --set sensor=prompt $FRAMES
# shellcheck disable=SC2086
data-shards build rendered --output "$RUN/shards/recorded" --workers "$WORKERS" --set scenes="$RECORDED_SCENES" \
    --set first_scene=100000 --set sensor=label $FRAMES
# shellcheck disable=SC2086
data-shards build rendered --output "$RUN/shards/val" --workers "$WORKERS" --set scenes="$HELD_OUT_SCENES" \
    --set first_scene=300000 --set sensor=prompt $FRAMES
if [ -n "$DATA" ]; then data-shards build simple --input "$DATA" --output "$RUN/shards/real" --workers "$WORKERS"; fi

say "2/7 prior"
# shellcheck disable=SC2086
mdpretrain fit --config recipes/debug/prior.yaml --run_dir "$RUN/prior" --resume \
    --data.train "[{path: $RUN/shards/rendered}]" --data.val "[$RUN/shards/val]" $FIT_OPTIONS

say "3/7 teacher"
# shellcheck disable=SC2086
mdpretrain fit --config recipes/debug/teacher_sensor.yaml --run_dir "$RUN/teacher" --resume \
    --data.train "[{path: $RUN/shards/rendered}]" --data.val "[$RUN/shards/val]" \
    --model.prior.init_args.checkpoint "$RUN/prior" $FIT_OPTIONS

# The tasks share the shards out, and the last to end completes the folder.
say "4/7 labels of the recorded scenes"
# shellcheck disable=SC2086
in_tasks mdpretrain label --config recipes/debug/label.yaml --checkpoint "$RUN/teacher" --shards "$RUN/shards/recorded" \
    --output "$RUN/labels" --prompt-count $PROMPT --consistency disjoint
mdpretrain label-report "$RUN/labels" --shards "$RUN/shards/recorded" --output "$RUN/label_card.html"

# One network, one number of steps, one order of samples: only what stands in the label's place differs.
student() {  # name, rows of data.train, further options
    local name=$1 rows=$2
    shift 2
    # shellcheck disable=SC2086
    mdpretrain fit --config recipes/debug/student_depthmap.yaml --run_dir "$RUN/students/$name" --resume \
        --data.train "$rows" --data.val "[$RUN/shards/val]" "$@" $FIT_OPTIONS
}
LABELLED="[{path: $RUN/shards/recorded, sidecars: [$RUN/labels], name: recorded}]"
say "5/7 student of the labels"
student labels "$LABELLED"
say "6/7 student of the raw depth"
student raw "[{path: $RUN/shards/recorded, sidecars: [], name: recorded}]"
COMPARED=("student=$RUN/students/labels" "raw=$RUN/students/raw")
[ "$ABLATIONS" != all ] || ABLATIONS="loss_inverse loss_weighted_half loss_weighted_one loss_log loss_log_regions loss_log_sharp vit_deep_to_deep vit_depth_pro"
for name in $ABLATIONS; do
    say "ablation $name"
    student "$name" "$LABELLED" --config "recipes/ablations/$name.yaml"
    COMPARED+=("$name=$RUN/students/$name")
done

say "7/7 evaluation"
mdpretrain evaluate --compare "${COMPARED[@]}" "teacher=$RUN/teacher" --shards "$RUN/shards/val" --training-shards "$RUN/shards/recorded" \
    --image-size 96 128 --prompt "$RUN/teacher/config.yaml" --num-workers "$WORKERS" --output "$RUN/report"
if [ -n "$DATA" ]; then
    mdpretrain evaluate --compare "${COMPARED[@]}" "teacher=$RUN/teacher" --shards "$RUN/shards/real" --training-shards "$RUN/shards/recorded" \
        --image-size 96 128 --prompt-count $PROMPT --num-workers "$WORKERS" --output "$RUN/report_real"
fi
say "done"
echo "open $RUN/report/index.html and $RUN/label_card.html"
