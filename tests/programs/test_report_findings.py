"""What a report finds in score matrices and captions, against slow and obvious computations."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from datasets.annotations import Segment, Split
from datasets.moving_shapes import SEED, captions_of
from modules.metrics import summary
from modules.similarity import Similarity, choose_candidates
from report import charts
from report.caption_groups import recall_by_caption
from report.findings import evenly, find, rank_histogram, recall_curve
from report.ranks import compare, most_changed

SIZES = {"small", "little", "tiny", "big", "large", "huge", "giant"}


def split_of(dataset, captions, name="test"):
    """A segment for each list of captions."""
    segments = [Segment(f"{name}{index:04d}", Path("x"), tuple(own)) for index, own in enumerate(captions)]
    return Split(dataset, name, tuple(segments))


def slow_ranking_of_video(video, strict, undiffused, owner, first):
    """Text, whether its pair was diffused, and score of the best text of each video, best first."""
    keys = []
    for text in range(len(owner)):
        diffused = first is None or undiffused[text, video] >= first.video_floor[video]
        score = strict[text, video] if diffused else undiffused[text, video]
        keys.append((diffused, score, owner[text] != video, text))
    best = {}
    for diffused, score, _, text in sorted(keys, key=lambda key: key[:3], reverse=True):
        best.setdefault(owner[text], (text, diffused, score))
    return list(best.values())


@pytest.mark.parametrize("topk", [0, 1, 3])
def test_findings_equal_a_slow_ranking(topk):
    """With ties, with two texts of a video, and with pairs that were not diffused."""
    rng = np.random.default_rng(4)
    strict, undiffused = (rng.integers(-4, 5, (16, 8)).astype(np.float32) / 5 for _ in range(2))
    strict *= 20  # log ratios are no cosines
    owner = [index // 2 for index in range(16)]
    first = choose_candidates(undiffused, topk) if topk else None
    if first is not None:
        diffused = (undiffused >= first.text_floor[:, None]) | (undiffused >= first.video_floor)
        strict = np.where(diffused, strict, -np.inf).astype(np.float32)
    findings = find(Similarity(strict, None, undiffused, undiffused, first), owner)
    for query in [*findings.best, *findings.worst, *findings.sample]:
        candidates = [(first is None or undiffused[query.text, v] >= first.text_floor[query.text], v) for v in range(8)]
        keys = [(c, strict[query.text, v] if c else undiffused[query.text, v], v != owner[query.text], v)
                for c, v in candidates]  # fmt: skip
        ordered = sorted(keys, key=lambda key: key[:3], reverse=True)
        places = {key[3]: place for place, key in enumerate(ordered, start=1)}
        assert query.rank == places[owner[query.text]] == findings.ranks["t2v"]["strict"][query.text]
        assert [hit.rank for hit in query.hits if hit.right] == [query.rank]
        for hit in query.hits:
            found = ordered[hit.rank - 1]
            assert (not hit.first_stage, pytest.approx(hit.score)) == (found[0], found[1])
    for query in [*findings.worst_videos, *findings.sampled_videos]:
        texts = slow_ranking_of_video(query.video, strict, undiffused, owner, first)
        assert query.rank == [owner[text] for text, _, _ in texts].index(query.video) + 1
        assert query.rank == findings.ranks["v2t"]["strict"][query.video]
        assert [hit.rank for hit in query.hits if hit.right] == [query.rank]
        for hit in query.hits:
            _, diffused, score = texts[hit.rank - 1]
            assert (not hit.first_stage, pytest.approx(hit.score)) == (diffused, score)
            assert hit.right == (owner[hit.text] == query.video)
    assert findings.ranks["t2v"].keys() == {"strict", "undiffused", "mean_pooled"}
    assert [q.rank for q in findings.best] == sorted(findings.ranks["t2v"]["strict"])[: len(findings.best)]
    assert [q.rank for q in findings.worst] == sorted(findings.ranks["t2v"]["strict"])[::-1][: len(findings.worst)]


def test_the_best_is_the_clearest():
    scores = np.array([[0.9, 0.8, 0.1], [0.1, 0.5, 0.2], [0.3, 0.2, 0.1]], dtype=np.float32)
    findings = find(Similarity(scores, scores, scores, scores), range(3))
    assert [query.text for query in findings.best] == [1, 0, 2]


@pytest.mark.parametrize("gallery", [1, 2, 6, 50, 100, 101, 1000, 1003, 27763])
def test_histogram_and_curve_hold_every_query(gallery):
    ranks = np.random.default_rng(gallery).integers(1, gallery + 1, 500)
    ranks[:2] = 1, gallery
    bins = rank_histogram(ranks, gallery)
    assert sum(count for _, count in bins) == 500
    bounds = [[int(bound) for bound in name.split("–")] for name, _ in bins]
    assert bounds[0] == [1] and bounds[-1][-1] == gallery
    assert all(low[-1] + 1 == high[0] for low, high in pairwise(bounds))
    for (_, count), bound in zip(bins, bounds, strict=True):
        assert count == ((ranks >= bound[0]) & (ranks <= bound[-1])).sum()
    curve, expected = recall_curve(ranks, gallery), summary(ranks, gallery)
    for k in (1, 5, 10, 50, 100):
        assert curve[min(k, gallery) - 1] == pytest.approx(expected[f"R{k}"])


@pytest.mark.parametrize(
    "first", [[0.0, 0.0, 0.0, 0.0], [0.84, 0.84, 0.87, 0.87], [1.0, 1.0, 1.0, 1.0], [0.9, 0.1, 0.5, 0.0]]
)
def test_curves_are_told_apart(first):
    """Each has its own line and marker, and where it begins its name and R@1, which no other name covers."""
    right = [np.arange(100) < 100 * share for share in first]
    figure = charts.recall({kind: np.where(own, 1, 7) for kind, own in zip(charts.KINDS, right, strict=True)}, 50)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert len({line.get_linestyle() for line in axes.lines}) == len({line.get_marker() for line in axes.lines}) == 4
    assert [text.get_text().split()[-1] for text in axes.texts] == [f"{100 * own.mean():.1f}" for own in right]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the curve
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    place = axes.get_window_extent()
    assert all(place.contains(box.x0, box.y0) and place.contains(box.x1, box.y1) for box in boxes)
    low, high = axes.get_ylim()
    assert high - low >= 13 and low <= 100 * min(first)


def test_evenly():
    assert evenly(5, 12).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(evenly(27763, 1000)) == 1000


def test_recall_by_facts_of_drawn_captions():
    """By what the words say: colours of objects, and the words for an order."""
    captions = [caption.text for (caption,) in captions_of(SEED, "test", 60)]
    ranks = np.random.default_rng(0).integers(1, 4, 60)
    groups = {
        group.label: group for group in recall_by_caption(split_of("MovingShapes", [[c] for c in captions]), ranks)
    }
    orders = np.array([any(w in c for w in ("before", "then", "after", "once", "later")) for c in captions])
    assert groups["order of events"].texts <= orders.sum() and groups["order of events"].texts > 5
    for fact in ("shape", "colour", "size", "motion", "order of events", "background"):
        told, untold = groups.get(fact), groups.get(f"no {fact}")
        both = [group for group in (told, untold) if group]
        assert sum(group.texts for group in both) == 60
        found = sum(group.texts * group.recall.mean for group in both)
        assert found == pytest.approx(100 * (ranks == 1).sum())
        assert all(group.recall.low <= group.recall.mean <= group.recall.high for group in both)
    sized = [any(word in SIZES for word in caption.split()) for caption in captions]
    assert groups["size"].texts == sum(sized)


def test_recall_by_length_of_other_captions():
    """Also of MovingShapes whose captions are not those that are drawn."""
    captions = [["a b", "a b c"], ["a b c d", "a b c d e"], ["a b c d e f g h", "a b"]]
    ranks = np.array([1, 2, 1, 1, 2, 1])
    for dataset in ("custom", "MovingShapes"):
        groups = recall_by_caption(split_of(dataset, captions), ranks)
        assert [(group.label, group.texts, group.recall.mean) for group in groups] == [
            ("up to 2 words", 2, 100), ("3 to 4 words", 2, 50), ("more than 4 words", 2, 50),
        ]  # fmt: skip


def test_equal_evaluations_differ_by_nothing():
    ranks = np.array([1, 7, 3])
    assert all(row.difference == (0, 0, 0) and row.own == row.other for row in compare(ranks, ranks))
    assert most_changed(ranks, ranks, 5) == []


def test_the_largest_factor_changed_most():
    own, other = np.array([90, 1, 4, 3, 2]), np.array([100, 10, 1, 3, 1])
    assert most_changed(own, other, 3) == [1, 2, 4]
    assert [row.name for row in compare(own, other)] == ["R1", "R5", "R10", "MeanR"]
    assert compare(own, other)[-1].difference.mean == pytest.approx((own - other).mean())
