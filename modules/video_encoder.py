"""Tokens of a video: what lies where in which of its frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 7  # patches of a side that are kept of a frame; finer ones are averaged, so that a gallery fits into memory
WIDTH, LAYERS = 128, 2
TOKENS_HIDDEN, CHANNELS_HIDDEN = 256, 256
POSITION_STD = 0.3  # of the learned places at the start, beside inputs of about 1


class VideoEncoder(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021) over the patches of all frames of a video, with place and frame number.

    It runs once a video, whatever the texts that are compared with it. Its weights belong to places and frames, so that
    one layer can tell "here at first and there at last", which is motion; attention would have to learn first what a
    place is, and sees motion three times as late.

    :param patch_width: W, of CLIP's patch features.
    :param num_frames: F.
    :param patches: P of a frame, a square number.
    """

    width = WIDTH  # of the tokens
    moments: Tensor  # (S, 8)

    def __init__(self, patch_width: int, num_frames: int, patches: int) -> None:
        super().__init__()
        self.grid = min(GRID, round(patches**0.5))
        self.norm = nn.LayerNorm(patch_width)
        self.input = nn.Linear(patch_width, WIDTH)
        self.frame_position = nn.Embedding(num_frames, WIDTH)
        self.patch_position = nn.Embedding(self.grid**2, WIDTH)
        for positions in (self.frame_position, self.patch_position):
            nn.init.normal_(positions.weight, std=POSITION_STD)
        self.layers = nn.Sequential(*(MixerLayer(*self.tokens) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.register_buffer("moments", _moments(num_frames, self.grid), persistent=False)
        self.place = nn.Linear(self.moments.shape[-1], WIDTH)

    @property
    def tokens(self) -> tuple[int, int]:
        """Number and width of the tokens of a video: (S, width), S = F x grid^2."""
        return self.frame_position.num_embeddings * self.grid**2, self.width

    def forward(self, patches: Tensor) -> Tensor:
        """Patch features of the frames of videos (N, F, P, W) -> tokens (N, S, width)."""
        x = self.input(self.norm(self._on_grid(patches)))
        x = x + self.frame_position.weight[:, None] + self.patch_position.weight
        return self.layers(x.flatten(1, 2)) + self.place(self.moments)

    def _on_grid(self, patches: Tensor) -> Tensor:
        """(N, F, P, W) -> (N, F, grid^2, W): where there are more patches, the mean of those that lie together."""
        side = round(patches.shape[2] ** 0.5)
        if side == self.grid:
            return patches
        pictures = patches.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        pooled = F.adaptive_avg_pool2d(pictures, self.grid)
        return pooled.flatten(2).transpose(1, 2).unflatten(0, patches.shape[:2])


class MixerLayer(nn.Module):
    """Mixes the tokens of each channel, then the channels of each token.

    :param tokens: S, `width` of each.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens_norm, self.tokens_mlp = nn.LayerNorm(width), _mlp(tokens, TOKENS_HIDDEN)
        self.channels_norm, self.channels_mlp = nn.LayerNorm(width), _mlp(width, CHANNELS_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, width) -> the same shape."""
        x = x + self.tokens_mlp(self.tokens_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels_mlp(self.channels_norm(x))


def _moments(num_frames: int, grid: int) -> Tensor:
    """Time, place and their products for each token, from -1 to 1: (S, 8).

    What attention to the patches of a thing averages of them is where it is, and, as the covariance of place and time
    is a velocity, where it goes.
    """
    time, row, column = (
        torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1) for count in (num_frames, grid, grid)
    )
    time, row, column = torch.meshgrid(time, row, column, indexing="ij")
    places, powers = (torch.ones_like(row), row, column), (torch.ones_like(time), time, time.square())
    return torch.stack([power * place for power in powers for place in places][1:], dim=-1).flatten(0, 2)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
