"""Files of videos: the walk through a folder, and which file is meant by the name that an annotation gives."""

import logging
import os
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

logger = logging.getLogger(__name__)

# of two files with the stem of a video, one with such an extension is taken: the other may be its subtitles
VIDEO_EXTENSIONS = {
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg",
    "mpg", "mts", "mxf", "ogm", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv",
}  # fmt: skip

# which search takes for videos of one frame
PICTURE_EXTENSIONS = {"bmp", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"}
MISLEADING = set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # new lines, other directions


def shown(path: str | bytes | os.PathLike) -> str:
    """The name of a file as text that can be written anywhere: without control characters, which could move the cursor
    of a terminal, and of bytes that are no UTF-8 a sign."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return character in MISLEADING or unicodedata.category(character) == "Cc"


def split_name(name: str) -> tuple[str, str]:
    """Stem and extension of the name or path of a file, the extension without its dot.

    It may be empty: a name may end in the dot or have none.
    """
    stem, dot, extension = name.rpartition(".")
    return (stem, extension) if dot and "/" not in extension else (name, "")


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder: in the order of their names, those of a folder before those of its subfolders.

    Links are followed, but not one to a folder in which it lies itself. Hidden files and folders, whose names begin
    with a dot (macOS puts `._a.mp4` beside `a.mp4`), are left out. A folder that cannot be read is left out with a
    warning. The system is asked for nothing but the listing of each folder and where links lead.
    """
    return (folder / inside for inside in _walk(str(folder), "", [os.path.realpath(folder)]))


def _walk(folder: str, inside: str, places: list[str]) -> Iterator[str]:
    """The files as paths below the folder where the walk began.

    :param inside: the path of this folder, empty or with a slash at its end.
    :param places: this folder without links, and before it those from which links led here.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        logger.warning("left out: folder %s cannot be read: %s", folder, error.strerror)
        return
    folders = []
    for entry in entries:
        if _true(entry.is_dir):
            folders.append(entry)
        elif _true(entry.is_file):
            yield inside + entry.name
    for entry in folders:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if any(os.path.commonpath((target, place)) == target for place in places):
                continue  # it leads back to where the walk came from
            below = [*places, target]
        else:
            below = [*places[:-1], os.path.join(places[-1], entry.name)]
        yield from _walk(entry.path, f"{inside}{entry.name}/", below)


def _true(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself is neither file nor folder
        return False


class _Wanted(NamedTuple):
    """One way in which a video is looked for."""

    video: str
    way: int  # 0 is the surest
    text: str  # that a file must have
    videos_only: bool = False  # whether its extension must be one of a video


class _Fit(NamedTuple):
    """How well a file fits what is wanted; the least is the best."""

    way: int
    other_kind: bool  # its extension is none of a video
    other_form: bool  # its name has other bytes: another form of Unicode
    depth: int  # folders in which it lies


def identity(path: Path) -> Hashable:
    """What is the same for all names of a file: those of links to it, symbolic and hard ones."""
    try:
        file = os.stat(path)
    except OSError:  # gone since it was found: what reads it says so
        return path
    return file.st_dev, file.st_ino


def find_videos(folder: Path, videos: Iterable[str], paths: bool = False) -> tuple[dict[str, Path], list[Path]]:
    """The files of videos, found by name in one walk of a folder.

    The file of a video has its name or that as its stem, and lies in any subfolder. With `paths` the name may be a path
    below the folder, and these are looked for in turn: that path; the path without the extension; the path with another
    extension of a video; and, where the name has no folder, the same three in all subfolders.

    Of several files, those with the extension of a video come first, then those whose names have the same bytes
    (composed and decomposed letters count as the same), then those in fewest folders, then the first by name.

    :return: by name the file of each video that has one; and which of these were chosen where others would do as well.
    """
    sought: dict[tuple[str, str], list[_Wanted]] = {}
    for video in videos:
        for kind, wanted in _ways(video, paths):
            sought.setdefault((kind, _composed(wanted.text)), []).append(wanted)
    fits: dict[str, list[tuple[_Fit, str]]] = {}
    for inside in _walk(str(folder), "", [os.path.realpath(folder)]):
        stem, extension = split_name(inside)
        other_kind = extension.lower() not in VIDEO_EXTENSIONS
        for kind, text in (("path", inside), ("path stem", stem), ("name", _name(inside)), ("stem", _name(stem))):
            for wanted in sought.get((kind, _composed(text)), ()):
                if not (other_kind and wanted.videos_only):
                    fit = _Fit(wanted.way, other_kind, text != wanted.text, inside.count("/"))
                    fits.setdefault(wanted.video, []).append((fit, inside))
    best = {video: min(found, key=lambda pair: pair[0]) for video, found in fits.items()}
    doubtful = [
        folder / inside
        for video, (fit, inside) in best.items()
        if not (paths and fit.way == 0) and _others_would_do(folder, fit, fits[video])
    ]
    return {video: folder / inside for video, (_, inside) in best.items()}, doubtful


def _ways(video: str, paths: bool) -> Iterator[tuple[str, _Wanted]]:
    """The ways in which a video is looked for, and in what of a file."""
    if not paths:
        yield "name", _Wanted(video, 0, video)
        yield "stem", _Wanted(video, 0, video)
        return
    path = PurePosixPath(video).as_posix()  # ./a//b is a/b
    stem, extension = split_name(path)
    for way, whole in enumerate(("path", "name") if "/" not in path else ("path",)):
        part = {"path": "path stem", "name": "stem"}[whole]
        yield whole, _Wanted(video, 3 * way, path)
        yield part, _Wanted(video, 3 * way + 1, path)
        if extension.lower() in VIDEO_EXTENSIONS:
            yield part, _Wanted(video, 3 * way + 2, stem, videos_only=True)


def _others_would_do(folder: Path, chosen: _Fit, found: list[tuple[_Fit, str]]) -> bool:
    """Whether a video has several files of the same kind, links to one file not counted."""
    files = {inside for fit, inside in found if fit.other_kind == chosen.other_kind}
    return len(files) > 1 and len({os.path.realpath(folder / inside) for inside in files}) > 1


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _composed(text: str) -> str:
    """With composed letters (NFC), as all systems but macOS write them."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
