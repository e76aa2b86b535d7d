"""The plots, as matplotlib figures of one style and size: legible on a phone, where they are as wide as the screen."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from evaluation.results import REFERENCES
from report.findings import rank_histogram, recall_curve
from report.history import SUM, History
from utils.files import written_or_refused

BLUE, ORANGE, GREEN, PURPLE, RED, GREY, INK = (
    "#2563a8", "#d9772b", "#1a7f4b", "#7b4ba5", "#b3261e", "#8a94a3", "#1b2430",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, "#17808a", "#9a6b1f", GREY)
SIZE = (4.8, 3.0)  # inches; in SVG at its natural size 10 points are 13 pixels
PNG_DPI = 160
STYLE = {
    "font.family": "DejaVu Sans",  # which matplotlib brings
    "font.size": 9,
    "text.parse_math": False,  # names of runs may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": "#c5ccd6",
    "axes.labelcolor": "#4a5565",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9edf2",
    "xtick.color": "#4a5565",
    "ytick.color": "#4a5565",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # looks alike everywhere
    "svg.hashsalt": "report",  # the same numbers give the same file
}
KINDS = {  # of scores: label, colour, line and marker
    "strict": ("strict", BLUE, "-", "o"),
    "published": ("published", ORANGE, "--", "s"),
    "undiffused": (REFERENCES["undiffused"], GREEN, "-.", "^"),
    "mean_pooled": (REFERENCES["mean_pooled"], "#5d6776", ":", "D"),
}
LINES = ("-", "--", "-.", ":")
MARKED = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]  # values of K
LABEL = 0.48  # of the width of a chart, for the labels before the lines
APART = 0.075  # of the height of a chart, between labels


def recall(ranks: Mapping[str, np.ndarray], gallery: int) -> Figure:
    """R@K over K, a line for each kind of score, with its name and R@1 where it begins.

    :param ranks: by kind of score, (queries,).
    """
    curves = {kind: recall_curve(found, gallery) for kind, found in ranks.items()}
    bottom, marks = _floor(min(curve[0] for curve in curves.values())), [k for k in MARKED if k <= gallery]
    first = {kind: float(curve[0]) for kind, curve in curves.items()}
    heights = dict(zip(first, _spread([*first.values()], bottom, APART * (103 - bottom)), strict=True))
    wide = np.log10(max(gallery, 2)) / (1 - LABEL)  # decades of the whole chart
    with _chart("K, candidates looked at", "R@K (%)") as (figure, axes):
        for kind, curve in curves.items():
            label, colour, line, marker = KINDS[kind]
            axes.plot(range(1, gallery + 1), curve, color=colour, ls=line, marker=marker, ms=4,
                      markevery=[k - 1 for k in marks], clip_on=False, label=label)  # fmt: skip
            leader = {"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (1, 0.5), "shrinkA": 1}
            axes.annotate(f"{label} {first[kind]:.1f}", (1, first[kind]), (10 ** (-0.06 * wide), heights[kind]),
                          ha="right", va="center", size=8, arrowprops=leader)  # fmt: skip
        axes.set(xscale="log", xlim=(10 ** (-LABEL * wide), max(gallery, 2)), ylim=(bottom, 103))
        axes.set_xticks(marks if gallery < 500 else marks[::3])  # then powers of ten
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def histogram(ranks: Mapping[str, np.ndarray], gallery: int) -> Figure:
    """How many queries have which rank, a group of bars for each bin and a bar for each direction.

    :param ranks: by direction, (queries,).
    """
    with _chart("rank of the right one", "share of the queries (%)") as (figure, axes):
        width = 0.8 / len(ranks)
        for place, ((direction, found), colour) in enumerate(zip(ranks.items(), COLOURS, strict=False)):
            names, counts = zip(*rank_histogram(found, gallery), strict=True)
            shares = 100 * np.array(counts) / len(found)
            where = np.arange(len(names)) + (place - (len(ranks) - 1) / 2) * width
            axes.bar(where, shares, width * 0.94, color=colour, label=direction)
        axes.set_xticks(range(len(names)), names, rotation=35 if len(names) > 8 else 0)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    return figure


def losses(history: History) -> Figure:
    """Terms of the training loss over the steps; of several sizes, so on a logarithmic scale."""
    with _chart("step", "training loss") as (figure, axes):
        for name, colour, dash in zip(history.losses(), COLOURS, cycle(LINES), strict=False):
            line = {"color": INK, "lw": 2.4} if name == SUM else {"color": colour, "ls": dash}
            axes.plot(*_series(history, name), **line, label=name.removeprefix("train/").replace("_", "-"))
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        _mark_epochs(axes, history)
        axes.legend(loc="best")
    return figure


def training_recall(history: History) -> Figure:
    """Strict recall of both directions over the steps."""
    with _chart("step", "strict (%)") as (figure, axes):
        lowest = 100.0
        for metric, colour, marker in (("R1", BLUE, "o"), ("R5", ORANGE, "s"), ("R10", GREEN, "^")):
            for direction, line in (("t2v", "-"), ("v2t", "--")):
                name = f"eval/{direction}_strict/{metric}"
                if name in history.series:
                    axes.plot(*_series(history, name), color=colour, ls=line, marker=marker, ms=4,
                              label=f"{direction} R@{metric[1:]}")  # fmt: skip
                    lowest = min(lowest, *history.series[name].values)
        axes.set_ylim(_floor(lowest), 103)
        _mark_epochs(axes, history)
        axes.legend(loc="lower right", ncols=3)
    return figure


def svg_uri(figure: Figure) -> str:
    """The figure as a data URI, so that a page needs no second file."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def write_png(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all.

    :raises InputError: it cannot be written.
    """
    with matplotlib.rc_context(STYLE), written_or_refused(path, f"plot {path} cannot be written") as unfinished:
        figure.savefig(unfinished, format="png", dpi=PNG_DPI)


@contextmanager
def _chart(xlabel: str, ylabel: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, to be drawn on inside."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        yield figure, figure.add_subplot(xlabel=xlabel, ylabel=ylabel)


def _floor(lowest: float) -> float:
    """Where an axis of percentages that ends at 100 begins: a quarter of its height lies below the lowest value."""
    return min(90.0, max(0.0, 5 * ((lowest - (100 - lowest) / 3) // 5)))


def _spread(heights: Sequence[float], bottom: float, apart: float) -> list[float]:
    """Heights of labels, near those of what they name, at least so far apart, none below `bottom`."""
    order = sorted(range(len(heights)), key=heights.__getitem__, reverse=True)
    spread = list(heights)
    for above, below in pairwise(order):
        spread[below] = min(spread[below], spread[above] - apart)
    for place, index in enumerate(reversed(order)):
        spread[index] = max(spread[index], bottom + (place + 0.5) * apart)
    return spread


def _series(history: History, name: str) -> tuple[list[int], list[float]]:
    return history.series[name].steps, history.series[name].values


def _mark_epochs(axes: Axes, history: History) -> None:
    """A line at the end of each epoch, instead of a grid."""
    axes.grid(axis="x", visible=False)
    last = max(max(series.steps) for series in history.series.values())
    epochs = last / history.steps_of_epoch
    if epochs <= 30:  # more would be a hatching
        for epoch in range(1, int(epochs + 1.5)):
            axes.axvline(epoch * history.steps_of_epoch, color="#e1e6ed", lw=0.9, zorder=0)
