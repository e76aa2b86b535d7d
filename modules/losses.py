"""Training losses."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOGIT_SCALE = math.log(100)  # in float32 exactly the log scale of CLIP's released weights, which it leaves alone


def symmetric_infonce(sims: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean of the text-to-video and the video-to-text cross-entropy of a batch of pairs (Radford et al. 2021).

    :param sims: cosines (B, B), text i and video i belong together.
    :param logit_scale: log of the scale, a scalar; `clamp_logit_scale` keeps it where it belongs.
    :return: scalar.
    """
    logits = sims.float() * logit_scale.exp()
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


@torch.no_grad()
def clamp_logit_scale(logit_scale: Tensor) -> None:
    """Keep the scale at 100 at most, in place, before training and after each step (Radford et al. 2021).

    A clamp within the loss would have no gradient from 100 on, where CLIP's released weights are: it could never fall.
    """
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)


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
