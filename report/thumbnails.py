"""Thumbnails of videos for a page: a few frames side by side, as the data URI of a JPEG; and links to the files."""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np

from config import Config
from datasets.annotations import Segment, Split, read_split
from datasets.video import read_frames
from utils.errors import InputError
from utils.pictures import jpeg_strip

FRAMES = 3  # enough to see what moves
HEIGHT = 72  # pixels


class Thumbnails:
    """Makes thumbnails of the segments of a split, each once.

    :param split: its segments need not know their files: these are then looked for, where the flags say.
    :param folder: of the page.
    """

    def __init__(self, split: Split, config: Config, folder: Path) -> None:
        self.segments, self.folder = split.segments, folder
        self.files = _files(split, config)
        self.made: dict[int, str | None] = {}

    def __getitem__(self, segment: int) -> str | None:
        """Data URI of a segment; None where its video is not there or does not decode."""
        if segment not in self.made:
            self.made[segment] = self._make(self.segments[segment])
        return self.made[segment]

    def link(self, segment: int) -> str | None:
        """Address of a segment's video as seen from the page, with its times; None where the file is not there."""
        linked = self.segments[segment]
        path, start, end = self.files.get(linked.video_id), linked.start, linked.end
        if path is None:
            return None
        times = "" if start is None else f"#t={start:g},{end:g}" if end is not None else f"#t={start:g}"
        return quote(Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix()) + times

    def _make(self, segment: Segment) -> str | None:
        path = self.files.get(segment.video_id)
        try:
            return None if path is None else strip_uri(read_frames(path, FRAMES, None, segment.start, segment.end))
        except InputError:
            return None


def strip_uri(frames: np.ndarray) -> str:
    """Frames RGB uint8 (F, H, W, 3), scaled to HEIGHT and side by side, as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_strip(frames, HEIGHT)).decode("ascii")


def _files(split: Split, config: Config) -> dict[str, Path]:
    """The video files by id. A split that was read without its videos (--load_embeddings) knows only the ids."""
    if not config.load_embeddings:
        return {segment.video_id: segment.path for segment in split.segments}
    try:
        found = read_split(config.dataset_name, split.name, config.dataset_dir, config.videos_dir)
    except InputError:
        return {}
    return {segment.video_id: segment.path for segment in found.segments}
