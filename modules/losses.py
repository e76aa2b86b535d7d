"""Training losses."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOGIT_SCALE = 100.0


def symmetric_infonce(sims: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean of the text-to-video and the video-to-text cross-entropy of a batch of pairs (Radford et al. 2021).

    :param sims: cosines (B, B), text i and video i belong together.
    :param logit_scale: log of the scale, a scalar; the scale is clamped to 100.
    :return: scalar.
    """
    logits = sims.float() * logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


def teacher_student(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum over the batch of the mean squared difference of two predictions of x_0.

    :param teacher: (B, L, C), `student` likewise.
    :return: scalar.
    """
    return (teacher.float() - student.float()).square().mean(dim=(1, 2)).sum()


def choose_negatives(sims: Tensor, own: Tensor, count: int, hard_share: float) -> Tensor:
    """For each text of a batch the videos, other than its own, that it is also diffused towards.

    Some are the most similar ones. The others are those that follow its own video in the batch, whose order is random.

    :param sims: similarities of T texts with the V videos of the batch (T, V).
    :param own: the video of each text (T,).
    :param count: K, cut to the V - 1 videos that there are.
    :param hard_share: of the most similar ones among the K.
    :return: (T, K), different ones.
    """
    videos = sims.shape[1]
    count = min(count, videos - 1)
    hard = round(count * hard_share)
    similar = sims.detach().float().scatter(1, own[:, None], -torch.inf)
    hardest = similar.topk(hard, dim=1).indices
    behind = (torch.arange(videos, device=sims.device) - own[:, None]).remainder(videos)  # 0: its own
    behind = behind.masked_fill(behind == 0, videos).scatter(1, hardest, videos)
    return torch.cat([hardest, behind.topk(count - hard, dim=1, largest=False).indices], dim=1)
