"""What pre-trains a Diffusion-LM on captions: batches, the average of its weights, what held-out captions say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from transformers import get_linear_schedule_with_warmup

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.losses import EndToEndLoss, end_to_end_loss
from diffusion_lm.vocabulary import PAD
from utils.errors import InputError

MIN_HELD_OUT = 50  # captions, below which a held-out figure says little
WARMUP_SHARE = 0.02  # of the steps, in which the learning rate rises
EVALUATION_BATCH = 256  # captions
WORD_RADIUS = 7.0
WORD_TABLE_LR_SHARE = 0.1  # of the learning rate: the regression pulls the words together faster than they part again


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation on held-out captions gives. Losses as in EndToEndLoss, accuracies as shares in [0, 1]."""

    loss: float
    x_start: float
    prior: float
    rounding: float
    words: float
    accuracy: float  # words recovered from x_t at t = 0, over all tokens but PAD
    accuracy_all: float  # the same over all tokens


def ema_rate_at(step: int, rate: float) -> float:
    """Rate of the average after `step` updates: min(rate, (1 + step) / (10 + step)).

    The warm-up makes the average span the last tenth of a short run. Without it, 0.9999 after 5,000 steps would still
    be 60 % the random start.
    """
    return min(rate, (1 + step) / (10 + step))


class ExponentialAverage(AveragedModel):
    """A model whose weights follow those of `model` at `ema_rate_at`; call update_parameters(model) after each step."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__(model)
        self.rate = rate
        self.n_averaged += 1  # the copy made here is the first weight
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One step. torch's own takes the number of updates to the GPU and back, which waits for it."""
        rate = ema_rate_at(int(self.n_averaged), self.rate)
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1.0 - rate)
        self.n_averaged += 1


def split_held_out(captions: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Captions for training and distinct ones held out. No held-out caption occurs in training.

    :param share: of the distinct captions, in (0, 1); at least 50 captions are held out.
    :raises InputError: too few distinct captions to train on the rest.
    """
    distinct = sorted(set(captions))
    count = max(MIN_HELD_OUT, round(share * len(distinct)))
    if len(distinct) < 2 * count:
        raise InputError(
            f"{len(distinct)} distinct captions are too few: {count} are held out, and as many must remain"
        )
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    held_out = [distinct[index] for index in order[:count]]
    excluded = set(held_out)
    return [caption for caption in captions if caption not in excluded], held_out


@torch.no_grad()
def spread_word_table(denoiser: Denoiser) -> None:
    """Put every word at distance WORD_RADIUS from the origin, in a random direction.

    With T = 10 even x_t at t = 0 is noisy: x_t / sqrt(abar_0) is E[ids] plus noise of spread 0.87. Words of a standard
    normal table (norm 4 for C = 16) overlap in it, and the end-to-end loss does not drive them apart. With equal norms
    no word is nearest to a vague prediction merely because it lies near the origin.
    """
    table = denoiser.word_embedding.weight
    table.copy_(WORD_RADIUS * nn.functional.normalize(torch.randn_like(table), dim=-1))


class EndlessBatches:
    """Indices (batch_size,) of one shuffled epoch after the other; a batch may span two.

    `rest` are the indices of the epoch that are left; with the generator's state they say what comes next.
    """

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self.size, self.batch_size, self.generator = size, batch_size, generator
        self.rest = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while len(self.rest) < self.batch_size:
            self.rest = torch.cat([self.rest, torch.randperm(self.size, generator=self.generator)])
        batch, self.rest = self.rest[: self.batch_size], self.rest[self.batch_size :]
        return batch


class Loss(nn.Module):
    """The end-to-end loss of a denoiser as a module, so that processes can share its gradients."""

    def __init__(self, denoiser: Denoiser, diffusion: GaussianDiffusion) -> None:
        super().__init__()
        self.denoiser, self.diffusion = denoiser, diffusion

    def forward(self, word_ids: Tensor, t: Tensor, noise: Tensor) -> EndToEndLoss:
        """Of captions (N, L) at steps t (N,) with noise (2, N, L, C), all on the CPU."""
        device = self.diffusion.betas.device
        word_ids, t, noise = (tensor.to(device, non_blocking=True) for tensor in (word_ids, t, noise))
        return end_to_end_loss(self.denoiser, self.diffusion, word_ids, t, noise[0], noise[1])


def draw_noise(word_ids: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Noise (2, N, L, C) of captions (N, L), drawn on the CPU: the same for every device."""
    return torch.randn(2, *word_ids.shape, channels, generator=generator)


@torch.no_grad()
def evaluate(denoiser: Denoiser, diffusion: GaussianDiffusion, word_ids: Tensor, seed: int) -> HeldOut:
    """Loss over all t, and how many words the denoiser recovers from x_t at t = 0. The same noise in every call.

    :param word_ids: held-out captions (N, L).
    """
    denoiser.eval()
    generator = torch.Generator().manual_seed(seed)
    losses, right, counted = torch.zeros(len(EndToEndLoss._fields)), torch.zeros(2), torch.zeros(2)
    steps = torch.arange(len(word_ids)) % diffusion.num_steps  # every t equally often
    for ids, t in zip(word_ids.split(EVALUATION_BATCH), steps.split(EVALUATION_BATCH), strict=True):
        noise = draw_noise(ids, denoiser.config.channels, generator)
        losses += len(ids) * torch.stack(Loss(denoiser, diffusion)(ids, t, noise)).cpu()
        hits = recovered(denoiser, diffusion, ids, generator)
        words = ids != PAD
        right += torch.stack([hits[words].sum(), hits.sum()])
        counted += torch.tensor([words.sum(), words.numel()])
    return HeldOut(*(losses / len(word_ids)).tolist(), *(right / counted).tolist())


@torch.no_grad()
def recovered(denoiser: Denoiser, diffusion: GaussianDiffusion, word_ids: Tensor, generator: torch.Generator) -> Tensor:
    """Whether lm_head names the word after noising to t = 0 and denoising, of captions (N, L): booleans (N, L)."""
    device = diffusion.betas.device
    noise = draw_noise(word_ids, denoiser.config.channels, generator).to(device)
    t = torch.zeros(len(word_ids), dtype=torch.long, device=device)
    x_start = denoiser.word_embedding(word_ids.to(device)) + diffusion.x_start_std * noise[0]
    predicted = denoiser(diffusion.q_sample(x_start, t, noise[1]), diffusion.model_times[t])
    return denoiser.logits(predicted).argmax(-1).cpu() == word_ids


def make_optimizer(denoiser: Denoiser, lr: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW with a slower word table, and a linear schedule with warm-up."""
    table = denoiser.word_embedding.weight
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in denoiser.parameters() if parameter is not table]},
        {"params": [table], "lr": lr * WORD_TABLE_LR_SHARE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(WARMUP_SHARE * steps), steps)
