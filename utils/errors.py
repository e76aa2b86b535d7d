"""The exceptions that end a program with one line instead of a traceback."""


class InputError(ValueError):
    """Bad input, said in one line: what was wrong, in which file or flag, what to do.

    Entry points print the message without a traceback and leave with exit code 2.
    """

    exit_code = 2


class RunError(RuntimeError):
    """A run that cannot go on although its input was good, said in one line; exit code 1. What it wrote stays."""

    exit_code = 1
