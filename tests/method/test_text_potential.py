"""The text potential and the encoder of the videos that it reads. Scores of all pairs are in test_similarity.py, its
training in test_training_step.py."""

import numpy as np
import pytest
import torch

from config import Config
from diffusion_lm.vocabulary import END, PAD, START
from evaluation.embeddings import new_tokens
from model.clip import EncodedVideos
from model.factory import create_model
from model.textdiffs import TextDiffs
from model.xpool import XPool
from modules.mixing import best_weight
from modules.similarity import similarity
from modules.text_potential import is_word
from modules.video_encoder import VideoEncoder
from tests.made_up import CAPTIONS
from tests.slow_potential import log_p, noised, ratio
from tests.small_models import small_textdiffs
from utils.errors import InputError

FRAMES, LENGTH, STEPS = 3, 9, 10
SIZES = f"--clip_arch=tiny --num_frames={FRAMES} --diffusion_steps={STEPS} --diffusion_text_len={LENGTH}"


@pytest.fixture
def untrained(teacher):
    """As train.py begins, with the vocabulary of the Diffusion-LM."""
    torch.manual_seed(1)
    return create_model(Config.parse([*SIZES.split(), f"--diffusion_lm={teacher}"])).eval()


@pytest.fixture(scope="module")
def model():
    """With cross-attention that changes words, as a trained one has."""
    torch.manual_seed(1)
    return small_textdiffs(CAPTIONS, num_frames=FRAMES, steps=STEPS, length=LENGTH)


@torch.no_grad()
def encoded(model: TextDiffs):
    """Texts and videos of random features, ready to be scored."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(CAPTIONS), model.embed_dim, generator=generator)
    frames = torch.randn(5, FRAMES, model.embed_dim, generator=generator)
    tokens = torch.randn(5, *model.token_shape, generator=generator).bfloat16()
    texts = model.texts(CAPTIONS, features, model.tokenize(CAPTIONS))
    return texts, model.videos(EncodedVideos(frames, tokens))


def all_pairs(texts, videos):
    return torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(videos))).unbind(1)


# before training


@torch.no_grad()
def test_before_training_the_score_is_that_of_xpool(untrained):
    """Whatever the weight of the potential: all ratios are 0."""
    untrained.potential.weight.fill_(50.0)
    texts, videos = encoded(untrained)
    scores = untrained.score_pairs(texts, videos, *all_pairs(texts, videos))
    expected = XPool.score_pairs(untrained, texts, videos, *all_pairs(texts, videos))
    torch.testing.assert_close(scores.strict, expected.strict, atol=1e-4, rtol=0)


@torch.no_grad()
def test_before_training_the_video_says_nothing_of_the_words(untrained):
    texts, videos = encoded(untrained)
    potential = untrained.potential
    noise = torch.randn(2, len(CAPTIONS), LENGTH, 16)
    found = potential.noised(texts.word_ids, torch.tensor([0, 3, 6, 9]), *noise)
    video = videos.tokens[: len(CAPTIONS)].float()
    torch.testing.assert_close(potential.log_p(found, video), potential.log_p(found), atol=1e-5, rtol=1e-5)
    assert potential.log_p(found).sum() < -5  # these are no zeros


def test_before_training_the_weight_of_the_ratio_is_one(untrained):
    assert untrained.potential.weight.item() == 1 and untrained.potential.weight.requires_grad


def test_the_student_can_learn_from_the_video_from_the_first_step(untrained):
    """The outputs of the cross-attention are 0, but not their gradients."""
    potential = untrained.potential.train()
    video = torch.randn(2, *untrained.token_shape)
    found = potential.noised(
        untrained.tokenize(CAPTIONS[:2])["word_ids"], torch.tensor([3, 7]), *torch.randn(2, 2, LENGTH, 16)
    )
    potential.log_p(found, video).sum().backward()
    assert all(attention.out.weight.grad.abs().max() > 0 for attention in potential.student.video_attention)


# likelihoods


def test_start_and_padding_are_no_words():
    ids = torch.tensor([[START, 4, 5, END, PAD, PAD], [START, END, PAD, PAD, PAD, PAD]])
    assert is_word(ids).tolist() == [[False, True, True, True, False, False], [False, True, *[False] * 4]]


@torch.no_grad()
@pytest.mark.parametrize("cut", [None, 7])
def test_likelihoods_are_those_of_the_formula(model, cut):
    """Word by word, with a t for each caption; with word ids of all the length or up to the longest caption."""
    potential = model.potential
    word_ids = model.tokenize(CAPTIONS)["word_ids"][:, :cut]
    t, noise = torch.tensor([9, 0, 5, 7]), torch.randn(2, len(CAPTIONS), LENGTH, 16)
    tokens = torch.randn(len(CAPTIONS), *model.token_shape)
    found = potential.noised(word_ids, t, *noise)
    with_video, without = potential.log_p(found, tokens), potential.log_p(found)
    assert with_video.shape == without.shape == word_ids.shape
    for row, ids in enumerate(word_ids.tolist()):
        x_t = noised(model, ids, int(t[row]), *noise[:, row])
        torch.testing.assert_close(found.x_t[row], x_t, atol=1e-5, rtol=1e-5)
        counted, time = is_word(word_ids[row]), t[row].item() * 1000 / STEPS
        for values, expected in (
            (with_video, log_p(potential.student, ids, x_t, time, tokens[row])),
            (without, log_p(potential.student, ids, x_t, time)),
        ):
            assert values[row][counted].tolist() == pytest.approx(expected, abs=1e-4)
            assert not values[row][~counted].any()
    assert (with_video - without).abs().max() > 0.3


@torch.no_grad()
def test_noise_is_put_on_words_that_do_not_move(model):
    """x_t is a function of seed and caption, whatever training makes of the word scores."""
    potential, word_ids = model.potential, model.tokenize(CAPTIONS)["word_ids"]
    t, noise = torch.tensor([9, 0, 5, 7]), torch.randn(2, len(CAPTIONS), LENGTH, 16)
    before, table = potential.noised(word_ids, t, *noise), potential.student.word_embedding.weight
    scores, moved = potential.log_p(before), table + 1
    kept, table.data = table.data, moved
    assert torch.equal(potential.noised(word_ids, t, *noise).x_t, before.x_t)
    assert not torch.equal(potential.log_p(before), scores)
    table.data = kept
    assert "word_table" in potential.state_dict() and "word_table" not in dict(potential.named_parameters())


@torch.no_grad()
def test_ratios_are_those_of_the_formula(model):
    texts, videos = encoded(model)
    found = model.word_ratios(texts, videos, *all_pairs(texts, videos)).sum(1).view(len(texts), len(videos))
    for text, caption in enumerate(CAPTIONS):
        for video in range(len(videos)):
            expected = ratio(model, caption, videos.tokens[video].float())
            assert found[text, video].item() == pytest.approx(expected, abs=1e-4)
    assert found.std() > 0.5


@torch.no_grad()
def test_a_caption_of_unknown_words_or_none_has_a_ratio(model):
    captions = ["", "qwertz", " ".join(["guitar"] * 50)]
    features = torch.randn(3, model.embed_dim)
    texts = model.texts(captions, features, model.tokenize(captions))
    videos = encoded(model)[1]
    found = model.word_ratios(texts, videos, *all_pairs(texts, videos))
    assert found.isfinite().all() and (found[:5] != 0).sum(1).tolist() == [1] * 5  # of "" the end alone


@torch.no_grad()
def test_a_score_depends_on_its_pair_alone(model):
    """Not on the other pairs of the block, nor on other texts and videos of the split."""
    texts, videos = encoded(model)
    text_index, video_index = all_pairs(texts, videos)
    together = model.score_pairs(texts, videos, text_index, video_index).strict
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    shuffled = model.score_pairs(texts, videos, text_index[order], video_index[order]).strict
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)
    for text, video in ((0, 4), (3, 1)):
        caption = [CAPTIONS[text]]
        one = model.texts(caption, texts.features[text : text + 1], model.tokenize(caption))
        of = EncodedVideos(videos.features[video : video + 1], videos.tokens[video : video + 1])
        alone = model.score_pairs(one, model.videos(of), *torch.zeros(2, 1, dtype=torch.long)).strict
        torch.testing.assert_close(alone, together.view(-1, len(videos))[text, video : video + 1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_score_is_that_of_xpool_and_the_weighted_ratio(model):
    """Under both protocols: the weights of training and test times the nats, in logits."""
    texts, videos = encoded(model)
    pairs, before = all_pairs(texts, videos), model.potential.weight.item()
    ratios = model.word_ratios(texts, videos, *pairs).sum(1)
    own_pooled = model.pool(texts, videos, torch.tensor([0, 1, 2, 3, 0]), torch.arange(5))
    base = XPool.score_pairs(model, texts, videos, *pairs, own_pooled)
    for weight in (0.0, 2.0):
        model.potential.weight.fill_(weight)
        model.potential.read_weight.fill_(1.5)
        scores = model.score_pairs(texts, videos, *pairs, own_pooled)
        for found, of_xpool in ((scores.strict, base.strict), (scores.published, base.published)):
            nats = (found - of_xpool) * model.clip.logit_scale.exp()
            torch.testing.assert_close(nats, 1.5 * weight * ratios, atol=1e-4, rtol=1e-4)
    model.potential.weight.fill_(before)
    model.potential.read_weight.fill_(1.0)


@torch.no_grad()
def test_held_out_pairs_choose_the_weight_of_a_test(model):
    """The scores that are mixed are those that the model has afterwards, also where few pairs were scored."""
    texts, videos = encoded(model)
    own_text = torch.tensor([0, 1, 2, 3, 0])
    unmixed = similarity(model, texts, videos)
    owner = (3 * unmixed.strict - 2 * unmixed.undiffused).argmax(1)  # who deserves three times the weight
    for topk in (0, 2):
        model.potential.read_weight.fill_(1.0)
        scores = similarity(model, texts, videos, own_text, rerank_topk=topk)
        before, chosen = scores.strict.copy(), best_weight(scores.undiffused, scores.strict, owner)
        model.mix(scores, owner)
        assert model.potential.read_weight.item() == pytest.approx(chosen)
        scored = np.isfinite(before)
        assert np.abs(scores.strict[scored] - before[scored]).max() > 1e-4
        after = similarity(model, texts, videos, own_text, rerank_topk=topk)
        np.testing.assert_allclose(scores.strict, after.strict, atol=1e-5)
        np.testing.assert_allclose(scores.published, after.published, atol=1e-5)
    model.potential.read_weight.fill_(1.0)


# the encoder of the videos


@torch.no_grad()
@pytest.mark.parametrize(("side", "grid"), [(4, 4), (7, 7), (14, 7)])
def test_patches_that_lie_together_are_averaged(side, grid):
    """14 x 14 are those of ViT-B/16, 7 x 7 those of ViT-B/32, 4 x 4 those of the tiny CLIP."""
    encoder = VideoEncoder(6, 2, side**2).eval()
    assert encoder.tokens == (2 * grid**2, 128)
    patches = torch.randn(3, 2, side, side, 6)
    each = side // grid
    averaged = torch.stack(
        [
            torch.stack(
                [patches[:, :, each * y :, each * x :][:, :, :each, :each].mean((2, 3)) for x in range(grid)], 2
            )
            for y in range(grid)
        ],
        2,
    )  # (N, F, grid, grid, W)
    found = encoder(patches.flatten(2, 3))
    assert found.shape == (3, 2 * grid**2, 128)
    small = VideoEncoder(6, 2, grid**2).eval()
    small.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(found, small(averaged.flatten(2, 3)), atol=1e-5, rtol=1e-5)


def test_moments_hold_the_velocity_of_what_is_attended_to():
    """Attention to the one patch of each frame where a thing is, as it moves right and down, or back."""
    encoder = VideoEncoder(6, 4, 16)
    assert encoder.moments.shape == (4 * 16, 8)
    for path, sign in (((0, 1, 2, 3), 1), ((3, 2, 1, 0), -1)):
        attended = torch.tensor([frame * 16 + 4 * place + place for frame, place in enumerate(path)])
        row, column, time, time_row, time_column = encoder.moments[attended].mean(0)[:5]
        for place, product in ((row, time_row), (column, time_column)):
            covariance = product - time * place
            assert covariance.item() == pytest.approx(sign * 5 / 9)  # the variance of -1, -1/3, 1/3, 1


@torch.no_grad()
def test_tokens_tell_frames_and_places_apart_and_no_other_video():
    encoder = VideoEncoder(6, 2, 16).eval()
    patches = torch.randn(4, 2, 16, 6)
    found = encoder(patches)
    torch.testing.assert_close(encoder(patches[2:3])[0], found[2], atol=1e-5, rtol=1e-5)
    for other in (patches.flip(1), patches.flip(2)):
        change = encoder(other).sort(1).values - found.sort(1).values
        assert change.abs().mean() > 0.01  # more than another order of the tokens


@torch.no_grad()
def test_tokens_are_read_from_the_patches_of_clip(model):
    frames = torch.randint(256, (2, FRAMES, 3, 64, 64), dtype=torch.uint8)
    found = model.encode_videos(frames)
    for video in range(2):
        seen = model.clip.vision_model(pixel_values=model.pixels(frames[video])).last_hidden_state
        tokens = model.potential.video_encoder(seen[None, :, 1:])  # without the class token
        torch.testing.assert_close(found.tokens[video], tokens[0], atol=1e-4, rtol=1e-4)
        projected = model.clip.get_image_features(model.pixels(frames[video])).pooler_output
        torch.testing.assert_close(found.frames[video], projected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_tokens_in_a_file_give_the_same_scores(model, tmp_path):
    """And the file goes with them."""
    texts, videos = encoded(model)
    kept = [new_tokens(len(videos), model.token_shape, folder) for folder in (None, tmp_path / "outputs")]
    scores = []
    for tokens in kept:
        assert tokens.dtype == torch.bfloat16 and tokens.device.type == "cpu"
        for video in (3, 0, 4, 1, 2):
            tokens[torch.tensor([video])] = videos.tokens[video : video + 1]
        scores.append(
            similarity(model, texts, model.videos(EncodedVideos(videos.features, tokens)), block_pairs=3).strict
        )
    assert (scores[0] == scores[1]).all()
    assert not any((tmp_path / "outputs").iterdir())


def test_a_folder_of_tokens_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--output_dir=.*file/below cannot be written"):
        new_tokens(2, (3, 4), tmp_path / "file" / "below")
