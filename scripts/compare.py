"""Train and evaluate several methods with several seeds, and write one table of them.

python scripts/compare.py --method "X-Pool: --arch=clip_transformer" --method "T-MASS: --arch=clip_tmass" \\
    --seeds=24,25,26 --dataset_name=MSRVTT --videos_dir=DIR [further flags of train.py, for all methods]

Every run is tested once, with the checkpoint that its validation split chose. Another program that takes the flags of
train.py may stand before those of a method, such as benchmarks/patch_control.py. A comparison that was interrupted goes
on where it was. Written to <output_dir>/<exp_name>: comparison.md, and comparison.csv with one row for each run,
direction and protocol.
"""

import csv
import json
import logging
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config
from trainer.run_folder import EVALUATION, METRICS_FILE, RESULTS_FILE, TEST
from utils.command_line import Parser
from utils.errors import InputError, RunError
from utils.files import written_whole
from utils.program import run_program

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
DONE = "comparison.json"  # in the folder of a run: its figures
FROZEN = ("text_diffusion.teacher.", "potential.word_table")  # what stays as it was pre-trained
FIGURES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MedR": "MedR"}
COLUMNS = [(metric, name) for metric in ("t2v", "v2t") for name in FIGURES]


@dataclass(frozen=True)
class Method:
    """A row of the table: a name, the flags that make it, and the program that trains it."""

    name: str
    flags: tuple[str, ...]
    program: str = "train.py"

    @classmethod
    def parse(cls, text: str) -> "Method":
        """:raises InputError: the text is not NAME: FLAGS."""
        name, colon, flags = text.partition(":")
        if not (name.strip() and colon):
            raise InputError(f'--method={text!r} is not "NAME: FLAGS", such as "X-Pool: --arch=clip_transformer"')
        first, *others = shlex.split(flags) or [""]
        if first.endswith(".py"):
            return cls(name.strip(), tuple(others), first)
        return cls(name.strip(), tuple(shlex.split(flags)))

    @property
    def slug(self) -> str:
        """The name as part of a folder's name."""
        return "".join(c if c.isalnum() else "_" for c in self.name.lower())


def main() -> None:
    # 1. settings
    parser = Parser("scripts/compare.py", f"{__doc__.splitlines()[0]} Other flags go to train.py and test.py.")
    parser.add_argument(
        "--method", action="append", required=True, metavar='"NAME: FLAGS"', help="a row of the table; may be repeated"
    )
    parser.add_argument("--seeds", default="24,25,26", metavar="N,N,...", help="a run of each method for each of them")
    args, shared = parser.parse_known_args()
    methods = [Method.parse(text) for text in args.method]
    if len({method.slug for method in methods}) < len(methods):
        raise InputError("two of the --method names are alike: each needs one of its own")
    seeds = parse_seeds(args.seeds)
    configs = [Config.parse([*shared, *method.flags], prog="compare.py") for method in methods]  # bad flags end here
    for name in ("seed", "datetime", "load_epoch", "resume", "skip_eval", "output_json"):
        if any(name in config.explicit for config in configs):
            raise InputError(f"--{name} is set by compare.py itself: leave it out")
    if any(config.select_on == "test" for config in configs):
        raise InputError("--select_on=test would choose on the videos that are compared: leave it out")
    if len({(config.output_dir, config.exp_name) for config in configs}) > 1:
        raise InputError("--output_dir and --exp_name are those of all methods: give them outside of --method")

    # 2. runs, seed by seed, so that an interrupted comparison still compares
    folder = Path(configs[0].output_dir) / configs[0].exp_name
    runs = [(method, seed) for seed in seeds for method in methods]
    rows: list[dict[str, Any]] = []
    for number, (method, seed) in enumerate(runs, 1):
        logger.info("== %d of %d: %s, seed %d", number, len(runs), method.name, seed)
        figures = run(folder / f"{method.slug}-seed{seed}", method, shared, seed)
        rows += [{"method": method.name, "seed": seed} | row for row in figures]
        # 3. the table so far
        write(folder, rows, configs[0].dataset_name)
    logger.info("%s\nwritten to %s", (folder / "comparison.md").read_text(encoding="utf-8"), folder)


def parse_seeds(text: str) -> list[int]:
    """:raises InputError: not numbers with commas between."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seeds={text} are not numbers with commas between") from error


def run(folder: Path, method: Method, shared: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Train and test once, or read what an earlier call has found.

    :param shared: flags of all methods.
    :return: a row for each direction and protocol.
    :raises RunError: the program failed.
    """
    done = folder / DONE
    if not done.exists():
        seconds = None  # not known of a run that an earlier call began
        if not (folder / RESULTS_FILE).exists():
            began = any(folder.glob("*.pth"))
            started = time.perf_counter()
            flags = [*shared, *method.flags, f"--seed={seed}", f"--datetime={folder.name}"]
            call(method.program, [*flags, *["--resume"] * began])
            seconds = None if began else round(time.perf_counter() - started - evaluation_seconds(folder), 1)
        report = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        common = {
            "train_seconds": seconds,
            "test_seconds": report["seconds"],
            "parameters": count_parameters(folder),
        }
        rows = [row | common for row in report["results"] if not row["dsl"]]
        with written_whole(done) as unfinished:
            unfinished.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))


def evaluation_seconds(folder: Path) -> float:
    """What the evaluations of a run and its test took."""
    records = map(json.loads, (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines())
    return sum(record.get(EVALUATION, 0.0) + record.get(TEST, 0.0) for record in records)


def call(program: str, flags: list[str]) -> None:
    """Run an entry point; what it says is seen as it comes.

    :raises InputError: it met bad input, RunError: it failed otherwise; its own words stand above.
    """
    code = subprocess.run([sys.executable, str(ROOT / program), *flags], check=False).returncode
    if code:
        error = InputError if code == 2 else RunError
        raise error(f"{program} {shlex.join(flags)} ended with exit code {code}")


def count_parameters(folder: Path) -> int:
    """Parameters of the best checkpoint of a run, without those that are not trained."""
    from trainer.checkpoints import BEST, load_checkpoint  # with torch, slow to import

    state = load_checkpoint(folder / BEST)["state_dict"]
    return sum(tensor.numel() for name, tensor in state.items() if not name.startswith(FROZEN))


def write(folder: Path, rows: list[dict[str, Any]], dataset: str) -> None:
    """Write comparison.md and comparison.csv.

    :raises InputError: they cannot be written.
    """
    try:
        (folder / "comparison.md").write_text(markdown(rows, dataset), encoding="utf-8")
        with open(folder / "comparison.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"the comparison cannot be written to {folder}: {error.strerror}") from error


def markdown(rows: list[dict[str, Any]], dataset: str) -> str:
    """The table for people: mean and, for several seeds, standard deviation over the seeds."""
    head = [
        "method", *(f"{metric} {FIGURES[name]}" for metric, name in COLUMNS), "published t2v R@1", "published v2t R@1",
        "parameters", "train s", "test s", "seeds",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = [spread(own, metric, "strict", column) for metric, column in COLUMNS]
        cells += [spread(own, metric, "published", "R1") for metric in ("t2v", "v2t")]
        once = [row for row in own if (row["metric"], row["protocol"]) == ("t2v", "strict")]
        cells.append(f"{once[0]['parameters'] / 1e6:.2f} M")
        cells += [mean_of([row[key] for row in once]) for key in ("train_seconds", "test_seconds")]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(once)} |")
    size = next(f"{row['queries']} texts x {row['gallery']} videos" for row in rows if row["metric"] == "t2v")
    return "\n".join(
        [
            *lines,
            "",
            f"{dataset}, {size}; strict protocol unless it says published; the validation split chose the checkpoints.",
            "",
        ]
    )


def mean_of(seconds: list[float | None]) -> str:
    """Mean of those that are known."""
    known = [value for value in seconds if value is not None]
    return f"{statistics.mean(known):.0f}" if known else "-"


def spread(rows: list[dict[str, Any]], metric: str, protocol: str, column: str) -> str:
    """Mean +- standard deviation of a metric over the seeds; - where the protocol is not defined."""
    values = [row[column] for row in rows if (row["metric"], row["protocol"]) == (metric, protocol)]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    sys.exit(run_program("compare.py", main))
