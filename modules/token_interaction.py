"""Token-wise interaction: each word with its best frame, each frame with its best word.

Wang et al. 2022, "Disentangled Representation Learning for Text-Video Retrieval", section 3.2 (WTI).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenInteraction(nn.Module):
    """The mean of two weighted sums of cosines: over the words t of that with its best frame, and over the frames f of
    that with its best word. The weights are softmaxes of a learned score of each word and of each frame.

        score = 1/2 sum_t w_t max_f cos(t, f) + 1/2 sum_f w_f max_t cos(t, f)

    A token and its weight travel as one vector: the unit vector times the weight. Padding has the weight 0.

    :param width: D, of words and frames.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word_weight, self.frame_weight = _scorer(width), _scorer(width)

    def words(self, tokens: Tensor, given: Tensor) -> Tensor:
        """Features of the words of texts (N, t, D) -> weighted unit vectors, the same shape, float32.

        :param given: 1 for words, 0 for padding, (N, t).
        """
        scores = self.word_weight(tokens)[..., 0].float().masked_fill(given == 0, -torch.inf)
        return _weighted(tokens, scores)

    def frames(self, features: Tensor) -> Tensor:
        """Frame features (V, F, D) -> weighted unit vectors, the same shape, float32."""
        return _weighted(features, self.frame_weight(features)[..., 0].float())

    def forward(self, words: Tensor, frames: Tensor) -> Tensor:
        """Scores of every text with every video, (N, V), of what `words` (N, t, D) and `frames` (V, F, D) gave."""
        (words, word_weights), (frames, frame_weights) = _apart(words), _apart(frames)
        cosines = torch.einsum("ntd,vfd->nvtf", words, frames)
        return _both_ways(cosines, word_weights[:, None], frame_weights)

    def pairs(self, words: Tensor, frames: Tensor) -> Tensor:
        """Scores of P pairs, (P,), of their words (P, t, D) and frames (P, F, D)."""
        (words, word_weights), (frames, frame_weights) = _apart(words), _apart(frames)
        return _both_ways(words @ frames.mT, word_weights, frame_weights)


def _scorer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))


def _weighted(features: Tensor, scores: Tensor) -> Tensor:
    """Unit vectors (N, n, D) times the softmax of their scores (N, n)."""
    return F.normalize(features.float(), dim=-1) * scores.softmax(-1)[..., None]


def _apart(weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, n, D) and weights (N, n) of what `_weighted` gave."""
    weights = torch.linalg.vector_norm(weighted, dim=-1)
    return weighted / weights.clamp_min(torch.finfo(weights.dtype).tiny)[..., None], weights


def _both_ways(cosines: Tensor, word_weights: Tensor, frame_weights: Tensor) -> Tensor:
    """Cosines (..., t, F) with the weights of words (..., t) and frames (..., F) -> scores (...)."""
    of_words = (cosines.amax(-1) * word_weights).sum(-1)
    best_words = cosines.masked_fill((word_weights == 0)[..., None], -torch.inf).amax(-2)
    return (of_words + (best_words * frame_weights).sum(-1)) / 2
