"""Twins: two scenes that differ in one fact of motion alone, and a caption for each in the same words.

As in Winoground (Thrush et al. 2022), each caption is true of its own video and false of the other, so neither what is
seen nor what is said tells which belongs to which. Of two directions, two colours, or appearing and disappearing one
video is the other one backwards: both show the same frames. Which of two changes comes first, and whether something
grows or shrinks, can be told from single frames.
"""

from dataclasses import dataclass, replace
from itertools import count

from numpy.random import Generator

from datasets.moving_shapes.captions import WORDS, Caption, describe_motion, has_usual_length, holds
from datasets.moving_shapes.scene import (
    AXIAL,
    BACKGROUNDS,
    COLOURS,
    FRAMES,
    MovingObject,
    Scene,
    pick,
    placed,
    sample_objects,
    stream,
)

SPLIT = "motion"
PAIRS = 200
KINDS = ("direction", "order", "change")  # of pair i: KINDS[i % 3]
BACKWARDS = {"left": "right", "right": "left", "up": "down", "down": "up"}
CHANGES = (("appear", "disappear"), ("grow", "shrink"), ("colour", "colour"))
IN_PLACE = ("colour", "appear", "disappear", "grow", "shrink", "spin")  # changes that leave the course as it is

# The longest video: of 36 frames the middles of 12 equal parts are the same backwards.
LENGTH = FRAMES[1]

Objects = tuple[MovingObject, ...]


@dataclass(frozen=True, eq=False)
class Twins:
    """Two scenes and the caption of each."""

    kind: str
    scenes: tuple[Scene, Scene]
    captions: tuple[Caption, Caption]


def kind_of(pair: int) -> str:
    """What the twins of a pair differ in, one of KINDS."""
    return KINDS[pair % len(KINDS)]


def video_ids(pair: int) -> tuple[str, str]:
    """Names of the twins of a pair."""
    return f"{SPLIT}{2 * pair:04d}", f"{SPLIT}{2 * pair + 1:04d}"


def twins_of(seed: int, pair: int) -> Twins:
    """The twins of a pair, from (seed, pair) alone."""
    kind = kind_of(pair)
    scenes = _twin_scenes(kind, stream(seed, SPLIT, pair, 0))
    for use in count(1):
        first, second = (describe_motion(scene, stream(seed, SPLIT, pair, use), kind == "order") for scene in scenes)
        true = [holds(caption, scene) for caption in (first, second) for scene in scenes]
        if true == [True, False, False, True] and has_usual_length(first) and has_usual_length(second):
            return Twins(kind, scenes, (first, second))


def _twin_scenes(kind: str, rng: Generator) -> tuple[Scene, Scene]:
    background = pick(rng, BACKGROUNDS)
    while True:
        objects = sample_objects(rng, background, pick(rng, (2, 2, 3) if kind == "order" else (1, 2, 2, 3)))
        twins = _two_orders(*objects) if kind == "order" else _two_motions(rng, kind, objects, background)
        if twins and (scene := placed(rng, background, twins[0], LENGTH)):
            # What comes back the other way is the same course backwards; all else is still, or moves as before.
            return scene, replace(scene, objects=twins[1], tracks=scene.tracks[:, :: 1 if kind == "order" else -1])


def _two_orders(first: MovingObject, second: MovingObject, *others: MovingObject) -> tuple[Objects, Objects] | None:
    """None where the first two objects do not both change in place."""
    if first.change not in IN_PLACE or second.change not in IN_PLACE:
        return None
    swapped = replace(first, change_at=second.change_at), replace(second, change_at=first.change_at)
    return (first, second, *others), (*swapped, *others)


def _two_motions(rng: Generator, kind: str, objects: Objects, background: str) -> tuple[Objects, Objects]:
    """Of the first object, while the others rest."""
    first, *others = (replace(shown, path="still", change=None, then=None, change_at=0.0) for shown in objects)
    if kind == "direction":
        way = pick(rng, AXIAL)
        twins = replace(first, path=way), replace(first, path=BACKWARDS[way])
    else:
        taken = {shown.colour for shown in others} | ({"white"} if background == "pale" else set())
        twins = _two_changes(rng, first, taken)
    return tuple((twin, *others) for twin in twins)


def _two_changes(rng: Generator, first: MovingObject, taken: set[str]) -> list[MovingObject]:
    """taken: colours that neither may have."""
    at = rng.uniform(0.3, 0.35)
    times = pick(rng, ((at, 1 - at), (1 - at, at)))  # the same time forwards and backwards
    changes = pick(rng, CHANGES)
    twins = [replace(first, change=change, change_at=time) for change, time in zip(changes, times, strict=True)]
    if "grow" in changes:
        twins = [replace(twin, size="medium") for twin in twins]  # which can do both
    if "colour" in changes:
        free = [name for name in COLOURS if name not in taken and len(WORDS["colour"][name]) == 1]
        colours = rng.permutation(free)[:2].tolist()
        pairs = zip(twins, colours, reversed(colours), strict=True)
        twins = [replace(twin, colour=colour, then=then) for twin, colour, then in pairs]
    return twins
