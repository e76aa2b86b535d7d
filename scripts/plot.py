"""Overlay training curves of runs in a PNG file, without TensorBoard.

python scripts/plot.py RUN [LABEL=RUN ...] [--output curves.png] [--names 'eval/*/R1' ...] [--x epoch]
"""

import logging
import os
import sys
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from report.charts import overlay, write_png
from report.history import History, read_history
from utils.command_line import Parser
from utils.errors import InputError
from utils.program import run_program

logger = logging.getLogger(__name__)

EVALUATIONS = ("eval/t2v_strict/R1", "eval/v2t_strict/R1", "eval/t2v_strict/MeanR")


def histories_of(runs: list[str]) -> dict[str, History]:
    """Histories by label: that of LABEL=RUN, else the name of the folder, with those above it where names are alike.

    :raises InputError: one of the folders holds no history, or two runs have one label.
    """
    given = [("", run) if Path(run).exists() or "=" not in run else tuple(run.split("=", 1)) for run in runs]
    given = [(label, os.path.expanduser(run)) for label, run in given]
    folders = [Path(run).resolve() for _, run in given]
    depth = 1
    while depth < 3 and len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    histories: dict[str, History] = {}
    for (label, run), folder in zip(given, folders, strict=True):
        label = label or "/".join(folder.parts[-depth:])
        if label in histories:
            raise InputError(f"two runs are called {label}: name them with LABEL=RUN")
        histories[label] = read_history(Path(run))
    return histories


def chosen_names(histories: dict[str, History], patterns: list[str] | None) -> list[str]:
    """Names of the series to plot: what fits the patterns of --names, else the terms of the loss and EVALUATIONS.

    :raises InputError: a pattern fits no series of any run, or there is nothing to plot.
    """
    known = list(dict.fromkeys(name for history in histories.values() for name in history.series))
    losses = {name for history in histories.values() for name in history.losses()}
    chosen = [name for name in known if name in losses] + [name for name in EVALUATIONS if name in known]
    if patterns:
        fitting = {pattern: [name for name in known if fnmatchcase(name, pattern)] for pattern in patterns}
        missing = [pattern for pattern, names in fitting.items() if not names]
        if missing:
            raise InputError(f"--names: no run has {', '.join(missing)}; there are {', '.join(known)}")
        chosen = list(dict.fromkeys(chain.from_iterable(fitting.values())))
    if not chosen:
        raise InputError(f"no run has losses or evaluations; --names chooses among {', '.join(known)}")
    return chosen


def main() -> None:
    parser = Parser("scripts/plot.py", __doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or LABEL=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), metavar="FILE", help="PNG file to write")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME",
        help="what to plot, a panel each, * for any part of a name: 'train/*' 'eval/*/R1' 'speed/*' (default: the terms"
        " of the loss, strict R@1 of both directions, mean rank)",
    )  # fmt: skip
    parser.add_argument("--x", choices=("step", "epoch"), default="step", help="what curves run over")
    args = parser.parse_args()
    histories = histories_of(args.runs)
    names = chosen_names(histories, args.names)
    write_png(overlay(histories, names, by_epoch=args.x == "epoch"), args.output)
    logger.info("%d panels, %d runs: %s", len(names), len(histories), args.output)


if __name__ == "__main__":
    sys.exit(run_program("plot.py", main))
