"""What a run learns from and is chosen on, as its checkpoints keep it, so that it goes on with nothing else."""

import hashlib
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.annotations import Segment, Split
from utils.errors import InputError

logger = logging.getLogger(__name__)

MENDED = 0.5  # share of the videos that may be other files: broken ones that were replaced, but not other copies of all
SHOWN = 3  # names of what differs
Record = dict[str, dict[str, Tensor]]  # by split; tensors, because checkpoints are read with weights_only


def content_digest(split: Split) -> str:
    """SHA-256 of the segments of a split in their order: their videos by name, their captions, their times."""
    return _sha256(
        [(segment.video_id, segment.captions, segment.start, segment.end) for segment in split.segments]
    ).hex()


def same_data(checkpoint: dict[str, Any] | None, path: Path | None, *splits: Split | None) -> Record:
    """The record of the splits of a run, for its checkpoints; those that it does without are None.

    :param checkpoint: of the run that goes on, and its `path`; None: a new run.
    :raises InputError: the run had other data; says what differs.
    """
    there = [split for split in splits if split is not None]
    record = {split.name: _record(split) for split in there}
    if checkpoint is None:
        return record
    before = checkpoint.get("data")
    if before is None:
        logger.warning("%s does not say on which data the run was: nobody knows whether these are the same", path)
        return record
    if before.keys() == record.keys():
        told = [text for split in there if (text := _difference(before[split.name], record[split.name], split.name))]
    else:
        told = [f"its splits were {', '.join(before)}, here they are {', '.join(record)}"]
    if told:
        raise InputError(
            f"--resume: the run of {path} had other data, {'; '.join(told)}: give it the same again, or start a new run"
        )
    return record


def _record(split: Split) -> dict[str, Tensor]:
    """Of N segments: their videos (JSON, compressed, as bytes), times (N, 2; -1: none), the first 8 bytes of a hash of
    their captions (N,), and the bytes of their files (N,), which a moved copy has as well and a smaller one has not."""
    names = zlib.compress(json.dumps([segment.video_id for segment in split.segments]).encode())
    return {
        "videos": torch.frombuffer(bytearray(names), dtype=torch.uint8),
        "times": torch.tensor(
            [[_time(segment.start), _time(segment.end)] for segment in split.segments], dtype=torch.float64
        ),
        "captions": torch.tensor([_hash(segment) for segment in split.segments]),
        "bytes": torch.tensor([_size(segment.path) for segment in split.segments]),
    }


def _difference(before: dict[str, Tensor], here: dict[str, Tensor], name: str) -> str:
    """What differs between two records of a split, in words; empty: nothing."""
    if all(torch.equal(tensor, here[part]) for part, tensor in before.items()):
        return ""
    old, new = _by_segment(before), _by_segment(here)
    gone, added = (
        [segment[0] for segment in old.keys() - new.keys()],
        [segment[0] for segment in new.keys() - old.keys()],
    )
    both = old.keys() & new.keys()
    told = [
        _told("with other times", set(gone) & set(added)),
        _told("gone", set(gone) - set(added)),
        _told("new", set(added) - set(gone)),
        _told("with other captions", {segment[0] for segment in both if old[segment][0] != new[segment][0]}),
    ]
    resized = {segment[0] for segment in both if old[segment][1] != new[segment][1]}
    sizes = _told("with files of another size", resized)
    if len(resized) > max(1, MENDED * len(old)):
        told.append(sizes)
    elif sizes and not any(told):
        logger.warning("--resume: %s videos: %s, taken for mended ones", name, sizes)
        if list(old) == list(new):
            return ""
    return f"{name} videos: " + (", ".join(filter(None, told)) or "in another order")


def _by_segment(record: dict[str, Tensor]) -> dict[tuple, tuple[int, int]]:
    """Hash of the captions and bytes of each segment, by video, times and which one of these it is."""
    videos = json.loads(zlib.decompress(record["videos"].numpy().tobytes()))
    columns = (record[name].tolist() for name in ("times", "captions", "bytes"))
    seen: Counter[tuple] = Counter()
    segments = {}
    for video, times, captions, size in zip(videos, *columns, strict=True):
        segment = (video, *times)
        segments[(*segment, seen[segment])] = captions, size
        seen[segment] += 1
    return segments


def _told(what: str, videos: Iterable[str]) -> str:
    names = sorted(videos)
    shown = ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")
    return f"{len(names)} {what} ({shown})" if names else ""


def _time(seconds: float | None) -> float:
    return -1.0 if seconds is None else seconds


def _hash(segment: Segment) -> int:
    return int.from_bytes(_sha256(segment.captions)[:8], "little", signed=True)


def _sha256(value: Any) -> bytes:
    """The hash of a value of plain types, by its JSON."""
    return hashlib.sha256(json.dumps(value).encode()).digest()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone since it was found: what reads it says so
        return -1
