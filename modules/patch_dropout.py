"""Image patches left out in training."""

import torch
from torch import Tensor, nn


class PatchDropout:
    """A forward hook of a vision transformer's embeddings: in training it leaves out random patches of each image.

    The layers behind it compute with the others only. FLIP (Li et al. 2023) found a CLIP that was trained with half of
    the patches left out as good on whole images, in much less time.

    :param share: of the patches, in [0, 1]; at least one stays.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, embeddings: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
        """Tokens (N, 1 + P, H), of which the first is the class token -> (N, 1 + kept, H)."""
        if not embeddings.training:
            return tokens
        images, length = tokens.shape[:2]
        kept = max(1, round((length - 1) * (1 - self.share)))
        patches = torch.rand(images, length - 1, device=tokens.device).argsort(1)[:, :kept] + 1
        rows = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        rows = rows + length * torch.arange(images, device=tokens.device)[:, None]
        return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
