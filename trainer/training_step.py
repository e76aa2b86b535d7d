"""The loss of one training step: of the batch of all processes, in one pass or in chunks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.clip import EncodedVideos
from model.retrieval import EncodedPairs, RetrievalModel, split_rows
from modules.losses import symmetric_infonce
from utils import distributed
from utils.device import autocast, random_state, set_random_state, to_device


class TrainingStep(nn.Module):
    """From the pairs of this process to the loss of the batch of all processes.

    Every process encodes its own pairs, pools the frames of all of them by its own texts, and computes the same loss of
    the gathered similarities. Gradients follow the contract of `utils.distributed`: averaged over the processes, they
    are those of the whole batch.

    With K chunks, the pairs of this process are encoded in K parts, and the loss is still that of all. The first pass
    keeps no activations (only features, which are small), and the backward pass encodes one chunk at a time again, with
    the random state of the first time. This is GradCache (Gao et al. 2021), by means of torch's checkpointing.

    :param model: what is trained.
    :param chunks: K; the memory is that of 1/K of the pairs.
    """

    def __init__(self, model: RetrievalModel, chunks: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.chunks, self.device, self.dtype = model, chunks, device, dtype

    def forward(self, frames: Tensor, tokens: dict[str, Tensor], noise: tuple[NamedTuple, ...]) -> dict[str, Tensor]:
        """Terms of the loss; their sum is minimised.

        :param frames: uint8 (B, F, 3, R, R), on the CPU, as are all inputs.
        :param tokens: what `model.select` gave of B captions.
        :param noise: what `model.draw_noise` gave of B pairs.
        """
        size = len(frames) // self.chunks
        parts = zip(
            frames.split(size),
            _split(tokens, size),
            zip(*(split_rows(n, size) for n in noise), strict=True) if noise else [()] * self.chunks,
            strict=True,
        )
        with autocast(self.device, self.dtype):
            pairs = EncodedPairs.join([self._pass(self._encode, *part) for part in parts])
            everybody = EncodedVideos(*(t if t is None else distributed.gather_with_gradient(t) for t in pairs.videos))
            chunks = pairs.split(size)
            means = [None] * self.chunks
            if self.model.needs_mean_pooled:
                means = self._mean_pooled([chunk.texts for chunk in chunks], everybody.frames).split(size)
            own = distributed.rank() * len(frames) + torch.arange(len(frames), device=self.device)
            sims = torch.cat(
                [
                    self._pass(self.model.similarities, chunk, everybody, videos, mean)
                    for chunk, videos, mean in zip(chunks, own.split(size), means, strict=True)
                ]
            )
            sims = distributed.gather_with_gradient(sims)  # (texts, embeddings of each, videos)
            weights = self.model.loss_weights.items()
            reduce = torch.mean if self.model.mean_penalties else torch.sum
            return {
                name: weight * symmetric_infonce(sims[:, index], self.model.clip.logit_scale)
                for index, (name, weight) in enumerate(weights)
            } | {name: reduce(distributed.gather_with_gradient(each)) for name, each in pairs.penalties.items()}

    def _mean_pooled(self, texts: Sequence[Tensor], all_frames: Tensor) -> Tensor:
        """Mean over the texts of all processes of the pooled videos of this process, (B, D).

        :param texts: text features of this process in chunks.
        :param all_frames: of the videos of all processes.
        """
        before = random_state(self.device)
        sums = sum(self._pass(self.model.pooled_sum, chunk, all_frames) for chunk in texts)
        set_random_state(before, self.device)  # the similarities drop out what these did
        videos = len(all_frames)
        means = distributed.gather_with_gradient(sums).unflatten(0, (-1, videos)).sum(0) / videos  # B texts, B videos
        own = videos // distributed.size()
        return means[distributed.rank() * own :][:own]

    def _encode(self, frames: Tensor, tokens: dict[str, Tensor], noise: tuple[NamedTuple, ...]) -> EncodedPairs:
        """Of one chunk, which only now goes to the device."""
        there = {name: to_device(rows, self.device) for name, rows in tokens.items()}
        drawn = tuple(type(n)(*(to_device(rows, self.device) for rows in n)) for n in noise)
        return self.model.encode_pairs(to_device(frames, self.device), **there, noise=drawn)

    def _pass(self, function: Callable, *arguments: object) -> object:
        """A call that keeps what its backward pass needs, or computes it again where there are several chunks."""
        if self.chunks == 1:
            return function(*arguments)
        here = torch.empty(
            0, device=self.device
        )  # so that the random state of the device, where dropout draws, is kept
        return checkpoint(lambda _, *given: function(*given), here, *arguments, use_reentrant=False)


def _split(tensors: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Chunks of tensors with B rows each."""
    rows = zip(*(tensor.split(size) for tensor in tensors.values()), strict=True)
    return [dict(zip(tensors, chunk, strict=True)) for chunk in rows]
