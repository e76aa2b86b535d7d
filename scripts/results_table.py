"""Print the recall tables of results files, one below the other.

python scripts/results_table.py [--dsl] [--metric t2v|v2t] LABEL=results.json [LABEL=results.json ...]
"""

import json
import os
import sys
from pathlib import Path

from diffusion_lm.command_line import Parser
from diffusion_lm.errors import InputError
from trainer.evaluation import REFERENCES, table
from trainer.run_folder import run_program


def rows_of(label: str, path: Path, metrics: tuple[str, ...], dsl: bool) -> list[tuple[str, dict]]:
    """Labelled rows of a results file: both protocols, then the same model without its diffusion."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = [(f"{row['protocol']}", row) for row in report["results"]]
        rows += [(REFERENCES[row["scores"]], row) for row in report["references"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a results file: {error!r}") from error
    return [
        (f"{label}, {row['metric']} {name}{' DSL' if row['dsl'] else ''}", row)
        for metric in metrics
        for name, row in rows
        if row["metric"] == metric and (dsl or not row["dsl"])
    ]


def main() -> None:
    parser = Parser("scripts/results_table.py", __doc__.splitlines()[0])
    parser.add_argument("--metric", choices=("t2v", "v2t"), help="one direction only (default: both)")
    parser.add_argument("--dsl", action="store_true", help="also the rows with dual softmax")
    parser.add_argument("files", nargs="+", metavar="LABEL=FILE", help="results.json of a run, and what to call it")
    args = parser.parse_args()
    metrics = (args.metric,) if args.metric else ("t2v", "v2t")
    rows = []
    for item in args.files:
        label, _, file = item.rpartition("=")
        path = Path(os.path.expanduser(file))
        rows += rows_of(label or path.parent.name, path, metrics, args.dsl)
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    sys.exit(run_program("results_table.py", main))
