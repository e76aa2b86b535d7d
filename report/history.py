"""Training curves from metrics.jsonl of a run's folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.results import Evaluation
from trainer.run_folder import BEFORE_FILE, METRICS_FILE
from utils.errors import InputError

SUM = "train/loss"  # of all terms
NOT_LOSSES = ("train/lr_max", "train/gradient_norm")


@dataclass(frozen=True)
class Series:
    """Values of one name over the steps of training."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class History:
    """All series of a run, by name: train/<loss term>, eval/<direction>_<protocol>/<metric>, ..."""

    series: dict[str, Series]
    steps_of_epoch: float

    def losses(self) -> list[str]:
        """Names of the terms of the loss and of their sum, which is the last."""
        names = [name for name in self.series if name.startswith("train/") and name not in NOT_LOSSES]
        return sorted(names, key=SUM.__eq__)


def read_history(folder: Path) -> History:
    """Read metrics.jsonl; a line that a killed run has begun is left out, as are values that are not finite.

    How many steps an epoch has is told by the last whole one; by what there is of it in a run that was in its first.

    :raises InputError: there is none, or it holds no numbers.
    """
    path = folder / METRICS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of a run") from error
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{folder} holds no training history: {METRICS_FILE} cannot be read: {reason}") from error
    series: dict[str, Series] = {}
    last_step: dict[int, int] = {}  # of each epoch
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step, epoch = int(record.pop("step")), int(record.pop("epoch"))
            values = {name: float(value) for name, value in record.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                continue
            raise InputError(f"{path}, line {number}: not a record of a training run") from error
        last_step[epoch] = step
        for name, value in values.items():
            if math.isfinite(value):
                one = series.setdefault(name, Series([], []))
                one.steps.append(step)
                one.values.append(value)
    if not series:
        raise InputError(f"{folder} holds no training history: {METRICS_FILE} has no records")
    whole = max(last_step) - 1 if max(last_step) - 1 in last_step else max(last_step)
    return History(series, last_step[whole] / whole)


def read_before_training(folder: Path, dataset: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Strict rows of the untrained model, from before_training.json of a run's folder; none where it is not there, or
    tells of another data set, split or number of videos, or of a checkpoint."""
    try:
        before = json.loads((folder / BEFORE_FILE).read_text(encoding="utf-8"))
        of = (before["dataset"], before["split"], before["checkpoint"], before["test_videos"]["evaluated"])
        rows = [row for row in before["results"] if row["protocol"] == "strict"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return rows if of == (dataset, evaluation.split, None, evaluation.videos) else []
