"""Token-wise interaction, against a slow loop over words and frames."""

import pytest
import torch
from torch.nn import functional as F

from model.clip import EncodedVideos
from model.wti import TokenWise
from modules.similarity import similarity
from tests.method.test_similarity import CAPTIONS, FRAMES, assert_close
from tests.small_models import small_clip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    made = TokenWise(*small_clip()).eval()
    for scorer in (made.interaction.word_weight, made.interaction.frame_weight):
        scorer[-1].weight.data.mul_(30)  # weights that differ
    return made


@pytest.fixture(scope="module")
def videos():
    return EncodedVideos(torch.randn(5, FRAMES, 128))


@torch.no_grad()
def slow_scores(model, captions, frames):
    """Scores (N, V), one caption at a time, without padding."""
    interaction, clip = model.interaction, model.clip
    scores = torch.zeros(len(captions), len(frames))
    for n, caption in enumerate(captions):
        ids = model.tokenizer(caption, return_tensors="pt")["input_ids"]
        words = clip.text_projection(clip.text_model(ids).last_hidden_state[0])
        word_weights = interaction.word_weight(words)[:, 0].softmax(0)
        for v, video in enumerate(frames):
            frame_weights = interaction.frame_weight(video)[:, 0].softmax(0)
            cosines = [[F.cosine_similarity(word, frame, dim=0).item() for frame in video] for word in words]
            of_words = sum(weight * max(row) for weight, row in zip(word_weights, cosines, strict=True))
            columns = zip(*cosines, strict=True)
            of_frames = sum(weight * max(column) for weight, column in zip(frame_weights, columns, strict=True))
            scores[n, v] = (of_words + of_frames) / 2
    return scores


def ready(model, captions, videos):
    tokens = model.tokenize(captions)
    with torch.no_grad():
        return model.texts(captions, model.encode_texts(**tokens), tokens), model.videos(videos)


def test_scores_equal_the_slow_loop(model, videos):
    expected = slow_scores(model, CAPTIONS, videos.frames)
    scores = similarity(model, *ready(model, CAPTIONS, videos))
    assert_close(scores.strict, expected)
    assert scores.published is None and scores.pairs_diffused == 0
    assert expected.std(1).min() > 1e-3  # so that something is compared


@torch.no_grad()
def test_pairs_and_training_score_alike(model, videos):
    expected = slow_scores(model, CAPTIONS, videos.frames)
    texts, seen = ready(model, CAPTIONS, videos)
    pairs = torch.tensor([0, 3, 6]), torch.tensor([4, 4, 1])
    assert_close(model.score_pairs(texts, seen, *pairs).strict, expected[pairs])
    frames = torch.randint(0, 256, (len(CAPTIONS), FRAMES, 3, 64, 64), dtype=torch.uint8)
    encoded = model.encode_pairs(frames, **model.tokenize(CAPTIONS))
    assert_close(model.similarities(encoded, videos, torch.arange(len(CAPTIONS)))[:, 0], expected)


def test_a_word_that_no_frame_shows_costs_what_it_weighs():
    """Two words and two frames of a plane, with weights that are told: 1/2 (0.75 x 1 + 0.25 x 0) + 1/2 x 1."""
    interaction = TokenWise(*small_clip()).interaction
    words = torch.tensor([[[0.75, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]]])  # the last is padding
    frames = torch.tensor([[[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]])
    assert interaction(words, frames).item() == pytest.approx(0.5 * 0.75 + 0.5)
    assert interaction.pairs(words, frames).item() == pytest.approx(0.5 * 0.75 + 0.5)
    opposite = torch.tensor([[[-1.0, 0.0, 0.0]]])  # padding, whose cosine is 0, is no better word
    assert interaction(words[:, :1], opposite).item() == pytest.approx(-0.875)
    assert interaction(words[:, [0, 2]], opposite).item() == pytest.approx(-0.875)
