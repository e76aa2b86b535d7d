"""Training videos that turn out not to decode: said, counted, and too many of them end the run."""

import logging
from collections.abc import Sequence

from diffusion_lm.errors import InputError

logger = logging.getLogger(__name__)

TOLERATED = 0.01


class FailedVideos:
    """The samples of an epoch that were replaced because their videos do not decode.

    Where several processes share an epoch each counts its own part, so that a decision needs no exchange.

    :param samples: of the epoch, in this process.
    """

    def __init__(self, samples: int) -> None:
        self.samples, self.replaced = samples, 0
        self.reasons: dict[str, None] = {}  # one for each video, in the order in which they were met

    def add(self, errors: Sequence[InputError]) -> None:
        """Count a sample that was replaced.

        :param errors: what was said of its video, and of those that were to replace it and failed as well.
        :raises InputError: these are now more than 1 % of the samples; lists the videos.
        """
        self.replaced += 1
        for reason in map(str, errors):
            if reason not in self.reasons:
                logger.warning("%s; another sample takes its place", reason)
                self.reasons[reason] = None
        if self.replaced > TOLERATED * self.samples:
            raise InputError(
                f"{self} had to be replaced, more than {TOLERATED:.0%}: {'; '.join(self.reasons)} "
                f"(preprocess/check_data.py finds all such videos)"
            )

    def __str__(self) -> str:
        return f"{self.replaced} of {self.samples} training samples ({self.replaced / self.samples:.1%})"

    def summary(self) -> str:
        """A line for the end of the epoch."""
        return f"{self} of {len(self.reasons)} videos that do not decode were replaced: {'; '.join(self.reasons)}"
