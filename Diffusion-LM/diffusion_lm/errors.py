"""The one exception that means "the person gave something that cannot be used"."""


class InputError(ValueError):
    """Bad input, said in one line: what was wrong, in which file or flag, what to do.

    Entry points print the message without a traceback and leave with exit code 2.
    """
