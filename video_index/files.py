"""Which videos there are, which of them an index does not hold as they are now, and the parts of a long one."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from datasets.container import shown
from datasets.files import VIDEO_EXTENSIONS, split_name, walk
from datasets.timeline import timeline
from utils.errors import InputError
from utils.machine import cores
from video_index.store import IndexedClip, Store

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 256  # whose lengths are read before they are encoded


@dataclass(frozen=True)
class Changes:
    """What an index must do to hold the videos as they are now."""

    missing: dict[str, os.stat_result]  # files with parts that it does not hold, with what the system says of them
    outdated: set[str]  # files that it holds but that have changed or are gone
    gone: int  # of those, how many are gone
    there: int  # files that are there


def video_files(folder: Path) -> dict[str, os.stat_result]:
    """All video files below a folder, by absolute path, in order. Links are followed; hidden names are left out.

    :raises InputError: the folder is not there or holds no video: then it is rather not mounted than emptied.
    """
    if not folder.is_dir():
        raise InputError(f"--videos_dir={folder} is no folder")
    found = {}
    for path in walk(folder.absolute()):
        if split_name(path.name)[1].lower() in VIDEO_EXTENSIONS:
            file = os.path.normpath(path)
            try:
                found[file] = state_of(file)
            except InputError as error:
                logger.warning("left out: %s", error)
    if not found:
        raise InputError(f"--videos_dir={folder} holds no video file ({', '.join(sorted(VIDEO_EXTENSIONS))})")
    return dict(sorted(found.items()))


def state_of(path: str) -> os.stat_result:
    """What the system says of a file.

    :raises InputError: it cannot be read, or has a name that is no text and could not be shown.
    """
    try:
        path.encode()
        return os.stat(path)
    except UnicodeEncodeError as error:
        raise InputError(f"video {shown(path)}: its name is not UTF-8, rename it") from error
    except OSError as error:
        raise InputError(f"video {path} cannot be read: {error.strerror}") from error


def is_current(clip: IndexedClip, stat: os.stat_result) -> bool:
    """Whether a clip was read from the file as it is now."""
    return (clip.size, clip.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def changes(store: Store, folder: Path, found: dict[str, os.stat_result]) -> Changes:
    """Compare an index with the videos below a folder. Files elsewhere that it holds are left as they are.

    :param found: what `video_files` found in the folder.
    """
    root = os.path.join(os.path.normpath(folder.absolute()), "")
    held: dict[str, int] = {}
    outdated = set()
    for clip, _ in store.clips.values():
        if not clip.file.startswith(root):
            continue
        stat = found.get(clip.file)
        if stat is not None and is_current(clip, stat):
            held[clip.file] = held.get(clip.file, 0) + 1
        else:
            outdated.add(clip.file)
    whole = {clip.file for clip, _ in store.clips.values() if held.get(clip.file) == clip.parts}
    missing = {file: stat for file, stat in found.items() if file not in whole}
    return Changes(missing, outdated, sum(file not in found for file in outdated), len(found))


def parts_of(file: str, stat: os.stat_result, window: float) -> list[IndexedClip]:
    """A video in parts of about `window` seconds; a last one of less than half of that belongs to the one before."""
    state = (file, stat.st_size, stat.st_mtime_ns)
    try:
        seconds = timeline(Path(file)).end
    except InputError:  # reading it tells why
        return [IndexedClip(*state)]
    count = max(1, int(seconds / window + 0.5))
    ends = [*(window * (part + 1) for part in range(count - 1)), round(seconds, 3)]
    return [IndexedClip(*state, part, count, window * part, end) for part, end in enumerate(ends)]


def missing_parts(store: Store, files: dict[str, os.stat_result], window: float) -> Iterator[list[IndexedClip]]:
    """The clips of files that an index does not hold, the clips of some files at a time."""
    names = list(files)
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(names), FILES_AT_ONCE):
            some = names[start : start + FILES_AT_ONCE]
            found = pool.map(lambda file: parts_of(file, files[file], window), some)
            yield [clip for clips in found for clip in clips if (clip.file, clip.part) not in store.clips]
