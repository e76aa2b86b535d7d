"""Single frames of MovingShapes with what lies where in them: what a CLIP can learn before it sees a video."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from torch.utils.data import Dataset

from datasets.moving_shapes.captions import describe_picture
from datasets.moving_shapes.scene import COLOURS, SHAPES, SIDE, Scene, draw, figures, pick

TRAITS = (*SHAPES, *COLOURS, *product(SHAPES, COLOURS))  # that an object in a picture can have
LEAST_AREA = 0.5  # of a frame that a crop keeps, as in training on videos
REACH = 0.72  # of small objects, in sides of a patch: half the diagonal, so that one patch at least is theirs


class Picture(NamedTuple):
    """A crop of a frame, and what it shows."""

    pixels: np.ndarray  # (3, side, side) uint8, RGB
    patches: np.ndarray  # (patches, 2) int64: 1 + shape and 1 + colour of the topmost object there, 0 for none
    traits: np.ndarray  # (TRAITS,) float32: 1 for those of each object that reaches the middle of a patch
    caption: str


def take_picture(scene: Scene, rng: Generator, side: int, patch: int) -> Picture:
    """A random crop of a random frame of the scene.

    :param side: of the picture, in pixels.
    :param patch: side of a patch, in pixels. A patch belongs to the topmost object that reaches its middle: by its
        radius, or by REACH if that is more.
    """
    shown = figures(scene, int(rng.integers(scene.tracks.shape[1])))
    cropped = int(SIDE * math.sqrt(rng.uniform(LEAST_AREA, 1)))
    corner = rng.integers(0, SIDE - cropped + 1, 2)  # x and y
    pixels = draw(scene.background, shown)[corner[1] : corner[1] + cropped, corner[0] : corner[0] + cropped]
    zoom = side / cropped
    middles = np.stack(np.meshgrid(*[np.arange(patch / 2, side, patch)] * 2), axis=-1).reshape(-1, 2)
    patches, traits = np.zeros((len(middles), 2), np.int64), np.zeros(len(TRAITS), np.float32)
    seen = []
    for figure in shown:
        distances = np.linalg.norm(middles - (figure.centre - corner) * zoom, axis=1)
        covered = distances <= max(figure.radius * zoom, REACH * patch)
        patches[covered] = 1 + SHAPES.index(figure.shape), 1 + list(COLOURS).index(figure.colour)
        if covered.any():
            seen.append(figure)
            own = (figure.shape, figure.colour, (figure.shape, figure.colour))
            traits[[TRAITS.index(trait) for trait in own]] = 1
    resized = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return Picture(resized.transpose(2, 0, 1), patches, traits, describe_picture(scene.background, seen, rng))


class Pictures(Dataset):
    """Pictures of some scenes; number i is a function of (seed, i).

    :param scenes: drawn from with replacement.
    :param count: of the pictures.
    """

    def __init__(self, scenes: Sequence[Scene], count: int, side: int, patch: int, seed: int) -> None:
        self.scenes, self.count, self.side, self.patch, self.seed = scenes, count, side, patch, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Picture:
        rng = Generator(Philox(SeedSequence(self.seed, spawn_key=(index,))))
        return take_picture(pick(rng, self.scenes), rng, self.side, self.patch)
