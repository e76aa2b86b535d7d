"""Search your own videos with a sentence.

python search.py index --videos_dir=DIR --index=INDEX --exp_name=NAME --datetime=RUN
python search.py query "a red circle moves left" --index=INDEX
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from config import SearchConfig
from utils.errors import InputError
from utils.program import run_program

logger = logging.getLogger(__name__)


def main() -> None:
    config = SearchConfig.parse(prog="search.py", description=__doc__.splitlines()[0])
    {"index": index, "query": query}[config.command](config)


def index(config: SearchConfig) -> None:
    """Bring an index up to date with the videos of a folder."""
    from utils.device import choose_device, choose_precision  # after parsing, so that bad flags answer at once
    from video_index.encoding import Encoder, update
    from video_index.files import changes, video_files
    from video_index.searching_model import load_model
    from video_index.store import Store, only_writer, read_head

    # 1. model
    folder, videos_dir = Path(config.index), Path(config.videos_dir)
    head = read_head(folder)
    files = video_files(videos_dir)  # a wrong folder answers before the model is there
    device = choose_device(config.gpu)
    config, model, made = load_model(config, head, device)
    logger.info("model: %s", made.made_with)

    with only_writer(folder):
        # 2. what is new
        store = Store(folder, head) if head else Store.create(folder, made)
        found = changes(store, videos_dir, files)
        logger.info(
            "%d videos in %s: %d to encode; %d in the index have changed, %d are gone",
            found.there, videos_dir, len(found.missing), len(found.outdated) - found.gone, found.gone,
        )  # fmt: skip

        # 3. features
        started = time.perf_counter()
        encoded = update(store, found, Encoder(model, config, device, choose_precision(config.precision, device)))

    # 4. report
    for clip in store.broken():
        logger.warning("skipped: %s", clip.error)
    videos = len({clip.file for clip, place in store.clips.values() if place.row is not None})
    logger.info(
        "%d clips encoded in %.1f s; %s holds %d videos in %d clips, %d clips do not decode",
        encoded, time.perf_counter() - started, folder, videos, len(store), len(store.broken()),
    )  # fmt: skip


def query(config: SearchConfig) -> None:
    """Answer queries, each as soon as it is read."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)  # answers go to stdout
    from utils.device import choose_device, choose_precision
    from video_index.answers import Answer, as_json, as_table, contact_sheet
    from video_index.searching import Searcher
    from video_index.searching_model import load_model
    from video_index.store import Store, read_head

    # 1. model and index
    folder = Path(config.index)
    head = read_head(folder)
    if head is None:
        raise InputError(f"--index={folder} is no index: make one with `python search.py index`")
    device = choose_device(config.gpu)
    config, model, _ = load_model(config, head, device)
    searcher = Searcher(model, Store(folder, head), config, device, choose_precision(config.precision, device))
    logger.info("%d clips, model: %s", len(searcher.clips), head.made_with)

    # 2. queries
    answers = []
    for kind, text, search in _queries(config, searcher):
        started = time.perf_counter()
        answer = Answer(kind, text, search(), time.perf_counter() - started)
        sys.stdout.write((as_json(answer) if config.json else as_table(answer)) + "\n")
        sys.stdout.flush()
        answers.append(answer)

    # 3. thumbnails
    if config.contact_sheet and answers:
        contact_sheet(Path(config.contact_sheet), answers)
        logger.info("thumbnails are in %s", config.contact_sheet)


def _queries(config: SearchConfig, searcher: object) -> Iterator[tuple[str, str, Callable[[], list]]]:
    """Kind and text of each query of the command line, a file or standard input, and what answers it."""
    if config.like:
        yield "like", config.like, lambda: searcher.like(config.like)
    elif config.describe:
        sentences = list(lines_of("captions", config.captions))
        yield "describe", config.describe, lambda: searcher.describe(config.describe, sentences)
    else:
        for text in config.texts or lines_of("queries", config.queries):
            yield "query", text, lambda text=text: searcher.by_text(text)


def lines_of(name: str, path: str) -> Iterator[str]:
    """The lines of a flag's file that say something; of standard input as they come.

    :raises InputError: it cannot be read, or holds none.
    """
    empty = True
    try:
        with sys.stdin if path == "-" else open(path, encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    empty = False
                    yield line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--{name}={path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if empty:
        raise InputError(f"--{name}={path} holds no line of text")


if __name__ == "__main__":
    sys.exit(run_program("search.py", main))
