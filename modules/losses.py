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
