"""From video files to features, and into an index."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from config import SearchConfig
from datasets.annotations import Clip
from datasets.loading import FilmClips, Sample, film_loader
from diffusion_lm.errors import InputError
from diffusion_lm.progress import progress
from model.retrieval import RetrievalModel
from modules.parallel import map_in_order, one_thread_per_item
from modules.similarity import check_finite
from trainer.device import autocast
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
    def __call__(self, clips: Sequence[IndexedClip]) -> Iterator[tuple[IndexedClip, Tensor | InputError]]:
        """Each clip with its frame features (F, D), or why it has none.

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
                yield from ((clips[index], features) for index, features in batch)

    def all(self, clips: Sequence[IndexedClip]) -> Tensor:
        """Frame features (clips, F, D) of the clips of one video.

        :raises InputError: a clip does not decode.
        """
        features = dict(self(clips))
        for item in features.values():
            if isinstance(item, InputError):
                raise item
        return torch.stack([features[clip] for clip in clips])

    def _encode(self, batch: list) -> list[tuple[int, Tensor | InputError]]:
        good = [sample for sample in batch if isinstance(sample, Sample)]
        encoded = [sample for sample in batch if not isinstance(sample, Sample)]
        if good:
            frames = torch.stack([sample.frames for sample in good]).to(self.device, non_blocking=True)
            features = self.model.encode_videos(frames).float().cpu()
            check_finite("frame", features, None)
            encoded += zip((sample.index for sample in good), features, strict=True)
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
    shape = (0, encode.config.num_frames, encode.model.embed_dim)
    writer = _Writer(store, torch.empty(shape))
    try:
        with progress(None, "videos", len(found.missing), "videos") as bar:
            for clips in missing_parts(store, found.missing, store.head.window):
                left = Counter(clip.file for clip in clips)
                for clip, features in encode(clips):
                    writer.add(clip, features)
                    left[clip.file] -= 1
                    bar.update(left[clip.file] == 0)
                    writer.write_when_due()
    finally:  # after Ctrl-C, too
        writer.write()
    store.compact()
    return writer.encoded


class _Writer:
    """Gathers clips until they make a shard, or have waited long enough."""

    def __init__(self, store: Store, nothing: Tensor) -> None:
        self.store, self.nothing = store, nothing  # features of no clips (0, F, D)
        self.clips: list[IndexedClip] = []
        self.features: list[Tensor] = []
        self.encoded, self.written_at = 0, time.monotonic()

    def add(self, clip: IndexedClip, features: Tensor | InputError) -> None:
        if isinstance(features, InputError):
            self.clips.append(replace(clip, error=str(features)))
        else:
            self.clips.append(clip)
            self.features.append(features)
            self.encoded += 1

    def write_when_due(self) -> None:
        if len(self.clips) >= SHARD_CLIPS or time.monotonic() - self.written_at >= SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        if self.clips:
            self.store.add(self.clips, torch.stack(self.features) if self.features else self.nothing)
            self.clips, self.features = [], []
        self.written_at = time.monotonic()
