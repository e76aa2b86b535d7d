"""Pre-training of a Diffusion-LM on captions: the loop, the average of its weights, what held-out captions say."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from transformers import get_linear_schedule_with_warmup

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.errors import InputError
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.losses import EndToEndLoss, end_to_end_loss
from diffusion_lm.progress import progress
from diffusion_lm.vocabulary import PAD

MIN_HELD_OUT = 50  # captions, below which a held-out figure says little
MAX_GRADIENT_NORM = 1.0
WARMUP_SHARE = 0.02  # of the steps, in which the learning rate rises
EVALUATION_BATCH = 256  # captions
WORD_RADIUS = 7.0
WORD_TABLE_LR_SHARE = 0.1  # of the learning rate: the regression pulls the words together faster than they part again


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the sizes of the network are its own."""

    steps: int
    batch_size: int = 64  # captions of a step, of all processes
    lr: float = 1e-4
    ema_rate: float = 0.9999
    seed: int = 24
    dtype: torch.dtype = torch.float32  # of matrix products, by autocast
    log_step: int = 50
    eval_every: int = 1000


@dataclass(frozen=True)
class Share:
    """What one of several processes does of a training run; the default is all of it.

    Every process draws the whole batch and its noise, and computes the loss of its rows.
    """

    rank: int = 0
    size: int = 1
    synchronised: Callable[[nn.Module], nn.Module] = lambda module: module  # its backward pass averages gradients
    mean: Callable[[Tensor], Tensor] = lambda values: values  # of CPU tensors, over the processes

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this process's."""
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation on held-out captions gives. Losses as in EndToEndLoss, accuracies as shares in [0, 1]."""

    loss: float
    x_start: float
    prior: float
    rounding: float
    accuracy: float  # words recovered from x_t at t = 0, over all tokens but PAD
    accuracy_all: float  # the same over all tokens


def ema_rate_at(step: int, rate: float) -> float:
    """Rate of the average after `step` updates: min(rate, (1 + step) / (10 + step)).

    The warm-up makes the average span the last tenth of a short run. Without it, 0.9999 after 5,000 steps would still
    be 60 % the random start.
    """
    return min(rate, (1 + step) / (10 + step))


def exponential_average(model: nn.Module, rate: float) -> AveragedModel:
    """A model whose weights follow those of `model` at `ema_rate_at`; call update_parameters(model) after each step."""

    def follow(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor) -> None:
        torch._foreach_lerp_(averages, weights, 1.0 - ema_rate_at(int(updates), rate))

    average = AveragedModel(model, multi_avg_fn=follow)
    average.n_averaged += 1  # the copy made here is the first weight; else the first update would replace it
    return average.eval()


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


def endless_batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices (batch_size,) of one shuffled epoch after the other; a batch may span two."""
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(size, generator=generator)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


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
    losses, right, counted = torch.zeros(4), torch.zeros(2), torch.zeros(2)
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


def train(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    word_ids: Tensor,
    held_out_ids: Tensor,
    settings: TrainingSettings,
    record: Callable[[dict], None] = lambda figures: None,
    share: Share | None = None,
) -> tuple[Denoiser, HeldOut | None]:
    """Train `denoiser`, in place, on captions.

    :param word_ids: training captions (N, L).
    :param held_out_ids: captions (M, L) to evaluate the averaged weights on.
    :param record: is given the figures of every `log_step` steps and of every evaluation.
    :param share: of this process, where there are several; the first one evaluates.
    :return: the denoiser of averaged weights, and its figures on the held-out captions.
    """
    share = share or Share()
    torch.manual_seed(settings.seed + share.rank)  # dropout
    generator = torch.Generator().manual_seed(settings.seed)
    loss_of = share.synchronised(Loss(denoiser, diffusion))
    optimizer, schedule = make_optimizer(denoiser, settings)
    average = exponential_average(denoiser, settings.ema_rate)
    batches = endless_batches(len(word_ids), settings.batch_size, generator)
    own = share.rows(settings.batch_size)
    device = diffusion.betas.device
    running: list[Tensor] = []  # losses since the last record
    held_out = None
    for step in progress(range(1, settings.steps + 1), "training", settings.steps, "steps", shown=share.rank == 0):
        denoiser.train()
        ids = word_ids[next(batches)]
        t = torch.randint(diffusion.num_steps, (len(ids),), generator=generator)
        noise = draw_noise(ids, denoiser.config.channels, generator)
        with torch.autocast(device.type, settings.dtype, enabled=settings.dtype != torch.float32):
            loss = loss_of(ids[own], t[own], noise[:, own])
        optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        average.update_parameters(denoiser)
        running.append(torch.stack(loss).detach())  # .item() here would wait for the GPU at every step
        if step % settings.log_step == 0 or step == settings.steps:
            means = share.mean(torch.stack(running).mean(0).cpu())
            terms = dict(zip(EndToEndLoss._fields, means.tolist(), strict=True))
            record({"step": step, "lr": schedule.get_last_lr()[0], "train": terms})
            running.clear()
        if share.rank == 0 and (step % settings.eval_every == 0 or step == settings.steps):
            held_out = evaluate(average.module, diffusion, held_out_ids, settings.seed)
            record({"step": step, "held_out": asdict(held_out)})
    return average.module, held_out


def make_optimizer(denoiser: Denoiser, settings: TrainingSettings) -> tuple[Optimizer, LRScheduler]:
    """AdamW with a slower word table, and a linear schedule with warm-up."""
    table = denoiser.word_embedding.weight
    groups = [
        {"params": [parameter for parameter in denoiser.parameters() if parameter is not table]},
        {"params": [table], "lr": settings.lr * WORD_TABLE_LR_SHARE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(WARMUP_SHARE * settings.steps), settings.steps)
