"""X-Pool beside a denoiser that reads the words of captions: what both text diffusions share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_lm.vocabulary import Vocabulary
from model.xpool import XPool


class WordReader(XPool, ABC):
    """X-Pool, and a part of a subclass, the `reader`, with which the subclass scores pairs anew.

    :param vocabulary: words of the diffusion.
    :param seed: of all noise.
    """

    rescores = True

    def __init__(
        self,
        clip: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        num_mha_heads: int,
        transformer_dropout: float,
        seed: int,
    ) -> None:
        super().__init__(clip, tokenizer, num_mha_heads, transformer_dropout)
        self.vocabulary, self.seed = vocabulary, seed

    @property
    @abstractmethod
    def reader(self) -> Any:
        """What reads words: it has a `student`, the `denoise` of its scoring, and `text_length`."""

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The token ids of the encoder and the word ids of the diffusion (N, L)."""
        return super().tokenize(captions) | {"word_ids": self.vocabulary.encode(captions, self.reader.text_length)}

    def cut_off(self, caption: str) -> list[str]:
        """What of a caption CLIP or the diffusion does not read, in words for people."""
        return super().cut_off(caption) + self.vocabulary.cut_off(caption, self.reader.text_length)

    def compile_scoring(self) -> None:
        """Let torch.compile fuse the student of `score_pairs`, once; weights and their names stay as they are."""
        if self.reader.denoise == self.reader.student.denoise:
            self.reader.denoise = torch.compile(self.reader.student.denoise)

    @property
    def pair_bytes(self) -> int:
        """Activations of one pair at their peak, about: those of a layer of the student, or the word scores."""
        sizes, words = self.reader.student.config, self.reader.student.vocabulary_size
        return 4 * self.reader.text_length * (2 * sizes.intermediate_size + 10 * sizes.hidden_size + 2 * words)
