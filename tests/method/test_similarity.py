"""The similarity engine against a slow double loop over pairs."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.clip import EncodedVideos
from model.published_textdiffs import PublishedTextDiffs
from modules.noise import sampling_noise
from modules.similarity import Share, automatic_block, choose_candidates, similarity
from tests.precision import PRECISIONS, TOLERANCE, autocast
from tests.slow_potential import ratio
from tests.small_models import small_textdiffs, small_xpool
from utils.errors import RunError
from utils.threads import map_in_order, one_thread_per_item

CAPTIONS = [
    "a man plays a guitar",
    "a woman cooks",
    "two dogs run on the beach",
    "a man",
    "somebody cuts an onion with a knife",
    "a cat sleeps",
    "people dance",
]
FRAMES = 5


@pytest.fixture(scope="module", params=["potential", "ddpm", "ddim"])
def textdiffs(request):
    """The text potential, and the published diffusion with both samplers."""
    torch.manual_seed(1)
    settings = {
        "potential": {"steps": 10},
        "ddpm": {"published": True},
        "ddim": {"published": True, "sampler": "ddim", "sampling_steps": 2},
    }[request.param]
    return small_textdiffs(CAPTIONS, num_frames=FRAMES, seed=5, **settings)


@pytest.fixture(scope="module")
def xpool():
    return small_xpool(heads=4)


def make_features(model, num_texts, num_videos, seed=0):
    """Text features and encoded videos."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(num_texts, model.embed_dim, generator=generator)
    frames = torch.randn(num_videos, FRAMES, model.embed_dim, generator=generator)
    if model.token_shape is None:
        return texts, EncodedVideos(frames)
    return texts, EncodedVideos(frames, torch.randn(num_videos, *model.token_shape, generator=generator).bfloat16())


@torch.no_grad()
def score(model, captions, text_features, encoded, own_text=None, **options):
    texts, videos = model.texts(captions, text_features, model.tokenize(captions)), model.videos(encoded)
    return similarity(model, texts, videos, own_text, **options)


def cosine(a, b):
    return F.cosine_similarity(a, b)


@torch.no_grad()
def slow_scores(model, captions, text_features, encoded, own_text=None):
    """(strict, published, undiffused) by the definition: one pair at a time, nothing shared between pairs."""
    strict, published, undiffused = (torch.zeros(len(captions), len(encoded.frames)) for _ in range(3))
    for t, caption in enumerate(captions):
        for v, frames in enumerate(encoded.frames):
            text = diffused = text_features[t : t + 1]
            potential = 0.0
            if hasattr(model, "potential"):
                nats = ratio(model, caption, encoded.tokens[v].float())
                weight = (model.potential.read_weight * model.potential.weight).item()
                potential = weight * nats / model.clip.logit_scale.exp().item()
            if hasattr(model, "text_diffusion"):
                diffusion, process = model.text_diffusion, model.sampling_diffusion
                channels = diffusion.student.config.channels
                noise = sampling_noise([caption], model.seed, process.num_steps, diffusion.text_length, channels)
                x = diffusion.sample(
                    model.vocabulary.encode([caption], diffusion.text_length),
                    diffusion.frame_channels(frames[None]),
                    noise,
                    diffusion=process,
                    sampler=model.sampler,
                )
                diffused = text + diffusion.log_shift(x).exp()
            pooled = model.pool_frames(text, frames[None])[0]
            strict[t, v] = cosine(diffused, pooled).item() + potential
            undiffused[t, v] = cosine(text, pooled).item()
            if own_text is not None:
                own = text_features[own_text[v] : own_text[v] + 1]
                pooled = model.pool_frames(own, frames[None])[0]
                published[t, v] = cosine(diffused, pooled).item() + potential
    return strict, published, undiffused


def assert_close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_textdiffs_equals_the_slow_loop(textdiffs, precision):
    texts, videos = make_features(textdiffs, 7, 7)
    own_text = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    with autocast(precision):
        scores = score(textdiffs, CAPTIONS, texts, videos, own_text, block_pairs=5)
        strict, published, undiffused = slow_scores(textdiffs, CAPTIONS, texts, videos, own_text)
    for name, expected in (("strict", strict), ("published", published), ("undiffused", undiffused)):
        found = torch.tensor(getattr(scores, name))
        torch.testing.assert_close(found, expected, atol=TOLERANCE[precision], rtol=0)
    assert (strict - undiffused).abs().mean() > 0.01  # the diffusion does something in this model
    assert (strict - published).abs().mean() > 0.01


@torch.no_grad()
def test_what_the_diffusion_adds_depends_on_the_video(textdiffs):
    """Otherwise the loop above could not tell a wrong video from the right one."""
    texts, encoded = make_features(textdiffs, 1, 6)
    videos = textdiffs.videos(encoded)
    prepared = textdiffs.texts(CAPTIONS[:1], texts, textdiffs.tokenize(CAPTIONS[:1]))
    index = torch.zeros(6, dtype=torch.long)
    if isinstance(textdiffs, PublishedTextDiffs):
        found = textdiffs.text_embeddings(prepared, videos, index, torch.arange(6), texts[index])
    else:
        found = textdiffs.word_ratios(prepared, videos, index, torch.arange(6))
    assert len(found.round(decimals=3).unique(dim=0)) > 2


def test_xpool_equals_the_slow_loop(xpool):
    texts, videos = make_features(xpool, 7, 7)
    own_text = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    scores = score(xpool, CAPTIONS, texts, videos, own_text, block_pairs=4)
    strict, published, _ = slow_scores(xpool, CAPTIONS, texts, videos, own_text)
    assert_close(scores.strict, strict)
    assert_close(scores.published, published)
    assert_close(scores.undiffused, strict)
    for t in range(7):
        for v in range(7):
            mean = F.normalize(videos.frames[v], dim=-1).mean(0)
            assert scores.mean_pooled[t, v] == pytest.approx(
                F.cosine_similarity(texts[t], mean, dim=0).item(), abs=2e-5
            )


@pytest.mark.parametrize(("num_texts", "num_videos"), [(1, 4), (4, 1), (1, 1), (7, 3), (3, 7)])
def test_any_number_of_texts_and_videos(textdiffs, num_texts, num_videos):
    """Without one caption a video the published protocol is not defined."""
    texts, videos = make_features(textdiffs, num_texts, num_videos)
    captions = CAPTIONS[:num_texts]
    scores = score(textdiffs, captions, texts, videos, block_pairs=3)
    strict, _, undiffused = slow_scores(textdiffs, captions, texts, videos)
    assert_close(scores.strict, strict)
    assert_close(scores.undiffused, undiffused)
    assert scores.published is None
    assert scores.strict.shape == scores.mean_pooled.shape == (num_texts, num_videos)


@pytest.mark.parametrize("block_pairs", [1, 2, 6, 13, 48, 49, 1000])
def test_scores_do_not_depend_on_the_block_size(textdiffs, block_pairs):
    texts, videos = make_features(textdiffs, 7, 7)
    one_block = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7), block_pairs=49)
    blocks = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7), block_pairs=block_pairs)
    assert_close(blocks.strict, one_block.strict)
    assert_close(blocks.published, one_block.published)


def test_scores_do_not_depend_on_the_order_of_texts_and_videos(textdiffs):
    texts, videos = make_features(textdiffs, 7, 5)
    plain = score(textdiffs, CAPTIONS, texts, videos, block_pairs=6)
    text_order, video_order = torch.tensor([4, 2, 6, 0, 5, 1, 3]), torch.tensor([3, 1, 4, 0, 2])
    captions = [CAPTIONS[i] for i in text_order]
    reordered = EncodedVideos(*(None if part is None else part[video_order] for part in videos))
    shuffled = score(textdiffs, captions, texts[text_order], reordered, block_pairs=6)
    assert_close(shuffled.strict, plain.strict[text_order][:, video_order])


def test_equal_captions_score_alike(textdiffs):
    texts, videos = make_features(textdiffs, 1, 4)
    scores = score(textdiffs, CAPTIONS[:1] * 3, texts.expand(3, -1), videos, block_pairs=3).strict
    assert_close(scores[0], scores[1])
    assert_close(scores[0], scores[2])


def test_another_seed_gives_other_scores(textdiffs):
    texts, videos = make_features(textdiffs, 7, 4)
    scores = score(textdiffs, CAPTIONS, texts, videos)
    seed, textdiffs.seed = textdiffs.seed, 6
    try:
        other = score(textdiffs, CAPTIONS, texts, videos)
    finally:
        textdiffs.seed = seed
    assert abs(scores.strict - other.strict).mean() > 1e-3
    assert_close(scores.undiffused, other.undiffused)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_an_error_that_names_them(xpool, bad):
    texts, encoded = make_features(xpool, 7, 3)
    good = encoded.frames[1, 2, 17].item()
    encoded.frames[1, 2, 17] = bad
    with pytest.raises(RunError, match="frame features hold NaN or infinite values: 1 of 3, the first is video 1;"):
        score(xpool, CAPTIONS, texts, encoded)
    encoded.frames[1, 2, 17], texts[4, 0] = good, bad
    with pytest.raises(RunError, match=r"text features .* text 4 .somebody cuts an onion with a knife"):
        score(xpool, CAPTIONS, texts, encoded)


def test_scores_that_are_no_numbers_are_an_error_that_names_the_pair(textdiffs):
    texts, videos = make_features(textdiffs, 7, 3)
    if isinstance(textdiffs, PublishedTextDiffs):
        weights, bad = textdiffs.text_diffusion.linear_sims.bias, 1000.0  # its exponential is infinite
    else:
        weights, bad = textdiffs.potential.weight, float("nan")
    good = weights.data.clone()
    weights.data.fill_(bad)
    try:
        with pytest.raises(RunError, match='the score of "a man plays a guitar" with video 0 is nan'):
            score(textdiffs, CAPTIONS, texts, videos)
    finally:
        weights.data.copy_(good)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 4])
def test_undiffused_scores_need_no_pooled_video(heads):
    """The closed form equals pooling each video for each text, with weights that are not those of the start."""
    torch.manual_seed(3)
    model = small_xpool(heads=heads)
    for parameter in model.pool_frames.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    texts, encoded = make_features(model, 150, 70, seed=1)  # more than one part of either
    frames = 5 * encoded.frames
    scores = score(model, ["a caption"] * 150, 5 * texts, EncodedVideos(frames))
    pooled = model.pool_frames(5 * texts, frames)
    assert_close(scores.undiffused, F.cosine_similarity(5 * texts, pooled, dim=-1).t())


# ---------------------------------------------------------------------------------------------------------------------
# Memory: blocks that do not fit, matrices on disk, the block that is chosen


def test_a_block_that_does_not_fit_is_halved(textdiffs, monkeypatch, caplog):
    texts, videos = make_features(textdiffs, 7, 7)
    expected = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7), block_pairs=5)
    tried = []
    score_pairs = textdiffs.score_pairs

    def limited(texts, videos, text_index, video_index, own_pooled):
        tried.append(len(text_index))
        if len(text_index) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return score_pairs(texts, videos, text_index, video_index, own_pooled)

    monkeypatch.setattr(textdiffs, "score_pairs", limited)
    scores = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7), block_pairs=40)
    assert tried[:5] == [40, 20, 10, 5, 5] and max(tried[3:]) == 5  # the smaller block stays
    assert_close(scores.strict, expected.strict)
    assert_close(scores.published, expected.published)
    assert "out of memory: going on with 5 pairs at once" in caplog.text


def test_a_pair_that_does_not_fit_is_an_error(textdiffs, monkeypatch):
    def hungry(*arguments):
        torch.empty(2**60)  # what PyTorch itself says when memory does not suffice

    monkeypatch.setattr(textdiffs, "score_pairs", hungry)
    texts, videos = make_features(textdiffs, 2, 2)
    with pytest.raises(RunError, match="does not fit into memory"):
        score(textdiffs, CAPTIONS[:2], texts, videos)


def test_other_errors_are_not_taken_for_missing_memory(textdiffs, monkeypatch):
    monkeypatch.setattr(textdiffs, "score_pairs", lambda *_: torch.ones(2) @ torch.ones(3))
    texts, videos = make_features(textdiffs, 2, 2)
    with pytest.raises(RuntimeError, match="size"):
        score(textdiffs, CAPTIONS[:2], texts, videos)


def test_matrices_on_disk_are_the_same(textdiffs, tmp_path):
    texts, videos = make_features(textdiffs, 7, 7)
    in_memory = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7))
    on_disk = score(textdiffs, CAPTIONS, texts, videos, torch.arange(7), folder=tmp_path)
    for name in ("strict", "published", "undiffused", "mean_pooled"):
        matrix = getattr(on_disk, name)
        assert isinstance(matrix, np.memmap) and np.array_equal(matrix, getattr(in_memory, name))
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {7 * 7 * 4}


def test_the_block_grows_with_the_free_memory(monkeypatch):
    """A power of two of at most half of it; on a CPU also of what its cache holds."""
    for free, gpu, cpu in ((2**34, 4096, 32), (2**34 - 1, 2048, 32), (2**22, 1, 1), (2**10, 1, 1), (2**50, 8192, 32)):
        monkeypatch.setattr("modules.similarity._free_bytes", lambda device, free=free: free)
        assert automatic_block(2**21, torch.device("cuda"), 2**20) == gpu
        assert automatic_block(2**21, torch.device("cpu"), 2**20) == cpu
    monkeypatch.undo()
    assert automatic_block(1, torch.device("cpu"), 2**20) == 8192
    assert [automatic_block(1, torch.device("cpu"), pairs) for pairs in (7, 8, 100)] == [1, 2, 16]  # four blocks


# ---------------------------------------------------------------------------------------------------------------------
# Reranking


def chosen_by_definition(undiffused, topk):
    """Pairs that are among the K best of their text or of their video."""
    chosen = np.zeros(undiffused.shape, dtype=bool)
    for t, row in enumerate(undiffused):
        chosen[t, np.argsort(-row)[:topk]] = True
    for v, column in enumerate(undiffused.T):
        chosen[np.argsort(-column)[:topk], v] = True
    return chosen


@pytest.mark.parametrize(("num_texts", "num_videos", "topk"), [(7, 7, 1), (7, 7, 3), (7, 4, 2), (5, 9, 4)])
def test_reranking_diffuses_the_best_of_each_query(textdiffs, num_texts, num_videos, topk):
    texts, videos = make_features(textdiffs, num_texts, num_videos)
    own_text = torch.arange(7) if num_texts == num_videos else None
    every = score(textdiffs, CAPTIONS[:num_texts], texts, videos, own_text)
    scores = score(textdiffs, CAPTIONS[:num_texts], texts, videos, own_text, rerank_topk=topk, block_pairs=4)
    chosen = chosen_by_definition(every.undiffused, topk)
    assert scores.pairs_diffused == chosen.sum() < chosen.size
    assert np.array_equal(scores.strict == -np.inf, ~chosen)
    assert_close(scores.strict[chosen], every.strict[chosen])
    assert_close(scores.undiffused, every.undiffused)
    if own_text is not None:
        assert np.array_equal(scores.published == -np.inf, ~chosen)
        assert_close(scores.published[chosen], every.published[chosen])


@pytest.mark.parametrize("topk", [0, 5, 7, 50])
def test_reranking_the_whole_gallery_is_scoring_all_pairs(textdiffs, topk):
    texts, videos = make_features(textdiffs, 7, 5)
    every = score(textdiffs, CAPTIONS, texts, videos)
    scores = score(textdiffs, CAPTIONS, texts, videos, rerank_topk=topk)
    assert scores.first is None and scores.pairs_diffused == 35
    assert np.array_equal(scores.strict, every.strict)


def test_ties_at_the_border_are_all_candidates():
    """So the choice does not depend on the order of equal videos."""
    first = choose_candidates(np.array([[0.3, 0.1, 0.2, 0.2], [0.5, 0.5, 0.5, 0.4]], dtype=np.float32), 2)
    assert first.candidates_of_texts(slice(None)).tolist() == [[True, False, True, True], [True, True, True, False]]
    first = choose_candidates(np.array([[0.3, 0.1], [0.3, 0.2], [0.3, 0.1]], dtype=np.float32), 1)
    assert first.candidates_of_videos(slice(None)).tolist() == [[True, False], [True, True], [True, False]]


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def all_scores(model, threads, share=None):
    """The four matrices, computed with a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    texts, videos = make_features(model, 7, 7)
    with one_thread_per_item(texts.device) as workers:
        assert workers == threads
        scores = score(model, CAPTIONS, texts, videos, torch.arange(7), block_pairs=4, share=share, workers=workers)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    return [getattr(scores, name) for name in ("strict", "published", "undiffused", "mean_pooled")]


def test_any_number_of_threads_and_processes_gives_the_same_bits(textdiffs, monkeypatch):
    """The exchange between real processes is tested with test.py, in test_evaluation.py."""
    monkeypatch.setattr("modules.similarity.VIDEOS_AT_ONCE", 2)
    alone = all_scores(textdiffs, 1)
    for threads in (2, 3):
        assert all(np.array_equal(*pair) for pair in zip(all_scores(textdiffs, threads), alone, strict=True))
    for size in (2, 3):
        parts = [all_scores(textdiffs, 1, Share(rank, size)) for rank in range(size)]
        for matrices, whole in zip(zip(*parts, strict=True), alone, strict=True):
            assert np.array_equal(np.maximum.reduce(matrices), whole)


def test_threads_keep_the_order_and_pass_errors_on():
    def double(item):
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        time.sleep(0.01 * (item % 3))
        return 2 * item if item < 20 else 1 // 0

    with torch.autocast("cpu", torch.bfloat16), one_thread_per_item(torch.device("cpu")):
        assert list(map_in_order(double, range(20), 4)) == list(range(0, 40, 2))
        with pytest.raises(ZeroDivisionError):
            list(map_in_order(double, range(30), 4))


class Casts(TorchDispatchMode):
    """Counts the casts of the thread that it is entered in."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


def test_threads_cast_each_weight_once():
    """Autocast forgets in all threads what it has cast when one of them leaves it."""
    layer, rows = nn.Linear(8, 8), torch.ones(2, 8, dtype=torch.bfloat16)

    def casts(item):
        with Casts() as seen:
            layer(rows)
        return seen.count

    with torch.autocast("cpu", torch.bfloat16), one_thread_per_item(torch.device("cpu")):
        counts = list(map_in_order(casts, range(10), 2))
        assert 2 <= sum(counts) <= 4  # weight and bias, by one thread or by both


def test_processes_share_the_work(textdiffs):
    """Each pair is scored by one process, and every process has a part."""
    texts, videos = make_features(textdiffs, 7, 7)
    parts = [score(textdiffs, CAPTIONS, texts, videos, block_pairs=4, share=Share(rank, 3)).strict for rank in range(3)]
    scored = np.stack([part > -np.inf for part in parts])
    assert (scored.sum(0) == 1).all()
    assert scored.sum((1, 2)).min() >= 16
