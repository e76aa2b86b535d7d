"""Several ways of sampling on the same features: a table of recall and seconds as text, CSV and plot."""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config
from diffusion_lm.sampling import SAMPLERS
from evaluation.embeddings import Embeddings
from evaluation.evaluator import Evaluation, Evaluator
from model.published_textdiffs import PublishedTextDiffs
from utils.errors import InputError

logger = logging.getLogger(__name__)

FILES = ("sweep.txt", "sweep.csv", "sweep.png")
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How pairs are scored."""

    sampler: str
    steps: int
    rerank_topk: int


def parse_sweep(text: str, diffusion_steps: int) -> list[Setting]:
    """The settings of --sweep: SAMPLER:STEPS or SAMPLER:STEPS:K, with commas between.

    :raises InputError: one of them is not that.
    """
    settings = []
    for entry in map(str.strip, text.split(",")):
        sampler, *numbers = entry.split(":")
        if sampler not in SAMPLERS or len(numbers) not in (1, 2) or not all(map(str.isdecimal, numbers)):
            raise InputError(
                f"--sweep: {entry!r} is not SAMPLER:STEPS or SAMPLER:STEPS:K, such as ddim:5 or ddpm:10:50"
            )
        steps, topk = map(int, (*numbers, "0")[:2])
        if not 1 <= steps <= diffusion_steps:
            raise InputError(f"--sweep: the steps of {entry!r} are not 1 to {diffusion_steps} (--diffusion_steps)")
        settings.append(Setting(sampler, steps, topk))
    return settings


def sweep(
    evaluator: Evaluator, model: PublishedTextDiffs, embeddings: Embeddings, done: Evaluation, config: Config
) -> list[Row]:
    """Evaluate each setting of --sweep.

    :param done: the evaluation with the settings of the other flags, which is the first row.
    :return: rows with sampler, steps, rerank_topk, strict R@1 of both directions, pairs_diffused and the seconds of
        scoring.
    """
    own = Setting(config.sampler, config.sampling_steps, config.rerank_topk)
    rows = [_row(own, done)]
    for setting in parse_sweep(config.sweep, config.diffusion_steps):
        if setting != own:
            model.set_sampling(setting.sampler, setting.steps)
            rows.append(_row(setting, evaluator.evaluate(model, embeddings, setting.rerank_topk)))
    model.set_sampling(own.sampler, own.steps)
    return rows


def _row(setting: Setting, evaluation: Evaluation) -> Row:
    return {
        "sampler": setting.sampler,
        "steps": setting.steps,
        "rerank_topk": setting.rerank_topk,
        "t2v_R1": evaluation.row("t2v")["R1"],
        "v2t_R1": evaluation.row("v2t")["R1"],
        "pairs_diffused": evaluation.pairs_diffused,
        "seconds": round(evaluation.similarity_seconds, 3),
    }


def format_sweep(rows: list[Row]) -> str:
    """The table for people."""
    lines = [f"{'sampler':8}{'steps':>6}{'K':>6}{'t2v R@1':>9}{'v2t R@1':>9}{'pairs diffused':>16}{'seconds':>10}"]
    for row in rows:
        lines.append(
            f"{row['sampler']:8}{row['steps']:6}{row['rerank_topk'] or 'all':>6}"
            f"{row['t2v_R1']:9.1f}{row['v2t_R1']:9.1f}{row['pairs_diffused']:16}{row['seconds']:10.2f}"
        )
    return "\n".join(lines)


def write_sweep(folder: Path, rows: list[Row]) -> None:
    """Write sweep.txt, sweep.csv and sweep.png.

    :raises InputError: they cannot be written.
    """
    text, table, plot = (folder / name for name in FILES)
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text(format_sweep(rows) + "\n", encoding="utf-8")
        table.write_text(written.getvalue(), encoding="utf-8", newline="")
        _plot(plot, rows)
    except OSError as error:
        raise InputError(f"the sweep cannot be written to {folder}: {error.strerror}") from error


def _plot(path: Path, rows: list[Row]) -> None:
    """Strict R@1 over the seconds of scoring, a point for each row and direction."""
    from matplotlib.figure import Figure  # slow to import, seldom wanted

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="seconds of scoring", ylabel="strict R@1 (%)")
    for direction, marker in (("t2v", "o"), ("v2t", "s")):
        axes.scatter([row["seconds"] for row in rows], [row[f"{direction}_R1"] for row in rows], marker=marker,
                     label=direction)  # fmt: skip
    for row in rows:
        name = f"{row['sampler']} {row['steps']}" + (f" K={row['rerank_topk']}" if row["rerank_topk"] else "")
        axes.annotate(name, (row["seconds"], row["t2v_R1"]), xytext=(2, 4), textcoords="offset points",
                      fontsize=8, rotation=20)  # fmt: skip
    axes.legend()
    figure.savefig(path, dpi=120)
