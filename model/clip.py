"""The image-text encoder that is fine-tuned, with tokenisation and the scaling of pixels."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import ftfy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datasets.transforms import OPENAI, Preprocessing
from model.encoders import (
    Kind,
    freeze_statistics,
    image_features,
    is_convolutional,
    kind_of,
    longest_text,
    text_features,
    width_of,
)
from utils.errors import InputError

if TYPE_CHECKING:
    from model.model_config import ModelConfig


class EncodedVideos(NamedTuple):
    """What the encoders make of N videos."""

    frames: Tensor  # projected frame features (N, F, D), float32
    tokens: Tensor | None = None  # (N, S, W), of models that read them


class ClipRetrieval(nn.Module):
    """The two encoders of CLIP or another of `model.encoders`, projected and not normalised: the base of all models.

    :param clip: the network; its parameters are named `clip.*`, as in published checkpoints.
    :param tokenizer: captions to its token ids.
    """

    pixel_mean: Tensor  # (3, 1, 1), of pixels in [0, 1]
    pixel_std: Tensor
    model_config: "ModelConfig"  # that it was built from, of models of the factory

    def __init__(self, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.set_preprocessing(OPENAI)
        self.memory_format = torch.channels_last if is_convolutional(clip.vision_model) else torch.contiguous_format

    def set_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Expect pictures as this CLIP was shown them. Frames are cut and resized before, by the data's transforms."""
        self.preprocessing = preprocessing
        for name, values in (("pixel_mean", preprocessing.mean), ("pixel_std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def kind(self) -> Kind:
        """How texts are read."""
        return kind_of(self.clip.config)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is read."""
        return longest_text(self.clip.config)

    @property
    def embed_dim(self) -> int:
        """D, width of the projected features."""
        return width_of(self.clip.config)

    def train(self, mode: bool = True) -> "ClipRetrieval":
        """As of every module, but statistics of pre-training stay as they are."""
        super().train(mode)
        freeze_statistics(self.clip)
        return self

    def prepare(self, gradient_checkpointing: bool, compiled: bool) -> None:
        """Make training take less memory, or less time; results stay the same up to rounding.

        :raises InputError: transformers cannot do that with this encoder.
        """
        if gradient_checkpointing:
            try:
                self.clip.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise InputError(f"--gradient_checkpointing: {error}") from error
        if compiled:
            for network in self.networks():
                network.compile()

    def networks(self) -> list[nn.Module]:
        """The parts that are worth compiling."""
        return [self.clip.vision_model, self.clip.text_model]

    def encoders(self) -> list[nn.Module]:
        """What texts and videos are encoded with."""
        return [self.clip]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the model reads of N captions: tensors of N rows, on the CPU.

        Here the token ids of the encoder (N, longest) of the cleaned captions, padded and cut at its longest.
        """
        padding = "max_length" if self.kind.one_length else True
        cleaned, longest = list(map(self._cleaned, captions)), self.longest
        encoded = self.tokenizer(cleaned, padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        return {"token_ids": encoded["input_ids"]}

    def cut_off(self, caption: str) -> list[str]:
        """What of a caption nothing reads, in words for people; empty where all of it is read."""
        specials = self.tokenizer.num_special_tokens_to_add()
        count = len(self.tokenizer(self._cleaned(caption), verbose=False)["input_ids"])
        if count <= self.longest:
            return []
        return [f"CLIP reads the first {self.longest - specials} of {count - specials} tokens"]

    def _cleaned(self, caption: str) -> str:
        return clean_caption(caption) if self.kind.lower else repaired(caption)

    def select(self, tokens: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Rows `index` of what `tokenize` gave, ids cut to the longest caption among them where all are not of one
        length."""
        chosen = {name: rows[index] for name, rows in tokens.items()}
        if not self.kind.one_length:
            ids = chosen["token_ids"]
            longest = int((ids != self.tokenizer.pad_token_id).sum(1).max()) + 1  # CLIP pads with the end token
            chosen["token_ids"] = ids[:, :longest]
        return chosen

    def encode_texts(self, token_ids: Tensor) -> Tensor:
        """Token ids (N, tokens) -> text features (N, D), float32."""
        return text_features(self.clip, token_ids, self.tokenizer)

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames uint8 (N, 3, R, R) -> what CLIP's image encoder reads, (N, 3, R, R) float32."""
        pixels = frames.contiguous(memory_format=self.memory_format).float()
        return pixels.div_(255).sub_(self.pixel_mean).div_(self.pixel_std)

    def encode_videos(self, frames: Tensor) -> EncodedVideos:
        """Frames uint8 (B, F, 3, R, R) -> their features."""
        return EncodedVideos(self.frame_features(frames)[0])

    def frame_features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames uint8 (B, F, 3, R, R) -> projected features (B, F, D), float32, and those of the patches, as the last
        layer of the image encoder leaves them, (B, F, P, width)."""
        seen = image_features(self.clip, self.pixels(frames.flatten(0, 1)))
        return tuple(part.unflatten(0, frames.shape[:2]) for part in seen)


def clean_caption(caption: str) -> str:
    """What CLIP reads of a caption, as OpenAI's tokenizer prepares it: `repaired`, in small letters.

    transformers' tokenizer repairs nothing. The words of the text diffusion are those of the caption as it is, as its
    published vocabularies and `word_tokens.json` have them.
    """
    return repaired(caption).lower()


def repaired(caption: str) -> str:
    """A caption in which text that was decoded with the wrong encoding is repaired, curly quotes are straight, HTML
    entities are characters and blanks are single."""
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        text = caption  # nothing to repair, and so are nearly all captions of the data sets
    else:
        text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split())
