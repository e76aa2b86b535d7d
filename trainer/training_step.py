"""The loss of one training step: of the batch of all processes, in one pass or in chunks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.xpool import EncodedPairs, XPool
from modules.losses import symmetric_infonce
from modules.text_diffusion import TrainingNoise
from trainer import distributed
from trainer.device import autocast, to_device


class TrainingStep(nn.Module):
    """From the pairs of this process to the loss of the batch of all processes.

    Every process encodes its own pairs, pools the frames of all of them by its own texts, and computes the same loss of
    the gathered similarities. Gradients follow the contract of `trainer.distributed`: averaged over the processes, they
    are those of the whole batch.

    With K chunks, the pairs of this process are encoded in K parts, and the loss is still that of all. The first pass
    keeps no activations (only features, which are small), and the backward pass encodes one chunk at a time again, with
    the random state of the first time. This is GradCache (Gao et al. 2021), by means of torch's checkpointing.

    :param model: what is trained.
    :param chunks: K; the memory is that of 1/K of the pairs.
    """

    def __init__(self, model: XPool, chunks: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.chunks, self.device, self.dtype = model, chunks, device, dtype

    def forward(self, frames: Tensor, tokens: dict[str, Tensor], noise: tuple[TrainingNoise, ...]) -> dict[str, Tensor]:
        """Terms of the loss; their sum is minimised.

        :param frames: uint8 (B, F, 3, R, R), on the CPU, as are all inputs.
        :param tokens: what `model.select` gave of B captions.
        :param noise: what `model.draw_noise` gave of B pairs.
        """
        size = len(frames) // self.chunks
        parts = zip(
            frames.split(size),
            _split(tokens, size),
            zip(*(_split(n._asdict(), size) for n in noise), strict=True) if noise else [()] * self.chunks,
            strict=True,
        )
        with autocast(self.device, self.dtype):
            pairs = _join([self._pass(self._encode, *part) for part in parts])
            all_frames = distributed.gather_with_gradient(pairs.frames)
            queries = zip(pairs.texts.split(size), pairs.embeddings.split(size), strict=True)
            sims = torch.cat([self._pass(self.model.similarities, *query, all_frames) for query in queries])
            sims = distributed.gather_with_gradient(sims)
            return {"retrieval": symmetric_infonce(sims, self.model.clip.logit_scale)} | {
                name: distributed.gather_with_gradient(value[None]).sum() for name, value in pairs.penalties.items()
            }

    def _encode(self, frames: Tensor, tokens: dict[str, Tensor], noise: tuple[dict[str, Tensor], ...]) -> EncodedPairs:
        """Of one chunk, which only now goes to the device."""
        there = {name: to_device(rows, self.device) for name, rows in tokens.items()}
        drawn = tuple(TrainingNoise(**{name: to_device(x, self.device) for name, x in n.items()}) for n in noise)
        return self.model.encode_pairs(to_device(frames, self.device), **there, noise=drawn)

    def _pass(self, function: Callable, *arguments: object) -> object:
        """A call that keeps what its backward pass needs, or computes it again where there are several chunks."""
        if self.chunks == 1:
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False)


def _split(tensors: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Chunks of tensors with B rows each."""
    rows = zip(*(tensor.split(size) for tensor in tensors.values()), strict=True)
    return [dict(zip(tensors, chunk, strict=True)) for chunk in rows]


def _join(parts: list[EncodedPairs]) -> EncodedPairs:
    """The pairs of all chunks."""
    if len(parts) == 1:
        return parts[0]
    joined = (torch.cat([getattr(part, name) for part in parts]) for name in ("texts", "frames", "embeddings"))
    return EncodedPairs(*joined, {name: sum(part.penalties[name] for part in parts) for name in parts[0].penalties})
