"""What a form of the page asks for, as a query."""

from collections.abc import Mapping

from utils.errors import InputError
from video_index.query import Filters, Query, time_ns

LONGEST = 1000  # letters of a field; a text encoder reads far fewer
SHOWN = 40  # hits


def asked(fields: Mapping[str, str], folders: Mapping[str, str]) -> Query:
    """The query of a form.

    :param fields: of the form, by name.
    :param folders: those of the index, by the names that the page shows.
    :raises InputError: a field cannot be, or none says what is searched for.
    """
    for name, value in fields.items():
        if len(value) > LONGEST:
            raise InputError(f"a field may have {LONGEST} letters, and {name[:20]} has {len(value)}")
    given = {name: value.strip() for name, value in fields.items() if value.strip()}
    texts, like = _texts(given, "q"), _segment(given.get("like"))
    if not texts and like is None:
        raise InputError("write what is to be seen")
    return Query(
        texts=texts, minus=_texts(given, "without"), like=like, filters=_filters(given, folders),
        per_video=given.get("per_video") == "1", min_score=_percent(given.get("min_score", "0")),
        topk=SHOWN,
    )  # fmt: skip


def _texts(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    return (given[name],) if name in given else ()


def _segment(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 18):
        raise InputError("like is the number of a segment")
    return int(given)


def _percent(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:  # nor NaN
        raise InputError("min_score is a number from 0 to 100")
    return value


def _filters(given: Mapping[str, str], folders: Mapping[str, str]) -> Filters:
    folder = given.get("folder")
    if folder is not None and folder not in folders:
        raise InputError("the index has no such folder now: choose another one")
    since, until = given.get("since"), given.get("until")
    return Filters(
        folders=() if folder is None else (folders[folder],),
        since_ns=None if since is None else time_ns("since", since),
        until_ns=None if until is None else time_ns("until", until, after=True),
    )
