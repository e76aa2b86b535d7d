"""From decoded frames to the square that CLIP sees; the same crop for all frames of a video.

The transforms keep uint8: scaling and normalisation happen on the device, in the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How a CLIP was shown its pictures, which belongs to its weights; the default is OpenAI's.

    :param mean: of red, green and blue, where a pixel is between 0 and 1; and `std`, by which the rest is divided.
    :param interpolation: of the resize, "bicubic" or "bilinear".
    :param whole: the whole picture is squeezed into the square; else its shorter side is resized, and the middle taken.
    :param margin: side of the resized picture, as a multiple of that of the square which is cut out of its middle.
    """

    mean: Sequence[float] = PIXEL_MEAN
    std: Sequence[float] = PIXEL_STD
    interpolation: str = "bicubic"
    whole: bool = False
    margin: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists, where they were kept as JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


OPENAI = Preprocessing()


def train_transform(input_res: int, flip: bool = True, preprocessing: Preprocessing = OPENAI) -> v2.Transform:
    """RandomResizedCrop (half to all of the area) and horizontal flip. Draws from torch's global generator.

    Which part of the frame is taken does not follow `preprocessing`; open_clip trains all its models so, too.

    :param flip: False where captions tell left from right.
    """
    interpolation = InterpolationMode(preprocessing.interpolation)
    crop = v2.RandomResizedCrop(input_res, scale=(0.5, 1.0), interpolation=interpolation, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()] if flip else [crop])


def test_transform(input_res: int, preprocessing: Preprocessing = OPENAI) -> v2.Transform:
    """Resize (of the shorter side, or to a square) and CenterCrop."""
    side = round(input_res * preprocessing.margin)
    interpolation = InterpolationMode(preprocessing.interpolation)
    resize = v2.Resize([side, side] if preprocessing.whole else side, interpolation=interpolation, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(input_res)])


def apply_seeded(transform: v2.Transform, frames: Tensor, seed: int) -> Tensor:
    """Apply a random transform to frames (F, 3, H, W) as `seed` decides, leaving the global generator as it was.

    torch.manual_seed would seed every kind of device, too; where CUDA has not started it keeps each call with its stack
    for later, which took more time than the transform, and memory for ever.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        return transform(frames)
    finally:
        torch.default_generator.set_state(state)
