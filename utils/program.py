"""How every program runs: log lines, exit codes, and one line for bad input."""

import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable

from tqdm.contrib.logging import logging_redirect_tqdm

from utils.errors import InputError, RunError
from utils.launch import speaks

CLOSED_PIPE = 128 + 13  # SIGPIPE, which Windows has not


def log_to_console() -> None:
    """Log lines on standard output, as they are; progress bars go to standard error."""
    level = logging.INFO if speaks() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout, force=True)
    logging.raiseExceptions = False  # a full disk is told once, by what must be written, not for each line of the log
    for noisy in ("httpx", "huggingface_hub", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def run_program(program: str, main: Callable[[], None]) -> int:
    """Run an entry point: bad input becomes one line on standard error and exit code 2, a failed run exit code 1, one
    that a signal stopped 128 + the signal, as does the end of the program that reads its output.

    :return: exit code.
    """
    _write_what_cannot_be_encoded_as_escapes()
    log_to_console()
    code = _exit_code(program, main)
    told = _flushed(program, code)
    if told != code or code == CLOSED_PIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return told


def _flushed(program: str, code: int) -> int:
    """Write what is left for standard output. The exit code: another one than `code` where that fails."""
    try:
        if sys.stdout is not None:  # as it is where it was closed (>&-)
            sys.stdout.flush()
    except BrokenPipeError:
        return code or CLOSED_PIPE
    except OSError as error:
        if not code:
            sys.stderr.write(f"{program}: error: standard output cannot be written: {error.strerror}\n")
        return code or RunError.exit_code
    return code


def _write_what_cannot_be_encoded_as_escapes() -> None:
    """Captions and names hold letters that standard output may not have, where it is not UTF-8: an answer would end
    the program, and a line of the log be lost."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # else somebody has put something in its place
        sys.stdout.reconfigure(errors="backslashreplace")


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit_code(program: str, main: Callable[[], None]) -> int:
    try:
        with logging_redirect_tqdm():
            main()
    except (InputError, RunError) as error:
        if speaks():
            sys.stderr.write(f"{program}: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        if speaks():
            sys.stderr.write(f"{program}: error: interrupted\n")
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)  # another signal that a program takes for it
    except BrokenPipeError:
        if not _nobody_reads():  # it is another pipe, such as that of a worker process
            raise
        return CLOSED_PIPE
    except SystemExit as wanted:  # --help
        return int(wanted.code or 0)
    return 0
