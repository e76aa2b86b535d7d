#!/usr/bin/env bash
# From nothing to a recall table: installs, makes the embedded data set, pre-trains a text diffusion on its captions,
# trains TextDiffs on its videos and evaluates both directions. 5 minutes on two CPU cores with AMX, up to 10 on others.
set -euo pipefail
[ "${*:---help}" = --help ] || { echo "demo.sh: error: it takes no arguments: $*" >&2 && exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt "$@"

export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000} # threads wait a moment for the next loop, then leave the cores to the processes that decode
started=$SECONDS
dataset=MovingShapes
teacher=Diffusion-LM/diffusion_models/$dataset
run=$(date +%Y-%m-%d_%H-%M-%S)
folder=outputs/demo/$run
# The small CLIP knows still pictures of such shapes (scripts/pretrain_clip.py) and no video. It is far from what it is
# to learn, so its learning rate is higher than that of fine-tuning CLIP on real videos, and no dropout holds the rest
# back.
model=(--dataset_name=$dataset --clip_arch=tiny-shapes --num_frames=6 --diffusion_text_len=20 --transformer_dropout=0)
place=(--exp_name=demo --datetime="$run" --frame_cache=data/frame_cache) # decodes each video once
quick=(--rerank_topk=10) # of all evaluations but the last

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "1/4 pre-train the text diffusion on the training captions"
if compgen -G "$teacher/ema_*.pt" >/dev/null; then
    echo "$teacher is there already"
else
    python Diffusion-LM/train.py --dataset_name=$dataset --denoiser=tiny --text_len=20 --steps=500 --log_step=100 --resume
fi

step "2/4 evaluate before training"
python test.py "${model[@]}" "${place[@]}" "${quick[@]}" --batch_size=64 --output_json="$folder/before_training.json"

step "3/4 train TextDiffs"
python train.py "${model[@]}" "${place[@]}" "${quick[@]}" --batch_size=64 --clip_lr=5e-4 --noclip_lr=1e-3 --potential_lr=1e-2 --num_epochs=3 \
    --video_sample_type=rand --num_workers=2 --log_step=25

step "4/4 evaluate the best checkpoint"
python test.py "${place[@]}" --dataset_name=$dataset --load_epoch=0 --batch_size=64 --DSL --report

cat <<EOF

These are the scores from text to video; those of the other direction are on the page (or --metric=v2t prints them). The
table of step 2 is that of the image-text pre-trained CLIP, scored as TextDiffs is: nothing had seen a video.

strict                     every text against every video, nothing of the answer is used; chance is 1 %
published                  the protocol of published tables, which leaks the answer (README.md, "Two protocols")
original text embedding    the same checkpoint without the text diffusion: X-Pool
mean pooling               the same checkpoint, CLIP and the mean of the frames

written in $((SECONDS - started)) s:
EOF
printf '  %s\n' "$teacher"/* "$folder"/*
printf '\nopen this page in a browser: %s\n' "$folder/report.html"
cat <<EOF
search its videos:
  . .venv/bin/activate
  python search.py index --videos_dir=data/$dataset/videos --index=$folder/index --exp_name=demo --datetime=$run
  python search.py "a red circle moves left" --index=$folder/index
EOF
