"""The network g(x_t, t, s) of Diffusion-LM that predicts x_0, with the condition layers of TextDiffs."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from diffusion_lm.errors import InputError

TIME_CHANNELS = 128
TIME_HIDDEN = 512
MAX_PERIOD = 10_000
MAX_POSITIONS = 512


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser: everything that its weights alone cannot tell, and what they must agree with."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    channels: int = 16
    dropout: float = 0.1

    def to_dict(self) -> dict:
        """The fields as a dictionary for JSON."""
        return asdict(self)


DENOISERS = {
    "base": DenoiserConfig(),
    "small": DenoiserConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536),
    "tiny": DenoiserConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512),
}


def timestep_embedding(times: Tensor) -> Tensor:
    """Sinusoidal embedding of times, [cos, sin] halves, maximal period 10,000 (Vaswani et al. 2017).

    :param times: float times (N,), in units of 1000 / T.
    :return: (N, 128).
    """
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=times.device))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Denoiser(nn.Module):
    """A BERT encoder over L tokens that maps (x_t, t, condition) to x_0, and the word table E of its vocabulary.

    :param config: sizes.
    :param vocabulary_size: V, rows of the word table.
    :param num_frames: F, width of the condition of each token; None builds the unconditional Diffusion-LM.
    """

    def __init__(self, config: DenoiserConfig, vocabulary_size: int, num_frames: int | None = None) -> None:
        super().__init__()
        self.config, self.num_frames = config, num_frames
        hidden, channels = config.hidden_size, config.channels
        self.word_embedding = nn.Embedding(vocabulary_size, channels)
        self.lm_head = nn.Linear(channels, vocabulary_size)
        self.lm_head.weight = self.word_embedding.weight  # tied, as in Diffusion-LM
        self.time_embed = nn.Sequential(
            nn.Linear(TIME_CHANNELS, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, hidden)
        )
        self.input_up_proj = nn.Sequential(nn.Linear(channels, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.position_embeddings = nn.Embedding(MAX_POSITIONS, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.input_transformers = BertEncoder(_bert_config(config))
        self.output_down_proj = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, channels))
        self.apply(_init_like_bert)
        nn.init.normal_(self.word_embedding.weight)
        if num_frames is not None:
            self.sims_linear = nn.Linear(num_frames, hidden)
            self.sims_decoder = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden)
            )

    @property
    def vocabulary_size(self) -> int:
        """V, the rows of the word table."""
        return self.word_embedding.num_embeddings

    def forward(self, x_t: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict x_0.

        :param x_t: noisy word embeddings (N, L, C).
        :param times: t * 1000 / T, (N,).
        :param condition: similarity of every token with every frame (N, L, F); required exactly when the network has
            condition layers.
        :return: predicted x_0 (N, L, C).
        """
        if (condition is None) != (self.num_frames is None):
            raise ValueError("a condition goes with a denoiser that has condition layers, and only with one")
        return self.denoise(x_t, times, None if condition is None else self.condition_term(condition))

    def condition_term(self, condition: Tensor) -> Tensor:
        """What the condition (N, L, F) adds inside `sims_decoder`: (N, L, 2H).

        The first layer of `sims_decoder` sees x and the condition side by side, so it is a sum of two products. This
        one depends neither on x_t nor on the time: sampling computes it once for all steps.
        """
        expand = self.sims_decoder[0]
        return F.linear(self.sims_linear(condition), expand.weight[:, self.config.hidden_size :], expand.bias)

    def denoise(self, x_t: Tensor, times: Tensor, condition_term: Tensor | None = None) -> Tensor:
        """`forward` with what `condition_term` gave in the place of the condition.

        :param times: (N,), or (1,) where all rows are at the same step.
        """
        length, hidden = x_t.shape[1], self.config.hidden_size
        time = self.time_embed(timestep_embedding(times))
        x = self.input_up_proj(x_t) + self.position_embeddings.weight[:length] + time[:, None]
        x = self.dropout(self.LayerNorm(x))
        if condition_term is not None:
            expand, activation, contract = self.sims_decoder
            x = contract(activation(F.linear(x, expand.weight[:, :hidden]) + condition_term))
        x = self.input_transformers(x).last_hidden_state
        return self.output_down_proj(x)

    def logits(self, x: Tensor) -> Tensor:
        """Word scores of embeddings x (N, L, C): (N, L, V)."""
        return self.lm_head(x)

    @torch.no_grad()
    def reset_condition_to_no_op(self) -> None:
        """Make the condition layers the identity on x, so that g(x_t, t, s) = g(x_t, t) for every s.

        x = relu(x) - relu(-x) carries x through the ReLU in two halves; the condition enters with weight zero, and
        learns from there because `sims_linear` has random values. These are as large as those of x: with BERT's small
        ones the weight would hardly move, and the condition would never be used.
        """
        hidden = self.config.hidden_size
        nn.init.normal_(self.sims_linear.weight, std=self.num_frames**-0.5)
        expand, contract = self.sims_decoder[0], self.sims_decoder[2]
        for layer in (expand, contract):
            layer.weight.zero_()
            layer.bias.zero_()
        identity = torch.eye(hidden)
        expand.weight[:hidden, :hidden] = identity
        expand.weight[hidden:, :hidden] = -identity
        contract.weight[:, :hidden] = identity
        contract.weight[:, hidden:] = -identity


def nearest_word(x: Tensor, table: Tensor) -> Tensor:
    """Ids of the rows of `table` (V, C) nearest (L2) to each vector of x (..., C): integers (...).

    argmin |x - e|^2 = argmax x.e - |e|^2 / 2: one matrix product, always in float32, because two words may lie
    closer than half precision can tell apart.
    """
    with torch.autocast(x.device.type, enabled=False):
        table = table.float()
        scores = torch.addmm(-0.5 * table.square().sum(-1), x.float().reshape(-1, x.shape[-1]), table.t())
        return scores.argmax(-1).reshape(x.shape[:-1])


def _bert_config(config: DenoiserConfig) -> BertConfig:
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"denoiser: hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads"
        )
    return BertConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        attn_implementation="sdpa",
    )


def _init_like_bert(module: nn.Module) -> None:
    """BERT's initialisation: normal weights of spread 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
