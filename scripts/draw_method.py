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

WIDTH, HEIGHT = 160, 88  # units of the drawing, a tenth of an inch each
SCENE = (24, "test", 2)  # of MovingShapes: seed, split, video
CAPTION = ("a red star slides to", "the top right")
WORDS = ("a", "red", "star", "slides", "…", "END", "PAD")
FRAMES, CHANNELS = 4, 5  # drawn; the real ones are F and C

INK, QUIET, PAPER = "#1f2733", "#66707f", "white"
TEXT, VIDEO, WORD, SCORE, FROZEN = "#2f6fde", "#e07b1a", "#7a4fc9", "#1a8f4c", "#8b95a3"
SOLID, TRAINING, SEARCH = "-", (0, (4, 2.5)), (0, (1, 1.5))  # dashes of lines
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
    """The whole figure: text above, words and their diffusion in the middle, video below, scores on the right."""
    figure = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    canvas = Canvas(axes)
    canvas.panel(31, 25.5, 84, 37.5, WORD, "Text diffusion: words move towards the video")
    _text_tower(canvas)
    _video_tower(canvas)
    _words(canvas)
    _denoisers(canvas)
    _scores(canvas)
    return figure


def _text_tower(canvas: "Canvas") -> None:
    canvas.box(2, 66, 24, 12, TEXT, "“" + "\n".join(CAPTION) + "”", size=10.5, filled=False)
    canvas.label(14, 80.2, "caption", TEXT)
    canvas.box(36, 68, 17, 8, TEXT, "CLIP text\nencoder")
    canvas.arrow((26, 72), (36, 72), TEXT)
    canvas.arrow((53, 72), (118.5, 72), TEXT)
    canvas.label(63.5, 73.8, r"$c$   (D)", TEXT)


def _video_tower(canvas: "Canvas") -> None:
    pictures = render(scene_of(*SCENE))
    chosen = pictures[frame_indices(len(pictures), FRAMES)]
    for place, picture in enumerate(chosen):
        canvas.picture(2 + 6.1 * place, 10, 5.6, picture)
    canvas.label(14, 17.6, "F frames of the video", VIDEO)
    canvas.box(36, 9, 17, 8, VIDEO, "CLIP image\nencoder")
    canvas.arrow((26, 13), (36, 13), VIDEO)
    canvas.arrow((53, 13), (93, 13), VIDEO)
    canvas.label(63.5, 14.8, r"$f$   (F × D)", VIDEO)
    canvas.box(93, 8, 22, 10, VIDEO, "X-Pool: the text\nattends to the frames")
    canvas.path([(77, 72), (77, 66.5), (27.5, 66.5), (27.5, 4), (104, 4), (104, 8)], TEXT, thin=True)
    canvas.label(36, 5.4, r"$c$, the query of the attention", TEXT, size=8.5, align="left")
    canvas.path([(115, 13), (140, 13), (140, 35)], VIDEO)
    canvas.label(119, 14.8, r"$p(v\,|\,t)$   (D)", VIDEO, align="left")


def _words(canvas: "Canvas") -> None:
    rng = np.random.default_rng(3)
    clean = rng.normal(size=(len(WORDS), CHANNELS))
    noisy = 0.45 * clean + 0.9 * rng.normal(size=clean.shape)
    canvas.path([(14, 66), (14, 49.5), (36.2, 49.5)], WORD)
    canvas.label(15.2, 57, "words", WORD, align="left")
    canvas.matrix(41, 41, 1.7, clean, "PuOr", WORDS)
    canvas.label(45.2, 54.9, r"$x_0 = E[\mathrm{ids}] + \sigma_0\,\varepsilon$", WORD, size=9.5)
    canvas.label(45.2, 39.2, "L × C", QUIET, size=8)
    canvas.matrix(62, 41, 1.7, noisy, "PuOr")
    canvas.label(66.2, 54.9, r"$x_t$", WORD, size=9.5)
    canvas.arrow((50.3, 49.5), (61.2, 49.5), WORD)
    canvas.label(55.7, 50.9, "add noise", WORD, size=8)
    canvas.label(55.7, 47.2, "step $t$", QUIET, size=8)

    similar = np.abs(rng.normal(size=(len(WORDS), FRAMES))) * np.array([0.3, 1.4, 1.8, 1, 0.5, 0.2, 0.1])[:, None]
    canvas.matrix(62.8, 26.7, 1.55, similar, "YlOrRd")
    canvas.label(70.2, 34, r"$s$ = cos(word, frame)", INK, size=8.5, align="left")
    canvas.label(70.2, 31.4, "L × F, the condition", QUIET, size=8, align="left")
    canvas.path([(45.2, 38.2), (45.2, 33), (61.9, 33)], WORD)
    canvas.path([(57.5, 13), (57.5, 30.3), (61.9, 30.3)], VIDEO)
    canvas.label(56.9, 27.3, "linear\nD → C", VIDEO, size=8, align="right")


def _denoisers(canvas: "Canvas") -> None:
    canvas.box(84, 44, 14, 11, WORD, "denoiser\n$g(x_t, t, s)$\nstudent")
    canvas.arrow((70.6, 49.5), (84, 49.5), WORD)
    canvas.path([(69.4, 29), (95.5, 29), (95.5, 44)], INK)
    canvas.arrow((98, 49.5), (103, 49.5), WORD)
    canvas.box(103, 44, 10.5, 11, WORD, "sum over\nwords,\nC → D", size=8.5, filled=False)
    canvas.label(99.8, 51.3, r"$\hat{x}_0$", WORD, size=9.5)
    canvas.path([(108.2, 55), (108.2, 65), (122, 65), (122, 69)], WORD)
    canvas.label(109, 66.7, r"shift $l$   (D)", WORD, align="left")
    canvas.path([(100.2, 49.2), (100.2, 41.7), (74.3, 41.7), (74.3, 48.9)], WORD, thin=True, dashes=SEARCH)
    searching = "search: from pure noise in\nT steps, each token snapped\nto its nearest word"
    canvas.label(75.6, 38.6, searching, WORD, size=7.5, align="left")

    canvas.box(81.5, 76.5, 18, 8.5, FROZEN, "teacher\nfrozen Diffusion-LM", size=9)
    canvas.path([(78, 49.5), (78, 80.8), (81.5, 80.8)], FROZEN, dashes=TRAINING)
    canvas.label(77.2, 79, "the same words,\n$t$ and noise", QUIET, size=8, align="right")
    canvas.box(103, 77, 24, 7.5, FROZEN, "teacher-student loss\n0.1 · |teacher − student|²", size=9, filled=False)
    canvas.arrow((99.5, 80.8), (103, 80.8), FROZEN, dashes=TRAINING)
    canvas.path([(101.7, 49.5), (101.7, 60), (104.5, 60), (104.5, 77)], FROZEN, dashes=TRAINING)


def _scores(canvas: "Canvas") -> None:
    canvas.box(118.5, 69, 18, 6.5, TEXT, r"$c + \exp(l)$", size=12)
    canvas.label(127.5, 67.3, "diffused text", TEXT, size=9, align="left")
    canvas.path([(136.5, 72.2), (140, 72.2), (140, 44)], TEXT)
    canvas.box(131, 35, 18, 9, SCORE, "cosine", size=12)
    canvas.label(150.2, 39.5, "score of\ntext and\nvideo", SCORE, size=8.5, align="left")
    canvas.box(122.5, 22, 14, 8, SCORE, "retrieval loss\nInfoNCE", size=8.5, filled=False)
    canvas.path([(133, 35), (133, 32.5), (129.5, 32.5), (129.5, 30)], SCORE, dashes=TRAINING)
    for y, dashes, said in ((85, TRAINING, "in training only"), (82.3, SEARCH, "in search only")):
        canvas.arrow((134, y), (140, y), QUIET, thin=True, dashes=dashes)
        canvas.label(141.5, y, said, QUIET, size=8.5, align="left")


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
