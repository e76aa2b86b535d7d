"""What the command lines share: how help looks, how bad flags are reported, home folders, numbers within bounds."""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from utils.errors import InputError

EXIT_CODES = (
    "Exit codes: 0 all done; 1 the run failed although its input was good; 2 bad input, said in one line; 128 + the "
    "number of a signal that ended it: 130 Ctrl-C (SIGINT), 143 SIGTERM, 141 a closed pipe."
)
MANY_FLAGS = "python %(prog)s [--flag=VALUE ...]"  # a usage line; argparse would list them all
HELP_COLUMN = 32  # where the explanations of flags begin


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors, so that bad flags are reported like all other bad input, and whose help
    ends with the exit codes. In flags of type Path a leading ~ is the home folder.

    :param description: what the program does; may be the docstring of its file.
    :param usage: instead of the list of all flags.
    """

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description.replace("`", ""),
            epilog=EXIT_CODES,
            allow_abbrev=False,
            formatter_class=partial(_Formatter, max_help_position=HELP_COLUMN),
        )
        self.register("type", Path, home_path)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(message)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every flag, or that it must be given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        if action.default is False:
            return f"{action.help} (default: off)"
        if action.default is None or "(default: " in (action.help or ""):  # what None means is in its text
            return action.help
        return super()._get_help_string(action)


def at_home(text: str) -> str:
    """An argparse type: a path whose leading ~ is the home folder, which shells leave in --flag=~/x as it is."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text} is in nobody's home folder; one of that name is ./{text}")
    return path


def home_path(text: str) -> Path:
    """An argparse type: `at_home` as a Path."""
    return Path(at_home(text))


def number(kind: type[int] | type[float], least: float = 0, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number in [least, most]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            wanted = "a whole number" if kind is int else "a number"
            upper = f" and at most {most}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} is not {wanted} of at least {least}{upper}")
        return value

    return parse
