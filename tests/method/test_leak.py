"""The published protocol tells the model the answer, for every arch that pools by text; strict does not."""

import pytest
import torch

from tests.leak import COLUMNS, MODELS, recall_of_unrelated_pairs

PAIRS, CHANCE = 100, 1.0
MEAN_POOLING = "clip_baseline, avg"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_published_protocol_leaks(name):
    """Unrelated texts and videos: strict at chance (of 100 pairs above 4 %: 0.4 % a value), published far above.

    Unless the pooling does not look at the text: then the two protocols are one.
    """
    torch.manual_seed(0)
    recall = recall_of_unrelated_pairs(MODELS[name](), seed=0, pairs=PAIRS)
    for protocol, metric in COLUMNS:
        value = recall[protocol, metric]
        if protocol == "strict":
            assert value <= 4 * CHANCE
        elif name == MEAN_POOLING:
            assert value == recall["strict", metric]
        else:
            assert value >= 16 * CHANCE
