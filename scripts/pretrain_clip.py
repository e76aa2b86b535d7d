"""Pre-train the tiny CLIP on drawn pictures and their captions.

    python scripts/pretrain_clip.py --output=assets/clip-tiny/model.safetensors

The method fine-tunes an image-text pre-trained CLIP that has seen no video. This one learns frames of MovingShapes'
scenes, of another seed than the demo's, with captions that tell what a frame can show: no motion, no change. First its
image encoder learns what lies where from labels, as contrast alone finds colours long before shapes (docs/RESULTS.md);
then both encoders learn by contrast. About 20 minutes on two CPU cores."""

import logging
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from datasets.moving_shapes import scene_of
from datasets.moving_shapes.pictures import TRAITS, Pictures
from datasets.moving_shapes.scene import COLOURS, SHAPES, Scene
from model.clip import ClipRetrieval
from model.pretrained import load_clip
from modules.losses import all_cosines, clamp_logit_scale, symmetric_infonce
from modules.metrics import text_to_video
from utils.command_line import MANY_FLAGS, Parser, number
from utils.files import check_writable, written_whole
from utils.program import run_program
from utils.progress import progress

logger = logging.getLogger(__name__)

SEED = 7  # of the scenes; the demo's is 24
SIGHT_LR, CAPTIONS_LR = 2e-3, 1e-3
SIGHT_IN_CAPTIONS = 0.3  # weight of the first objective in the second stage, so that sight is kept
WARMUP_STEPS = 100
WEIGHT_DECAY, BETAS, GRADIENT_NORM = 0.1, (0.9, 0.98), 1.0
TRAITS_WEIGHT = 10.0  # their mean loss is over many that are absent


class Sight(nn.Module):
    """Loss of an image encoder that is asked what lies where.

    The token of each patch is to tell shape and colour of the object on it, the class token the traits of all objects.

    :param width: of the encoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.shape, self.colour = nn.Linear(width, 1 + len(SHAPES)), nn.Linear(width, 1 + len(COLOURS))
        self.traits = nn.Linear(width, len(TRAITS))

    def forward(self, tokens: Tensor, pooled: Tensor, patches: Tensor, traits: Tensor) -> Tensor:
        """Patch tokens (B, P, W), pooled (B, W), labels (B, P, 2) and (B, TRAITS) as in Picture -> scalar."""
        tokens, patches = self.norm(tokens).flatten(0, 1), patches.flatten(0, 1)
        where = F.cross_entropy(self.shape(tokens), patches[:, 0]) + F.cross_entropy(self.colour(tokens), patches[:, 1])
        return where + TRAITS_WEIGHT * F.binary_cross_entropy_with_logits(self.traits(pooled), traits)


def draw_scenes(count: int) -> list[Scene]:
    """The first scenes of the seed, drawn by all cores."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        drawn = pool.imap(partial(scene_of, SEED, "train"), range(count), chunksize=64)
        return list(progress(drawn, "scenes", count, "scenes"))


def train(model: ClipRetrieval, sight: Sight, batches: DataLoader, lr: float, captions_too: bool) -> None:
    """One stage: sight alone, or captions with it.

    :param batches: of Picture, whose arrays are tensors.

    :param lr: peak of a cosine schedule that ends with the batches.
    """
    parameters = [*model.parameters(), *sight.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=lr, betas=BETAS)
    scheduler = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, len(batches))
    model.train()
    for batch in progress(batches, "captions" if captions_too else "sight", len(batches), "steps"):
        seen = model.clip.vision_model(pixel_values=model.pixels(batch.pixels))
        loss = sight(seen.last_hidden_state[:, 1:], seen.pooler_output, batch.patches, batch.traits)
        if captions_too:
            images = model.clip.visual_projection(seen.pooler_output)
            texts = model.encode_texts(**model.tokenize(batch.caption))
            loss = symmetric_infonce(all_cosines(texts, images), model.clip.logit_scale) + SIGHT_IN_CAPTIONS * loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
        clamp_logit_scale(model.clip.logit_scale)
        scheduler.step()


@torch.no_grad()
def measure(model: ClipRetrieval, held_out: DataLoader) -> dict[str, float]:
    """Metrics of finding the picture of each caption among all of the held-out ones."""
    model.eval()
    images, texts = [], []
    for batch in held_out:
        images.append(model.encode_videos(batch.pixels[:, None]).frames[:, 0])
        texts.append(model.encode_texts(**model.tokenize(batch.caption)))
    cosines = all_cosines(torch.cat(texts), torch.cat(images))
    return text_to_video(cosines.numpy(), range(len(cosines)))


def main() -> None:
    parser = Parser("scripts/pretrain_clip.py", __doc__.splitlines()[0], MANY_FLAGS)
    whole = number(int, least=1)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="of the weights")
    parser.add_argument("--scenes", type=whole, default=20_000, help="scenes whose frames are trained on")
    parser.add_argument("--sight_steps", type=whole, default=3000, help="of the first stage")
    parser.add_argument("--captions_steps", type=whole, default=1000, help="of the second stage")
    parser.add_argument("--batch_size", type=whole, default=128, help="pictures of a step")
    parser.add_argument("--held_out", type=whole, default=500, help="pictures of other scenes, to measure recall on")
    args = parser.parse_args()
    check_writable(args.output)

    # 1. pictures: those of the first stage, of the second one, and held-out ones
    torch.manual_seed(SEED)
    model = ClipRetrieval(*load_clip("tiny"))
    vision = model.clip.config.vision_config
    scenes = draw_scenes(args.scenes + args.held_out)
    shape = {"side": vision.image_size, "patch": vision.patch_size}
    pictures = [
        Pictures(scenes[: args.scenes], steps * args.batch_size, **shape, seed=seed)
        for seed, steps in enumerate((args.sight_steps, args.captions_steps))
    ]
    held_out = Pictures(scenes[args.scenes :], args.held_out, **shape, seed=len(pictures))

    # 2. sight, then captions
    sight = Sight(vision.hidden_size)
    for stage, (some, lr) in enumerate(zip(pictures, (SIGHT_LR, CAPTIONS_LR), strict=True)):
        train(model, sight, DataLoader(some, args.batch_size, num_workers=1), lr, captions_too=stage == 1)
    recall = measure(model, DataLoader(held_out, args.batch_size))["R1"]
    logger.info("a caption finds its picture first among %d: %.1f %%", args.held_out, recall)

    # 3. the weights
    with written_whole(args.output) as unfinished:
        save_file(
            {name: tensor.half() for name, tensor in model.clip.state_dict().items()}, unfinished, {"format": "pt"}
        )
    logger.info("written: %s", args.output)


if __name__ == "__main__":
    sys.exit(run_program("pretrain_clip.py", main))
