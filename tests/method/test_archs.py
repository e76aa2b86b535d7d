"""The archs beside TextDiffs and X-Pool: T-MASS and the simple poolings, against slow loops over pairs."""

import pytest
import torch
from torch.nn import functional as F

from modules.frame_pooling import SimplePooling
from modules.noise import prior_of_training, prior_samples
from modules.stochastic_text import LinearCosRadius, Prior
from tests.method.test_similarity import CAPTIONS, FRAMES, assert_close, make_features, score
from tests.small_models import small_baseline, small_tmass

OWN_TEXT = torch.tensor([3, 0, 6, 2, 1, 5, 4])
PRIORS = [Prior(), Prior("normal", 0.5)]
SIMPLE = ["avg", "topk", "attention"]


# ---------------------------------------------------------------------------------------------------------------------
# T-MASS


@pytest.fixture(scope="module", params=PRIORS, ids=["uniform01", "normal"])
def tmass(request):
    torch.manual_seed(1)
    return small_tmass(num_frames=FRAMES, prior=request.param, trials=4, seed=5, num_mha_heads=2)


@torch.no_grad()
def slow_tmass(model, captions, texts, frames, own_text):
    """(strict, published) one pair and one sample at a time: the sample with the best strict score counts."""
    strict, published = (torch.zeros(len(texts), len(frames)) for _ in range(2))
    projection = model.stochastic.std_branch.linear_proj
    for t, text in enumerate(texts):
        eps = prior_samples([captions[t]], model.seed, model.trials, model.embed_dim, model.prior)[0]
        for v, video in enumerate(frames):
            cosines = torch.stack([F.cosine_similarity(text, frame, dim=0) for frame in video])
            radius = (projection.weight @ cosines + projection.bias).exp()
            pooled = model.pool_frames(text[None], video[None])[0, 0]
            own = model.pool_frames(texts[own_text[v]][None], video[None])[0, 0]
            strict[t, v] = -2
            for sample in eps:
                moved = text + sample * radius
                found = F.cosine_similarity(moved, pooled, dim=0)
                if found > strict[t, v]:
                    strict[t, v], published[t, v] = found, F.cosine_similarity(moved, own, dim=0)
    return strict, published


def test_tmass_equals_the_slow_loop(tmass):
    texts, videos = make_features(tmass, 7, 7)
    strict, published = slow_tmass(tmass, CAPTIONS, texts, videos.frames, OWN_TEXT)
    for block_pairs in (1, 5, 49):
        scores = score(tmass, CAPTIONS, texts, videos, OWN_TEXT, block_pairs=block_pairs)
        assert_close(scores.strict, strict)
        assert_close(scores.published, published)
    assert abs(scores.strict - scores.undiffused).mean() > 0.01  # the samples are elsewhere than the text
    assert scores.pairs_diffused == 49


def test_tmass_scores_all_or_the_best_pairs_alike(tmass):
    texts, videos = make_features(tmass, 7, 7)
    every = score(tmass, CAPTIONS, texts, videos)
    some = score(tmass, CAPTIONS, texts, videos, rerank_topk=2)
    chosen = some.strict > -2
    assert 14 <= chosen.sum() < 49
    assert_close(some.strict[chosen], every.strict[chosen])


def test_tmass_scores_do_not_depend_on_the_order(tmass):
    texts, videos = make_features(tmass, 7, 5)
    order = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    plain = score(tmass, CAPTIONS, texts, videos, block_pairs=6)
    shuffled = score(tmass, [CAPTIONS[i] for i in order], texts[order], videos, block_pairs=4)
    assert_close(shuffled.strict, plain.strict[order])


def test_more_trials_score_no_lower(tmass):
    texts, videos = make_features(tmass, 7, 7)
    few = score(tmass, CAPTIONS, texts, videos).strict
    tmass.trials = 20
    many = score(tmass, CAPTIONS, texts, videos).strict
    tmass.trials = 4
    assert (many >= few - 1e-6).all() and (many > few + 1e-3).any()


def test_samples_have_the_prior():
    uniform, normal = (prior_samples(CAPTIONS, 3, 200, 64, prior) for prior in (Prior(), Prior("normal", 0.5)))
    assert uniform.min() >= 0 and uniform.max() < 1
    for samples, mean, std in ((uniform, 0.5, 12**-0.5), (normal, 0.0, 0.5)):
        assert (samples.mean().item(), samples.std().item()) == pytest.approx((mean, std), abs=0.01)
    assert torch.equal(uniform[2], prior_samples(CAPTIONS[2:3], 3, 200, 64, Prior())[0])
    assert not torch.equal(uniform, prior_samples(CAPTIONS, 4, 200, 64, Prior()))
    whole = prior_of_training(3, 9, range(8), 64, Prior())
    assert torch.equal(whole[3:6], prior_of_training(3, 9, range(3, 6), 64, Prior()))
    assert not torch.equal(whole, prior_of_training(3, 10, range(8), 64, Prior()))


def test_the_radius_starts_at_the_cosines():
    radius = LinearCosRadius(3, 5)
    text, frames = torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]])
    torch.testing.assert_close(radius(text, frames), torch.tensor([[1.0, 0.0, -1.0, 0.0, 0.0]]))


def test_tmass_has_the_published_names():
    """Strict loading needs the scalar that no computation reads; several processes need it to have no gradient."""
    model = small_tmass(num_frames=12)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("stochastic.")}
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == {
        "stochastic.std_branch.linear_proj.weight": (128, 12),
        "stochastic.std_branch.linear_proj.bias": (128,),
        "stochastic.std_branch.learnable_scalar": (1,),
    }
    assert {name.split(".")[0] for name in model.state_dict()} == {"clip", "pool_frames", "stochastic"}
    assert not model.stochastic.std_branch.learnable_scalar.requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# Simple pooling


def slow_pool(kind, text, frames, k, temperature):
    """p(v|t) of one pair, frame by frame, as X-Pool's code base defines it on unit vectors."""
    text, frames = text / text.norm(), [frame / frame.norm() for frame in frames]
    similar = [torch.dot(text, frame).item() for frame in frames]
    if kind == "avg":
        return sum(frames) / len(frames)
    if kind == "topk":
        best = sorted(range(len(frames)), key=lambda f: -similar[f])[:k]
        return sum(frames[f] for f in best) / k
    weights = torch.tensor([s / temperature for s in similar]).exp()
    return sum(w * frame for w, frame in zip(weights / weights.sum(), frames, strict=True))


@pytest.mark.parametrize("kind", SIMPLE)
def test_simple_pooling_equals_the_slow_loop(kind):
    model = small_baseline(kind, k=2, temperature=0.1)
    texts, videos = make_features(model, 7, 7)
    scores = score(model, CAPTIONS, texts, videos, OWN_TEXT)
    pooled = model.pool_frames(texts, videos.frames)
    prepared, ready = model.texts(CAPTIONS, texts, {}), model.videos(videos)
    for t in range(7):
        for v in range(7):
            expected = slow_pool(kind, texts[t], videos.frames[v], 2, 0.1)
            own = slow_pool(kind, texts[OWN_TEXT[v]], videos.frames[v], 2, 0.1)
            torch.testing.assert_close(pooled[v, t], expected, atol=1e-5, rtol=0)
            pair = model.pool(prepared, ready, torch.tensor([t]), torch.tensor([v]))[0]
            torch.testing.assert_close(pair, expected, atol=1e-5, rtol=0)
            assert scores.strict[t, v] == pytest.approx(F.cosine_similarity(texts[t], expected, dim=0).item(), abs=1e-5)
            assert scores.published[t, v] == pytest.approx(F.cosine_similarity(texts[t], own, dim=0).item(), abs=1e-5)
    assert abs(scores.strict - scores.published).max() > 0.01 or kind == "avg"  # avg does not look at the text


def test_simple_poolings_have_no_parameters():
    for kind in SIMPLE:
        assert {name.split(".")[0] for name, _ in small_baseline(kind).named_parameters()} == {"clip"}


def test_attention_between_the_mean_and_the_best_frame():
    texts, frames = torch.randn(4, 16), torch.randn(3, 6, 16)
    soft, hard = (SimplePooling("attention", temperature=t)(texts, frames) for t in (1e4, 1e-5))
    torch.testing.assert_close(soft, SimplePooling("avg")(texts, frames), atol=1e-4, rtol=0)
    torch.testing.assert_close(hard, SimplePooling("topk", k=1)(texts, frames), atol=1e-4, rtol=0)
    torch.testing.assert_close(SimplePooling("topk", k=6)(texts, frames), SimplePooling("avg")(texts, frames))


def test_half_precision_does_not_blur_attention():
    texts, frames = torch.randn(4, 64), torch.randn(3, 6, 64)
    pooling = SimplePooling("attention", temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        half = pooling(texts, frames)
    assert torch.equal(half, pooling(texts, frames))
