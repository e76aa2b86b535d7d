"""Scores of the twins of MovingShapes, which differ in one fact of motion: see `datasets.moving_shapes.motion`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.annotations import Split
from datasets.moving_shapes.motion import KINDS, PAIRS, kind_of, video_ids
from modules.metrics import winoground
from utils.tables import aligned


def twin_pairs(split: Split) -> tuple[list[str], Tensor]:
    """What the twins of P pairs differ in, and the indices of their videos (P, 2), which are those of their captions;
    without pairs of which a video is missing."""
    place = {segment.video_id: index for index, segment in enumerate(split.segments)}
    there = [pair for pair in range(PAIRS) if place.keys() >= set(video_ids(pair))]
    twins = [[place[name] for name in video_ids(pair)] for pair in there]
    return [kind_of(pair) for pair in there], torch.tensor(twins, dtype=torch.long).view(-1, 2)


def motion_rows(name: str, kinds: list[str], scores: np.ndarray) -> list[dict[str, Any]]:
    """Winoground scores of all pairs and of each kind.

    :param name: of the scores.
    :param kinds: of P pairs.
    :param scores: (P, 2, 2), [pair, caption, video].
    """
    rows = []
    for kind in ("all", *KINDS):
        chosen = np.array([kind in ("all", own) for own in kinds])
        if chosen.any():
            rows.append({"scores": name, "kind": kind, "pairs": int(chosen.sum())} | winoground(scores[chosen]))
    return rows


def format_motion(rows: list[dict[str, Any]], labels: dict[str, str]) -> str:
    """The table for people.

    :param labels: of the names of the scores.
    """
    named = [(f"motion {labels.get(row['scores'], row['scores'])}, {row['kind']}", row) for row in rows]
    columns = {name: name for name in ("text", "video", "group")}
    return aligned(named, columns, "   pairs", lambda row: f"{row['pairs']:8}")
