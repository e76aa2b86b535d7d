"""Draw the method in one figure: `python scripts/draw_method.py docs/method.svg` (or .png or .pdf)."""

import logging
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from datasets.moving_shapes import render, scene_of
from datasets.video import frame_indices
from diffusion_lm.command_line import Parser
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)
Point = tuple[float, float]
Dashes = str | tuple[float, tuple[float, ...]]

WIDTH, HEIGHT = 160, 88  # units of the drawing
UNIT = 0.085  # inches: small, so that words are large beside boxes, and readable at the width of README
SCENE = (24, "test", 2)  # of MovingShapes: seed, split, video
CAPTION = ("a red star slides to", "the top right")
WORDS = ("a", "red", "star", "slides", "…", "END", "PAD")
FRAMES, CHANNELS = 4, 5  # drawn; the real ones are F and C

INK, QUIET, PAPER = "#1f2733", "#66707f", "white"
TEXT, VIDEO, WORD, SCORE = "#2f6fde", "#e07b1a", "#7a4fc9", "#1a8f4c"
SOLID, TRAINING = "-", (0, (4, 2.5))  # dashes of lines
STYLE = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "textdiffs",  # the same file each time
    "svg.fonttype": "path",  # the same look everywhere
}


def main() -> None:
    parser = Parser("scripts/draw_method.py", __doc__)
    parser.add_argument("output", type=Path, metavar="FILE", help="picture to write")
    args = parser.parse_args()
    with plt.rc_context(STYLE):
        dated = {"Date": None} if args.output.suffix == ".svg" else None
        draw().savefig(args.output, metadata=dated, dpi=100)
    logger.info("%s", args.output)


def draw() -> plt.Figure:
    """The whole figure: the base above, the video in the middle, the text diffusion below, scores on the right."""
    figure = plt.figure(figsize=(WIDTH * UNIT, HEIGHT * UNIT), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    canvas = Canvas(axes)
    canvas.panel(5, 3, 126, 38, WORD, "Text diffusion: how well does the video explain the words?")
    _base(canvas)
    _video(canvas)
    _noised_words(canvas)
    _student(canvas)
    _scores(canvas)
    return figure


def _base(canvas: "Canvas") -> None:
    canvas.box(5, 70, 24, 12, TEXT, "“" + "\n".join(CAPTION) + "”", size=10.5, filled=False)
    canvas.label(17, 84, "caption", TEXT)
    canvas.box(38, 72, 18, 8, TEXT, "CLIP text\nencoder")
    canvas.arrow((29, 76), (38, 76), TEXT)
    canvas.arrow((56, 76), (92, 76), TEXT)
    canvas.label(66, 77.8, r"$c$   (D)", TEXT)
    canvas.box(92, 71, 24, 10, VIDEO, "X-Pool: the text\nattends to the frames")
    canvas.arrow((116, 76), (128, 76), VIDEO)
    canvas.label(122, 77.8, r"$p(v\,|\,c)$", VIDEO)
    canvas.path([(76, 76), (76, 84.5), (134.5, 84.5), (134.5, 80)], TEXT)
    canvas.box(128, 72, 13, 8, SCORE, "cosine", size=12)


def _video(canvas: "Canvas") -> None:
    pictures = render(scene_of(*SCENE))
    chosen = pictures[frame_indices(len(pictures), FRAMES)]
    for place, picture in enumerate(chosen):
        canvas.picture(6 + 6.1 * place, 49.7, 5.6, picture)
    canvas.label(18, 57.5, "F frames of the video", VIDEO)
    canvas.box(38, 48, 18, 9, VIDEO, "CLIP image\nencoder")
    canvas.arrow((30.4, 52.5), (38, 52.5), VIDEO)
    canvas.path([(56, 55.5), (104, 55.5), (104, 71)], VIDEO)
    canvas.label(57.5, 57.3, r"frames $f$   (F × D)", VIDEO, align="left")
    canvas.arrow((56, 50), (68, 50), VIDEO)
    canvas.label(61.5, 51.6, "patches", VIDEO, size=9)
    canvas.label(61.5, 48.3, "F × P", QUIET, size=8)
    canvas.box(68, 46, 20, 7.5, VIDEO, "video encoder,\nonce a video")
    canvas.arrow((78, 46), (78, 34.5), VIDEO)
    canvas.label(79.2, 43.4, r"tokens $z(v)$   (S × W): what lies where, when", VIDEO, size=9, align="left")


def _noised_words(canvas: "Canvas") -> None:
    rng = np.random.default_rng(3)
    clean = rng.normal(size=(len(WORDS), CHANNELS))
    noisy = 0.45 * clean + 0.9 * rng.normal(size=clean.shape)
    canvas.path([(5, 76), (2.5, 76), (2.5, 21), (11.5, 21)], WORD)
    canvas.label(3.6, 63, "words", WORD, align="left")
    canvas.matrix(17.5, 14.4, 1.9, clean, "PuOr", WORDS)
    canvas.label(22, 29.8, r"$x_0 = E[\mathrm{words}] + \sigma_0\,\varepsilon_0$", WORD, size=9.5)
    canvas.label(22, 12.6, "L × C", QUIET, size=8)
    canvas.matrix(42.5, 14.4, 1.9, noisy, "PuOr")
    canvas.label(47.2, 29.8, r"$x_t$", WORD, size=10)
    canvas.label(47.2, 12.6, "L × C", QUIET, size=8)
    canvas.arrow((27.8, 21), (41.7, 21), WORD)
    canvas.label(34.7, 22.6, "add noise", WORD, size=9)
    canvas.label(34.7, 19.2, "step $t$", QUIET, size=8.5)
    canvas.label(34.7, 7.6, "word table $E$ is frozen; $t$ and noise are\nthe same for all videos", QUIET, size=8)


def _student(canvas: "Canvas") -> None:
    canvas.path([(52.6, 21), (59, 21), (59, 29.7), (66, 29.7)], WORD)
    canvas.path([(52.6, 21), (59, 21), (59, 12.5), (66, 12.5)], WORD)
    canvas.box(66, 25, 24, 9.5, WORD, "student: Diffusion-LM\n+ cross-attention")
    canvas.box(66, 7.8, 24, 9.5, WORD, "the same student\nwithout the video")
    canvas.path([(90, 29.7), (104.5, 29.7), (104.5, 22.6)], WORD)
    canvas.path([(90, 12.5), (104.5, 12.5), (104.5, 19.4)], WORD)
    canvas.label(95.8, 31.5, r"$\log p(w_i\,|\,x_t, v)$", WORD, size=9)
    canvas.label(95.8, 14.3, r"$\log p(w_i\,|\,x_t)$", WORD, size=9)
    canvas.box(103, 19.5, 3, 3, WORD, "−", size=11, filled=False)
    canvas.arrow((106, 21), (109.2, 21), WORD)
    explained = np.array([0.1, 1.6, 1.1, 2.0, 1.3, 0.3, 0])[:, None]
    canvas.matrix(114, 14.4, 1.9, explained, "Greens", WORDS)
    canvas.label(114.4, 30.8, "log ratio of\neach word", WORD, size=9)
    canvas.arrow((116.2, 21), (120.5, 21), WORD)
    canvas.box(120.5, 17.2, 8, 7.6, WORD, "sum", size=11)
    canvas.box(96, 4.3, 17, 4.6, WORD, r"words loss: $-\log p$", size=8.5, filled=False)
    for y in (29.7, 12.5):
        canvas.arrow((101.8, y), (101.8, 8.9), WORD, thin=True, dashes=TRAINING)


def _scores(canvas: "Canvas") -> None:
    canvas.path([(128.5, 21), (134.5, 21), (134.5, 49)], WORD)
    canvas.label(135.6, 27, r"ratio$(w, v)$", WORD, align="left")
    canvas.label(135.6, 23.4, "0 before training", QUIET, size=8, align="left")
    canvas.arrow((134.5, 72), (134.5, 58), SCORE)
    canvas.box(115, 49, 26, 9, SCORE, "score = cosine\n+ (weight / s) · ratio", size=11)
    canvas.label(135.6, 44.7, "weight: learned\ns: CLIP's logit scale", QUIET, size=8, align="left")
    canvas.box(145.5, 71.5, 13.5, 9, SCORE, "retrieval loss\nInfoNCE", size=8.5, filled=False)
    canvas.arrow((141, 76), (145.5, 76), SCORE, dashes=TRAINING)
    canvas.box(145.5, 49, 13.5, 9, SCORE, "potential loss\nInfoNCE, K\nhard videos", size=8.5, filled=False)
    canvas.arrow((141, 53.5), (145.5, 53.5), SCORE, dashes=TRAINING)
    canvas.arrow((136, 7), (143, 7), QUIET, thin=True, dashes=TRAINING)
    canvas.label(144.2, 7, "in training only", QUIET, size=8.5, align="left")


class Canvas:
    """Boxes, arrows, matrices and words on axes."""

    def __init__(self, axes: plt.Axes) -> None:
        self.axes = axes

    def panel(self, x: float, y: float, width: float, height: float, colour: str, title: str) -> None:
        """An area with a title inside its upper edge."""
        self.axes.add_patch(
            _rounded(x, y, width, height, 1.5, facecolor=PAPER, edgecolor=colour, linewidth=1, alpha=0.6)
        )
        self.axes.text(x + 1.5, y + height - 2.2, title, color=colour, fontsize=10, weight="bold", va="center")

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, words: str, size: float = 10,
        filled: bool = True,
    ) -> None:  # fmt: skip
        """A rounded box, full of its colour (a network, a vector) or with a rim of it (data, an operation)."""
        face = colour if filled else PAPER
        self.axes.add_patch(_rounded(x, y, width, height, 1.2, facecolor=face, edgecolor=colour, linewidth=1.6))
        self.axes.text(
            x + width / 2, y + height / 2, words, color=PAPER if filled else INK, fontsize=size, ha="center",
            va="center", linespacing=1.35,
        )  # fmt: skip

    def label(self, x: float, y: float, words: str, colour: str, size: float = 10, align: str = "center") -> None:
        """Words without a box."""
        self.axes.text(x, y, words, color=colour, fontsize=size, ha=align, va="center", linespacing=1.25)

    def arrow(self, start: Point, end: Point, colour: str, thin: bool = False, dashes: Dashes = SOLID) -> None:
        """A straight arrow."""
        line = {"color": colour, "linewidth": 1.2 if thin else 1.8, "linestyle": dashes}
        self.axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, **line)
        )

    def path(self, points: list[Point], colour: str, thin: bool = False, dashes: Dashes = SOLID) -> None:
        """An arrow with corners, which passes over what it crosses."""
        *corners, last = points
        width = 1.2 if thin else 1.8
        under = {"color": PAPER, "linewidth": width + 5, "solid_capstyle": "butt"}
        for start, end in pairwise(corners):  # not on its ends, where it touches what it comes from
            middle = [
                tuple(0.94 * a + 0.06 * b for a, b in zip(*way, strict=True)) for way in ((start, end), (end, start))
            ]
            self.axes.plot(*zip(*middle, strict=True), **under)
        self.axes.plot(*zip(*corners, strict=True), color=colour, linewidth=width, linestyle=dashes)
        self.arrow(corners[-1], last, colour, thin, dashes)

    def matrix(
        self, x: float, y: float, cell: float, values: np.ndarray, colours: str, rows: tuple[str, ...] = ()
    ) -> None:
        """A matrix as coloured cells, its first row on top, with names beside its rows."""
        scale = np.abs(values).max()
        lowest = -scale if (values < 0).any() else 0.0
        shades = plt.get_cmap(colours)((values - lowest) / (scale - lowest))
        for row, column in np.ndindex(*values.shape):
            corner = (x + column * cell, y + (len(values) - 1 - row) * cell)
            self.axes.add_patch(
                Rectangle(corner, cell, cell, facecolor=shades[row, column], edgecolor=PAPER, linewidth=0.8)
            )
        for row, name in enumerate(rows):
            middle = y + (len(values) - 0.5 - row) * cell
            self.axes.text(x - 0.8, middle, name, color=QUIET, fontsize=7, ha="right", va="center")

    def picture(self, x: float, y: float, side: float, pixels: np.ndarray) -> None:
        """A square picture (H, W, 3)."""
        self.axes.imshow(pixels, extent=(x, x + side, y, y + side), zorder=2, aspect="auto")


def _rounded(x: float, y: float, width: float, height: float, radius: float, **style: object) -> FancyBboxPatch:
    return FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad=0,rounding_size={radius}", **style)


if __name__ == "__main__":
    sys.exit(run_program("draw_method.py", main))
