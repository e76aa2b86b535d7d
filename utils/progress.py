"""Progress of long loops: a bar on a terminal, and elsewhere, as in a log file, a plain line now and then."""

import io
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0  # between plain lines; shorter loops say nothing


def progress(work: Iterable | None, title: str, total: int, unit: str, *, shown: bool = True, done: int = 0) -> tqdm:
    """The items of `work`, while it is told how many of them are done, at which rate, and how long the rest takes.

    Bars go to standard error, lines to the log; neither stays when the loop has ended.

    :param work: None where the caller counts with `update`.
    :param total: items in all, of which `done` were done before.
    :param unit: what the items are, in the plural.
    :param shown: False in processes that do not report.
    """
    options: dict[str, Any] = {"leave": False, "disable": not shown, "initial": done}
    if shown and not sys.stderr.isatty():
        return _Lines(
            work, title, total, unit=f" {unit}", **options,
            file=io.StringIO(),  # for what moves a cursor
            delay=LINE_SECONDS, mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, miniters=1,
            bar_format="{desc}: {n_fmt} of {total_fmt}{unit}, {percentage:.0f} %, {elapsed} so far, {remaining} left",
        )  # fmt: skip
    return tqdm(work, title, total, unit=f" {unit}", **options)


class _Lines(tqdm):
    """A progress bar that logs what it would draw."""

    @staticmethod
    def status_printer(file: object) -> Callable[[str], None]:
        """Logs a state; the empty one, which clears a bar, is none."""

        def log(state: str) -> None:
            if state:
                logger.info("%s", state)

        return log
