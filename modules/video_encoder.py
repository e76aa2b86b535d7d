"""Tokens of a video: what lies where in which of its frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 7  # patches of a side that are kept of a frame; finer ones are averaged, so that a gallery fits into memory
POSITION_STD = 0.3  # of the learned places at the start, beside inputs of about 1
WIDTH, LAYERS, HEADS = 128, 2, 4


class VideoEncoder(nn.Module):
    """A small transformer over the patches of all frames of a video, each with its place and its frame number.

    It runs once a video, whatever the texts that are compared with it.

    :param patch_width: W, of CLIP's patch features.
    :param num_frames: F.
    :param patches: P of a frame, a square number.
    """

    width = WIDTH  # of the tokens

    def __init__(self, patch_width: int, num_frames: int, patches: int) -> None:
        super().__init__()
        self.grid = min(GRID, round(patches**0.5))
        self.norm = nn.LayerNorm(patch_width)
        self.input = nn.Linear(patch_width, WIDTH)
        self.frame_position = nn.Parameter(POSITION_STD * torch.randn(num_frames, 1, WIDTH))
        self.patch_position = nn.Parameter(POSITION_STD * torch.randn(self.grid**2, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    @property
    def tokens(self) -> tuple[int, int]:
        """Number and width of the tokens of a video: (S, width), S = F x grid^2."""
        return len(self.frame_position) * self.grid**2, self.width

    def forward(self, patches: Tensor) -> Tensor:
        """Patch features of the frames of videos (N, F, P, W) -> tokens (N, S, width)."""
        x = self.input(self.norm(self._on_grid(patches))) + self.frame_position + self.patch_position
        return self.layers(x.flatten(1, 2))

    def _on_grid(self, patches: Tensor) -> Tensor:
        """(N, F, P, W) -> (N, F, grid^2, W): where there are more patches, the mean of those that lie together."""
        side = round(patches.shape[2] ** 0.5)
        if side == self.grid:
            return patches
        pictures = patches.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        pooled = F.adaptive_avg_pool2d(pictures, self.grid)
        return pooled.flatten(2).transpose(1, 2).unflatten(0, patches.shape[:2])
