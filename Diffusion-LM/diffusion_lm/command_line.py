"""What the command lines of this folder share."""

import argparse
import math
from collections.abc import Callable

from diffusion_lm.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors, so that bad flags are reported like all other bad input."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> None:
        """Raise instead of printing the usage."""
        raise InputError(message)


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
