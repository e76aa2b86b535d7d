"""What a run leaves behind: its folder with config.json, log.txt, metrics.jsonl and TensorBoard files."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from config import Config
from utils.errors import InputError
from utils.files import written_or_refused, written_whole

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
LOG_FILE = "log.txt"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
BEFORE_FILE = "before_training.json"  # results of the untrained model, where somebody has kept them
EVALUATION = "eval/seconds"  # which the record of every evaluation has
TEST = "test/seconds"  # and that of the test at the end


class TrainedError(InputError):
    """Bad input that a run has met after its first step: its folder stays, and the message says how to go on."""


@contextmanager
def training_folder(config: Config, resume: bool = False) -> Iterator[Path]:
    """The folder of a training run, with config.json and log.txt.

    A run that bad input ends before its first step leaves nothing behind.

    :param resume: the folder may hold a run, which goes on.
    :raises InputError: the folder holds a run already, or cannot be made.
    """
    folder = config.run_dir
    if not resume and (any(folder.glob("*.pth")) or (folder / CONFIG_FILE).exists()):
        raise InputError(f"{folder} holds a run already: give another --datetime or --exp_name, or go on with --resume")
    existed = folder.exists()
    try:
        with logged_to(folder):
            with written_or_refused(folder / CONFIG_FILE, f"run folder {folder} cannot be written") as unfinished:
                config.save(unfinished)
            yield folder
    except InputError as error:
        if not existed and not isinstance(error, TrainedError):
            shutil.rmtree(folder, ignore_errors=True)  # it may not even have been made
        raise


@contextmanager
def logged_to(folder: Path, anew: bool = False) -> Iterator[None]:
    """Make a folder, and log to its log.txt.

    :param anew: without what that file holds.
    :raises InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / LOG_FILE, mode="w" if anew else "a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class MetricsWriter:
    """Numbers of a run, to metrics.jsonl, a record a line, and to TensorBoard.

    :param folder: of the run.
    :param tensorboard_dir: None writes no TensorBoard files.
    :param step: of a run that goes on; what was written after it is dropped, because it comes again.
    :param evaluated: whether the evaluation of this step stays, if there was one.
    :raises InputError: a file, or the TensorBoard folder, cannot be written.
    """

    def __init__(
        self, folder: Path, tensorboard_dir: Path | None = None, step: int = 0, evaluated: bool = True
    ) -> None:
        self.path = folder / METRICS_FILE
        try:
            kept = _records_until(self.path, step, evaluated)
            self.tested = any(TEST in json.loads(line) for line in kept)
            with written_whole(self.path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise self._cannot_be_written(error) from error
        self.tensorboard = None
        if tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, not always wanted

            try:
                self.tensorboard = SummaryWriter(str(tensorboard_dir), purge_step=step + 1 if step else None)
            except OSError as error:
                raise InputError(f"TensorBoard folder {tensorboard_dir} cannot be written: {error.strerror}") from error

    def write(self, step: int, epoch: int | None, values: dict[str, Any], tensorboard: bool = True) -> None:
        """Append values, by name, at a step; None where it is of no epoch."""
        try:
            self.file.write(json.dumps({"step": step} | ({} if epoch is None else {"epoch": epoch}) | values) + "\n")
            self.file.flush()
        except OSError as error:
            raise self._cannot_be_written(error) from error
        with self._goes_on():
            for name, value in values.items() if self.tensorboard and tensorboard else ():
                self.tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Let the files hold all that was written; metrics.jsonl always does."""
        with self._goes_on():
            if self.tensorboard:
                self.tensorboard.flush()

    def close(self) -> None:
        """Flush and close."""
        with suppress(OSError):  # of a full disk, which write has told
            self.file.close()
        with self._goes_on():
            if self.tensorboard:
                self.tensorboard.close()

    def _cannot_be_written(self, error: OSError) -> InputError:
        return InputError(f"{self.path} cannot be written: {error.strerror}")

    @contextmanager
    def _goes_on(self) -> Iterator[None]:
        """A full disk ends the TensorBoard files, not the run: they are a copy."""
        try:
            yield
        except OSError as error:
            self.tensorboard = None
            logger.warning(
                "the TensorBoard files end here, they cannot be written: %s; %s has the same numbers",
                error.strerror, self.path,
            )  # fmt: skip


def _records_until(path: Path, step: int, evaluated: bool) -> list[str]:
    """The whole lines of metrics.jsonl up to a step, with or without the evaluation after it."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError):  # a line that a killed run has begun
            record = json.loads(line)
            if record["step"] < step or (record["step"] == step and (evaluated or EVALUATION not in record)):
                lines.append(line)
    return lines
