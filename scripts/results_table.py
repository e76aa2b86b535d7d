"""Print the recall tables of results files, one below the other.

python scripts/results_table.py [--dsl] [--metric t2v|v2t] LABEL=results.json [LABEL=results.json ...]
"""

import json
import os
import sys
from pathlib import Path

from datasets.holdout import Selection
from evaluation.evaluator import REFERENCES, table
from utils.command_line import Parser
from utils.errors import InputError
from utils.program import run_program


def rows_of(label: str, path: Path, metrics: tuple[str, ...], dsl: bool) -> tuple[list[tuple[str, dict]], str]:
    """Labelled rows of a results file (both protocols, then the same model without its diffusion), and what chose the
    model."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = [(f"{row['protocol']}", row) for row in report["results"]]
        rows += [(REFERENCES[row["scores"]], row) for row in report["references"]]
        selection = Selection(**report["selected_on"]) if "selected_on" in report else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a results file: {error!r}") from error
    shown = [
        (f"{label}, {row['metric']} {name}{' DSL' if row['dsl'] else ''}", row)
        for metric in metrics
        for name, row in rows
        if row["metric"] == metric and (dsl or not row["dsl"])
    ]
    return shown, f"{label}: {report['split']} split; model {selection}" if selection else ""


def main() -> None:
    parser = Parser("scripts/results_table.py", __doc__.splitlines()[0])
    parser.add_argument("--metric", choices=("t2v", "v2t"), help="one direction only (default: both)")
    parser.add_argument("--dsl", action="store_true", help="also the rows with dual softmax")
    parser.add_argument("files", nargs="+", metavar="LABEL=FILE", help="results.json of a run, and what to call it")
    args = parser.parse_args()
    metrics = (args.metric,) if args.metric else ("t2v", "v2t")
    rows, told = [], []
    for item in args.files:
        label, _, file = item.rpartition("=")
        path = Path(os.path.expanduser(file))
        more, selection = rows_of(label or path.parent.name, path, metrics, args.dsl)
        rows += more
        told += [selection] * bool(selection)
    sys.stdout.write("\n".join([table(rows), *told]) + "\n")


if __name__ == "__main__":
    sys.exit(run_program("results_table.py", main))
