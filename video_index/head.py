"""What an index begins with: the model that it belongs to. Those of earlier versions are brought up to
date or refused here."""

import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from utils.errors import InputError
from video_index.database import DATABASE, connect, speaking

FORMAT, VERSION = "TextDiffs video index", 5
FORMER_HEAD = "index.json"  # of versions 1 to 3, whose segments are lines of *.jsonl


@dataclass(frozen=True)
class Head:
    """What an index belongs to.

    :param made_with: the model, for people.
    :param model: marks of it by the name that a message can use.
    :param flags: those that build it again.
    :param window: seconds of a segment of a long video.
    :param frames: F, D of the features of a segment.
    :param tokens: S, W of its tokens, None for models without.
    """

    made_with: str
    model: dict[str, str]
    flags: dict[str, Any]
    window: float
    frames: tuple[int, int]
    tokens: tuple[int, int] | None = None


def head_rows(head: Head) -> list[tuple[str, str]]:
    """The table `about` of a new index: names and values as JSON."""
    values = {"format": FORMAT, "version": VERSION, **asdict(head)}
    return [(name, json.dumps(value)) for name, value in values.items()]


def read_head(folder: Path) -> Head | None:
    """The head of the index in a folder; None where there is none.

    :raises InputError: it is none of ours, of another version, or damaged.
    """
    path = folder / DATABASE
    if not path.exists():
        _refuse_former(folder)
        return None
    database = connect(path, writing=False)
    try:
        with speaking(folder):
            values = {name: json.loads(value) for name, value in database.execute("SELECT * FROM about")}
        if values.get("format") != FORMAT:
            raise InputError(f"{path} is no {FORMAT}")
        version = values["version"]
        if version not in (VERSION, VERSION - 1):
            raise InputError(f"--index={folder} has version {version} and this program reads {VERSION}")
        head = Head(**{field.name: values[field.name] for field in fields(Head)})
    except (ValueError, KeyError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path} cannot be read: {error!r}") from error
    finally:
        database.close()
    if version == VERSION - 1:
        from video_index.upgrade import upgrade  # which needs torch

        upgrade(folder, VERSION, head.frames)
    return head


def _refuse_former(folder: Path) -> None:
    """:raises InputError: the folder holds an index of an earlier version; names the command that makes it anew."""
    try:
        values = json.loads((folder / FORMER_HEAD).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            return
    except (OSError, ValueError, KeyError, TypeError):
        return
    files = {
        json.loads(line)["file"]
        for path in folder.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    videos = os.path.commonpath([os.path.dirname(file) for file in files]) if files else "VIDEOS"
    flags = {"videos_dir": videos, "index": f"{folder}-new", **values.get("flags", {})}
    again = " ".join(shlex.quote(f"--{name}={value}") for name, value in flags.items())
    raise InputError(
        f"--index={folder} was made by an earlier version of this program: make it anew with "
        f"`python search.py index {again}`"
    )
