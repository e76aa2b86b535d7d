#!/usr/bin/env bash
# The methods side by side on MovingShapes with 4,000 training videos and its large test split, three seeds each: about
# four hours on two CPU cores.
# Other flags of scripts/compare.py, or of train.py, may follow.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt "$@"

export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000} # threads wait a moment for the next loop, then leave the cores to the processes that decode
data=data/many # of its own: the usual set has 1,600 training videos
teacher=Diffusion-LM/diffusion_models/MovingShapes-4000
python -c "
from pathlib import Path
from datasets.moving_shapes import ensure_large, generate
if __name__ == '__main__':
    root = Path('$data/MovingShapes')
    if not root.exists():
        generate(root, train_videos=4000)
    ensure_large(root)"
compgen -G "$teacher/ema_*.pt" >/dev/null ||
    python Diffusion-LM/train.py --dataset_name=MovingShapes --data_dir=$data --denoiser=tiny --text_len=20 --steps=1500 \
        --log_step=100 --output_dir=$teacher --resume

heads="--transformer_dropout=0 --noclip_lr=1e-3 --potential_lr=1e-2" # as in demo.sh
diffusion="--arch=clip_stochastic --diffusion_text_len=20 --diffusion_lm=$teacher --rerank_topk=20 $heads"
python scripts/compare.py --dataset_name=MovingShapes --data_dir=$data --split=large --clip_arch=tiny-shapes --num_frames=6 \
    --batch_size=64 --clip_lr=5e-4 --num_epochs=5 --video_sample_type=rand --num_workers=2 --log_step=25 --precision=fp32 \
    --frame_cache=$data/frame_cache --no_tensorboard --exp_name=compare \
    --method "X-Pool: --arch=clip_transformer $heads" \
    --method "TextDiffs: $diffusion" \
    --method "X-Pool, patches in order: benchmarks/patch_control.py --arch=clip_transformer $heads" \
    --method "T-MASS: --arch=clip_tmass $heads" \
    --method "CLIP, mean: --arch=clip_baseline" \
    --method "TextDiffs, published: $diffusion --recipe=published --sampler=ddim --sampling_steps=2" \
    "$@"

for run in outputs/compare/*-seed*; do
    name=$(basename "$run")
    case $name in *patches_in_order*) continue ;; esac # test.py does not know the control
    on=(--dataset_name=MovingShapes --data_dir=$data --exp_name=compare --datetime="$name" --load_epoch=0 --batch_size=64 --precision=fp32)
    [ -e "$run/motion.json" ] || python test.py "${on[@]}" --split=motion --rerank_topk=1 --output_json="$run/motion.json"
    case $name in textdiffs*)
        [ -e "$run/condition_use.json" ] || python scripts/condition_use.py "${on[@]}" --split=large --rerank_topk=20 ;;
    esac
done
