"""Search your own videos with a sentence.

python search.py index --videos_dir=DIR --index=INDEX --exp_name=NAME --datetime=RUN
python search.py "a red circle moves left" --index=INDEX
"""

import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from config import SearchConfig
from utils.errors import InputError
from utils.imports import quick_imports
from utils.program import run_program

if TYPE_CHECKING:
    from video_index.searching import Searcher  # slow to import

logger = logging.getLogger(__name__)


def main() -> None:
    config = SearchConfig.parse(prog="search.py", description=__doc__.splitlines()[0])
    commands = {
        "index": index, "query": query, "serve": serve, "status": status, "list": list_files, "forget": forget,
        "prune": prune, "verify": verify,
    }  # fmt: skip
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal has no letters for
    commands[config.command](config)


def index(config: SearchConfig) -> None:
    """Bring an index up to date with the videos of a folder, or of all of its folders."""
    from video_index.head import read_head  # after parsing, so that bad flags answer at once
    from video_index.indexing import folders_of, report, up_to_date
    from video_index.lock import only_writer
    from video_index.store import check_free

    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(config.index)
    head = read_head(folder)
    if head is None:
        check_free(folder)  # before a lock is left in it
    found = folders_of(config, head)  # a wrong folder answers before the model is there
    with only_writer(folder):
        outcome = up_to_date(config, head, found)
    report(outcome, folder)


def query(config: SearchConfig) -> None:
    """Answer queries, each as soon as it is read."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)  # answers go to stdout

    # 1. index and model
    with quick_imports():
        from video_index.answers import Answer, as_json, as_table, contact_sheet
    searcher = _searcher(config)

    # 2. queries
    answers = []
    for kind, text, search in _queries(config, searcher):
        started = time.perf_counter()
        answer = Answer(kind, text, search(), time.perf_counter() - started)
        sys.stdout.write((as_json(answer) if config.json else as_table(answer)) + "\n")
        sys.stdout.flush()
        answers.append(answer)

    searcher.store.close()

    # 3. thumbnails
    if config.contact_sheet and answers:
        contact_sheet(Path(config.contact_sheet), answers)
        logger.info("thumbnails are in %s", config.contact_sheet)


def serve(config: SearchConfig) -> None:
    """Serve a page to search in, until it is stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    searcher = _searcher(config)
    from video_index.page.library import Library
    from video_index.page.server import PageServer

    with PageServer(Library(searcher), config.host, config.port) as server:
        logger.info("open %s in a browser; Ctrl-C ends it", server.address)
        with suppress(KeyboardInterrupt):  # it is stopped so
            server.serve_forever()


def status(config: SearchConfig) -> None:
    """Say what is in an index."""
    from video_index.maintenance import status
    from video_index.store import Store

    logger.info("\n".join(status(Store(Path(config.index)))))


def list_files(config: SearchConfig) -> None:
    """Show the files of an index."""
    from video_index.maintenance import listed
    from video_index.store import Store

    for line in listed(Store(Path(config.index))):
        logger.info(line)


def forget(config: SearchConfig) -> None:
    """Take files or folders out of an index."""
    from video_index.maintenance import forget
    from video_index.store import writable

    with writable(Path(config.index)) as store:
        logger.info("%d files have left the index", forget(store, config.texts))


def prune(config: SearchConfig) -> None:
    """Take out of an index what is not there any more."""
    from datasets.files import shown
    from video_index.maintenance import prune
    from video_index.store import writable

    with writable(Path(config.index)) as store:
        gone = prune(store)
    for file in gone:
        logger.info("gone: %s", shown(file))
    logger.info("%d files have left the index", len(gone))


def verify(config: SearchConfig) -> None:
    """Look for damage in an index, and take it out."""
    from video_index.lock import only_writer
    from video_index.maintenance import verify

    folder = Path(config.index)
    with only_writer(folder):
        lacking = verify(folder)
    again = f": `python search.py index --index={folder}` encodes them" if lacking else ""
    logger.info("%s is whole now; %d clips are to be encoded%s", folder, lacking, again)


def _searcher(config: SearchConfig) -> "Searcher":
    """An index with its model, ready for queries."""
    from video_index.store import Store

    store = Store(Path(config.index))  # a wrong folder answers before the model is there
    store.map_folders(config.videos_dir)
    with quick_imports():
        from utils.device import choose_device, choose_precision
        from video_index.searching import Searcher
        from video_index.searching_model import load_model

    device = choose_device(config.gpu)
    config, model, _ = load_model(config, store.head, device)
    searcher = Searcher(model, store, config, device, choose_precision(config.precision, device))
    logger.info("%d clips, model: %s", len(searcher.clips), store.head.made_with)
    return searcher


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


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
    code = run_program("search.py", main)
    sys.stderr.flush()
    os._exit(code)  # taking torch down takes a quarter of a second; what was to be written is written
