"""What a pre-training of the Diffusion-LM is made of, and what it leaves: batches, average, words, files."""

import json

import pytest
import torch

from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.training import EndlessBatches, ExponentialAverage, recovered, split_held_out
from diffusion_lm.vocabulary import END, PAD, START, UNK, Vocabulary
from tests.small_diffusion_lm import SMALL, randn, write_folder
from utils.errors import InputError


@pytest.fixture
def folder(denoiser, tmp_path):
    return write_folder(tmp_path, denoiser)


@pytest.mark.parametrize("kind", ["num_frames", "video_width"])
def test_layers_that_see_a_video_keep_their_values_when_a_diffusion_lm_is_filled_in(denoiser, folder, kind):
    seeing = Denoiser(SMALL, 11, **{kind: 5})
    before = {name: tensor.clone() for name, tensor in seeing.state_dict().items()}
    weights.load(folder).fill(seeing)
    own, filled = denoiser.state_dict(), seeing.state_dict()
    assert own.keys() < filled.keys()
    for name, tensor in filled.items():
        assert torch.equal(tensor, own[name] if name in own else before[name]), name


# -- training --------------------------------------------------------------------------------------------------------


def test_average_follows_the_formula():
    """EMA_n = r_n EMA_{n-1} + (1 - r_n) w_n with r_n = min(rate, (1 + n) / (10 + n)), from the first weights on."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    average = ExponentialAverage(model, 0.5)
    expected = 3.0
    for n in range(1, 20):
        model.weight.data.fill_(n * n)
        average.update_parameters(model)
        rate = min(0.5, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * n * n
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_average_keeps_the_word_table_tied(denoiser):
    average = ExponentialAverage(denoiser, 0.9).module
    assert average.lm_head.weight is average.word_embedding.weight


def test_held_out_captions_do_not_occur_in_training():
    captions = [f"caption {i % 300}" for i in range(1000)]
    train, held_out = split_held_out(captions, 0.25, seed=3)
    assert len(held_out) == len(set(held_out)) == 75
    assert not set(train) & set(held_out)
    assert len(train) == sum(caption not in held_out for caption in captions)
    assert (train, held_out) == split_held_out(captions, 0.25, seed=3)
    assert held_out != split_held_out(captions, 0.25, seed=4)[1]


def test_at_least_fifty_captions_are_held_out():
    captions = [f"caption {i}" for i in range(120)]
    assert len(split_held_out(captions, 0.01, seed=0)[1]) == 50
    with pytest.raises(InputError, match="90 distinct captions"):
        split_held_out(captions[:90], 0.01, seed=0)


def test_batches_show_every_caption_once_an_epoch():
    batches = EndlessBatches(10, 4, torch.Generator().manual_seed(0))
    order = torch.cat([next(batches) for _ in range(10)]).reshape(4, 10)
    assert (order.sort(-1).values == torch.arange(10)).all()
    assert not (order[0] == order[1]).all()


@torch.no_grad()
def test_recovered_words_of_a_perfect_denoiser(denoiser, diffusion):
    """A network that answers with the word embeddings recovers every word, one that answers PAD only the PADs."""
    denoiser.word_embedding.weight.copy_(torch.nn.functional.one_hot(torch.arange(11) % 4, 4) * 1.0)
    denoiser.word_embedding.weight.copy_(torch.nn.functional.normalize(randn(11, 4), dim=-1))
    ids = torch.tensor([[0, 5, 1, 3], [0, 8, 9, 1]])
    denoiser.forward = lambda x, times: denoiser.word_embedding(ids)
    assert recovered(denoiser, diffusion, ids, torch.Generator()).all()
    denoiser.forward = lambda x, times: denoiser.word_embedding(torch.full_like(ids, PAD))
    assert torch.equal(recovered(denoiser, diffusion, ids, torch.Generator()), ids == PAD)


# -- vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_order_and_rare_words():
    captions = ["a cat and a dog", "a dog runs", "the cat PAD", "bird"]
    vocabulary = Vocabulary.from_captions(captions, min_count=2)
    assert vocabulary.token_to_id == {"START": 0, "END": 1, "UNK": 2, "PAD": 3, "a": 4, "cat": 5, "dog": 6}
    assert vocabulary.unknown_share(["a bird", "cat dog"]) == 0.25


def test_encoding_pads_cuts_and_decodes():
    vocabulary = Vocabulary.from_captions(["a cat runs"])
    a, cat, runs = (vocabulary.token_to_id[word] for word in ("a", "cat", "runs"))
    ids = vocabulary.encode(["a cat runs", "a bird", "a cat runs runs runs", ""], 5)
    assert ids.tolist() == [
        [START, a, cat, runs, END],
        [START, a, UNK, END, PAD],
        [START, a, cat, runs, runs],
        [START, END, PAD, PAD, PAD],
    ]
    assert [vocabulary.decode(row) for row in ids.tolist()] == ["a cat runs", "a UNK", "a cat runs runs", ""]


@pytest.mark.parametrize("bad", [{"START": 0}, {"START": 0, "END": 1, "UNK": 2, "PAD": 3, "cat": 5}])
def test_vocabulary_with_wrong_ids_is_refused(bad):
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary(bad)


# -- files -----------------------------------------------------------------------------------------------------------


def test_folder_round_trip_is_bit_identical(denoiser, folder):
    assert {path.name for path in folder.iterdir()} == {
        "ema_0.9999_001234.pt",
        "random_emb.torch",
        "training_args.json",
        "vocab.json",
    }
    loaded = weights.load(folder)
    assert loaded.denoiser_config == SMALL
    assert torch.equal(loaded.random_table, randn(11, 4))
    rebuilt = loaded.build().state_dict()
    assert rebuilt.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in denoiser.state_dict().items())


def test_a_new_run_replaces_the_old_weights(denoiser, folder):
    vocabulary = Vocabulary.load(folder / "vocab.json")
    args = json.loads((folder / "training_args.json").read_text()) | {"steps": 7}
    weights.save(folder, denoiser.state_dict(), randn(11, 4), vocabulary, args)
    assert [path.name for path in folder.glob("*.pt")] == ["ema_0.9999_000007.pt"]


@pytest.mark.parametrize("name", ["random_emb.torch", "training_args.json", "vocab.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        weights.load(folder)


@pytest.mark.parametrize("name", ["ema_0.9999_001234.pt", "random_emb.torch", "training_args.json", "vocab.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_named_in_one_line(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\x80\x04garbage\xff" * 9}[damage])
    with pytest.raises(InputError, match=name) as error:
        weights.load(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        weights.load(tmp_path)


def test_a_vocabulary_of_another_model_is_refused(folder):
    Vocabulary.from_captions(["two words"]).save(folder / "vocab.json")
    with pytest.raises(InputError, match=r"vocab\.json"):
        weights.load(folder)


def test_published_folder_loads(conformance_dir, tmp_path):
    """The names, shapes and hyper-parameters of the published folder, with random values."""
    published = json.loads((conformance_dir / "published_diffusion_lm.json").read_text())
    vocabulary = (conformance_dir / "published_vocab.json").read_text()
    state = {
        name: torch.arange(shape[1])[None] if dtype == "int64" else 0.02 * randn(*shape, seed=seed)
        for seed, (name, (shape, dtype)) in enumerate(published["state_dict"].items())
    }
    state["lm_head.weight"] = state["word_embedding.weight"]
    (weights_name,) = (name for name in published["files"] if name.endswith(".pt"))
    torch.save(state, tmp_path / weights_name)
    torch.save({"weight": randn(*state["lm_head.weight"].shape)}, tmp_path / "random_emb.torch")
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "training_args.json").write_text(json.dumps(published["training_args"]))
    loaded = weights.load(tmp_path)
    assert loaded.denoiser_config.num_attention_heads == 12
    assert loaded.denoiser_config == DenoiserConfig()
    rebuilt = loaded.build().state_dict()
    assert rebuilt.keys() == state.keys() - {"position_ids"}
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in state.items() if name != "position_ids")
