"""One writer at a time."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

LOCK_FILE = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process changes the index. The system lets go of the lock however the process ends; processes
    that it starts do not inherit it.

    :raises InputError: another one does; names it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--index={folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise InputError(f"--index={folder} is being written by {file.read() or 'another process'}") from error
        except OSError as error:
            raise InputError(f"--index={folder} cannot be locked: {error.strerror}") from error
        file.truncate(0)
        command = " ".join(sys.argv[:2])
        file.write(f"process {os.getpid()} of {socket.gethostname()} since {time.strftime('%H:%M:%S')} ({command})")
        file.flush()
        yield
