"""T-MASS (Wang et al. 2024): X-Pool whose text is a mass, of which samples are compared with each candidate video."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.clip import EncodedVideos
from model.retrieval import EncodedPairs
from model.xpool import XPool
from modules.noise import prior_of_training, prior_samples
from modules.pairs import Texts, Videos
from modules.stochastic_text import Prior, StochasticText

SAMPLE_COPIES = 5  # tensors of the size of the samples that live at once in `score_pairs`


class TrainingSamples(NamedTuple):
    """What one training step draws for B pairs."""

    eps: Tensor  # (B, D)


class TMass(XPool):
    """CLIP, X-Pool's frame pooling, and a stochastic text.

    :param num_frames: F.
    :param prior: of the samples.
    :param support_loss_weight: of the loss on the support text, which holds the radius.
    :param trials: S, samples of each pair at inference, of which the best counts.
    :param seed: of all samples.
    """

    rescores = True
    needs_mean_pooled = True

    def __init__(
        self,
        clip: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_frames: int,
        prior: Prior,
        num_mha_heads: int = 1,
        transformer_dropout: float = 0.3,
        support_loss_weight: float = 0.8,
        trials: int = 20,
        seed: int = 24,
    ) -> None:
        super().__init__(clip, tokenizer, num_mha_heads, transformer_dropout)
        self.stochastic = StochasticText(num_frames, self.embed_dim)
        self.prior, self.trials, self.seed = prior, trials, seed
        self.loss_weights = {"retrieval": 1.0, "support": support_loss_weight}

    @property
    def pair_bytes(self) -> int:
        """Memory of the samples of one pair and of the frames that it gathers, about."""
        frames = self.stochastic.std_branch.linear_proj.in_features
        return 4 * self.embed_dim * (SAMPLE_COPIES * self.trials + 4 * frames)

    def text_embeddings(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, features: Tensor
    ) -> Tensor:
        """Samples of the text of each pair, (P, S, D); eps is that of the caption, for every video the same."""
        used, rows = text_index.unique(return_inverse=True)  # the texts of the block, each once
        captions = [texts.captions[index] for index in used.tolist()]
        eps = prior_samples(captions, self.seed, self.trials, self.embed_dim, self.prior)
        device = features.device
        eps = eps.to(device, non_blocking=True)[rows.to(device, non_blocking=True)]
        return self.stochastic.sample(features, videos.features[video_index], eps)

    def draw_noise(self, step: int, rows: range) -> tuple[TrainingSamples]:
        """A sample from the prior for rows of the batch of a training step, on the CPU."""
        return (TrainingSamples(prior_of_training(self.seed, step, rows, self.embed_dim, self.prior)),)

    def encode_pairs(self, frames: Tensor, token_ids: Tensor, noise: tuple[TrainingSamples]) -> EncodedPairs:
        """Encode pairs and sample each text towards its own video.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        :param noise: rows of what `draw_noise` gave, on the device.
        """
        pairs = super().encode_pairs(frames, token_ids)
        (samples,) = noise
        sampled = self.stochastic.sample(pairs.texts, pairs.videos.frames, samples.eps[:, None])[:, 0]
        return replace(pairs, embeddings=sampled)

    def similarities(
        self, pairs: EncodedPairs, videos: EncodedVideos, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Those of the sampled and of the support text of each pair, (T, 2, V); arguments as in `RetrievalModel`."""
        assert mean_pooled is not None  # as `needs_mean_pooled`
        support = self.stochastic.support(pairs.texts, pairs.videos.frames, mean_pooled)
        embeddings = torch.stack([pairs.embeddings, support], dim=1)
        return self._cosines(embeddings, self._unit_pooled(pairs.texts, videos.frames))
