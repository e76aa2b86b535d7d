"""The network g(x_t, t) of Diffusion-LM that predicts x_0, and the two ways in which it can see a video.

TextDiffs adds cross-attention to the tokens of a video (`VideoAttention`); the published recipe tells every token how
similar it is to each frame (`condition_term`).
"""

import math
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig

from utils.attention import attention
from utils.device import product_dtype
from utils.errors import InputError

TIME_CHANNELS = 128
TIME_HIDDEN = 512
MAX_PERIOD = 10_000
MAX_POSITIONS = 512
VIDEO_HEADS = 4  # with which words look at the tokens of a video


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


# What is trained here has more channels than Diffusion-LM's 16: with so few, the scores of words at all places are a
# matrix of rank 16, which cannot say how likely each word is.
CHANNELS = 64
DENOISERS = {
    "base": DenoiserConfig(channels=CHANNELS),
    "small": DenoiserConfig(384, 6, 6, 1536, CHANNELS),
    "tiny": DenoiserConfig(128, 3, 4, 512, CHANNELS),
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


class VideoAttention(nn.Module):
    """Cross-attention of words to the tokens of a video, which adds nothing before it is trained.

    The tokens are keys and values as they are, for every layer: no layer computes anything of a video again.

    :param hidden: H, width of the words.
    :param width: W, width of the video's tokens, a multiple of VIDEO_HEADS.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.norm, self.query, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x: Tensor, video: Tensor) -> Tensor:
        """What words x (N, L, H) find in videos: (N, L, H).

        :param video: tokens of N videos (N, S, W), or of fewer, each for equally many texts that lie together.
        """
        query = self.query(self.norm(x)).view(len(video), -1, video.shape[-1])
        found = attention(_in_heads(query), _in_heads(video), _in_heads(video))
        return self.out(found.transpose(1, 2).flatten(2)).view(len(x), -1, x.shape[-1])


def _in_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (VIDEO_HEADS, -1)).transpose(1, 2)


class Denoiser(nn.Module):
    """A BERT encoder over L tokens that maps (x_t, t, what it sees of a video) to x_0, and the word table E of its
    vocabulary. Without `num_frames` and `video_width` it is the unconditional Diffusion-LM.

    :param config: sizes.
    :param vocabulary_size: V, rows of the word table.
    :param num_frames: F, width of the condition of each token, as published.
    :param video_width: W, width of the video tokens that its cross-attention reads.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        vocabulary_size: int,
        num_frames: int | None = None,
        video_width: int | None = None,
    ) -> None:
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
        from transformers.models.bert.modeling_bert import BertEncoder  # which models without a denoiser do not need

        self.input_transformers = BertEncoder(_bert_config(config))
        self.output_down_proj = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, channels))
        self.apply(_init_like_bert)
        nn.init.normal_(self.word_embedding.weight)
        if num_frames is not None:
            self.sims_linear = nn.Linear(num_frames, hidden)
            self.sims_decoder = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden)
            )
        if video_width is not None:
            self.video_attention = nn.ModuleList(
                VideoAttention(hidden, video_width) for _ in range(config.num_hidden_layers)
            )
            self.reset_video_attention_to_no_op()

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
        expand = cast(nn.Linear, self.sims_decoder[0])
        return F.linear(self.sims_linear(condition), expand.weight[:, self.config.hidden_size :], expand.bias)

    def denoise(
        self,
        x_t: Tensor,
        times: Tensor,
        condition_term: Tensor | None = None,
        video: Tensor | None = None,
    ) -> Tensor:
        """`forward` with what `condition_term` gave in the place of the condition, or with videos.

        :param times: (N,), or (1,) where all rows are at the same step.
        :param video: tokens of N videos (N, S, W), or of fewer, see `VideoAttention`.
        """
        length, hidden = x_t.shape[1], self.config.hidden_size
        time = self.time_embed(timestep_embedding(times))
        x = self.input_up_proj(x_t) + self.position_embeddings.weight[:length] + time[:, None]
        x = self.dropout(self.LayerNorm(x))
        if condition_term is not None:
            expand, activation, contract = self.sims_decoder
            own = F.linear(x, cast(nn.Linear, expand).weight[:, :hidden])
            x = contract(activation(own + condition_term))
        if video is None:
            x = self.input_transformers(x).last_hidden_state
        else:
            video, layers = video.to(product_dtype(x)), self.input_transformers.layer  # once for all layers
            for layer, look in zip(layers, self.video_attention, strict=True):
                x = layer(x + look(x, video))
        return self.output_down_proj(x)

    def logits(self, x: Tensor) -> Tensor:
        """Word scores of embeddings x (N, L, C): (N, L, V)."""
        return self.lm_head(x)

    @torch.no_grad()
    def reset_video_attention_to_no_op(self) -> None:
        """Let the cross-attention add nothing, so that the network is the unconditional one whatever the video."""
        for module in self.modules():
            if isinstance(module, VideoAttention):
                module.out.weight.zero_()
                module.out.bias.zero_()


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
