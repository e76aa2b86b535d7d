"""A model in Python: docs/PYTHON.md as it is, scores of test.py, and folders that travel."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from config import Config
from tests import precision
from tests.checkpoint_files import saved
from tests.conftest import ROOT
from tests.made_up import make_msrvtt
from tests.method.test_encoders import a_folder
from tests.training_runs import run_forked
from textdiffs import TextVideoModel, load_model
from utils.errors import InputError

CAPTIONS = ["a man is cooking", "two dogs play", "a car drives by"]
ARCHS = [
    "--arch=clip_stochastic", "--arch=clip_stochastic --recipe=published", "--arch=clip_tmass",
    "--arch=clip_transformer", "--arch=clip_wti", "--arch=clip_baseline",
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The made-up data set, in a folder with data and videos."""
    root = tmp_path_factory.mktemp("python")
    make_msrvtt(root)
    return root


@pytest.fixture(scope="module")
def files(videos):
    return sorted((videos / "videos").glob("*.mp4"))[:4]


@pytest.fixture
def model_of(parse, tmp_path):
    """A saved run of flags, with weights that differ from those at the start."""

    def make(line):
        saved(parse, tmp_path / "run" / "model_best.pth", line)
        return tmp_path / "run"

    return make


@pytest.mark.parametrize("line", ARCHS)
def test_a_saved_folder_scores_as_the_run(model_of, files, tmp_path, line):
    run = load_model(model_of(line), device="cpu", precision="fp32")
    run.save_pretrained(tmp_path / "saved")
    saved = shutil.copytree(tmp_path / "saved", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "saved")
    again = load_model(saved, device="cpu", precision="fp32")
    rankings = []
    for model in (run, again):
        texts, videos = model.embed_texts(CAPTIONS), model.embed_videos(files)
        assert texts.features.shape == (3, model.model.embed_dim)
        assert videos.frames.shape == (4, model.config.num_frames, model.model.embed_dim)
        rankings.append(model.rank(texts, videos))
    assert np.array_equal(rankings[0].scores, rankings[1].scores)
    assert rankings[0].scores.shape == (3, 4) and np.ptp(rankings[0].scores) > 0
    best = rankings[0].scores.argmax(1)
    assert np.array_equal(rankings[0].videos_of_texts[:, 0], best)
    assert rankings[0].texts_of_videos.shape == (4, 3)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "tokenizer", "README.md"}


def test_embeddings_are_joined(model_of, files):
    model = load_model(model_of("--arch=clip_stochastic"), device="cpu", precision="fp32")
    texts, whole = model.embed_texts(CAPTIONS), model.embed_videos(files)
    joined = model.embed_videos(files[:1]) + model.embed_videos(files[1:])
    assert len(joined) == 4 and joined.names == whole.names
    torch.testing.assert_close(joined.frames, whole.frames, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.rank(texts, joined).scores, model.rank(texts, whole).scores, atol=1e-2)
    twice = model.embed_videos([files[0], files[0]])
    assert torch.equal(twice.frames[0], twice.frames[1])


def test_photographs_are_videos_of_one_frame(model_of, tmp_path):
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    model = load_model(model_of("--arch=clip_baseline"), device="cpu", precision="fp32")
    assert len(model.embed_videos([tmp_path / "photo.png"])) == 1


def test_an_encoder_as_it_is(files, tmp_path):
    a_folder(tmp_path)
    model = load_model(clip_path=str(tmp_path), device="cpu", precision="fp32")
    model.save_pretrained(tmp_path / "saved")
    again = TextVideoModel.from_pretrained(tmp_path / "saved", device="cpu", precision="fp32")
    scores = [m.rank(m.embed_texts(CAPTIONS), m.embed_videos(files)).scores for m in (model, again)]
    assert np.array_equal(*scores)


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A run of train.py, and the scores that test.py saves of it."""
    common = [
        "--dataset_name=MSRVTT", f"--data_dir={videos / 'data'}", f"--videos_dir={videos / 'videos'}", "--gpu=cpu",
        f"--output_dir={videos / 'outputs'}", "--datetime=run", "--num_workers=0", precision.stated(),
    ]  # fmt: skip
    training = ["--arch=clip_transformer", "--clip_arch=tiny", "--num_frames=3", "--batch_size=4", "--num_epochs=1"]
    done = run_forked("train.py", *common, *training)
    assert done.returncode == 0, done.stderr
    done = run_forked("test.py", *common, "--load_epoch=0", f"--save_sims={videos / 'sims.npz'}")
    assert done.returncode == 0, done.stderr
    return videos / "outputs" / "exp" / "run"


def test_scores_are_those_of_the_program(trained, videos):
    from datasets.annotations import load_split

    split = load_split("MSRVTT", "test", videos / "data" / "MSRVTT", videos / "videos")
    model = load_model(trained, device="cpu", precision=precision.chosen)
    ranking = model.rank(
        model.embed_texts(split.captions), model.embed_videos([segment.path for segment in split.segments])
    )
    saved = np.load(videos / "sims.npz")
    np.testing.assert_allclose(ranking.scores, saved["strict"], atol=1e-5 if precision.chosen == "fp32" else 2e-2)


def test_the_card_tells_what_the_results_tell(trained, tmp_path):
    card = ModelCard.load(trained / "README.md")
    assert card.data.to_dict() == {"library_name": "textdiffs", "license": "mit", "tags": ["text-video-retrieval"]}
    results = json.loads((trained / "results.json").read_text())
    for row in results["results"]:
        told = f"{row['metric']}, {row['protocol']}, {row['queries']} x {row['gallery']} | {row['R1']:.1f} |"
        assert told in card.text or row["dsl"]
    for told in ("clip_transformer", "videos of MSRVTT with", "seed 24", "val split"):
        assert told in card.text
    load_model(trained, device="cpu").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == (trained / "README.md").read_text()


def test_the_page_runs_as_it_is(trained, files, tmp_path, monkeypatch, capsys):
    """docs/PYTHON.md, where a run and three files have the names that it uses."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "PYTHON.md").read_text(), re.DOTALL)
    shutil.copytree(trained, tmp_path / "outputs" / "demo" / "textdiffs")
    for name, file in zip("abc", files, strict=False):
        shutil.copy(file, tmp_path / f"{name}.mp4")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/PYTHON.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(name in lines[0] for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert load_model("my-model").config.arch == "clip_transformer"


def damaged(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def another_config(folder):
    (folder / "config.json").write_text('{"model_type": "clip"}')


def without_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, "model.safetensors cannot be read"),
        (without_weights, "it needs config.json and model.safetensors"),
        (another_config, "config.json"),
        (without_tokenizer, "tokenizer"),
    ],
)
def test_bad_folders_are_named_in_one_line(model_of, tmp_path, spoil, said):
    load_model(model_of("--arch=clip_baseline"), device="cpu").save_pretrained(tmp_path / "saved")
    spoil(tmp_path / "saved")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "saved", device="cpu")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_bad_input_is_named_in_one_line(model_of, files, tmp_path, monkeypatch):
    model = load_model(model_of("--arch=clip_baseline"), device="cpu")
    (tmp_path / "text.mp4").write_text("no video")
    for function, argument, said in (
        (model.embed_texts, [], "is empty"),
        (model.embed_texts, "a dog", "a list of texts is expected"),
        (model.embed_videos, [], "is empty"),
        (model.embed_videos, str(files[0]), "a list of videos is expected"),
        (model.embed_videos, [files[0], tmp_path / "none.mp4"], "none.mp4"),
        (model.embed_videos, [tmp_path / "text.mp4"], "text.mp4"),
        (load_model, "nobody/no-such-model", "nobody/no-such-model"),
        (load_model, tmp_path, "it needs config.json"),
    ):
        with pytest.raises(InputError) as caught:
            function(argument)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_loading_leaves_the_random_numbers_of_others(model_of):
    folder = model_of("--arch=clip_stochastic")
    torch.manual_seed(3)
    load_model(folder, device="cpu")
    found = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(1))


def test_a_device_that_is_not_there(model_of):
    folder = model_of("--arch=clip_baseline")
    with pytest.raises(InputError, match="--gpu=x"):
        load_model(folder, device="x")
    assert Config.parse([]).gpu is None
