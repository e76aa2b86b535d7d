"""Tables for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def aligned(
    lines: Sequence[tuple[str, Row]], columns: Mapping[str, str], last: str, end: Callable[[Row], str], title: str = ""
) -> str:
    """Labelled rows as aligned text.

    :param columns: key of each column of figures in the rows, and its heading.
    :param last: heading of what `end` says of a row behind these.
    :param title: heading of the labels.
    """
    width = max(len(label) for label, _ in lines)
    head = f"{title:<{width}}" + "".join(f"{heading:>8}" for heading in columns.values()) + last
    body = [f"{label:<{width}}" + "".join(f"{row[c]:8.1f}" for c in columns) + end(row) for label, row in lines]
    return "\n".join([head, *body])
