"""T-MASS (Wang et al. 2024): a text is a mass around its embedding, whose radius follows from the frames of a video."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Prior:
    """What the mass is sampled with: uniform01, numbers of [0, 1), or normal with a spread."""

    kind: Literal["uniform01", "normal"] = "uniform01"
    std: float = 1.0  # of normal

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Samples eps of a shape, float32."""
        if self.kind == "uniform01":
            return generator.random(shape, dtype=np.float32)
        return np.float32(self.std) * generator.standard_normal(shape, dtype=np.float32)


class LinearCosRadius(nn.Module):
    """The log radius r of a text towards a video, from the cosine of the text with each frame.

    :param num_frames: F.
    :param embed_dim: D.
    """

    def __init__(self, num_frames: int, embed_dim: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(num_frames, embed_dim)
        nn.init.eye_(self.linear_proj.weight)
        nn.init.zeros_(self.linear_proj.bias)
        # part of every published checkpoint, read by nothing
        self.learnable_scalar = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, texts: Tensor, frames: Tensor) -> Tensor:
        """r (N, D) of text features (N, D) towards the frame features of a video each (N, F, D)."""
        return self.linear_proj(F.cosine_similarity(texts[:, None].float(), frames.float(), dim=-1))


class StochasticText(nn.Module):
    """Samples of a text's mass, c + eps * exp(r), and the point of its surface that lies towards a video."""

    def __init__(self, num_frames: int, embed_dim: int) -> None:
        super().__init__()
        self.std_branch = LinearCosRadius(num_frames, embed_dim)

    def radius(self, texts: Tensor, frames: Tensor) -> Tensor:
        """exp(r) (N, D) of text features (N, D) and the frame features of a video each (N, F, D), float32."""
        return self.std_branch(texts, frames).float().exp()

    def sample(self, texts: Tensor, frames: Tensor, eps: Tensor) -> Tensor:
        """text' = c + eps * exp(r) for each of S samples from the prior.

        :param texts: (N, D), `frames` (N, F, D).
        :param eps: (N, S, D).
        :return: (N, S, D).
        """
        return texts[:, None] + eps * self.radius(texts, frames)[:, None]

    def support(self, texts: Tensor, frames: Tensor, pooled: Tensor) -> Tensor:
        """c + exp(r) * unit(pooled - c): as far from c as the mass reaches, towards the video.

        :param texts: (N, D), `frames` (N, F, D).
        :param pooled: embedding of the video of each text (N, D).
        :return: (N, D).
        """
        return texts + self.radius(texts, frames) * F.normalize(pooled.float() - texts.float(), dim=-1)
