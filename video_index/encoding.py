"""From video files to features, and into an index."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from config import SearchConfig
from datasets.annotations import Segment
from datasets.files import shown
from datasets.loading import FilmSegments, Sample, film_loader
from datasets.timeline import timeline
from datasets.video import is_picture
from evaluation.embeddings import TOKENS_DTYPE
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel, join_rows, split_rows
from modules.frame_pooling import mean_of_frames
from modules.similarity import check_finite
from utils.device import autocast
from utils.errors import InputError
from utils.machine import cores
from utils.progress import progress
from utils.threads import map_in_order, one_thread_per_item, videos_at_once
from video_index.names import MOST_TRIES, Unfinished
from video_index.store import Features, Span, Store

logger = logging.getLogger(__name__)

FILMS_AT_ONCE = 32  # whose frames are timed before they are encoded


class NewSegment(NamedTuple):
    """A segment that is to be encoded."""

    file: str
    span: Span


class Encoder:
    """Encodes segments, each as an evaluation encodes a test video.

    :param config: frames, batch size, workers.
    :param dtype: of the matrix products.
    """

    def __init__(self, model: RetrievalModel, config: SearchConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.config, self.device, self.dtype = model, config, device, dtype

    @torch.no_grad()
    def __call__(self, segments: Sequence[NewSegment]) -> Iterator[tuple[NewSegment, EncodedVideos | InputError]]:
        """Each segment with its features as a video (1, ...) on the CPU, tokens in half precision, or why it has none.

        Segments of one film are decoded together and come in order, films in any.

        :param segments: those of a film one after the other.
        :raises RunError: features are NaN or infinite.
        """
        config = self.config
        preprocessing = self.model.preprocessing
        films = FilmSegments(list(map(_as_read, segments)), config.num_frames, config.input_res, preprocessing)
        batch_size = videos_at_once(config.batch_size, self.device)
        workers = config.num_workers if len(segments) > batch_size else 0  # starting them costs more than a batch
        loader = film_loader(films, batch_size, workers, self.device.type == "cuda")
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as threads:
            for batch in map_in_order(self._encode, loader, threads):
                yield from ((segments[index], video) for index, video in batch)

    def all(self, segments: Sequence[NewSegment]) -> EncodedVideos:
        """What is encoded of the segments of one video, in their order.

        :raises InputError: a segment does not decode.
        """
        videos = dict(self(segments))
        for item in videos.values():
            if isinstance(item, InputError):
                raise item
        return join_rows([videos[segment] for segment in segments])

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


def _as_read(segment: NewSegment) -> Segment:
    """A video of one segment is read whole, as an evaluation reads it."""
    bounds = (None, None) if segment.span.parts == 1 else (segment.span.start, segment.span.end)
    return Segment(segment.file, Path(segment.file), (), *bounds)


def spans_of(file: str, window: float) -> list[Span]:
    """A video in segments of about `window` seconds; a last one of less than half of that belongs to the one before."""
    if is_picture(Path(file)):
        return [Span(0, 1, None, None)]
    try:
        seconds = timeline(Path(file)).end
    except InputError:  # reading it tells why
        return [Span(0, 1, None, None)]
    count = max(1, int(seconds / window + 0.5))
    ends = [*(window * (part + 1) for part in range(count - 1)), round(seconds, 3)]
    return [Span(part, count, window * part, end) for part, end in enumerate(ends)]


def features_of(encoded: EncodedVideos) -> Features:
    """What is kept of one video (1, ...)."""
    frames, tokens = encoded
    halves = None if tokens is None else tokens.contiguous().view(torch.int16).numpy().tobytes()
    return Features(mean_of_frames(frames).numpy().tobytes(), frames.contiguous().numpy().tobytes(), halves)


def update(store: Store, films: Sequence[Unfinished], encode: Encoder) -> int:
    """Encode what an index does not hold; each segment is in it as soon as it is encoded.

    :return: segments that were encoded.
    """
    encoded, done = 0, 0.0
    minutes = sum(film.seconds for film in films) / 60
    with (
        ThreadPoolExecutor(cores()) as pool,
        progress(None, "encoding", max(1, round(minutes)), "minutes of film") as bar,
    ):
        for start in range(0, len(films), FILMS_AT_ONCE):
            some = films[start : start + FILMS_AT_ONCE]
            spans = pool.map(lambda film: spans_of(film.file, store.head.window), some)
            owner, segments = {}, []
            for film, of_film in zip(some, spans, strict=True):
                owner[film.file] = film
                segments += [NewSegment(film.file, span) for span in of_film if span.part not in film.held]
            failed: set[int] = set()
            for segment, video in encode(segments):
                encoded += _keep(store, owner[segment.file], segment.span, video, failed)
                done += ((segment.span.end or 0) - (segment.span.start or 0)) / 60
                bar.update(int(done) - bar.n)
    return encoded


def _keep(store: Store, film: Unfinished, span: Span, video: EncodedVideos | InputError, failed: set[int]) -> bool:
    """Put a segment into an index, or why there is none, once for each film. Tells whether it was put there."""
    if film.video in failed:
        return False
    problem = str(video) if isinstance(video, InputError) else None
    with store.transaction():
        if not _is_as_it_was(film):
            failed.add(film.video)
            logger.warning("%s changed while it was read; the next run reads it", shown(film.file))
        elif problem:
            failed.add(film.video)
            ((tries,),) = store.rows("SELECT tries FROM videos WHERE id = ?", (film.video,))
            store.rows("UPDATE videos SET error = ?, tries = ? WHERE id = ?", (problem, tries + 1, film.video))
            again = "" if tries + 1 >= MOST_TRIES else "; the next run tries once more"
            logger.warning("skipped: %s%s", problem, again)
        else:
            store.add(film.video, span, features_of(video))
            return True
    return False


def _is_as_it_was(film: Unfinished) -> bool:
    try:
        state = os.stat(film.file)
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (film.size, film.mtime_ns)
