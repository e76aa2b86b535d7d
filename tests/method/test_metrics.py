"""Metrics against slow loops that a reader can check by eye."""

import math
import statistics

import numpy as np
import pytest

from modules.metrics import (
    RECALL_AT,
    FirstStage,
    dual_softmax,
    log_sums,
    ranks,
    text_to_video,
    video_to_text,
    winoground,
)


def slow_rank(row, right):
    """1 + number of other candidates that score at least as much as the right one."""
    rank = 1
    for candidate, score in enumerate(row):
        if candidate != right and score >= row[right]:
            rank += 1
    return rank


def slow_metrics(found, gallery):
    """Metrics of a list of ranks."""
    metrics = {f"R{k}": 100 * sum(rank <= k for rank in found) / len(found) for k in (1, 5, 10, 50, 100)}
    return metrics | {
        "MedR": statistics.median(found),
        "MeanR": statistics.fmean(found),
        "queries": len(found),
        "gallery": gallery,
    }


def slow_video_to_text(scores, video_of_text):
    """For each video: represent every video by the best of its own texts, then rank the videos' representatives."""
    num_texts, num_videos = len(scores), len(scores[0])
    found = []
    for video in range(num_videos):
        row = [
            max(scores[text][video] for text in range(num_texts) if video_of_text[text] == owner)
            for owner in range(num_videos)
        ]
        found.append(slow_rank(row, video))
    return slow_metrics(found, num_videos)


def naive_dual_softmax(scores, texts_are_queries):
    """S[t, v] * exp(100 S[t, v]) / sum over the queries of exp(100 S)."""
    num_texts, num_videos = scores.shape
    result = np.empty_like(scores)
    for t in range(num_texts):
        for v in range(num_videos):
            queries = scores[:, v] if texts_are_queries else scores[t, :]
            result[t, v] = scores[t, v] * math.exp(100 * scores[t, v]) / sum(math.exp(100 * s) for s in queries)
    return result


@pytest.fixture(params=range(4))
def rng(request):
    return np.random.default_rng(request.param)


def random_scores(rng, num_texts, num_videos):
    """Cosines, many of them equal: one decimal only, as a model that is about to collapse gives."""
    return rng.uniform(-1, 1, (num_texts, num_videos)).round(1)


def test_rank_of_known_rows():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.3, 0.3, 0.1]])
    assert ranks(scores, np.array([0, 1, 2, 0])).tolist() == [1, 3, 2, 2]


@pytest.mark.parametrize("value", [0.0, 0.7, -1.0])
def test_a_collapsed_model_ranks_last(value):
    scores = np.full((150, 150), value, dtype=np.float32)
    for metrics in (text_to_video(scores, range(150)), video_to_text(scores, range(150))):
        assert [metrics[f"R{k}"] for k in RECALL_AT] == [0] * 5
        assert metrics["MedR"] == metrics["MeanR"] == 150
    assert text_to_video(scores, range(150), dsl=True)["R1"] == 0
    assert video_to_text(scores, range(150), dsl=True)["R1"] == 0


def test_a_perfect_model_ranks_first():
    scores = np.eye(120)
    for metrics in (text_to_video(scores, range(120)), video_to_text(scores, range(120))):
        assert metrics == slow_metrics([1] * 120, 120)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dsl", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_scores_that_are_no_numbers_are_an_error(bad, dsl):
    scores = np.eye(5)
    scores[3, 1] = bad
    for metric in (text_to_video, video_to_text):
        with pytest.raises(ValueError, match="NaN or infinite"):
            metric(scores, range(5), dsl)


def test_text_to_video_equals_the_slow_loop(rng):
    scores, owner = random_scores(rng, 130, 120), rng.integers(0, 120, 130)
    found = [slow_rank(row.tolist(), int(video)) for row, video in zip(scores, owner, strict=True)]
    assert text_to_video(scores, owner.tolist()) == pytest.approx(slow_metrics(found, 120))


def test_video_to_text_equals_the_slow_loop(rng):
    """Several captions a video, a different number for each, in any order."""
    owner = np.concatenate([np.arange(30), rng.integers(0, 30, 60)])
    rng.shuffle(owner)
    scores = random_scores(rng, len(owner), 30)
    assert video_to_text(scores, owner.tolist()) == pytest.approx(slow_video_to_text(scores.tolist(), owner.tolist()))


def test_video_to_text_with_one_caption_a_video_is_the_transposed_problem(rng):
    scores, owner = random_scores(rng, 40, 40), rng.permutation(40)
    assert video_to_text(scores, owner) == text_to_video(scores.T, owner.argsort())


def test_median_of_an_even_number_of_queries_is_the_mean_of_the_middle_two():
    scores = np.array([[0.9, 0.1, 0.0, 0.0], [0.2, 0.1, 0.3, 0.4]])  # ranks 1 and 4
    metrics = text_to_video(scores, [0, 1])
    assert metrics["MedR"] == 2.5
    assert metrics["MeanR"] == 2.5
    assert metrics["R1"] == 50


def test_dual_softmax_equals_the_naive_formula(rng):
    scores = rng.uniform(-1, 1, (12, 9))
    by_text = dual_softmax(scores, log_sums(scores, axis=0))
    np.testing.assert_allclose(by_text, naive_dual_softmax(scores, True), rtol=1e-10)
    by_video = dual_softmax(scores, log_sums(scores, axis=1)[:, None])
    np.testing.assert_allclose(by_video, naive_dual_softmax(scores, False), rtol=1e-10)


def test_dual_softmax_of_large_scores_does_not_overflow():
    scores = np.array([[50.0, 1.0], [49.99, 2.0]], dtype=np.float32)  # exp(5000) is infinite
    share = 1 / (1 + math.exp(-1))  # of the first of two logits that differ by 1
    np.testing.assert_allclose(
        dual_softmax(scores, log_sums(scores, axis=0))[:, 0], [50 * share, 49.99 * (1 - share)], rtol=1e-3
    )


@pytest.mark.parametrize("metric", ["t2v", "v2t"])
def test_dsl_metrics_rank_the_reweighted_matrix(rng, metric):
    """t2v weighs over texts, v2t over videos."""
    owner = np.concatenate([np.arange(15), rng.integers(0, 15, 15)])
    scores = rng.uniform(0, 0.3, (30, 15))
    if metric == "t2v":
        weighted = naive_dual_softmax(scores, True)
        found = [slow_rank(row.tolist(), int(video)) for row, video in zip(weighted, owner, strict=True)]
        assert text_to_video(scores, owner, dsl=True) == pytest.approx(slow_metrics(found, 15))
    else:
        weighted = naive_dual_softmax(scores, False)
        slow = slow_video_to_text(weighted.tolist(), owner.tolist())
        assert video_to_text(scores, owner, dsl=True) == pytest.approx(slow)


def test_dsl_takes_a_hub_video_down():
    """A video that is near every text wins two of three queries; weighed by how many ask for it, it wins its own."""
    scores = np.array([[0.50, 0.52, 0.10], [0.20, 0.60, 0.10], [0.10, 0.52, 0.50]])
    assert text_to_video(scores, range(3))["R1"] == pytest.approx(100 / 3)
    assert text_to_video(scores, range(3), dsl=True)["R1"] == pytest.approx(100)


# reranking: every query ranks its own candidates by their diffused scores, and behind them the rest by the first stage


def reranked(rng, num_texts, num_videos, topk):
    """Diffused scores, -inf where a pair is no candidate of its text nor of its video, and the first stage."""
    first, scores = (rng.uniform(0, 0.3, (num_texts, num_videos)).round(3).astype(np.float32) for _ in range(2))
    text_floor = -np.sort(-first, axis=1)[:, topk - 1]
    video_floor = -np.sort(-first, axis=0)[topk - 1]
    chosen = (first >= text_floor[:, None]) | (first >= video_floor)
    return np.where(chosen, scores, -np.inf).astype(np.float32), FirstStage(first, text_floor, video_floor)


def slow_weight(scores, text, video, texts_are_queries):
    """Share of a pair in the softmax over the queries at temperature 100, over the pairs that have a score."""
    others = scores[:, video] if texts_are_queries else scores[text, :]
    return math.exp(100 * scores[text, video]) / sum(math.exp(100 * s) for s in others if s > -np.inf)


def slow_key(scores, first, text, video, texts_are_queries, dsl):
    """(part, score): compared part first."""
    floor = first.text_floor[text] if texts_are_queries else first.video_floor[video]
    is_candidate = first.scores[text, video] >= floor
    matrix = (scores if is_candidate else first.scores).astype(np.float64)
    weight = slow_weight(matrix, text, video, texts_are_queries) if dsl else 1
    return (is_candidate, matrix[text, video] * weight)


@pytest.mark.parametrize("dsl", [False, True])
@pytest.mark.parametrize("topk", [1, 4])
def test_reranked_text_to_video_equals_the_slow_loop(rng, topk, dsl):
    scores, first = reranked(rng, 30, 20, topk)
    owner = rng.integers(0, 20, 30)
    found = []
    for text in range(30):
        keys = [slow_key(scores, first, text, video, True, dsl) for video in range(20)]
        found.append(sum(key >= keys[owner[text]] for key in keys))
    assert text_to_video(scores, owner, dsl, first) == pytest.approx(slow_metrics(found, 20))


@pytest.mark.parametrize("dsl", [False, True])
@pytest.mark.parametrize("topk", [1, 4])
def test_reranked_video_to_text_equals_the_slow_loop(rng, topk, dsl):
    scores, first = reranked(rng, 30, 20, topk)
    owner = np.concatenate([np.arange(20), rng.integers(0, 20, 10)])
    found = []
    for video in range(20):
        keys = [slow_key(scores, first, text, video, False, dsl) for text in range(30)]
        best = [max(key for key, o in zip(keys, owner, strict=True) if o == other) for other in range(20)]
        found.append(sum(key >= best[video] for key in best))
    assert video_to_text(scores, owner, dsl, first) == pytest.approx(slow_metrics(found, 20))


def test_a_reranked_candidate_is_above_any_other_however_low_its_score(rng):
    first = FirstStage(np.array([[0.9, 0.8]]), np.array([0.9]), np.array([0.9, 0.8]))
    assert text_to_video(np.array([[-1.0, 1.0]]), [0], first=first)["MeanR"] == 1
    assert text_to_video(np.array([[-1.0, -np.inf]]), [1], first=first)["MeanR"] == 2


@pytest.mark.parametrize("dsl", [False, True])
def test_blocks_of_queries_change_nothing(rng, dsl, monkeypatch):
    scores, first = reranked(rng, 30, 20, 3)
    owner = np.concatenate([np.arange(20), rng.integers(0, 20, 10)])
    whole = [metric(scores, owner, dsl, first) for metric in (text_to_video, video_to_text)]
    monkeypatch.setattr("modules.metrics.BLOCK_ENTRIES", 70)
    assert [metric(scores, owner, dsl, first) for metric in (text_to_video, video_to_text)] == whole


def test_winoground_of_made_up_pairs():
    """Rows are captions, columns videos."""
    both = [[2, 0], [1, 3]]
    captions_find_their_video = [[5, 1], [6, 7]]  # but the first video prefers the second caption
    videos_find_their_caption = [[5, 6], [1, 7]]  # but the first caption prefers the second video
    tied = [[1, 1], [1, 1]]
    assert winoground(np.array([both])) == {"text": 100, "video": 100, "group": 100}
    assert winoground(np.array([captions_find_their_video])) == {"text": 0, "video": 100, "group": 0}
    assert winoground(np.array([videos_find_their_caption])) == {"text": 100, "video": 0, "group": 0}
    assert winoground(np.array([both, captions_find_their_video, tied, tied])) == {
        "text": 25, "video": 50, "group": 25
    }  # fmt: skip


def test_winoground_of_random_scores_is_at_chance_and_ties_are_wrong():
    scores = np.random.default_rng(0).random((20_000, 2, 2))
    found = winoground(scores)
    assert found["text"] == pytest.approx(25, abs=1) and found["video"] == pytest.approx(25, abs=1)
    assert found["group"] == pytest.approx(100 / 6, abs=1)
    for column in range(2):  # a model that does not look at the video, or not at the caption
        assert winoground(scores[:, :, [column, column]])["video"] == 0
        assert winoground(scores[:, [column, column]])["text"] == 0


def test_negative_scores_keep_their_order_under_dsl():
    """S times its softmax would put a small share of a negative score before a large one."""
    scores = np.float32([[-0.10, -0.30, -0.40], [-0.35, -0.20, -0.50], [-0.60, -0.70, -0.05]])
    for metric in (text_to_video, video_to_text):
        assert metric(scores, range(3))["R1"] == metric(scores, range(3), dsl=True)["R1"] == 100
    assert metric(scores + 1, range(3), dsl=True) == metric(scores, range(3), dsl=True)
