"""A page of an index, served in this process; and requests as no browser makes them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch

from config import SearchConfig
from tests.precision import DTYPES, stated
from video_index.head import read_head
from video_index.indexing import folders_of, up_to_date
from video_index.lock import only_writer
from video_index.page.library import Library
from video_index.page.server import PageServer
from video_index.searching import Searcher
from video_index.searching_model import load_model
from video_index.store import Store

CPU = torch.device("cpu")


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]  # by name in small letters
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


def index(videos: Path, folder: Path, *more: str) -> None:
    """Bring an index up to date with a folder, as the program does."""
    flags = ["--clip_arch=tiny", "--num_frames=4", "--num_workers=0", "--gpu=cpu", stated(), *more]
    config = SearchConfig.parse(["index", f"--videos_dir={videos}", f"--index={folder}", *flags], prog="search.py")
    head = read_head(folder)
    with only_writer(folder):
        up_to_date(config, head, folders_of(config, head))


@contextmanager
def served(index: Path, host: str = "127.0.0.1") -> Iterator[PageServer]:
    """A page at a free port."""
    config = SearchConfig.parse(["serve", f"--index={index}", "--gpu=cpu", stated()], prog="search.py")
    store = Store(index)
    config, model, _ = load_model(config, store.head, CPU)
    searcher = Searcher(model, store, config, CPU, DTYPES[config.precision])
    with PageServer(Library(searcher), host, 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            store.close()


def raw(server: PageServer, request: bytes) -> bytes:
    """All that comes back for some bytes."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def ask(server: PageServer, target: str, method: str = "GET", **headers: str | None) -> Reply:
    """One request; a header that is None is left out, and _ in its name is -."""
    given = {"Host": f"127.0.0.1:{server.server_address[1]}", "Connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    head, _, body = raw(server, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")).partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return Reply(int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}, body)
