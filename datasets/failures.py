"""Videos that turn out not to decode, and times that are not in their videos: said and counted."""

import logging
from collections.abc import Sequence

from datasets.annotations import Split
from utils.errors import InputError

logger = logging.getLogger(__name__)

TOLERATED = 0.01
TOLD = 5  # segments that are named


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


class TimesBeyond:
    """Segments of a split whose times are not in their videos: their frames are the last of the video, all the time."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.reasons: dict[int, str] = {}  # by segment

    def of_caption(self, index: int, reason: str) -> None:
        """Note the segment of a caption."""
        self.of_segment(self.split.segment_of_caption[index], reason)

    def of_segment(self, index: int, reason: str) -> None:
        """Note a segment."""
        self.reasons[index] = f"{self.split.segments[index].video_id} ({reason})"

    def summary(self) -> str:
        """How many there are, and the first ones."""
        told = [self.reasons[index] for index in sorted(self.reasons)[:TOLD]]
        return (
            f"{len(self.reasons)} of {len(self.split.segments)} segments of the {self.split.name} split have times "
            f"that are not in their videos, so only a last frame is seen of them: {'; '.join(told)}"
            f"{'; ...' if len(self.reasons) > TOLD else ''} (preprocess/check_data.py lists them all)"
        )
