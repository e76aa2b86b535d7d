"""Weights between a fine-tuned CLIP and the pre-trained one it began as (WiSE-FT, Wortsman et al. 2022).

python scripts/interpolate.py --datetime=RUN --load_epoch=0 [--share=0.75] [flags of test.py]

Written beside the run, to RUN-0.75/model_best.pth, which test.py and search.py read by --datetime=RUN-0.75. All else,
such as the temperature, the pooling and the text diffusion, stays as it was trained.
"""

import logging
import sys

import torch
from transformers import PreTrainedModel

from config import Config
from utils.command_line import Parser, number
from utils.errors import InputError
from utils.program import run_program

logger = logging.getLogger(__name__)

TRAINED_ALONE = "logit_scale"  # a temperature of the loss, in which nothing is recognised


def main() -> None:
    # 1. settings
    parser = Parser("scripts/interpolate.py", f"{__doc__.splitlines()[0]} Other flags are those of test.py.")
    share = number(float, least=0, most=1)
    parser.add_argument("--share", type=share, default=0.75, help="of the fine-tuned weights, from 0 to 1")
    args, flags = parser.parse_known_args()
    config = Config.parse(flags, program="test", prog="scripts/interpolate.py")
    if config.load_epoch is None:
        raise InputError("--load_epoch is missing: 0 names model_best.pth of --datetime")
    from model.pretrained import load_clip
    from trainer.checkpoints import BEST, chosen_model, save_checkpoint

    # 2. the model, and the CLIP that it began with
    path, model, selection, videos = chosen_model(config)
    settled = model.model_config
    before, _ = load_clip(settled.clip_arch, settled.clip_path)
    interpolate(model.clip, before, args.share)

    # 3. a run of its own
    output = path.parent.with_name(f"{path.parent.name}-{args.share:g}") / BEST
    output.parent.mkdir(exist_ok=True)
    kept = {"selected_on": selection.to_dict(), "videos": videos and videos.to_dict()}
    save_checkpoint(output, model, config.of_model(settled), epoch=0, step=0, training=kept)
    logger.info("written: %s", output)


@torch.no_grad()
def interpolate(clip: PreTrainedModel, before: PreTrainedModel, share: float) -> None:
    """Move the weights of a fine-tuned CLIP back to those before: `share` of them stay, 1 - share are taken.

    :raises InputError: they are not of one shape.
    """
    others = dict(before.named_parameters())
    own = {name: weights for name, weights in clip.named_parameters() if name != TRAINED_ALONE}
    if any(name not in others or others[name].shape != weights.shape for name, weights in own.items()):
        raise InputError("the CLIP before training is another one: name the one that the run began with by --clip_path")
    for name, weights in own.items():
        weights.lerp_(others[name], 1 - share)


if __name__ == "__main__":
    sys.exit(run_program("interpolate.py", main))
