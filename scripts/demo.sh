#!/usr/bin/env bash
# From nothing to a recall table: installs, makes the embedded data set, pre-trains a text diffusion on its captions,
# trains TextDiffs on its videos and evaluates both directions. About ten minutes on two CPU cores.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt

export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # idle threads leave the cores to the processes that decode videos
started=$SECONDS
dataset=MovingShapes
teacher=Diffusion-LM/diffusion_models/$dataset
run=$(date +%Y-%m-%d_%H-%M-%S)
folder=outputs/demo/$run
# The small CLIP starts from random weights, so its learning rate is that of training, not of fine-tuning.
model=(--dataset_name=$dataset --clip_arch=tiny --num_frames=6 --diffusion_text_len=20)
place=(--exp_name=demo --datetime="$run")

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "1/4 pre-train the text diffusion on the training captions"
if compgen -G "$teacher/ema_*.pt" >/dev/null; then
    echo "$teacher is there already"
else
    python Diffusion-LM/train.py --dataset_name=$dataset --denoiser=tiny --text_len=20 --steps=1500
fi

step "2/4 evaluate before training"
python test.py "${model[@]}" "${place[@]}" --batch_size=64 --output_json="$folder/before_training.json"

step "3/4 train TextDiffs"
python train.py "${model[@]}" "${place[@]}" --batch_size=64 --clip_lr=1e-3 --noclip_lr=1e-3 --num_epochs=6 \
    --video_sample_type=rand --transformer_dropout=0.1 --sampler=ddim --sampling_steps=2 --num_workers=2 --log_step=20

step "4/4 evaluate the best checkpoint"
python test.py "${place[@]}" --dataset_name=$dataset --load_epoch=0 --batch_size=64 --DSL

step "done"
python scripts/results_table.py --dsl "before=$folder/before_training.json" "trained=$folder/results.json" 
echo "strict: every text against every video, without knowing the answer. published: leaks, see README.md."
echo "no diffusion, mean pooling: the same checkpoint scored without its diffusion, and without its frame pooling."
printf 'written: %s\n' "$teacher"/* "$folder"/*
