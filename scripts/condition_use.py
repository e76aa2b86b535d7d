"""Does the text diffusion look at the video? Scores a checkpoint while it is shown the wrong videos.

python scripts/condition_use.py --load_epoch=0 --datetime=RUN [flags of test.py]

The frames are pooled from the right video as ever; only what the diffusion sees comes from another one. If the recall
stays, it does not look at the video.
"""

import logging
import sys
from dataclasses import replace

import torch

from config import Config
from config.config import DIFFUSION_ARCHS
from diffusion_lm.errors import InputError
from model.retrieval import Videos
from trainer.evaluation import table
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)


def shuffled_condition(videos: Videos, order: torch.Tensor) -> Videos:
    """Videos of which the diffusion is shown others.

    :param order: the video that is shown in the place of each (M,), on the CPU.
    """
    shown = {"tokens": videos.tokens, "frame_channels": videos.frame_channels}
    return replace(videos, **{name: value[order] for name, value in shown.items() if value is not None})


def main() -> None:
    # 1. settings
    config = Config.parse(prog="scripts/condition_use.py", description=__doc__.splitlines()[0])
    from datasets.annotations import load_split
    from trainer.checkpoints import chosen_model
    from trainer.device import choose_device, choose_precision, set_up
    from trainer.distributed import find_processes
    from trainer.evaluation import Evaluator, evaluate_similarity

    device = choose_device(config.gpu, find_processes())
    set_up(device, config.seed)

    # 2. model and data
    model = chosen_model(config).model
    if config.arch not in DIFFUSION_ARCHS:
        raise InputError(f"--arch={config.arch} has no diffusion")
    model.to(device).eval()
    places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    split = load_split(config.dataset_name, config.test_split, *places)
    dtype = choose_precision(config.precision, device)
    evaluator = Evaluator(split, config, device, dtype, model.preprocessing)
    embeddings = evaluator.encode(model)

    # 3. scores with the condition of the right and of the wrong videos
    order = torch.randperm(len(split.clips), generator=torch.Generator().manual_seed(config.seed))
    conditions = {"own condition": torch.arange(len(order)), "shuffled condition": order}
    lines, makes_videos = [], model.videos
    for label, chosen in conditions.items():
        model.videos = lambda *args, chosen=chosen: shuffled_condition(makes_videos(*args), chosen)
        scores = evaluator.similarity(model, embeddings, config.rerank_topk, None)
        results, references = evaluate_similarity(scores, split.clip_of_caption)
        lines += [
            (f"{row['metric']} {label}", row) for row in results if row["protocol"] == "strict" and not row["dsl"]
        ]
    lines += [
        (f"{row['metric']} text as encoded", row)
        for row in references
        if row["scores"] == "undiffused" and not row["dsl"]
    ]
    logger.info(table(sorted(lines, key=lambda line: line[0][:3])))


if __name__ == "__main__":
    sys.exit(run_program("condition_use.py", main))
