"""Indexing from a command line: which folders, what has become of their files, and what is encoded."""

import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

from config import SearchConfig
from datasets.files import shown
from utils.errors import InputError, RunError
from utils.imports import quick_imports
from video_index.files import EXTENSIONS, Listing, listing
from video_index.head import Head
from video_index.names import Changes, Unfinished, follow, missing, root_at
from video_index.store import Store, named_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run has done."""

    encoded: int  # segments
    failed: int  # videos that were to be encoded and are not
    broken: int  # videos that did not decode in runs before, and have not changed
    changes: list[Changes]  # of each folder


def folders_of(config: SearchConfig, head: Head | None) -> dict[str, Listing]:
    """What lies in the folder of --videos_dir, or in all folders of an index, by the words that name them.

    :raises InputError: there is none, or a new one holds no video.
    """
    known = [] if head is None else Store(Path(config.index)).roots()
    if config.videos_dir is None and not known:
        raise InputError("--videos_dir is missing: the folder of the videos")
    if config.videos_dir is None:
        return {root.folder: listing(root.folder, _patterns(config.exclude, root.exclude)) for root in known}
    name, folder = named_folder(config.videos_dir, [root.name for root in known])
    if not os.path.isdir(folder):
        raise InputError(f"--videos_dir={config.videos_dir} is no folder")
    before = next((root for root in known if name == root.name or folder == root.folder), None)
    found = listing(folder, _patterns(config.exclude, before.exclude if before else ""))
    if not found.files and before is None:
        told = "".join(f"; {line}" for line in found.unreadable[:1])
        raise InputError(f"--videos_dir={shown(folder)} holds no video file ({', '.join(sorted(EXTENSIONS))}){told}")
    return {config.videos_dir: found}


def _patterns(given: str | None, kept: str) -> list[str]:
    """The patterns of --exclude, by default those that are kept with a root."""
    return [pattern for pattern in (kept if given is None else given).split(",") if pattern]


def up_to_date(config: SearchConfig, head: Head | None, found: dict[str, Listing]) -> Outcome:
    """Bring an index up to date, inside `only_writer`. The model is loaded only if there is something to encode."""
    folder, encoder = Path(config.index), None
    if head is None or config.gives_model:
        encoder, made = _encoder(config, head)
    store = Store(folder, writing=True) if head else Store.create(folder, made)
    try:
        if encoder:
            store.keep_flags(made)
        roots, changes = [], []
        for given, what in found.items():
            _tell_left_out(what)
            roots.append(root_at(store, given, config.exclude))
            changes.append(follow(store, roots[-1], what))
            _tell(changes[-1], roots[-1].folder)
        films = missing(store, roots)
        encoded = _encode(config, store, films, encoder) if films else 0
        failed = len({film.video for film in films} & {film.video for film in missing(store, roots, all_of=True)})
        broken = len(missing(store, roots, all_of=True)) - failed
        return Outcome(encoded, failed, broken, changes)
    finally:
        store.close()


def _encoder(config: SearchConfig, head: Head | None) -> tuple[object, Head]:
    with quick_imports():
        from utils.device import choose_device, choose_precision
        from video_index.encoding import Encoder
        from video_index.searching_model import load_model

    device = choose_device(config.gpu)
    config, model, made = load_model(config, head, device)
    logger.info("model: %s", made.made_with)
    return Encoder(model, config, device, choose_precision(config.precision, device)), made


def _encode(config: SearchConfig, store: Store, films: list[Unfinished], encoder: object | None) -> int:
    from video_index.encoding import update

    minutes = sum(film.seconds for film in films) / 60
    logger.info("to encode: %d videos, about %.1f minutes of film", len(films), minutes)
    encoder = encoder or _encoder(config, store.head)[0]
    started = time.perf_counter()
    try:
        encoded = update(store, films, encoder)
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()  # else it is waited for
        logger.info("what is encoded is kept; the same command goes on")
        raise
    logger.info("%d segments encoded in %.1f s", encoded, time.perf_counter() - started)
    return encoded


def _tell_left_out(found: Listing) -> None:
    """Say what of a folder is no part of an index."""
    for line in found.left_out:
        logger.warning("left out: %s", line)
    if found.other:
        counts = (f"{count} {f'.{kind}' if kind else 'without one'}" for kind, count in found.other.most_common())
        logger.info("left out by extension: %s", ", ".join(counts))


def _tell(changes: Changes, folder: str) -> None:
    for line in changes.unreadable:
        logger.warning("%s", line)
    logger.info(
        "%d videos in %s: %d new, %d changed, %d gone", changes.there, shown(folder), changes.new, changes.changed,
        changes.gone,
    )  # fmt: skip
    if changes.out_of_reach:
        logger.warning(
            "%d more are in folders that are empty, gone or cannot be read: they stay until `search.py prune`",
            changes.out_of_reach,
        )


def report(outcome: Outcome, folder: Path) -> None:
    """Say how it ended.

    :raises RunError: something could not be read, so that a scheduler can tell.
    """
    from video_index.maintenance import status

    store = Store(folder)
    logger.info("%s: %s", folder, status(store)[0])
    store.close()
    if outcome.broken:
        logger.info("%d videos did not decode before and have not changed: `search.py list` names them", outcome.broken)
    unreadable = sum(len(changes.unreadable) + changes.out_of_reach for changes in outcome.changes)
    if outcome.failed or unreadable:
        raise RunError(f"{outcome.failed} videos do not decode, {unreadable} files or folders could not be read")
