"""How much a second score counts beside a first one: logistic regression on pairs of which the right ones are known."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MOST_VIDEOS = 1000  # one number is sure enough with these, and their pairs fit into memory
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 10.0
STEPS = 50


def best_weight(base: np.ndarray, both: np.ndarray, video_of_text: np.ndarray) -> float:
    """The w with which base + w * (both - base) makes the right pairs likeliest, from LEAST_WEIGHT to MOST_WEIGHT.

    The likelihood is that of each text's video among the videos, and of each text among those of other videos, as in
    the symmetric InfoNCE: a softmax of a * base + b * (both - base), for the best a and b above 0, and w = b / a. The
    logarithm of w has a normal prior of deviation 1, so that few pairs change little. Recall itself moves by jumps of
    whole queries and has no sure maximum on few of them.

    :param base: scores [text, video] (N, M).
    :param both: likewise, with the second score added; -inf are pairs that nobody scored, and no candidates.
    :param video_of_text: (N,) in [0, M).
    :return: 1.0 where no right pair was scored.
    """
    videos = np.unique(np.linspace(0, base.shape[1] - 1, MOST_VIDEOS).astype(int))
    texts = np.flatnonzero(np.isin(video_of_text, videos))
    own = torch.from_numpy(np.searchsorted(videos, video_of_text[texts]))
    first, summed = (torch.from_numpy(matrix[np.ix_(texts, videos)]).double() for matrix in (base, both))
    scored = torch.isfinite(summed)
    right = scored[torch.arange(len(own)), own]
    if not right.any():
        return 1.0
    more = torch.where(scored, summed - first, 0.0)
    scale = first[scored].std(correction=0).clamp(min=1e-6).log()
    logs = torch.stack([-scale, -scale]).requires_grad_()  # of a and b
    optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        a, b = logs.exp()
        nats = _nats(torch.where(scored, a * first + b * more, -torch.inf), own, right)
        value = nats + (logs[1] - logs[0]).square() / (2 * right.sum())
        value.backward()
        return value.detach()

    optimizer.step(loss)
    a, b = logs.detach().exp().tolist()
    return min(max(b / a, LEAST_WEIGHT), MOST_WEIGHT)


def _nats(logits: Tensor, own: Tensor, right: Tensor) -> Tensor:
    """Symmetric cross-entropy of the texts whose own pair is a candidate, in nats.

    :param logits: (N, M).
    :param own: (N,).
    :param right: (N,), bool.
    """
    t2v = F.cross_entropy(logits[right], own[right])
    is_own = own[:, None] == torch.arange(logits.shape[1])
    others = logits.masked_fill(is_own, -torch.inf).logsumexp(0)[own[right]]
    pairs = logits[is_own][right]
    return t2v + (torch.logaddexp(pairs, others) - pairs).mean()
