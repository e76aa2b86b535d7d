"""Draw the first captions of MovingShapes' test set with the videos that a model ranks first.

python test.py --exp_name=demo --datetime=RUN --dataset_name=MovingShapes --load_epoch=0 --save_sims=sims.npz
python scripts/draw_result.py --sims=sims.npz --output=docs/result.png
"""

import logging
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from datasets.annotations import Split, load_split
from datasets.video import read_frames
from diffusion_lm.command_line import Parser, number
from diffusion_lm.errors import InputError
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)

FRAMES, GAP = 3, 4  # of a video, and pixels between them
RIGHT, WRONG, INK = "#1a8f4c", "#d5d9e0", "#1f2733"
ROW_HEIGHT, HIT_WIDTH, CAPTION_WIDTH, TOP = 1.02, 2.2, 2.75, 0.3  # inches
STRIP = (2.08, 0.68)  # inches, of the frames of a hit
DPI = 100
LETTERS_A_LINE, COLOURS = 31, 128


def main() -> None:
    parser = Parser("scripts/draw_result.py", __doc__.splitlines()[0])
    parser.add_argument("--sims", type=Path, required=True, metavar="FILE", help="file of test.py --save_sims")
    parser.add_argument("--data_dir", type=Path, default="data", metavar="DIR", help="folder that holds MovingShapes/")
    parser.add_argument("--texts", type=number(int, 1), default=5, metavar="N", help="captions, from the first on")
    parser.add_argument("--hits", type=number(int, 1), default=5, metavar="N", help="videos of each caption")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture to write")
    args = parser.parse_args()
    split = load_split("MovingShapes", "test", args.data_dir / "MovingShapes", None)
    texts = min(args.texts, len(split.captions))
    figure = draw(split, read_scores(args.sims, split), texts, args.hits)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3])
    picture.quantize(COLOURS).save(args.output, optimize=True)  # a third of the size
    logger.info("%s", args.output)


def read_scores(path: Path, split: Split) -> np.ndarray:
    """The strict scores [text, video].

    :raises InputError: the file does not hold them for this split.
    """
    try:
        with np.load(path) as file:
            scores = file["strict"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--sims={path} holds no score matrices: {error}") from error
    wanted = (len(split.captions), len(split.clips))
    if scores.shape != wanted:
        raise InputError(f"--sims={path} has scores of {scores.shape} texts and videos, the test set {wanted}")
    return scores


def draw(split: Split, scores: np.ndarray, texts: int, hits: int) -> plt.Figure:
    """A row for each caption: its words, then the videos with the best scores, the right one in a green frame."""
    width, height = CAPTION_WIDTH + hits * HIT_WIDTH, TOP + texts * ROW_HEIGHT
    figure = plt.figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for hit in range(hits):
        x = CAPTION_WIDTH + hit * HIT_WIDTH + STRIP[0] / 2
        figure.text(x / width, 1 - 0.17 / height, f"rank {hit + 1}", color=INK, ha="center", va="center", fontsize=10)
    for text in range(texts):
        bottom = (texts - 1 - text) * ROW_HEIGHT
        words = "\n".join(textwrap.wrap(f"“{split.captions[text]}”", LETTERS_A_LINE))
        figure.text(
            0.12 / width,
            (bottom + 0.28 + STRIP[1] / 2) / height,
            words,
            color=INK,
            va="center",
            fontsize=9.5,
            linespacing=1.25,
        )
        for rank, video in enumerate(np.argsort(-scores[text], kind="stable")[:hits]):
            x = CAPTION_WIDTH + rank * HIT_WIDTH
            area = (x / width, (bottom + 0.28) / height, STRIP[0] / width, STRIP[1] / height)
            right = video == split.clip_of_caption[text]
            _draw_hit(figure.add_axes(area), split.clips[video].path, scores[text, video], right)
    return figure


def _draw_hit(axes: plt.Axes, path: Path, score: float, right: bool) -> None:
    frames = read_frames(path, FRAMES)
    strip = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    axes.imshow(np.concatenate(list(strip), axis=1)[:, :-GAP], aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{path.stem}   {score:.2f}", fontsize=7.5, color=RIGHT if right else "#6b7482", labelpad=2)
    for side in axes.spines.values():
        side.set(color=RIGHT if right else WRONG, linewidth=3 if right else 1)


if __name__ == "__main__":
    sys.exit(run_program("draw_result.py", main))
