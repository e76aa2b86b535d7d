"""The server of the page: who may ask, and what is answered.

It reads nothing but GET and HEAD, and nothing that a client sends names a file: segments are asked for by their number.
"""

import errno
import hmac
import json
import logging
import re
import secrets
import socket
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import parse_qs

from utils.errors import InputError
from video_index.page.library import Library, NotThere
from video_index.page.ranges import Unsatisfiable, wanted_bytes

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
IDLE_SECONDS = 30  # after which a connection is closed that says nothing or takes nothing
MOST_FIELDS = 20  # of a query
PIECE = 2**16  # bytes that are read from a file at once
OWN_FILES = {
    "": ("page.html", "text/html"), "page.css": ("page.css", "text/css"), "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
OF_SEGMENT = re.compile(r"(thumbnail|frames|file)/(\d{1,18})", re.ASCII)
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that is not answered: its status and why."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.headers = status, headers


class PageServer(ThreadingHTTPServer):
    """Serves the page of an index until it is stopped.

    :param host: the address at which it listens. One that other machines may reach is answered below a random token.
    :raises InputError: it cannot listen there.
    """

    daemon_threads, block_on_close = True, False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, library: Library, host: str, port: int) -> None:
        self.library, self.host = library, host
        self.token = "" if host in THIS_MACHINE else secrets.token_urlsafe(16)
        self.free = BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            taken = "; another program listens there: give another --port" if error.errno == errno.EADDRINUSE else ""
            raise InputError(f"--host={host} --port={port} cannot be listened at: {error.strerror}{taken}") from error

    def server_bind(self) -> None:
        """Without asking the name service for the machine's name, as the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @property
    def address(self) -> str:
        """What is typed into a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/{self.token and self.token + '/'}"

    def hosts(self, connection: socket.socket) -> set[str]:
        """What a Host header may say: a page of elsewhere whose name leads here says its own name."""
        names = set(THIS_MACHINE)
        if self.token:
            names |= {self.host, connection.getsockname()[0], socket.gethostname(), f"{socket.gethostname()}.local"}
        port = self.server_address[1]
        return {f"[{name}]:{port}" if ":" in name else f"{name.lower()}:{port}" for name in names}

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; of too many at once, none."""
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is none of our business."""
        logger.debug("a connection of %s broke", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: PageServer
    protocol_version, timeout = "HTTP/1.1", IDLE_SECONDS
    server_version, sys_version = "TextDiffs", ""

    def do_GET(self) -> None:
        self.begun = False
        try:
            self._route()
        except Refused as refused:
            self._say(refused.status, str(refused), **refused.headers)
        except NotThere as error:
            self._say(404, str(error))
        except InputError as error:
            self._say(400, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            logger.exception("a request of the page failed")
            self.close_connection = True
            if not self.begun:
                self._say(500, "this failed; the terminal of `search.py serve` says why")

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: requests that are none, and methods that are none of ours."""
        self.close_connection = True  # what follows may be the rest of it
        if code == 501:
            self._say(405, "only GET and HEAD", Allow="GET, HEAD")
        else:
            self._say(code, message or "no request")

    def log_message(self, format: str, *values: Any) -> None:
        """The terminal is for errors."""

    def _route(self) -> None:
        """Answer a request that may be answered."""
        self._check_headers()
        place, _, query = self.path.partition("?")
        place = self._behind_token(place)
        self._check_site(place)
        library = self.server.library
        if place in OWN_FILES:
            name, kind = OWN_FILES[place]
            self._send(200, kind, files("video_index.page").joinpath(name).read_bytes(), "no-cache")
        elif place == "about":
            self._send_json(200, library.about())
        elif place == "search":
            self._send_json(200, library.search(_fields(query)))
        elif found := OF_SEGMENT.fullmatch(place):
            self._send_of_segment(found[1], int(found[2]))
        else:
            raise Refused(404, "nothing is here")

    def _check_headers(self) -> None:
        """:raises Refused: the request is for another server, or is no plain one."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts(self.connection):
            raise Refused(403, "this server has another name: open the address that it has printed", Connection="close")
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            raise Refused(400, "a request has no body here", Connection="close")

    def _behind_token(self, place: str) -> str:
        """The path behind the token.

        :raises Refused: it does not begin with it.
        """
        given, slash, rest = place.removeprefix("/").partition("/") if self.server.token else ("", "/", place[1:])
        if not slash or not hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(403, "open the address that `search.py serve` has printed, with its token")
        return rest

    def _check_site(self, place: str) -> None:
        """:raises Refused: a page of elsewhere asks for more than to be led here."""
        if place and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(403, "other pages may not use this one")

    def _send_of_segment(self, what: str, id: int) -> None:
        """A picture of a segment, or its file."""
        if what == "file":
            self._send_file(id)
        else:
            picture = self.server.library.picture(id, several=what == "frames")
            self._send(200, "image/jpeg", picture, "private, max-age=86400")

    def _send_file(self, id: int) -> None:
        """The file of a segment, or the range of it that is asked for."""
        with self.server.library.opened(id) as (file, kind, state):
            size = state.st_size
            mark = f'"{state.st_mtime_ns:x}-{size:x}"'
            same = self.headers.get("If-Range", mark) == mark
            headers = {"Accept-Ranges": "bytes", "ETag": mark, "Last-Modified": formatdate(state.st_mtime, usegmt=True)}
            try:
                wanted = wanted_bytes(self.headers.get("Range"), size) if same else None
            except Unsatisfiable:
                raise Refused(416, "behind the end of the file", **{"Content-Range": f"bytes */{size}"}) from None
            if wanted is not None:
                headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
            whole = range(size) if wanted is None else wanted
            self._begin(200 if wanted is None else 206, kind, len(whole), "private, no-cache", headers)
            if self.command == "GET":
                file.seek(whole.start)
                self._copy(file.read, len(whole))

    def _copy(self, read: Callable[[int], bytes], left: int) -> None:
        while left:
            piece = read(min(PIECE, left))
            if not piece:  # the file has become shorter, and what was promised cannot be kept
                self.close_connection = True
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _say(self, status: int, why: str, **headers: str) -> None:
        """An error, in one line that the page shows."""
        data = json.dumps({"error": why}).encode()
        self._send(status, "application/json", data, "no-store", headers)

    def _send_json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), "no-store")

    def _send(self, status: int, kind: str, data: bytes, cache: str, headers: dict[str, str] | None = None) -> None:
        self._begin(status, kind, len(data), cache, headers or {})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _begin(self, status: int, kind: str, length: int, cache: str, headers: dict[str, str]) -> None:
        text = kind.startswith("text/") or kind == "application/json"
        own = {"Content-Type": f"{kind}; charset=utf-8" if text else kind, "Content-Length": str(length)}
        self.begun = True
        self.send_response(status)
        for name, value in (own | {"Cache-Control": cache} | HEADERS | headers).items():
            self.send_header(name, value)
        if self.close_connection and "Connection" not in headers:
            self.send_header("Connection", "close")
        self.end_headers()


def _fields(query: str) -> dict[str, str]:
    """The last value of each field of a query.

    :raises Refused: there are too many.
    """
    try:
        found = parse_qs(query, max_num_fields=MOST_FIELDS, errors="replace")
    except ValueError as error:
        raise Refused(400, f"a query has at most {MOST_FIELDS} fields") from error
    return {name: values[-1] for name, values in found.items()}
