#!/usr/bin/env bash
# From raw RGB-D frames to an evaluated student, with the public commands and the recipes under recipes/debug/: read it as the tutorial.
#
#   make demo                     renders its own training set (indoor and outdoor scenes with exact depth)
#   make demo DATA=folder         takes your frames in the simple layout (docs/sources.md); holds out whole sources
#
# Every command continues or reuses what an earlier, interrupted run has done, so running this again is always right.
# RUN names the folder (default runs/demo, or runs/demo_NAME for DATA); HELD_OUT="a b" names the sources to hold out.
set -euo pipefail

DATA=${DATA:-}
if [ -n "$DATA" ]; then RUN=${RUN:-runs/demo_$(basename "$DATA")}; else RUN=${RUN:-runs/demo}; fi
SCENES=${SCENES:-1280}            # rendered training scenes, three views each
HELD_OUT_SCENES=${HELD_OUT_SCENES:-32}
PROMPT=${PROMPT:-"120 240"}       # points of a sparse prompt: 1 to 2 % of the pixels
WORKERS=${WORKERS:-2}
FIT_OPTIONS=${FIT_OPTIONS:-}      # further options of every fit, e.g. "--trainer.max_steps 20"
source "$(dirname "$0")/stages.sh"
FIT_OPTIONS="$MACHINE_OPTIONS $FIT_OPTIONS"

# 1. Raw frames become shards: a training set, and one that nothing is ever trained on.
say "1/7 shards"
if [ -z "$DATA" ]; then
    data-shards build rendered --output "$RUN/shards/train" --workers "$WORKERS" \
        --set scenes="$SCENES" --set views=3 --set width=128 --set height=96 --set cameras=handheld --set quality=0
    data-shards build rendered --output "$RUN/shards/val" --workers "$WORKERS" \
        --set scenes="$HELD_OUT_SCENES" --set first_scene=300000 --set views=3 --set width=128 --set height=96 --set cameras=handheld --set quality=0
else
    [ -d "$DATA" ] || fail "DATA=$DATA is not a folder; name one whose sub-folders are sources in the simple layout (docs/sources.md)"
    if [ -z "${HELD_OUT:-}" ]; then
        # Sources by size; the third, seventh, eleventh ... are held out, so that training keeps the largest.
        HELD_OUT=$(for source in "$DATA"/*/; do echo "$(find "$source" -maxdepth 1 -name '*.depth.png' | wc -l) $(basename "$source")"; done |
            sort -k1,1nr -k2,2 | awk 'NR % 4 == 3 {print $2}')
    fi
    [ -n "$HELD_OUT" ] || fail "$DATA has fewer than three sources, so none can be held out; name one with HELD_OUT=name, or add sources"
    echo "held out: $(echo $HELD_OUT)"
    exclude=(); only=()
    for source in $HELD_OUT; do exclude+=(--exclude "$source" --exclude "$source/*"); only+=(--only "$source" --only "$source/*"); done
    data-shards build simple --input "$DATA" --output "$RUN/shards/train" --workers "$WORKERS" "${exclude[@]}"
    data-shards build simple --input "$DATA" --output "$RUN/shards/val" --workers "$WORKERS" "${only[@]}"
fi

# 2. Look at what will be trained on.
say "2/7 preview"
data-shards verify "$RUN/shards/train" "$RUN/shards/val"
data-shards preview "$RUN/shards/train" --output "$RUN/preview"

# 3. The prior: an affine-invariant network, whose depth has the right shape and no scale.
say "3/7 prior"
# shellcheck disable=SC2086  # options are several words
mdpretrain fit --config recipes/debug/prior.yaml --run_dir "$RUN/prior" --resume \
    --data.train "[{path: $RUN/shards/train}]" --data.val "[$RUN/shards/val]" $FIT_OPTIONS

# 4. The teacher: the prior aligned to a sparse metric prompt (PDSA, GMDR), then corrected by a network.
say "4/7 teacher"
# shellcheck disable=SC2086
mdpretrain fit --config recipes/debug/teacher.yaml --run_dir "$RUN/teacher" --resume \
    --data.train "[{path: $RUN/shards/train}]" --data.val "[$RUN/shards/val]" \
    --model.prior.init_args.checkpoint "$RUN/prior" $FIT_OPTIONS

# 5. The teacher labels the training frames beside the shards (sidecars); the tasks share them out, and the last to end completes the folder.
say "5/7 pseudo-labels"
# shellcheck disable=SC2086
in_tasks mdpretrain label --checkpoint "$RUN/teacher" --shards "$RUN/shards/train" --output "$RUN/pseudo" \
    --prompt-count $PROMPT --long-side 128 --multiple 16

# 6. The student: metric depth from the image alone, learned from the labels.
say "6/7 student"
# shellcheck disable=SC2086
mdpretrain fit --config recipes/debug/student_depthmap.yaml --run_dir "$RUN/student" --resume \
    --data.train "[{path: $RUN/shards/train, sidecars: [$RUN/pseudo], name: pseudo}]" --data.val "[$RUN/shards/val]" $FIT_OPTIONS

# 7. Both on scenes that they never saw, beside the baselines that any claim must beat.
say "7/7 evaluation"
# shellcheck disable=SC2086
mdpretrain evaluate --teacher "$RUN/teacher" --student "$RUN/student" --shards "$RUN/shards/val" --training-shards "$RUN/shards/train" \
    --image-size 96 128 --prompt-count $PROMPT --num-workers "$WORKERS" --run "prior=$RUN/prior" "teacher=$RUN/teacher" "student=$RUN/student" --output "$RUN/report"
say "done"
echo "open $RUN/report/index.html"
