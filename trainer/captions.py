"""The captions of a training run, as its steps take them."""

import logging

import torch
from torch import Tensor

from datasets.annotations import Split
from diffusion_lm.vocabulary import SPECIAL_TOKENS, UNK
from model.retrieval import RetrievalModel
from modules.noise import other_captions

logger = logging.getLogger(__name__)

MOST_UNKNOWN = 0.05  # share of words; a Diffusion-LM of the same captions without rare words is below


class TrainingCaptions:
    """The tokens of a split, and which other captions of its video the model reads beside each.

    :param seed: of the choice.
    """

    def __init__(self, split: Split, model: RetrievalModel, seed: int) -> None:
        self.split, self.model, self.seed = split, model, seed
        self.tokens = model.tokenize(split.captions)
        self.of_segment: list[list[int]] = [[] for _ in split.segments]
        for caption, segment in enumerate(split.segment_of_caption):
            self.of_segment[segment].append(caption)
        self.most = max(map(len, self.of_segment))
        self._tell_unknown_words()

    def take(self, index: Tensor, step: int, rows: range) -> dict[str, Tensor]:
        """The tokens of captions (B,) and of those that are read with them, for `RetrievalModel.encode_pairs`."""
        return self.model.select(self.tokens, self.read_with(index, step, rows))

    def read_with(self, index: Tensor, step: int, rows: range) -> Tensor:
        """Captions (B,), and behind each the others of its video that the model reads too: (B, R), -1 for none.

        :param rows: of the batch of all processes that these are.
        """
        count = min(self.model.captions_read, self.most) - 1
        if count == 0:
            return index
        segments, captions = self.split.segment_of_caption, index.tolist()
        same_video = [self.of_segment[segments[caption]] for caption in captions]
        others = other_captions(captions, same_video, count, self.seed, step, rows)
        return torch.cat([index[:, None], others], dim=1)

    def _tell_unknown_words(self) -> None:
        """Warn of a Diffusion-LM that was made for other captions: nothing else would show it."""
        if "word_ids" not in self.tokens:
            return
        unknown = self.tokens["word_ids"] == UNK
        share = float(unknown.sum() / (unknown | (self.tokens["word_ids"] >= len(SPECIAL_TOKENS))).sum().clamp(min=1))
        if share > MOST_UNKNOWN:
            logger.warning(
                "the Diffusion-LM does not know %.0f %% of the words of the training captions: pre-train it on these, "
                'see "Diffusion" in README.md', 100 * share,
            )  # fmt: skip
