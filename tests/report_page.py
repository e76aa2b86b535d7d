"""Reads report.html as a person does: tables, pictures, links, and the queries with what they found."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np


class Page(HTMLParser):
    """What is on a page: texts of tables, pictures, and the queries with their hits."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables, self.images, self.queries, self.videos, self.tags = [], [], [], [], set()
        self.texts, self.open, self.links = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.open.append((tag, attributes.get("class", "")))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(attributes["src"])
        elif tag == "article":
            self.card = {"caption": "", "rank": "", "words": [], "hits": []}
            (self.videos if "video" in attributes["class"].split() else self.queries).append(self.card)
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "li":
            self.card["hits"].append(
                {"right": attributes.get("class") == "right", "rank": "", "caption": "", "meta": ""}
            )
        elif tag == "span" and "title" in attributes:
            number, unit = attributes["title"].split()
            assert unit == "nats"
            self.card["words"][-1][1].append(["", float(number)])
        if tag in ("img", "meta", "link"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1][0] == "style":
            return
        self.texts.append(data)
        tag, kind = self.open[-1]
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        elif tag == "h4":
            self.card["caption"] += data.strip()
        elif kind.startswith("badge"):
            self.card["rank"] = int(data.split()[1])
        elif kind == "of":
            self.card["words"].append((data, []))
        elif kind.startswith("word ") and self.queries:
            self.card["words"][-1][1][-1][0] += data.strip()
        elif kind == "rank":
            self.card["hits"][-1]["rank"] = int(data)
        elif any(tag == "p" and kind == "meta" for tag, kind in self.open):
            self.card["hits"][-1]["meta"] += data

    def recall_tables(self):
        """By direction and DSL: rows of label and figures."""
        tables = [table for table in self.tables if table[0][0] == "score"]
        keys = [(direction, dsl) for direction in ("t2v", "v2t") for dsl in (False, True)]
        return {key: {row[0]: row[1:] for row in table[1:]} for key, table in zip(keys, tables, strict=True)}

    def ranks(self):
        """Counts of the bins, (bins, directions)."""
        (table,) = (table for table in self.tables if table[0] == ["rank", "t2v", "v2t"])
        return np.array([[int(cell) for cell in row[1:]] for row in table[1:]])
