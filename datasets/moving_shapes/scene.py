"""What a MovingShapes video shows: from random numbers to a scene, and from a scene to pixels."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.random import Generator, Philox, SeedSequence

T = TypeVar("T")
Facts = frozenset[tuple[str, str]]  # (attribute, value) pairs of one object

SIDE = 96  # pixels; square, so that Resize + CenterCrop keeps the whole picture
FRAMES = (24, 36)  # least and most frames of a video: 2 to 3 seconds

COLOURS = {  # RGB
    "red": (225, 25, 30),
    "green": (25, 165, 45),
    "blue": (35, 60, 235),
    "yellow": (250, 225, 30),
    "orange": (255, 130, 10),
    "purple": (150, 35, 190),
    "cyan": (40, 215, 230),
    "white": (255, 255, 255),
}
RADII = {"small": 0.14, "medium": 0.19, "big": 0.25}  # half a side, in frame sides
MOST_HIDDEN = 0.25  # of the time, for all pairs together
GROWTH = 1.6  # of an object that grows, and the inverse of one that shrinks
STEPS = {  # signs of x and y; y points down, as in images
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
AXIAL = ("left", "right", "up", "down")
PATHS = (*AXIAL, *STEPS, "circle", "bounce", "zigzag", "still", "spin")  # AXIAL twice: most changes need them
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "moon")
BACKGROUNDS = ("black", "grey", "pale", "gradient", "stripes", "checkerboard", "dots")


@dataclass(frozen=True)
class MovingObject:
    """What can be said of one object. Its change happens at `change_at`, a part of the duration from 0 to 1."""

    shape: str
    colour: str
    size: str
    path: str
    change: str | None = None
    then: str | None = None  # the new colour or the new direction
    change_at: float = 0.0

    def facts(self) -> Facts:
        """All facts that hold. After a change of colour or direction both the old and the new one do."""
        pairs = [("shape", self.shape), ("colour", self.colour), ("size", self.size), ("path", self.path)]
        if self.change:
            pairs.append(("change", self.change))
        if self.then:
            pairs += [("then", self.then), ("colour" if self.change == "colour" else "path", self.then)]
        return frozenset(pairs)


@dataclass(frozen=True, eq=False)
class Scene:
    """What a video shows. tracks: (objects, frames, 2), x and y of the centres in frame sides."""

    background: str
    objects: tuple[MovingObject, ...]
    tracks: np.ndarray


def stream(seed: int, split: str, index: int, use: int) -> Generator:
    """The random numbers of one video, or of two twins: use 0 for what is shown, from 1 on for captions."""
    return Generator(Philox(SeedSequence(seed, spawn_key=(zlib.crc32(split.encode()), index, use))))


def pick(rng: Generator, options: Sequence[T]) -> T:
    """One of the options, all of them equally likely."""
    return options[rng.integers(len(options))]


# ---------------------------------------------------------------------------------------------------------------------
# From random numbers to a scene


def sample_scene(rng: Generator) -> Scene:
    """Draw a scene whose objects differ in colour and hide each other during a quarter of the time at most."""
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    background = pick(rng, BACKGROUNDS)
    count = pick(rng, (1, 1, 2, 2, 2, 2, 2, 2, 2, 3))
    while True:
        if scene := placed(rng, background, sample_objects(rng, background, count), frames):
            return scene


def placed(rng: Generator, background: str, objects: tuple[MovingObject, ...], frames: int) -> Scene | None:
    """The objects on random courses; None where these hide each other for too long."""
    scene = Scene(background, objects, np.stack([track(rng, shown, frames) for shown in objects]))
    return scene if _hidden_share(scene) <= MOST_HIDDEN else None


def sample_objects(rng: Generator, background: str, count: int) -> tuple[MovingObject, ...]:
    """Draw objects that differ in colour; each may change, the third never."""
    colours = rng.permutation([name for name in COLOURS if (name, background) != ("white", "pale")]).tolist()
    # The changes of two objects lie clearly apart, so that a caption can tell which came first; a third has none.
    times = [*rng.permutation([rng.uniform(0.25, 0.35), rng.uniform(0.6, 0.7)]).tolist(), None]
    return tuple(_sample_object(rng, colours[i], colours[count + i], times[i]) for i in range(count))


def _sample_object(rng: Generator, colour: str, other_colour: str, change_at: float | None) -> MovingObject:
    shape, size, path = pick(rng, SHAPES), pick(rng, tuple(RADII)), pick(rng, PATHS)
    if change_at is None or rng.random() < 0.3:
        return MovingObject(shape, colour, size, path)
    changes = ["colour", "appear", "disappear"]
    changes += ["grow"] * (size != "big") + ["shrink"] * (size != "small")
    changes += ["stop"] * (path not in ("still", "spin"))
    changes += ["spin"] * (path != "spin" and shape not in ("circle", "ring"))
    changes += ["turn", "leave", "enter"] * (path in AXIAL)
    change = pick(rng, changes)
    other_way = pick(rng, [way for way in AXIAL if way != path])
    then = {"colour": other_colour, "turn": other_way}.get(change)
    return MovingObject(shape, colour, size, path, change, then, {"enter": 0.0, "leave": 0.9}.get(change, change_at))


def track(rng: Generator, shown: MovingObject, frames: int) -> np.ndarray:
    """Centres (frames, 2) on a random course of the object's path that stays within the frame."""
    time = np.linspace(0, 1, frames)
    if shown.change == "stop":
        time = np.minimum(time, shown.change_at)
    margin = RADII[shown.size] * (GROWTH if shown.change == "grow" else 1)
    if shown.path in STEPS:
        return _straight_track(rng, shown, time, margin)
    swing = rng.uniform(0.13, 0.17)
    if shown.path == "circle":
        angle = rng.uniform(0, 2 * math.pi) + pick(rng, (-3, 3)) * math.pi * time
        return rng.uniform(margin + swing, 1 - margin - swing, 2) + swing * np.stack([np.cos(angle), np.sin(angle)], 1)
    if shown.path == "zigzag":
        ends = pick(rng, ((margin, 1 - margin), (1 - margin, margin)))
        corners = rng.uniform(margin + swing, 1 - margin - swing) + swing * np.array([1, -1, 1, -1, 1, -1])
        return np.stack([np.interp(time, (0, 1), ends), np.interp(time, np.linspace(0, 1, 6), corners)], axis=1)
    if shown.path == "bounce":
        height = 1 - 2 * margin - rng.uniform(0, 0.1)
        x = np.full(frames, rng.uniform(margin, 1 - margin))
        return np.stack([x, 1 - margin - height * np.abs(np.sin(3 * math.pi * time))], axis=1)
    return np.tile(rng.uniform(margin, 1 - margin, 2), (frames, 1))


def _straight_track(rng: Generator, shown: MovingObject, time: np.ndarray, margin: float) -> np.ndarray:
    """Centres (frames, 2) of an object that crosses the frame, in one leg or, when it turns, in two.

    Legs are symmetric about the middle, so that the bag of frames is the same for both directions.
    """
    legs = [np.array(STEPS[shown.path])] + ([np.array(STEPS[shown.then])] if shown.change == "turn" else [])
    reach, outside = 0.5 - margin - rng.uniform(0, 0.06), 0.5 + 1.3 * margin
    start = rng.uniform(margin, 1 - margin, size=2)
    for leg in reversed(legs):
        start = np.where(leg, 0.5 - leg * (outside if shown.change == "enter" else reach), start)
    points = [start]
    for leg in legs:
        points.append(np.where(leg, 0.5 + leg * (outside if shown.change == "leave" else reach), points[-1]))
    times = {"turn": (0, shown.change_at, 1), "leave": (0, shown.change_at)}.get(shown.change, (0, 1))
    return np.stack([np.interp(time, times, axis) for axis in np.stack(points, axis=1)], axis=1)


def _hidden_share(scene: Scene) -> float:
    """Share of the time during which two objects lie over each other, summed over the pairs."""
    return sum(
        float(np.mean(np.linalg.norm(track_a - track_b, axis=1) < 0.8 * (RADII[a.size] + RADII[b.size])))
        for (a, track_a), (b, track_b) in combinations(zip(scene.objects, scene.tracks, strict=True), 2)
    )


# ---------------------------------------------------------------------------------------------------------------------
# From a scene to pixels


def _polar(radii: Sequence[float], turn: float = 0.0) -> np.ndarray:
    """Corners (n, 2) at equal angles from the top on, the i-th at distance radii[i]."""
    angles = 2 * math.pi * (np.arange(len(radii)) / len(radii) + turn)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.asarray(radii)[:, None]


DISC = _polar([1.0] * 40)
OUTLINES = {  # closed outlines about within [-1, 1]; a second outline cuts a hole
    "circle": [DISC],
    "square": [_polar([1.3] * 4, turn=1 / 8)],
    "triangle": [_polar([1.2] * 3) + np.array([0, 0.25])],
    "star": [_polar([1.1, 0.48] * 5)],
    "cross": [_polar([1.06, 1.06, 0.45] * 4, turn=-1 / 24)],
    "ring": [DISC, DISC * 0.52],
    "moon": [np.concatenate([DISC[:21], DISC[20::-1] * (0.2, 1)]) * 1.1 - (0.55, 0)],
}


@cache
def _background(name: str) -> np.ndarray:
    """The empty picture, (SIDE, SIDE, 3) uint8, to be copied. All are grey: colour belongs to the objects."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    grey = {
        "black": np.full((SIDE, SIDE), 12),
        "grey": np.full((SIDE, SIDE), 118),
        "pale": np.full((SIDE, SIDE), 222),
        "gradient": 20 + rows * 180 // SIDE,
        "stripes": np.where(rows // 12 % 2, 45, 105),
        "checkerboard": np.where((rows // 16 + columns // 16) % 2, 45, 105),
        "dots": np.where((rows % 16 - 7.5) ** 2 + (columns % 16 - 7.5) ** 2 < 22, 130, 45),
    }[name]
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


class Figure(NamedTuple):
    """An object as one frame shows it: centre and radius in pixels of the frame, angle in radians."""

    shape: str
    colour: str
    centre: np.ndarray  # (2,), x and y
    radius: float
    angle: float

    @property
    def size(self) -> str:
        """The nearest of RADII."""
        return min(RADII, key=lambda size: abs(RADII[size] * SIDE - self.radius))


def figures(scene: Scene, frame: int) -> list[Figure]:
    """What is there in a frame, from the lowest to the topmost; an object that has not appeared yet is not."""
    time = np.linspace(0, 1, scene.tracks.shape[1])[frame]
    looks = [_look(shown, time, track[frame] * SIDE) for shown, track in zip(scene.objects, scene.tracks, strict=True)]
    return [look for look in looks if look.radius]


def _look(shown: MovingObject, time: float, centre: np.ndarray) -> Figure:
    """An object at a time from 0 to 1; radius 0 while it is not there."""
    change, since = shown.change, time - shown.change_at
    radius = SIDE * RADII[shown.size]
    if change in ("grow", "shrink"):
        factor = GROWTH if change == "grow" else 1 / GROWTH
        radius *= 1 + (factor - 1) * min(max(since / 0.2, 0.0), 1.0)
    elif (change == "appear" and since < 0) or (change == "disappear" and since >= 0):
        radius = 0.0
    angle = 3 * math.pi * time * (shown.path == "spin") + 4 * math.pi * max(since, 0.0) * (change == "spin")
    colour = shown.then if change == "colour" and since >= 0 else shown.colour
    return Figure(shown.shape, colour, centre, radius, angle)


def draw(background: str, shown: Sequence[Figure]) -> np.ndarray:
    """One frame: (SIDE, SIDE, 3) uint8, RGB. Later figures lie over earlier ones."""
    picture = _background(background).copy()
    for figure in shown:
        cos, sin = math.cos(figure.angle), math.sin(figure.angle)
        rotation = np.array([[cos, sin], [-sin, cos]])
        corners = [outline @ rotation * figure.radius + figure.centre for outline in OUTLINES[figure.shape]]
        sixteenths = [np.round(outline * 16).astype(np.int32) for outline in corners]  # what shift=4 reads
        cv2.fillPoly(picture, sixteenths, COLOURS[figure.colour], lineType=cv2.LINE_AA, shift=4)
    return picture


def render(scene: Scene) -> np.ndarray:
    """All frames of the scene: (frames, SIDE, SIDE, 3) uint8, RGB."""
    return np.stack([draw(scene.background, figures(scene, frame)) for frame in range(scene.tracks.shape[1])])
