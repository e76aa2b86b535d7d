"""What models and the similarity engine share: texts and videos that are ready to be scored, and scores of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """N encoded captions, ready to be scored."""

    captions: Sequence[str]
    features: Tensor  # (N, D)
    queries: Tensor  # (N, heads, D / heads)
    word_ids: Tensor | None = None  # (N, L), for models with a text diffusion
    prior: Tensor | None = None  # log p of each word without a video (N, L), for the text potential

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Videos:
    """M encoded videos, with all that scoring needs and that does not depend on the text."""

    features: Tensor  # (M, F, D)
    keys: Tensor  # (M, F, heads, D / heads)
    values: Tensor  # (M, F, heads, D / heads)
    names: Sequence[str] | None = None  # for messages
    tokens: Tensor | None = None  # (M, S, W) on the CPU, or what reads rows of a file by index; for the text potential
    frame_channels: Tensor | None = None  # (M, F, C), for the published text diffusion

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, float32."""

    strict: Tensor  # (P,)
    published: Tensor | None  # (P,), None where the protocol is not defined
