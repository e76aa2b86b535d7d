"""MovingShapes: a small text-video retrieval set that is drawn from a seed instead of downloaded.

A video shows one to three shapes that move and change before a background. A caption tells only part of that, as the
captions of MSR-VTT do: some objects, some of their attributes, in one of several wordings. Direction and order of
events are facts that a bag of frames does not hold, so pooling over time alone cannot solve the set.

    <root>/annotations.json    {"version", "seed", "train": [{"video_id", "captions"}, ...], "test": [...]}
    <root>/large.json          {"version", "seed", "test": [...]}, where the large test split was asked for
    <root>/videos/<video_id>.mp4

Video i of a split depends on (seed, split, i) alone: a larger train split leaves every other video as it was, and the
large test split begins with the usual one.
"""

import json
import logging
import math
import multiprocessing
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.random import Generator, Philox, SeedSequence

from diffusion_lm.errors import InputError
from diffusion_lm.files import written_whole
from diffusion_lm.progress import progress

logger = logging.getLogger(__name__)
T = TypeVar("T")
Facts = frozenset[tuple[str, str]]  # (attribute, value) pairs of one object

VERSION = 1
ANNOTATIONS = "annotations.json"
LARGE = "large.json"
LARGE_TEST_VIDEOS = 500  # enough to tell two models that differ by a few points
SIDE = 96  # pixels; square, so that Resize + CenterCrop keeps the whole picture
FPS = 12
FRAMES = (24, 36)  # least and most frames of a video: 2 to 3 seconds
CAPTIONS_PER_VIDEO = {"train": 5, "test": 1}

# ---------------------------------------------------------------------------------------------------------------------
# What a scene can show, and the words for it

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

VERBS = ("moves", "slides", "drifts", "glides", "travels")
WAYS = {
    "left": ("left", "to the left", "from right to left"),
    "right": ("right", "to the right", "from left to right"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
} | {
    f"{y} {x}": (f"diagonally {y} {x}", f"to the {edge} {x}")
    for y, edge in (("up", "top"), ("down", "bottom"))
    for x in ("left", "right")
}
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")},  # medium goes unnamed
    "colour": {name: (name,) for name in COLOURS} | {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")},
    "shape": {
        "circle": ("circle", "disc", "ball"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "cross": ("cross", "plus sign"),
        "ring": ("ring", "hoop"),
        "moon": ("moon", "crescent"),
    },
    "path": {path: tuple(f"{verb} {way}" for verb in VERBS for way in ways) for path, ways in WAYS.items()}
    | {
        "circle": ("moves in a circle", "goes round and round", "travels around in a circle"),
        "bounce": ("bounces up and down", "jumps up and down", "hops up and down"),
        "zigzag": ("moves in a zigzag", "zigzags across the picture"),
        "still": ("stays still", "does not move", "stays in one place"),
        "spin": ("spins in place", "rotates on the spot", "keeps spinning"),
    },
    "change": {  # {then}: the new colour or direction; {edge}: where the object comes in or goes out
        "colour": ("turns {then}", "becomes {then}", "changes to {then}", "changes its colour"),
        "turn": ("turns {then}", "changes direction and goes {then}", "changes direction"),
        "grow": ("grows", "gets bigger", "becomes larger"),
        "shrink": ("shrinks", "gets smaller", "becomes smaller"),
        "disappear": ("disappears", "vanishes"),
        "appear": ("appears", "shows up", "pops up"),
        "stop": ("stops", "comes to a halt", "stops moving"),
        "spin": ("starts to spin", "begins to rotate", "starts to rotate"),
        "leave": ("leaves at the {edge}", "goes out at the {edge}", "leaves the picture"),
        "enter": ("comes in from the {edge}", "enters from the {edge}", "enters the picture"),
    },
    "background": {
        "black": ("a black background", "a plain background", "a dark background"),
        "grey": ("a grey background", "a plain background"),
        "pale": ("a light background", "a bright background"),
        "gradient": ("a fading background", "a gradient"),
        "stripes": ("stripes", "a striped background", "a background with stripes"),
        "checkerboard": ("a checkerboard", "a chess board", "a checkered background"),
        "dots": ("dots", "a dotted background", "a background with dots"),
    },
}
ANY_SHAPE = ("shape", "object", "thing")
LEAVES_AT = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
ENTERS_FROM = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
OPENINGS = ("in this video", "in this clip", "we see that", "here")


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


@dataclass(frozen=True)
class Caption:
    """A sentence and what it claims: each of the mentions is of another object of the scene."""

    text: str
    mentions: tuple[Facts, ...]
    background: str | None = None  # one of the wordings
    in_order: bool = False  # whether it claims that the first object changes before the second


def holds(caption: Caption, scene: Scene) -> bool:
    """Whether all that the caption claims is true of the scene, for some choice of an object for each mention."""
    if caption.background and caption.background not in WORDS["background"][scene.background]:
        return False
    return any(
        all(mention <= shown.facts() for mention, shown in zip(caption.mentions, chosen, strict=True))
        and (not caption.in_order or chosen[0].change_at < chosen[1].change_at)
        for chosen in permutations(scene.objects, len(caption.mentions))
    )


def _pick(rng: Generator, options: Sequence[T]) -> T:
    return options[rng.integers(len(options))]


# ---------------------------------------------------------------------------------------------------------------------
# From random numbers to a scene


def sample_scene(rng: Generator) -> Scene:
    """Draw a scene whose objects differ in colour and hide each other during a quarter of the time at most."""
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    background = _pick(rng, tuple(WORDS["background"]))
    count = _pick(rng, (1, 1, 2, 2, 2, 2, 2, 2, 2, 3))
    while True:
        objects = _sample_objects(rng, background, count)
        scene = Scene(background, objects, np.stack([_track(rng, shown, frames) for shown in objects]))
        if _hidden_share(scene) <= 0.25:
            return scene


def _sample_objects(rng: Generator, background: str, count: int) -> tuple[MovingObject, ...]:
    colours = rng.permutation([name for name in COLOURS if (name, background) != ("white", "pale")]).tolist()
    # The changes of two objects lie clearly apart, so that a caption can tell which came first; a third has none.
    times = [*rng.permutation([rng.uniform(0.25, 0.35), rng.uniform(0.6, 0.7)]).tolist(), None]
    return tuple(_sample_object(rng, colours[i], colours[count + i], times[i]) for i in range(count))


def _sample_object(rng: Generator, colour: str, other_colour: str, change_at: float | None) -> MovingObject:
    shape, size, path = _pick(rng, tuple(WORDS["shape"])), _pick(rng, tuple(RADII)), _pick(rng, PATHS)
    if change_at is None or rng.random() < 0.3:
        return MovingObject(shape, colour, size, path)
    changes = ["colour", "appear", "disappear"]
    changes += ["grow"] * (size != "big") + ["shrink"] * (size != "small")
    changes += ["stop"] * (path not in ("still", "spin"))
    changes += ["spin"] * (path != "spin" and shape not in ("circle", "ring"))
    changes += ["turn", "leave", "enter"] * (path in AXIAL)
    change = _pick(rng, changes)
    other_way = _pick(rng, [way for way in AXIAL if way != path])
    then = {"colour": other_colour, "turn": other_way}.get(change)
    return MovingObject(shape, colour, size, path, change, then, {"enter": 0.0, "leave": 0.9}.get(change, change_at))


def _track(rng: Generator, shown: MovingObject, frames: int) -> np.ndarray:
    """Centres (frames, 2) on a random course of the object's path that stays within the frame."""
    time = np.linspace(0, 1, frames)
    if shown.change == "stop":
        time = np.minimum(time, shown.change_at)
    margin = RADII[shown.size] * (GROWTH if shown.change == "grow" else 1)
    if shown.path in STEPS:
        return _straight_track(rng, shown, time, margin)
    swing = rng.uniform(0.13, 0.17)
    if shown.path == "circle":
        angle = rng.uniform(0, 2 * math.pi) + _pick(rng, (-3, 3)) * math.pi * time
        return rng.uniform(margin + swing, 1 - margin - swing, 2) + swing * np.stack([np.cos(angle), np.sin(angle)], 1)
    if shown.path == "zigzag":
        ends = _pick(rng, ((margin, 1 - margin), (1 - margin, margin)))
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
    share = 0.0
    for (a, track_a), (b, track_b) in combinations(zip(scene.objects, scene.tracks, strict=True), 2):
        distance = np.linalg.norm(track_a - track_b, axis=1)
        share += float(np.mean(distance < 0.8 * (RADII[a.size] + RADII[b.size])))
    return share


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


def _draw_background(name: str) -> np.ndarray:
    """The empty picture, (SIDE, SIDE, 3) uint8. All are grey: colour belongs to the objects."""
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


def _look(shown: MovingObject, time: float) -> tuple[float, float, tuple[int, int, int]]:
    """Radius in pixels, angle in radians and colour of an object at a time from 0 to 1."""
    change, since = shown.change, time - shown.change_at
    radius = SIDE * RADII[shown.size]
    if change in ("grow", "shrink"):
        factor = GROWTH if change == "grow" else 1 / GROWTH
        radius *= 1 + (factor - 1) * min(max(since / 0.2, 0.0), 1.0)
    elif (change == "appear" and since < 0) or (change == "disappear" and since >= 0):
        radius = 0.0
    angle = 3 * math.pi * time * (shown.path == "spin") + 4 * math.pi * max(since, 0.0) * (change == "spin")
    return radius, angle, COLOURS[shown.then if change == "colour" and since >= 0 else shown.colour]


def render(scene: Scene) -> np.ndarray:
    """Draw the scene: (frames, SIDE, SIDE, 3) uint8, RGB. Later objects lie over earlier ones."""
    frames = scene.tracks.shape[1]
    video = np.repeat(_draw_background(scene.background)[None], frames, axis=0)
    for frame, time in enumerate(np.linspace(0, 1, frames)):
        for shown, centres in zip(scene.objects, scene.tracks, strict=True):
            radius, angle, colour = _look(shown, time)
            if radius == 0:
                continue
            rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            corners = [outline @ rotation * radius + centres[frame] * SIDE for outline in OUTLINES[shown.shape]]
            sixteenths = [np.round(outline * 16).astype(np.int32) for outline in corners]  # what shift=4 reads
            cv2.fillPoly(video[frame], sixteenths, colour, lineType=cv2.LINE_AA, shift=4)
    return video


# ---------------------------------------------------------------------------------------------------------------------
# From a scene to captions


class _Phrase(NamedTuple):
    """Words and the facts that they state."""

    text: str
    facts: Facts


def _noun_phrase(rng: Generator, shown: MovingObject) -> _Phrase:
    words, facts = [], {}
    for attribute, told in (("size", 0.5), ("colour", 0.97), ("shape", 0.85)):
        value = getattr(shown, attribute)
        if rng.random() < told and value in WORDS[attribute]:
            words.append(_pick(rng, WORDS[attribute][value]))
            facts[attribute] = value
    if "shape" not in facts and rng.random() < 0.3:
        words.insert(0, "something")
    else:
        words += [] if "shape" in facts else [_pick(rng, ANY_SHAPE)]
        words.insert(0, "the" if rng.random() < 0.15 else "an" if words[0][0] in "aeiou" else "a")
    return _Phrase(" ".join(words), frozenset(facts.items()))


def _change_phrase(rng: Generator, shown: MovingObject) -> _Phrase:
    words = _pick(rng, WORDS["change"][shown.change])
    facts = {"change": shown.change}
    if "{then}" in words:
        facts["then"] = shown.then
    if "{edge}" in words:
        facts["path"] = shown.path
    edge = (ENTERS_FROM if shown.change == "enter" else LEAVES_AT).get(shown.path)
    return _Phrase(words.format(then=shown.then, edge=edge), frozenset(facts.items()))


def _predicate(rng: Generator, shown: MovingObject) -> _Phrase:
    """What the object does: its path, its change, or both."""
    path = _Phrase(_pick(rng, WORDS["path"][shown.path]), frozenset({("path", shown.path)}))
    if not shown.change or rng.random() < 0.4:
        return path
    change = _change_phrase(rng, shown)
    if rng.random() < 0.4:
        return change
    if shown.change in ("appear", "enter"):
        text = f"{change.text} and {path.text}"
    else:
        joined = ("{} and then {}", "first {} and then {}", "{} until it {}", "{} before it {}")
        text = _pick(rng, joined).format(path.text, change.text)
    return _Phrase(text, path.facts | change.facts)


def _draft(scene: Scene, rng: Generator) -> Caption:
    told = min(len(scene.objects), _pick(rng, (1, 2, 2, 2, 2, 2, 2, 2, 2, 3)))
    chosen = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:told]]
    times = {shown.change_at for shown in chosen if shown.change}  # those of two objects that enter are the same
    in_order = told == 2 and len(times) == 2 and rng.random() < 0.7
    chosen.sort(key=lambda shown: shown.change_at if in_order else 0)
    nouns = [_noun_phrase(rng, shown) for shown in chosen]
    if told == 3:
        clauses, text = nouns, " and ".join(noun.text for noun in nouns) + _pick(rng, (" can be seen", " are shown"))
    else:
        verbs = [(_change_phrase if in_order else _predicate)(rng, shown) for shown in chosen]
        clauses = [_Phrase(f"{a.text} {b.text}", a.facts | b.facts) for a, b in zip(nouns, verbs, strict=True)]
        joined = ("first {} and then {}", "{} before {}") if in_order else ("{} while {}", "{} and {}", "{} as {}")
        text = _pick(rng, joined).format(*(clause.text for clause in clauses)) if told == 2 else clauses[0].text
    background = _pick(rng, WORDS["background"][scene.background]) if rng.random() < 0.85 else None
    if background:
        text = f"{text} {_pick(rng, ('on', 'over'))} {background}"
    if rng.random() < 0.12:
        text = f"{_pick(rng, OPENINGS)} {text}"
    return Caption(text, tuple(clause.facts for clause in clauses), background, in_order)


def describe(scene: Scene, rng: Generator) -> Caption:
    """Say part of what the scene shows, in 6 to 18 words."""
    while True:
        caption = _draft(scene, rng)
        if 6 <= len(caption.text.split()) <= 18:
            return caption


# ---------------------------------------------------------------------------------------------------------------------
# From scenes to files


def _stream(seed: int, split: str, index: int, use: int) -> Generator:
    """The random numbers of one video, use 0 for its scene and 1 for its captions."""
    return Generator(Philox(SeedSequence(seed, spawn_key=(zlib.crc32(split.encode()), index, use))))


def scene_of(seed: int, split: str, index: int) -> Scene:
    """The scene of a split's video."""
    return sample_scene(_stream(seed, split, index, 0))


def captions_of(seed: int, split: str, videos: int) -> list[list[Caption]]:
    """Captions of the first videos of a split.

    Those of one video differ. In a split with one caption per video no two are alike, as retrieval is measured on it.
    """
    per_video = CAPTIONS_PER_VIDEO[split]
    captions, taken = [], set()
    for index in range(videos):
        scene, rng = scene_of(seed, split, index), _stream(seed, split, index, 1)
        if per_video > 1:
            taken = set()
        captions.append([])
        while len(captions[-1]) < per_video:
            caption = describe(scene, rng)
            if caption.text not in taken:
                taken.add(caption.text)
                captions[-1].append(caption)
    return captions


def _write_video(job: tuple[Path, int, str, int]) -> None:
    folder, seed, split, index = job
    path = folder / f"{split}{index:04d}.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (SIDE, SIDE))
    if not writer.isOpened():
        raise OSError(f"OpenCV could not open {path} to write an mp4v video")
    for frame in render(scene_of(seed, split, index)):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def generate(
    root: Path, seed: int = 24, train_videos: int = 1600, test_videos: int = 100, workers: int | None = None
) -> None:
    """Write the data set to `root`, all of it or nothing; if another process is first, its copy stays.

    Processes are spawned, so a script that calls this needs the `if __name__ == "__main__"` guard.

    workers: processes that draw and encode, by default one per core; the files do not depend on it.
    Raises InputError when root holds other files, and OSError when a video cannot be written.
    """
    root = root.resolve()
    if root.exists() and not (root / ANNOTATIONS).exists() and (root.is_file() or any(root.iterdir())):
        raise InputError(f"{root} holds files but no {ANNOTATIONS}; move it away to have MovingShapes generated there")
    videos = {"train": train_videos, "test": test_videos}
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        unfinished = Path(scratch) / root.name
        (unfinished / "videos").mkdir(parents=True)
        wanted = [(split, index) for split in videos for index in range(videos[split])]
        _write_videos(unfinished / "videos", seed, wanted, workers)
        _write_annotations(unfinished / ANNOTATIONS, seed, videos)
        try:
            unfinished.rename(root)
        except OSError:
            if not (root / ANNOTATIONS).exists():
                raise
            logger.info("%s is complete already; this copy is discarded", root)


def _write_videos(folder: Path, seed: int, wanted: Sequence[tuple[str, int]], workers: int | None) -> None:
    """Draw and encode videos (split, index), in several processes."""
    jobs = [(folder, seed, split, index) for split, index in wanted]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for _ in progress(pool.imap_unordered(_write_video, jobs, chunksize=8), "MovingShapes", len(jobs), "videos"):
            pass


def _write_annotations(path: Path, seed: int, videos: dict[str, int]) -> None:
    """Captions of the first videos of each split."""
    annotations = {"version": VERSION, "seed": seed} | {
        split: [
            {"video_id": f"{split}{index:04d}", "captions": [caption.text for caption in captions]}
            for index, captions in enumerate(captions_of(seed, split, count))
        ]
        for split, count in videos.items()
    }
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(annotations, indent=1) + "\n", encoding="utf-8")


def ensure(root: Path, seed: int = 24) -> None:
    """Generate the data set unless `root` holds it; InputError when it holds another version or seed of it."""
    path = root / ANNOTATIONS
    if not path.exists():
        generate(root, seed)
    _check(path, seed, f"delete {root} to have it generated again")


def ensure_large(root: Path, seed: int = 24, test_videos: int = LARGE_TEST_VIDEOS, workers: int | None = None) -> None:
    """Add the large test split to the data set of `root`, which is generated if it is not there.

    Nothing that is there changes. The list of the split is written last, so that an interrupted call is made up for by
    the next one, and several processes may do it at once.
    """
    ensure(root, seed)
    path = root / LARGE
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix=".large-", dir=root) as scratch:
            there = len(json.loads((root / ANNOTATIONS).read_text(encoding="utf-8"))["test"])
            _write_videos(Path(scratch), seed, [("test", index) for index in range(there, test_videos)], workers)
            for video in sorted(Path(scratch).iterdir()):
                video.replace(root / "videos" / video.name)
        _write_annotations(path, seed, {"test": test_videos})
    _check(path, seed, f"delete {path} to have it generated again")


def _check(path: Path, seed: int, remedy: str) -> None:
    """InputError when an annotation file is of another version or seed."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))
        found = (annotations["version"], annotations["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not an annotation file of MovingShapes ({error!r}); {remedy}") from error
    if found != (VERSION, seed):
        raise InputError(
            f"{path} has version {found[0]} and seed {found[1]}, wanted are version {VERSION} and seed {seed}; {remedy}"
        )
