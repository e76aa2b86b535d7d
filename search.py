"""Search your own videos with a sentence.

python search.py index --videos_dir=DIR --index=INDEX --exp_name=NAME --datetime=RUN
python search.py "a red circle moves left" --index=INDEX
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from config import SearchConfig
from utils.errors import InputError, RunError
from utils.imports import quick_imports
from utils.program import run_program

if TYPE_CHECKING:  # they take seconds, and bad flags answer at once
    from video_index.answers import Answer
    from video_index.query import Query
    from video_index.searching import Hit, Searcher

logger = logging.getLogger(__name__)


def main() -> None:
    config = SearchConfig.parse(prog="search.py", description=__doc__.splitlines()[0])
    commands = {
        "index": index, "query": query, "serve": serve, "status": tell, "list": tell, "forget": forget,
        "prune": prune, "verify": verify,
    }  # fmt: skip
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
    if sys.stdout is None:
        raise InputError("standard output is closed: there is nowhere to answer")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)  # answers go to stdout
    from utils.files import check_writable

    # 1. query, index and model
    asked = _asked(config)
    check_writable(config.contact_sheet, config.cut and Path(config.cut) / "moment")
    searcher = _searcher(config)
    from video_index.answers import Answer, printed

    # 2. queries
    answers = []
    for kind, text, search in _queries(config, asked, searcher):
        started = time.perf_counter()
        hits = search()
        answers.append(Answer(kind, text, hits, time.perf_counter() - started, _with_it(config, kind)))
        _write(printed(config.format, answers[-1], first=len(answers) == 1))
    searcher.store.close()

    # 3. moments and thumbnails
    if config.cut:
        _cut(Path(config.cut), answers)
    if config.contact_sheet and answers:
        from video_index.contact_sheet import contact_sheet

        contact_sheet(Path(config.contact_sheet), answers)
        logger.info("thumbnails are in %s", config.contact_sheet)


def serve(config: SearchConfig) -> None:
    """Serve a page to search in, until it is stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    searcher = _searcher(config)
    from video_index.page.library import Library
    from video_index.page.server import PageServer

    with PageServer(Library(searcher), config.host, config.port) as server, suppress(KeyboardInterrupt):  # it ends so
        logger.info("open %s in a browser; Ctrl-C ends it", server.address)
        server.serve_forever()


def tell(config: SearchConfig) -> None:
    """Say what is in an index, or show its files."""
    from video_index.maintenance import listed, status
    from video_index.store import Store

    for line in (status if config.command == "status" else listed)(Store(Path(config.index))):
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
    from video_index.head import read_head
    from video_index.lock import only_writer
    from video_index.maintenance import verify

    folder = Path(config.index)
    with suppress(InputError):  # it may be damaged
        read_head(folder)  # which brings one of an earlier version up to date
    with only_writer(folder):
        lacking = verify(folder)
    again = f": `python search.py index --index={folder}` encodes them" if lacking else ""
    logger.info("%s is whole now; %d segments are to be encoded%s", folder, lacking, again)


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
    logger.info("%d segments, model: %s", len(searcher.segments), store.head.made_with)
    return searcher


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def _asked(config: SearchConfig) -> "Query":
    """What each query asks for beside its own text.

    :raises InputError: a date is none.
    """
    from video_index.query import Filters, Query, time_ns

    since = config.since and time_ns("since", config.since)
    until = config.until and time_ns("until", config.until, after=True)
    filters = Filters(config.folder, since, until)
    return Query(config.plus, config.without, config.like, filters, config.per_video, config.min_score)


def _with_it(config: SearchConfig, kind: str) -> dict[str, tuple[str, ...]]:
    """What an answer tells of a query beside its text, by flag."""
    like = (config.like,) if config.like and kind != "like" else ()
    return {name: said for name, said in (("plus", config.plus), ("without", config.without), ("like", like)) if said}


def _queries(
    config: SearchConfig, asked: "Query", searcher: "Searcher"
) -> Iterator[tuple[str, str, Callable[[], list["Hit"]]]]:
    """Kind and text of each query of the command line, a file or standard input, and what answers it."""
    if config.describe:
        sentences = list(lines_of("captions", config.captions))
        yield "describe", config.describe, lambda: searcher.describe(config.describe, sentences)
    elif config.texts or config.queries:
        _tell_cut_off(searcher, (*config.plus, *config.without))
        for text in config.texts or lines_of("queries", config.queries):
            _tell_cut_off(searcher, (text,))
            whole = replace(asked, texts=(text, *asked.texts))
            yield "query", text, lambda whole=whole: searcher.search(whole)
    else:
        _tell_cut_off(searcher, (*config.plus, *config.without))
        yield "like", config.like, lambda: searcher.search(asked)


def _tell_cut_off(searcher: "Searcher", texts: Sequence[str]) -> None:
    for text in texts:
        for said in searcher.model.cut_off(text):
            logger.info("note: of %r %s", text if len(text) <= 40 else f"{text[:39]}…", said)


def _write(data: bytes) -> None:
    """To standard output, at once.

    :raises RunError: it takes nothing more.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output cannot be written: {error.strerror}") from error


def _cut(folder: Path, answers: "Sequence[Answer]") -> None:
    """Write the moments of all hits as files.

    :raises RunError: some cannot be cut; the others are there.
    """
    from video_index.cutting import cut

    failed = 0
    for number, hit in enumerate(chain.from_iterable(answer.hits for answer in answers), start=1):
        try:
            logger.info("%s", cut(folder, number, hit))
        except InputError as error:
            failed += 1
            logger.warning("not cut: %s", error)
    if failed:
        raise RunError(f"{failed} moments could not be cut")


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
