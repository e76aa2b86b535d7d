"""Recall by what a caption tells: of MovingShapes which facts, of other data sets how many words it takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets import moving_shapes
from datasets.annotations import MOTION_TEST, Split
from datasets.moving_shapes import Caption
from modules.bootstrap import Difference, mean_interval
from report.ranks import SEED

FACTS = {"shape": ("shape",), "colour": ("colour",), "size": ("size",), "motion": ("path", "change")}


@dataclass(frozen=True)
class Group:
    """Texts of a kind."""

    label: str
    texts: int
    recall: Difference  # R@1 in percent with its interval


def recall_by_caption(split: Split, ranks: np.ndarray) -> list[Group]:
    """R@1 of each group that has texts.

    :param ranks: of the video of each text (texts,).
    """
    found = 100.0 * (ranks == 1)
    captions = drawn_captions(split)
    groups = by_fact(captions) if captions else by_length(split.captions)
    return [
        Group(label, int(members.sum()), mean_interval(found[members], SEED))
        for label, members in groups
        if members.any()
    ]


def drawn_captions(split: Split) -> list[Caption]:
    """The texts of MovingShapes with what they claim; none of another data set, or if a text is not as it was drawn."""
    if split.dataset != "MovingShapes":
        return []
    kind = "motion" if split.name == MOTION_TEST else "test"
    numbers = [int(segment.video_id.removeprefix(kind)) for segment in split.segments]
    drawn = moving_shapes.captions_of(moving_shapes.SEED, kind, max(numbers) + 1)
    captions = [caption for number in numbers for caption in drawn[number]]
    return captions if [caption.text for caption in captions] == split.captions else []


def by_fact(captions: list[Caption]) -> Iterator[tuple[str, np.ndarray]]:
    """Label and members (texts,) of those that tell a fact of some object, and of those that do not."""
    told = [{name for mention in caption.mentions for name, _ in mention} for caption in captions]
    facts = {name: [not own.isdisjoint(parts) for own in told] for name, parts in FACTS.items()}
    facts |= {"order of events": [caption.in_order for caption in captions]}
    facts |= {"background": [caption.background is not None for caption in captions]}
    for name, tells in facts.items():
        yield name, np.array(tells)
        yield f"no {name}", ~np.array(tells)
    for objects in (1, 2, 3):
        yield f"{objects} object{'s' * (objects > 1)}", np.array([len(c.mentions) == objects for c in captions])


def by_length(captions: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Label and members (texts,) of the short, the middle and the long third; words are what blanks part."""
    words = np.array([len(caption.split()) for caption in captions])
    short, middle = np.quantile(words, (1 / 3, 2 / 3), method="lower")
    yield f"up to {short} words", words <= short
    yield f"{short + 1} to {middle} words", (words > short) & (words <= middle)
    yield f"more than {middle} words", words > middle
