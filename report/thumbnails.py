"""Thumbnails of videos for a page: a few frames side by side, as the data URI of a JPEG."""

import base64
from pathlib import Path

import numpy as np

from config import Config
from datasets.annotations import Clip, Split, read_split
from datasets.video import read_frames
from utils.errors import InputError
from utils.pictures import jpeg_strip

FRAMES = 3  # enough to see what moves
HEIGHT = 72  # pixels


class Thumbnails:
    """Makes thumbnails of the clips of a split, each once.

    :param split: its clips need not know their files: these are then looked for, where the flags say.
    """

    def __init__(self, split: Split, config: Config) -> None:
        self.clips = split.clips
        self.files = _files(split, config)
        self.made: dict[int, str | None] = {}

    def __getitem__(self, clip: int) -> str | None:
        """Data URI of a clip; None where its video is not there or does not decode."""
        if clip not in self.made:
            self.made[clip] = self._make(self.clips[clip])
        return self.made[clip]

    def _make(self, clip: Clip) -> str | None:
        path = self.files.get(clip.video_id)
        try:
            return None if path is None else strip_uri(read_frames(path, FRAMES, None, clip.start, clip.end))
        except InputError:
            return None


def strip_uri(frames: np.ndarray) -> str:
    """Frames RGB uint8 (F, H, W, 3), scaled to HEIGHT and side by side, as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_strip(frames, HEIGHT)).decode("ascii")


def _files(split: Split, config: Config) -> dict[str, Path]:
    """The video files by id. A split that was read without its videos (--load_embeddings) knows only the ids."""
    if not config.load_embeddings:
        return {clip.video_id: clip.path for clip in split.clips}
    try:
        found = read_split(config.dataset_name, split.name, config.dataset_dir, config.videos_dir)
    except InputError:
        return {}
    return {clip.video_id: clip.path for clip in found.clips}
