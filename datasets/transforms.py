"""From decoded frames to the square that CLIP sees; the same crop for all frames of a video.

The transforms keep uint8: scaling and normalisation happen on the device, in the model.
"""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


def train_transform(input_res: int, flip: bool = True) -> v2.Transform:
    """RandomResizedCrop (half to all of the area) and horizontal flip. Draws from torch's global generator.

    :param flip: False where captions tell left from right.
    """
    crop = v2.RandomResizedCrop(input_res, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()] if flip else [crop])


def test_transform(input_res: int) -> v2.Transform:
    """Resize of the shorter side (bicubic) and CenterCrop."""
    return v2.Compose(
        [v2.Resize(input_res, interpolation=InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(input_res)]
    )


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
