"""What a search prints: a table for people, and what other programs read."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasets.files import shown
from video_index.store import IndexedSegment

if TYPE_CHECKING:  # torch takes a second, and a list of files does without it
    from video_index.searching import Hit

STAGES = {
    "rescored": "by how well they explain the words",
    "pooled": "by frames pooled for the query",
    "mean_pooled": "by the mean of their frames",
}  # for people
COLUMNS = ("query", "rank", "score", "share", "stage", "file", "start", "end", "caption")


@dataclass(frozen=True)
class Answer:
    """The hits of a query, the best first.

    :param with_it: what more the query says, by the flags that say it.
    """

    kind: str  # "query", "like" or "describe"
    query: str  # a sentence, or the name of a video
    hits: "Sequence[Hit]"
    seconds: float
    with_it: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The query in a line."""
        more = "".join(f"  --{name} {shown(value)}" for name, values in self.with_it.items() for value in values)
        return f"{self.query if self.kind == 'query' else f'{self.kind} {shown(self.query)}'}{more}"


def printed(format: str, answer: Answer, first: bool) -> bytes:
    """An answer in one of `FORMATS`, and before the first one what a file of that format begins with.

    Names of files are the bytes that they are; only a table shows control characters as escapes.
    """
    begin, write = _WRITERS[format]
    return ((begin if first else "") + write(answer)).encode("utf-8", "surrogateescape")


def as_table(answer: Answer) -> str:
    """The query and a line for each hit: rank, score, share, time and file or sentence; and a line between stages,
    whose scores do not compare."""
    lines, before = [], None
    for rank, hit in enumerate(answer.hits, start=1):
        if before not in (None, hit.stage):
            lines.append(f"      {STAGES[hit.stage]}:")
        before = hit.stage
        what = named(hit.segment) if hit.sentence is None else hit.sentence
        share = "" if hit.share is None else f"{hit.share:.1f}%"
        lines.append(f"{rank:4}  {hit.score:7.4f}  {share:>6}  {time_of(hit):>21}  {what}")
    if not lines:
        lines = ["      no hit"]
    return "\n".join([f"{answer.title}  ({answer.seconds:.3f} s)", *lines, ""])


def as_json(answer: Answer) -> str:
    """One line: the query, the seconds that it took, and its hits with rank, score, share, stage, file, start and
    end, and others: further names of the same video."""
    hits = [
        {"rank": rank, "score": round(hit.score, 6), "stage": hit.stage}
        | ({} if hit.share is None else {"share": round(hit.share, 4)})
        | ({} if hit.sentence is None else {"caption": hit.sentence})
        | {"file": _text(hit.segment.file), "start": hit.start, "end": hit.end}
        | ({"others": list(map(_text, hit.segment.others))} if hit.segment.others else {})
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    record: dict[str, Any] = {answer.kind: _text(answer.query), "seconds": round(answer.seconds, 4), "hits": hits}
    more = {name: list(map(_text, values)) for name, values in answer.with_it.items()}
    return json.dumps(record | more) + "\n"


def as_csv(answer: Answer) -> str:
    """A row for each hit, with `COLUMNS`."""
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    for rank, hit in enumerate(answer.hits, start=1):
        share = "" if hit.share is None else f"{hit.share:.4f}"
        times = ("" if time is None else f"{time:.3f}" for time in (hit.start, hit.end))
        row = [answer.query, rank, f"{hit.score:.6f}", share, hit.stage, hit.segment.file, *times, hit.sentence or ""]
        rows.writerow(row)
    return lines.getvalue()


def as_paths(answer: Answer, end: str = "\n") -> str:
    """The files of the hits, each once."""
    return "".join(f"{file}{end}" for file in dict.fromkeys(hit.segment.file for hit in answer.hits))


def as_m3u(answer: Answer) -> str:
    """An entry of a playlist for each hit; VLC plays it from its start to its end."""
    lines = []
    for hit in answer.hits:
        length = -1 if hit.start is None or hit.end is None else round(hit.end - hit.start)
        lines.append(f"#EXTINF:{length},{_one_line(answer.title)}: {shown(os.path.basename(hit.segment.file))}")
        times = (("start", hit.start), ("stop", hit.end))
        lines += [f"#EXTVLCOPT:{name}-time={time:.3f}" for name, time in times if time is not None]
        lines.append(hit.segment.file)
    return "".join(f"{line}\n" for line in lines)


def as_edl(answer: Answer) -> str:
    """A segment for each hit, which mpv plays one after the other as one film."""
    lines = []
    for hit in answer.hits:
        name = f"%{len(os.fsencode(hit.segment.file))}%{hit.segment.file}"
        known = hit.start is not None and hit.end is not None
        lines.append(f"{name},{hit.start:.3f},{hit.end - hit.start:.3f}\n" if known else f"{name}\n")
    return "".join(lines)


_WRITERS: dict[str, tuple[str, Callable[[Answer], str]]] = {
    "table": ("", as_table),
    "json": ("", as_json),
    "csv": (",".join(COLUMNS) + "\n", as_csv),
    "paths": ("", as_paths),
    "paths0": ("", lambda answer: as_paths(answer, "\0")),
    "m3u": ("#EXTM3U\n", as_m3u),
    "edl": ("# mpv EDL v0\n", as_edl),
}


def named(segment: IndexedSegment) -> str:
    """The name of a segment's file, and how many more it has."""
    more = f"  (and {len(segment.others)} more of the same)" if segment.others else ""
    return f"{shown(segment.file)}{more}{'' if os.path.lexists(segment.file) else '  (not there now)'}"


def time_of(hit: "Hit") -> str:
    """From when to when the moment is, as 1:02:03.4; empty where its length is not known."""
    if hit.start is None or hit.end is None:
        return ""
    return f"{clock(hit.start)} - {clock(hit.end)}"


def clock(seconds: float) -> str:
    """Minutes and seconds to a tenth, and hours where there are some."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths / 10:04.1f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def _text(name: str) -> str:
    """A name as its bytes say, whatever the locale."""
    return os.fsencode(name).decode("utf-8", "replace")


def _one_line(text: str) -> str:
    return " ".join(text.split())
