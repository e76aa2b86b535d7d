"""Captions to word ids and back."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ftfy
import torch
from torch import Tensor

from diffusion_lm.word_tokenizer import tokenize_words
from utils.errors import InputError

START, END, UNK, PAD = range(4)
SPECIAL_TOKENS = {"START": START, "END": END, "UNK": UNK, "PAD": PAD}


class Vocabulary:
    """A word list with START = 0, END = 1, UNK = 2, PAD = 3.

    :param token_to_id: word -> id; ids are 0..V-1, each once.
    """

    def __init__(self, token_to_id: Mapping[str, int]) -> None:
        self.token_to_id = dict(token_to_id)
        if any(self.token_to_id.get(token) != index for token, index in SPECIAL_TOKENS.items()):
            raise InputError("vocabulary must map START, END, UNK, PAD to 0, 1, 2, 3")
        if sorted(self.token_to_id.values()) != list(range(len(self.token_to_id))):
            raise InputError(f"vocabulary ids must be 0..{len(self.token_to_id) - 1}, each once")
        self.id_to_token = sorted(self.token_to_id, key=self.token_to_id.__getitem__)

    def __len__(self) -> int:
        return len(self.token_to_id)

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """The words that occur at least `min_count` times, most frequent first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in caption_words(caption))
        words = sorted((w for w, n in counts.items() if n >= min_count and w not in SPECIAL_TOKENS))
        words.sort(key=counts.__getitem__, reverse=True)
        return cls(SPECIAL_TOKENS | {word: len(SPECIAL_TOKENS) + i for i, word in enumerate(words)})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocab.json. Errors name the file."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is not a vocabulary (JSON, word -> id): {error}") from error

    def save(self, path: Path) -> None:
        """Write vocab.json."""
        Path(path).write_text(json.dumps(self.token_to_id, ensure_ascii=False, indent=0), encoding="utf-8")

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """START, words, END, then PAD up to `length`; longer captions are cut.

        :return: integer ids (captions, length).
        """
        ids = torch.full((len(captions), length), PAD, dtype=torch.long)
        for row, caption in zip(ids, captions, strict=True):
            words = [self.token_to_id.get(word, UNK) for word in caption_words(caption)]
            tokens = torch.tensor([START, *words, END][:length])
            row[: len(tokens)] = tokens
        return ids

    def cut_off(self, caption: str, length: int) -> list[str]:
        """What `encode` leaves out of a caption, in words for people; empty where that is nothing."""
        count = len(caption_words(caption))
        return [f"the text diffusion reads the first {length - 1} of {count} words"] if count > length - 1 else []

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first END, without the special tokens."""
        words = []
        for index in ids:
            if index == END:
                break
            if index not in (START, PAD):
                words.append(self.id_to_token[index])
        return " ".join(words)

    def unknown_share(self, captions: Iterable[str]) -> float:
        """Share of the words of the captions that the vocabulary does not have, in [0, 1]."""
        words = [word for caption in captions for word in caption_words(caption)]
        return sum(word not in self.token_to_id for word in words) / max(1, len(words))


def caption_words(caption: str) -> list[str]:
    """Words of a caption; text that was decoded with the wrong encoding is repaired first."""
    return tokenize_words(caption if caption.isascii() else ftfy.fix_encoding(caption))
