"""Which videos and pictures lie below a folder, and what tells one content from another."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import blake2b

from datasets.files import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, shown, split_name
from utils.errors import InputError

EXTENSIONS = VIDEO_EXTENSIONS | PICTURE_EXTENSIONS
HOUSEKEEPING = {b"@eaDir", b"#recycle", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found"}  # of NAS, Windows
SAMPLES, SAMPLE_BYTES = 64, 16384  # of a content that are hashed


@dataclass
class Listing:
    """What lies below a folder; all paths are those below it, as bytes."""

    folder: bytes  # absolute
    exclude: Sequence[str] = ()  # patterns of names or paths
    files: dict[bytes, os.stat_result] = field(default_factory=dict)  # videos and pictures, by path
    listed: set[bytes] = field(default_factory=set)  # folders that could be read and hold something
    left_out: list[str] = field(default_factory=list)  # videos that are left out and why, for people
    unreadable: list[str] = field(default_factory=list)  # what could not be read and why
    other: Counter[str] = field(default_factory=Counter)  # files of other kinds, by extension

    def excludes(self, path: bytes) -> bool:
        """Whether a pattern fits a path, the last name of it, or a folder in which it lies."""
        text = os.fsdecode(path)
        parts = text.split("/")
        below = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(fnmatch(name, pattern) for pattern in self.exclude for name in (*below, *parts))

    def misses(self, path: bytes) -> bool:
        """Whether a file is known not to be there: its folder holds others, or it is excluded. A folder that is empty,
        gone or cannot be read may only be not mounted."""
        return path not in self.files and (os.path.dirname(path) in self.listed or self.excludes(path))


def listing(folder: str, exclude: Sequence[str] = ()) -> Listing:
    """All videos and pictures below a folder, in the order of their names.

    Hidden names, housekeeping folders, what is no file, and links that lead out of the folder are left out. Links to
    folders in it are not followed, as what is there is found anyway.
    """
    found = Listing(os.fsencode(os.path.abspath(folder)), exclude)
    _list(found, b"", os.path.realpath(found.folder))
    return found


def _list(found: Listing, below: bytes, real_root: bytes) -> None:
    """Add what lies in a subfolder, and in those below it."""
    place = os.path.join(found.folder, below)
    try:
        with os.scandir(place) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        found.unreadable.append(f"folder {shown(place)} cannot be read: {error.strerror}")
        return
    if names:
        found.listed.add(below)
    for name in names:
        path = os.path.join(below, name)
        if name.startswith(b".") or name in HOUSEKEEPING or found.excludes(path):
            continue
        file = os.path.join(place, name)
        try:
            state = os.lstat(file)
            if stat.S_ISDIR(state.st_mode):
                _list(found, path, real_root)
            else:
                _add_file(found, path, state, real_root)
        except OSError as error:
            found.unreadable.append(f"{shown(file)} cannot be read: {error.strerror}")


def _add_file(found: Listing, path: bytes, state: os.stat_result, real_root: bytes) -> None:
    """Add a file if it is a video or a picture; else say or count it."""
    file = os.path.join(found.folder, path)
    linked = stat.S_ISLNK(state.st_mode)
    if linked:
        state = os.stat(file)
        if stat.S_ISDIR(state.st_mode) and _inside(file, real_root):
            return
    extension = split_name(os.fsdecode(path))[1].lower()
    if not stat.S_ISDIR(state.st_mode) and extension not in EXTENSIONS:
        found.other[extension] += 1
    elif linked and not _inside(file, real_root):
        found.left_out.append(f"{shown(file)} is a link that leads out of the folder")
    elif not stat.S_ISREG(state.st_mode):
        found.left_out.append(f"{shown(file)} is no file")
    elif not _is_text(path):
        found.left_out.append(f"{shown(file)}: its name is not UTF-8, rename it")
    else:
        found.files[path] = state


def _inside(file: bytes, real_root: bytes) -> bool:
    return os.path.commonpath((os.path.realpath(file), real_root)) == real_root


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
        return True
    except UnicodeDecodeError:
        return False


def content_of(file: str, size: int) -> bytes:
    """A hash of a file: of all of it up to a megabyte, else of samples at equal distances, the first and the last bytes
    among them.

    :raises OSError: it cannot be read.
    """
    digest = blake2b(digest_size=16)
    with open(file, "rb") as content:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(content.read())
        else:
            for sample in range(SAMPLES):
                content.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.digest()


def state_of(file: str) -> os.stat_result:
    """What the system says of a file.

    :raises InputError: it cannot be read, is no file, or has a name that is no text and could not be shown.
    """
    if not _is_text(os.fsencode(file)):
        raise InputError(f"video {shown(file)}: its name is not UTF-8, rename it")
    try:
        state = os.stat(file)
    except OSError as error:
        raise InputError(f"video {shown(file)} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"video {shown(file)} is no file")
    return state
