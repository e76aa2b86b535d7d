"""From video files to features, and into an index."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from config import SearchConfig
from datasets.annotations import Clip
from datasets.loading import FilmClips, Sample, film_loader
from evaluation.embeddings import TOKENS_DTYPE, new_tokens
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel, join_rows, split_rows
from modules.similarity import check_finite
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress
from utils.threads import map_in_order, one_thread_per_item
from video_index.files import Changes, missing_parts
from video_index.store import SHARD_CLIPS, IndexedClip, Store

logger = logging.getLogger(__name__)

SAVE_SECONDS = 15.0  # after which what was encoded is written, so that an interruption costs little


class Encoder:
    """Encodes clips, each as an evaluation encodes a test video.

    :param config: frames, batch size, workers.
    :param dtype: of the matrix products.
    """

    def __init__(self, model: RetrievalModel, config: SearchConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.config, self.device, self.dtype = model, config, device, dtype

    @torch.no_grad()
    def __call__(self, clips: Sequence[IndexedClip]) -> Iterator[tuple[IndexedClip, EncodedVideos | InputError]]:
        """Each clip with its features as a video (1, ...) on the CPU, tokens in half precision, or why it has none.

        Clips of one video are decoded together and come in order, videos in any.

        :param clips: those of a video one after the other.
        :raises RunError: features are NaN or infinite.
        """
        config = self.config
        preprocessing = self.model.preprocessing
        films = FilmClips(list(map(_as_read, clips)), config.num_frames, config.input_res, preprocessing)
        workers = config.num_workers if len(clips) > config.batch_size else 0  # starting them costs more than a batch
        loader = film_loader(films, config.batch_size, workers, self.device.type == "cuda")
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as threads:
            for batch in map_in_order(self._encode, loader, threads):
                yield from ((clips[index], video) for index, video in batch)

    def all(self, clips: Sequence[IndexedClip]) -> EncodedVideos:
        """What is encoded of the clips of one video, in their order.

        :raises InputError: a clip does not decode.
        """
        videos = dict(self(clips))
        for item in videos.values():
            if isinstance(item, InputError):
                raise item
        return join_rows([videos[clip] for clip in clips])

    def _encode(self, batch: list) -> list[tuple[int, EncodedVideos | InputError]]:
        good = [sample for sample in batch if isinstance(sample, Sample)]
        encoded = [sample for sample in batch if not isinstance(sample, Sample)]
        if good:
            frames = torch.stack([sample.frames for sample in good]).to(self.device, non_blocking=True)
            features, tokens = self.model.encode_videos(frames)
            features = features.float().cpu()
            check_finite("frame", features, None)
            videos = EncodedVideos(features, None if tokens is None else tokens.to("cpu", TOKENS_DTYPE))
            encoded += zip((sample.index for sample in good), split_rows(videos, 1), strict=True)
        return encoded


def _as_read(clip: IndexedClip) -> Clip:
    """A video of one part is read whole, as an evaluation reads it."""
    bounds = (None, None) if clip.parts == 1 else (clip.start, clip.end)
    return Clip(clip.file, Path(clip.file), (), *bounds)


def update(store: Store, found: Changes, encode: Encoder) -> int:
    """Bring an index up to date.

    :return: clips that were encoded.
    """
    store.drop(found.outdated)
    features = torch.empty(0, encode.config.num_frames, encode.model.embed_dim)
    tokens = None if encode.model.token_shape is None else new_tokens(0, encode.model.token_shape)
    writer = _Writer(store, EncodedVideos(features, tokens))
    try:
        with progress(None, "videos", len(found.missing), "videos") as bar:
            for clips in missing_parts(store, found.missing, store.head.window):
                left = Counter(clip.file for clip in clips)
                for clip, video in encode(clips):
                    writer.add(clip, video)
                    left[clip.file] -= 1
                    bar.update(left[clip.file] == 0)
                    writer.write_when_due()
    finally:  # after Ctrl-C, too
        writer.write()
    store.compact()
    return writer.encoded


class _Writer:
    """Gathers clips until they make a shard, or have waited long enough."""

    def __init__(self, store: Store, nothing: EncodedVideos) -> None:
        self.store, self.nothing = store, nothing  # what is encoded of no clips (0, ...)
        self.clips: list[IndexedClip] = []
        self.videos: list[EncodedVideos] = []
        self.encoded, self.written_at = 0, time.monotonic()

    def add(self, clip: IndexedClip, video: EncodedVideos | InputError) -> None:
        if isinstance(video, InputError):
            self.clips.append(replace(clip, error=str(video)))
        else:
            self.clips.append(clip)
            self.videos.append(video)
            self.encoded += 1

    def write_when_due(self) -> None:
        if len(self.clips) >= SHARD_CLIPS or time.monotonic() - self.written_at >= SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        if self.clips:
            self.store.add(self.clips, join_rows([self.nothing, *self.videos]))
            self.clips, self.videos = [], []
        self.written_at = time.monotonic()
