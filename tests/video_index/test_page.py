"""The page's server: what it answers, and what it refuses."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.parse import quote, urlencode

import cv2
import numpy as np
import pytest

from datasets.video import read_frames
from tests.conftest import ROOT
from tests.films import H264, make
from tests.video_index.pages import ask, index, raw, served
from video_index.page import ranges
from video_index.page.library import FRAMES, HEIGHT
from video_index.page.ranges import Unsatisfiable, wanted_bytes
from video_index.query import Query

NASTY = '<img src=x onerror="alert(1)">&.mp4'


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A library that no test changes: a film that browsers play, one that they do not, and a photo."""
    folder = tmp_path_factory.mktemp("films")
    make(folder / "film.mp4", *H264, "-movflags", "+faststart", seconds=3)
    (folder / "deeper").mkdir()
    make(folder / "deeper" / NASTY, *H264, seconds=2, rate="12")
    make(folder / "old.avi", "-c:v", "mpeg4", seconds=2, rate="10")
    cv2.imwrite(str(folder / "photo.png"), np.full((40, 60, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def page(films, tmp_path_factory):
    """The page of that library."""
    folder = tmp_path_factory.mktemp("index")
    index(films, folder / "index")
    with served(folder / "index") as server:
        yield server


@pytest.fixture
def own(films, tmp_path):
    """The page of a copy of it: the server and the folder."""
    shutil.copytree(films, tmp_path / "films")
    index(tmp_path / "films", tmp_path / "index")
    with served(tmp_path / "index") as server:
        yield server, tmp_path / "films"


def ids_of(server):
    """The number of each segment, by the name of its file."""
    return {os.path.basename(segment.file): segment.id for segment in server.library.segments}


@pytest.fixture
def ids(page):
    return ids_of(page)


def searched(page, **fields):
    return ask(page, f"/search?{urlencode(fields)}")


# ---------------------------------------------------------------------------------------------------------------------
# answers


def test_results_are_those_of_the_searcher(page, films, ids):
    reply = searched(page, q="a red circle", without="a square")
    expected = page.library.searcher.search(Query(("a red circle",), ("a square",), topk=40))
    assert reply.status == 200 and reply.json["segments"] == 4
    assert [hit["id"] for hit in reply.json["hits"]] == [hit.segment.id for hit in expected]
    by_id = {hit["id"]: hit for hit in reply.json["hits"]}
    film, old = by_id[ids["film.mp4"]], by_id[ids["old.avi"]]
    assert (film["plays"], film["note"], film["start"], film["end"]) == (True, "", 0.0, 3.0)
    assert not old["plays"] and "do not play .avi" in old["note"]
    assert by_id[ids["photo.png"]]["kind"] == "picture"
    assert by_id[ids[NASTY]]["facts"].startswith(f"{films.name}/deeper · 0:00.0 - 0:02.0")


def test_like_and_folder_and_share(page, films, ids):
    like = searched(page, like=ids["film.mp4"], like_name="any").json["hits"]
    assert {hit["id"] for hit in like} == set(ids.values()) - {ids["film.mp4"]}
    assert ask(page, "/about").json == {"segments": 4, "folders": [films.name, f"{films.name}/deeper"]}
    assert [hit["id"] for hit in searched(page, q="a", folder=f"{films.name}/deeper").json["hits"]] == [ids[NASTY]]
    assert len(searched(page, q="a", min_score="60").json["hits"]) == 2  # that are before 100 and 66.7 % of the others
    assert searched(page, q="a", since="2001-01-01", until="2002-01-01").json["hits"] == []


def test_pictures_are_frames_of_the_clip(page, ids, films):
    for what, count in (("thumbnail", 1), ("frames", FRAMES)):
        reply = ask(page, f"/{what}/{ids['film.mp4']}")
        assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg")
        picture = cv2.imdecode(np.frombuffer(reply.body, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (HEIGHT, count * 64 * HEIGHT // 48, 3)
        frames = read_frames(films / "film.mp4", count, start=0.0, end=3.0)
        wide = np.hstack([cv2.resize(frame, (picture.shape[1] // count, HEIGHT)) for frame in frames])
        assert np.abs(picture[..., ::-1].astype(int) - wide).mean() < 8


def test_head_is_get_without_its_body(page, ids):
    for target in ("/", "/page.js", "/about", "/search?q=a", f"/file/{ids['film.mp4']}", "/nothing"):
        get, head = ask(page, target), ask(page, target, "HEAD")
        assert (head.status, head.body) == (get.status, b"") and int(get.headers["content-length"]) == len(get.body)
        if "search" not in target:  # which tells its seconds
            assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", range(0, 1)), ("bytes=10-19", range(10, 20)), ("bytes=90-", range(90, 100)),
        ("bytes=-7", range(93, 100)), ("bytes=-700", range(100)), ("bytes=99-999999999999", range(99, 100)),
        ("bytes=0-", range(100)), (None, None), ("", None), ("bytes=", None), ("bytes=-", None), ("bytes=5-4", None),
        ("bytes=a-b", None), ("bytes=0-1,5-6", None), ("lines=0-1", None), ("bytes=0x1-2", None),
        ("bytes=--5", None), ("bytes=" + "9" * 5000 + "-", None), ("bytes=٣-٤", None),
    ],
)  # fmt: skip
def test_ranges(header, expected):
    assert wanted_bytes(header, 100) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0)])
def test_ranges_behind_the_end(header, size):
    with pytest.raises(Unsatisfiable):
        wanted_bytes(header, size)


def test_a_file_comes_whole_or_in_ranges(page, ids, films, monkeypatch):
    data, target = (films / "film.mp4").read_bytes(), f"/file/{ids['film.mp4']}"
    whole = ask(page, target)
    assert (whole.status, whole.body, whole.headers["accept-ranges"]) == (200, data, "bytes")
    assert whole.headers["content-type"] == "video/mp4"
    part = ask(page, target, Range="bytes=100-199")
    assert (part.status, part.body) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert ask(page, target, Range="bytes=5-", If_Range='"another"').body == data
    behind = ask(page, target, Range=f"bytes={len(data)}-")
    assert behind.status == 416 and behind.headers["content-range"] == f"bytes */{len(data)}"
    assert ask(page, target, Range="bytes=9-2, x").status == 200
    monkeypatch.setattr(ranges, "MOST_BYTES", 1000)
    assert ask(page, target, Range="bytes=50-").body == data[50:1050]  # a player asks for more


def test_it_follows_the_index(own):
    server, folder = own
    film = ids_of(server)["film.mp4"]
    (folder / "fresh").mkdir()
    make(folder / "fresh" / "new.mp4", *H264, seconds=1)
    (folder / "film.mp4").unlink()
    index(folder, folder.parent / "index")
    assert ask(server, "/about").json["folders"] == ["films", "films/deeper", "films/fresh"]
    assert {hit["name"] for hit in searched(server, q="a").json["hits"]} == {"new.mp4", "old.avi", "photo.png", NASTY}
    assert ask(server, f"/file/{film}").status == 404


# ---------------------------------------------------------------------------------------------------------------------
# what is refused


def test_every_answer_has_its_rules(page):
    for target in ("/", "/page.css", "/search?q=a", "/search", "/nothing"):
        headers = ask(page, target).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "Python" not in headers["server"]
    for name in ("page.html", "page.css", "page.js"):
        text = (ROOT / "video_index" / "page" / name).read_text()
        assert "http" not in text and "style=" not in text and "onclick" not in text and "innerHTML" not in text


@pytest.mark.parametrize(
    "target",
    [
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/search.py", "//etc/passwd", "/file/../../etc/passwd",
        "/file/1/../../x", "/file//etc/passwd", "/file/etc/passwd", "/file/-1", "/file/0", "/file/1.mp4", "/file/1%00",
        "/file/" + "9" * 18, "/file/" + "9" * 400, "/file/١", "/file/", "/file", "/files/1", "/frames/1e1",
        "/thumbnail/../1", "/page.py", "/server.py", "/page/page.js", "/index.sqlite", "/page.css/", "/.", "/..", "/%",
        "/\\..\\x", "http://[/",
    ],
)  # fmt: skip
def test_no_path_reaches_the_disk(page, target, monkeypatch):
    opened = []
    monkeypatch.setattr("video_index.page.library._open_plain", lambda *given: opened.append(given) or 1 / 0)
    reply = ask(page, quote(target, safe="/%:\\[") if "١" in target else target)
    assert reply.status == 404 and set(reply.json) == {"error"}
    assert opened == []


def test_what_became_of_a_file_is_not_shown(own, tmp_path):
    """Nothing, a link that leads out of the library, a pipe, a folder."""
    page, library = own
    ids = ids_of(page)
    secret = tmp_path / "secret.mp4"
    shutil.copy(library / "film.mp4", secret)
    target = library / "film.mp4"

    def refuses():
        replies = [ask(page, f"/{what}/{ids['film.mp4']}") for what in ("file", "thumbnail", "frames")]
        assert [reply.status for reply in replies] == [404] * 3
        assert all(str(library) not in reply.json["error"] for reply in replies)

    target.unlink()
    refuses()
    target.symlink_to(secret)
    refuses()
    target.unlink()
    os.mkfifo(target)
    refuses()
    target.unlink()
    target.mkdir()
    refuses()
    assert ask(page, f"/file/{ids['old.avi']}").status == 404  # browsers do not play it


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "X" * 300])
def test_other_methods(page, method):
    reply = ask(page, "/search?q=a", method)
    assert reply.status == 405 and reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1:{port}.evil",
             "", None, "127.0.0.1:{port}, evil", "0.0.0.0:{port}"],
)  # fmt: skip
def test_other_hosts(page, host):
    host = host and host.format(port=page.server_address[1])
    assert ask(page, "/", Host=host).status == 403
    assert ask(page, "/about", Host=host).status == 403


def test_own_hosts(page):
    port = page.server_address[1]
    assert ask(page, "/", Host=f"LocalHost:{port}").status == ask(page, "/", Host=f"127.0.0.1:{port}").status == 200


def test_other_sites_may_lead_here_and_no_more(page, ids):
    assert ask(page, "/?q=a", Sec_Fetch_Site="cross-site").status == 200
    for target in ("/search?q=a", "/about", f"/file/{ids['film.mp4']}", f"/thumbnail/{ids['film.mp4']}"):
        assert ask(page, target, Sec_Fetch_Site="cross-site").status == 403
        assert ask(page, target, Sec_Fetch_Site="same-origin").status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"", b"\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/x\r\n\r\n",
        b"\x00" * 99 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1:PORT\r\n\r\n", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"GET / HTTP/1.1\r\nA: " + b"b" * 70000 + b"\r\n\r\n",
        b"GET /about HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 9\r\n\r\nGET / HTTP",
        b"GET /about HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_requests_that_are_none(page, request_):
    answer = raw(page, request_.replace(b"PORT", str(page.server_address[1]).encode()))
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert b"<h1>" not in answer and b"Traceback" not in answer and answer.count(b"HTTP/1.") <= 1
    assert ask(page, "/").status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"q": " "}, {"q": "a" * 1001}, {"like": "-1"}, {"like": "x"}, {"like": "999"}, {"like": "9" * 400},
        {"q": "a", "folder": "/etc"}, {"q": "a", "folder": "../.."}, {"q": "a", "min_score": "nan"},
        {"q": "a", "min_score": "101"}, {"q": "a", "since": "soon"}, {"q": "a", "until": "99999-01-01"},
        {f"f{number}": "1" for number in range(30)},
    ],
)  # fmt: skip
def test_fields_that_cannot_be(page, fields):
    reply = searched(page, **fields)
    assert reply.status == 400 and set(reply.json) == {"error"} and "\n" not in reply.json["error"]


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "\x00\x07", "' OR 1=1 --", "🦆" * 400, "%ff%fe", "a " * 499]
)
def test_strange_queries_are_texts(page, text):
    assert len(searched(page, q=text).json["hits"]) == 4
    assert ask(page, "/search?q=%ff%fe%00").status == 200


def test_what_is_cut_off_is_said(page):
    assert searched(page, q="a red circle").json["notes"] == []
    assert "CLIP reads the first" in searched(page, q="a", without="red " * 200).json["notes"][0]


def test_an_error_says_nothing_of_the_program(page, monkeypatch, caplog):
    monkeypatch.setattr(page.library.searcher, "search", lambda query: {}["secret"])
    with caplog.at_level(logging.ERROR):
        reply = searched(page, q="a")
    assert reply.status == 500 and "secret" not in reply.body.decode() and "Traceback" not in reply.body.decode()
    assert "secret" in caplog.text  # the terminal says it
    monkeypatch.undo()
    assert searched(page, q="a").status == 200


def test_connections_are_bounded(page):
    taken = [page.free.acquire(timeout=60) for _ in range(64)]  # the last reader's thread may be about to end
    assert all(taken) and not page.free.acquire(blocking=False)
    with suppress(OSError):  # it may be closed while we write
        assert raw(page, b"GET / HTTP/1.1\r\n\r\n") == b""
    for _ in taken:
        page.free.release()
    assert ask(page, "/").status == 200


# ---------------------------------------------------------------------------------------------------------------------
# other machines, and the end


def test_other_machines_need_the_token(page):
    with served(page.library.searcher.store.folder, "0.0.0.0") as server:
        assert len(server.token) >= 20 and server.token in server.address
        for target in (
            "/",
            "/about",
            "/search?q=a",
            "/x/",
            f"/{server.token}",
            f"/{server.token[:-1]}/",
            "/%ff/",
            "//",
        ):
            reply = ask(server, target)
            assert reply.status == 403 and server.token not in reply.body.decode()
        for target in ("", "page.js", "about", "search?q=a"):
            assert ask(server, f"/{server.token}/{target}").status == 200
        assert ask(server, f"/{server.token}/", Host=f"evil.example:{server.server_address[1]}").status == 403
        with served(page.library.searcher.store.folder, "0.0.0.0") as another:
            assert another.token != server.token


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(page, number):
    command = [
        sys.executable,
        ROOT / "search.py",
        "serve",
        f"--index={page.library.searcher.store.folder}",
        "--gpu=cpu",
        "--port=0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("open "))
        with socket.create_connection(("127.0.0.1", int(line.split(":")[2].split("/")[0]))):  # which stays open
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(20) == 0
            assert time.monotonic() - began < 2
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.stdout.close()


def test_a_port_that_is_taken_is_told(page, search):
    done = search(
        "serve", f"--index={page.library.searcher.store.folder}", "--gpu=cpu", f"--port={page.server_address[1]}"
    )
    assert done.code == 2 and "another program listens there" in done.err
