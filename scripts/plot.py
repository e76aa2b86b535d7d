"""Overlay training curves of runs in a PNG file, without TensorBoard.

python scripts/plot.py RUN [LABEL=RUN ...] [--output curves.png] [--names 'eval/*/R1' ...] [--x epoch]
"""

import argparse
import logging
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from diffusion_lm.errors import InputError
from report.charts import overlay, write_png
from report.history import History, read_history
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)

NAMES = ["train/loss", "train/*", "eval/t2v_strict/R1", "eval/v2t_strict/R1", "eval/t2v_strict/MeanR"]
NOT_LOSSES = ("train/lr_max", "train/gradient_norm")  # but of --names that say so


def histories_of(runs: list[str]) -> dict[str, History]:
    """Histories by label: that of LABEL=RUN, else the name of the folder, with those above it where names are alike.

    :raises InputError: one of the folders holds no history, or two runs have one label.
    """
    given = [("", run) if Path(run).exists() or "=" not in run else tuple(run.split("=", 1)) for run in runs]
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
    """Names of the series to plot, each once, in the order of the patterns.

    :raises InputError: a pattern of --names fits no series of any run.
    """
    known = list(dict.fromkeys(name for history in histories.values() for name in history.series))
    chosen: dict[str, None] = {}
    for pattern in patterns or NAMES:
        fitting = [name for name in known if fnmatchcase(name, pattern) and (patterns or name not in NOT_LOSSES)]
        if patterns and not fitting:
            raise InputError(f"--names: no run has {pattern}; there are {', '.join(known)}")
        chosen |= dict.fromkeys(fitting)
    return list(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or LABEL=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="PNG file (default: %(default)s)")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME",
        help="what to plot, a panel each, * for any part of a name: 'train/*' 'eval/*/R1' 'speed/*' (default: the terms"
        " of the loss, strict R@1 of both directions, mean rank)",
    )  # fmt: skip
    parser.add_argument("--x", choices=("step", "epoch"), default="step", help="what curves run over (default: step)")
    args = parser.parse_args()
    histories = histories_of(args.runs)
    names = chosen_names(histories, args.names)
    write_png(overlay(histories, names, by_epoch=args.x == "epoch"), args.output)
    logger.info("%d panels, %d runs: %s", len(names), len(histories), args.output)


if __name__ == "__main__":
    sys.exit(run_program("plot.py", main))
