"""Files that are written whole or not at all. Imports no torch: small programs use it in each of their processes."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file's name, this process's own, to write to: afterwards fsync and rename, so that `path` is either
    the old file or the whole new one. An error leaves the old one. A device or a pipe is written to as it is: a file
    must not take its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{socket.gethostname()}-{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_or_refused(path: Path, refusal: str) -> Iterator[Path]:
    """`written_whole`, whose folder is made where it is not there.

    :param refusal: what is said when it cannot be written, before the reason.
    :raises InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise InputError(f"{refusal}: {error.strerror}") from error


def check_writable(*paths: str | Path | None) -> None:
    """Whether files can be made where these will be written: bad input must not wait for hours of work.

    :param paths: of files; None is skipped.
    :raises InputError: a folder cannot be made, or not be written to.
    """
    for path in (Path(path) for path in paths if path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
