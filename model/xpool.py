"""X-Pool (Gorti et al. 2022): CLIP, and frames pooled by cross-attention of each text."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.encoders import width_of
from model.retrieval import RetrievalModel
from modules.frame_pooling import FramePooling


class XPool(RetrievalModel):
    """CLIP with text-conditioned frame pooling, the base of the models that move the text as well.

    :param clip: CLIP, `tokenizer` its tokenizer.
    :param num_mha_heads: heads of the pooling attention.
    :param transformer_dropout: dropout of the pooling.
    """

    def __init__(
        self,
        clip: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_mha_heads: int = 1,
        transformer_dropout: float = 0.3,
    ) -> None:
        super().__init__(clip, tokenizer, FramePooling(width_of(clip.config), num_mha_heads, transformer_dropout))
