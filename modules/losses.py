"""Training losses."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOGIT_SCALE = math.log(100)  # in float32 exactly the log scale of CLIP's released weights, which it leaves alone


def all_cosines(texts: Tensor, others: Tensor) -> Tensor:
    """Of all features (N, D) with all features (M, D), in float32: (N, M)."""
    return F.normalize(texts.float(), dim=-1) @ F.normalize(others.float(), dim=-1).T


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
    """Mean squared difference of two predictions of x_0 for each pair of a batch; the published loss is their sum.

    :param teacher: (B, L, C), `student` likewise.
    :return: (B,).
    """
    return (teacher.float() - student.float()).square().mean(dim=(1, 2))


def hardest_videos(sims: Tensor, own: Tensor, count: int) -> Tensor:
    """The wrong videos of a batch that are most similar to each text.

    :param sims: similarities of T texts with the V videos of the batch (T, V).
    :param own: the video of each text (T,).
    :param count: K, cut to the V - 1 videos that there are.
    :return: (T, K), different ones.
    """
    wrong = sims.detach().float().scatter(1, own[:, None], -torch.inf)
    return wrong.topk(min(count, sims.shape[1] - 1), dim=1).indices
