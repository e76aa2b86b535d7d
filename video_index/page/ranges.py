"""Which bytes of a file a browser asks for (RFC 9110, section 14)."""

import re

ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
MOST_BYTES = 4 * 2**20  # of an answer to a range: a player asks for more when it needs more


class Unsatisfiable(Exception):
    """A range that begins behind the end of the file."""


def wanted_bytes(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for, no more than MOST_BYTES of them.

    :param size: of the file.
    :return: None for the whole file, which answers a header that is malformed or asks for several ranges, too.
    :raises Unsatisfiable:
    """
    found = ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = (int(number) if number else None for number in found.groups())
    if first is not None and last is not None and last < first:
        return None
    if first is None:  # the last bytes
        first, last = max(0, size - last) if last else size, None
    if first >= size:
        raise Unsatisfiable
    end = size if last is None else min(last + 1, size)
    return range(first, min(end, first + MOST_BYTES))
