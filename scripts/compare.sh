#!/usr/bin/env bash
# The methods side by side on MovingShapes with its large test split, three seeds each: about an hour and a quarter on two CPU cores.
# Other flags of scripts/compare.py, or of train.py, may follow.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt "$@"

export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # idle threads leave the cores to the processes that decode videos
compgen -G "Diffusion-LM/diffusion_models/MovingShapes/ema_*.pt" >/dev/null ||
    python Diffusion-LM/train.py --dataset_name=MovingShapes --denoiser=tiny --text_len=20 --steps=1500 --log_step=100 --resume

heads="--transformer_dropout=0 --noclip_lr=1e-3" # as in demo.sh
textdiffs="--arch=clip_stochastic --diffusion_text_len=20 --rerank_topk=20 $heads"
python scripts/compare.py --dataset_name=MovingShapes --split=large --clip_arch=tiny-shapes --num_frames=6 --batch_size=64 \
    --clip_lr=5e-4 --num_epochs=3 --video_sample_type=rand --num_workers=2 --log_step=25 \
    --frame_cache=data/frame_cache --no_tensorboard --exp_name=compare_pretrained \
    --method "X-Pool: --arch=clip_transformer $heads" \
    --method "TextDiffs: $textdiffs" \
    --method "CLIP, mean: --arch=clip_baseline" \
    --method "TextDiffs, published: $textdiffs --recipe=published --sampler=ddim --sampling_steps=2" \
    --method "T-MASS: --arch=clip_tmass $heads" \
    "$@"
