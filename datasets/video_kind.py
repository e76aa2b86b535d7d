"""What the videos of a split are like: a model that was trained on small copies is tested on small copies, too."""

import logging
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from datasets.annotations import Split
from utils.errors import InputError

logger = logging.getLogger(__name__)

LOOKED_AT = 64  # videos of a split, whose headers are read
ALIKE = 1.25  # ratio up to which sizes and rates count as the same


@dataclass(frozen=True)
class VideoKind:
    """The medians of a split's videos."""

    short_side: float  # pixels
    rate: float  # frames a second

    @classmethod
    def of(cls, split: Split) -> "VideoKind | None":
        """By the headers of some of its videos, the same ones each time; None where none of them opens."""
        from datasets.container import picture_of  # FFmpeg, which a search does without

        paths = sorted({segment.path for segment in split.segments})
        seen = []
        for index in np.random.default_rng(0).permutation(len(paths))[:LOOKED_AT]:
            try:
                seen.append(picture_of(paths[index]))
            except InputError:  # training and evaluation tell of it
                continue
        return cls(*(float(median(column)) for column in zip(*seen, strict=True))) if seen else None

    def to_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return asdict(self)

    def is_like(self, other: "VideoKind") -> bool:
        """Whether neither size nor rate differ by more than a quarter."""
        pairs = ((self.short_side, other.short_side), (self.rate, other.rate))
        return all(max(pair) <= ALIKE * min(pair) for pair in pairs)

    def __str__(self) -> str:
        return f"{self.short_side:.0f} pixels high or wide at {self.rate:.3g} frames a second"


def warn_of_others(trained: VideoKind | None, split: Split) -> None:
    """Log when the videos of a split are of another kind than those that a model was trained on."""
    tested = trained and VideoKind.of(split)
    if tested and not trained.is_like(tested):
        logger.warning(
            "the model was trained on videos of %s, these are of %s (medians): originals and 3 fps copies give other "
            "frames, and other scores",
            trained,
            tested,
        )
