"""An annotation file as text, JSON or CSV: what is not understood in it is refused with its line."""

import csv
import difflib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets.files import VIDEO_EXTENSIONS, split_name
from utils.errors import InputError

logger = logging.getLogger(__name__)

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # that other programs put between cells
CSV_ERRORS = {  # of Python's csv in other words
    "unexpected end of data": "a quote is opened and not closed",
    "',' expected after '\"'": "a cell goes on behind its quote: a quote is not closed, or one within not doubled",
}
OTHER_WORDS = {  # for what a custom annotation file may say
    "begin": "start", "from": "start", "onset": "start", "stop": "end", "to": "end", "until": "end", "offset": "end",
    "subset": "split", "set": "split", "partition": "split", "fold": "split", "text": "caption", "sentence": "caption",
    "description": "caption", "query": "caption", "file": "video", "filename": "video", "path": "video",
    "clip": "video", "name": "video", "id": "video",
}  # fmt: skip


def report(what: str, names: tuple[str, ...]) -> None:
    """Warn of something that concerns several names."""
    logger.warning("%s: %s", what, first_of(names))


def first_of(names: tuple[str, ...]) -> str:
    """The first of many names, for a line."""
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


class AnnotationFile:
    """An annotation file: its text, and errors that name it and a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InputError(f"annotation file {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise self.error(line, f"not UTF-8 text (byte {error.start})") from error
        except ValueError as error:  # a name with a null character
            raise InputError(f"annotation file {str(path)!r} cannot be read: {error}") from error

    def error(self, line: int, what: str) -> InputError:
        """What is wrong in a line."""
        return InputError(f"annotation file {self.path}, line {line}: {what}")

    def error_at(self, word: object, what: str) -> InputError:
        """What is wrong where a JSON file speaks of a word; a parsed file has no lines any more."""
        place = max(0, self.text.find(json.dumps(word)))
        return self.error(self.text.count("\n", 0, place) + 1, what)

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines and their numbers."""
        for number, line in enumerate(self.text.split("\n"), start=1):
            yield number, line.removesuffix("\r")

    def json(self) -> object:
        """The value of a JSON file."""
        return self.json_of(self.text, 1)

    def json_of(self, text: str, line: int) -> object:
        """The value of a JSON text that begins at a line."""
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise self.error(line + error.lineno - 1, f"not JSON ({error.msg})") from error
        except (RecursionError, ValueError) as error:  # nested too deeply, too many digits, a key twice
            raise self.error(line, f"not JSON that can be read ({error})") from error

    def rows(self, needed: tuple[str, ...], known: tuple[str, ...] = ()) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a CSV file and the lines in which they begin.

        :param needed: columns that must be there and are empty in no row.
        :param known: all columns that may be there; none: any.
        """
        reader = csv.reader(io.StringIO(self.text, newline=""), strict=True)
        begin, header, long_rows, names = 1, None, {}, set()
        try:
            for cells in reader:
                if cells and header is None:
                    header = cells
                    self._check_header(begin, header, needed, known)
                elif cells:  # else the line is empty
                    row = self._row(begin, cells, header, needed)
                    if known:
                        names.add(row[needed[0]])
                        if reader.line_num > begin:
                            long_rows[begin] = cells
                    yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise self.error(begin, CSV_ERRORS.get(str(error), f"{error}: is a quote not closed?")) from error
        if header is None:
            self._check_header(1, [], needed, known)
        for line, cells in long_rows.items():
            self._check_swallowed(line, cells, header.index(needed[0]), names)
        if long_rows:
            what = f"{self.path}: {len(long_rows)} rows go over several lines (is a quote not closed?), from line"
            report(what, tuple(map(str, long_rows)))

    def _check_swallowed(self, line: int, cells: list[str], column: int, names: set[str]) -> None:
        """Refuse a row that goes over several lines where one of these looks like a row, by its video."""
        for more in (text for cell in cells for text in cell.splitlines()[1:]):
            name = more.split(",")[column].strip() if more.count(",") >= max(1, column) else ""
            if name in names or split_name(name)[1].lower() in VIDEO_EXTENSIONS:
                raise self.error(line, f"a quote is not closed: the row of {name} is within a cell")

    def _check_header(self, line: int, header: list[str], needed: tuple[str, ...], known: tuple[str, ...]) -> None:
        absent = [name for name in needed if name not in header]
        for mark, name in SEPARATORS.items() if absent else ():
            if set(needed) <= {cell.strip(' "') for cell in ",".join(header).split(mark)}:
                raise self.error(line, f"{name} between the cells: put commas there")
        if absent:
            there = ", ".join(_with_meaning(name, absent) for name in header) or "nothing"
            raise self.error(line, f"column {', '.join(absent)} is missing, there is {there}")
        self.check_names(line, "column", header, known)
        twice = sorted({name for name in known or needed if header.count(name) > 1})
        if twice:
            raise self.error(line, f"column {', '.join(twice)} is there more than once")

    def check_names(self, line: int, what: str, names: Iterable[str], known: tuple[str, ...]) -> None:
        """Refuse columns or keys that are not known, if it is said which are: what they hold would be lost."""
        unknown = [_with_meaning(name, known) for name in names if known and name not in known]
        if unknown:
            said = f"{what} {', '.join(unknown)} is not known"
            raise self.error(line, f"{said}; known are {', '.join(known)}; times are in seconds")

    def _row(self, line: int, cells: list[str], header: list[str], needed: tuple[str, ...]) -> dict[str, str]:
        if any(cell[:1] in (" ", "\t") and cell.lstrip().startswith('"') for cell in cells):
            raise self.error(line, "a blank before a quote: quotes must be the first and the last of a cell")
        if len(cells) != len(header):
            more = ': a cell with a comma needs quotes around it ("a dog, running")' if len(cells) > len(header) else ""
            raise self.error(line, f"{len(cells)} cells in a row, but {len(header)} in the header{more}")
        row = dict(zip(header, cells, strict=True))
        empty = [name for name in needed if not row[name].strip()]
        if empty:
            raise self.error(line, f"no {', '.join(empty)}")
        return row


def _with_meaning(name: str, known: Iterable[str]) -> str:
    """The name of a column or key that is not known, and which known one it may mean."""
    if not name.strip():
        return "without a name"
    plain = name.strip().lower()
    words = re.split(r"[\W_]+", plain)
    guesses = [
        *(word for word in known if word in plain),
        *(OTHER_WORDS[word] for word in words if word in OTHER_WORDS),
        *difflib.get_close_matches(plain, known, 1, cutoff=0.75),
    ]
    meant = next((guess for guess in guesses if guess in known and guess != name), None)
    return f"{name!r:.80}" + (f" ({meant}?)" if meant else "")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. ValueError when a key occurs twice, of which one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r:.80} is there more than once")
    return values
