"""search.py: an index that follows a folder of videos, and rankings that are those of the model."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import search as entry_point
from config import Config, SearchConfig
from datasets.moving_shapes import render, scene_of
from datasets.transforms import test_transform as evaluation_transform
from datasets.video import read_frames
from model.clip import EncodedVideos
from model.retrieval import join_rows
from tests.made_up import CAPTIONS, call, write_video
from tests.made_up import run_program as run_in_a_process
from tests.precision import DTYPES, PRECISIONS, TOLERANCE, assert_near, autocast, stated
from tests.small_models import small_baseline, small_textdiffs, small_tmass, small_xpool
from trainer.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.program import run_program
from video_index import encoding, first_stage, store
from video_index.answers import GREY, clock, thumbnail
from video_index.files import parts_of
from video_index.first_stage import FirstStage
from video_index.searching import Hit, Searcher
from video_index.store import Head, IndexedClip, Store, read_head

FRAMES, WIDTH, VIDEOS = 5, 128, 6
SENTENCES = ["a red circle moves left", "a green star", "two blue squares", "a man plays a guitar"]


# ---------------------------------------------------------------------------------------------------------------------
# Videos, models, and the program in this process


def draw(path, number):
    """A MovingShapes video."""
    write_video(path, render(scene_of(3, "test", number)))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Videos that no test changes."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(VIDEOS):
        draw(folder / f"clip{number}.mp4", number)
    return folder


@pytest.fixture
def videos(drawn, tmp_path):
    """A folder of videos of one's own, one of them in a subfolder."""
    shutil.copytree(drawn, tmp_path / "videos")
    (tmp_path / "videos" / "deeper").mkdir()
    (tmp_path / "videos" / "clip0.mp4").rename(tmp_path / "videos" / "deeper" / "clip0.mp4")
    return tmp_path / "videos"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of TextDiffs, `one` and `two`, that differ in their weights alone; and the model of `one`."""
    folder = tmp_path_factory.mktemp("outputs")
    sizes = ["--clip_arch=tiny", f"--num_frames={FRAMES}", "--diffusion_steps=3", "--diffusion_text_len=8"]
    models = []
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        models.append(small_textdiffs(CAPTIONS + SENTENCES, num_frames=FRAMES))
        (folder / "exp" / name).mkdir(parents=True)
        save_checkpoint(folder / "exp" / name / "model_best.pth", models[-1], Config.parse(sizes), 1, 1)
    return SimpleNamespace(folder=folder, one=models[0])


@pytest.fixture
def search(capfd, monkeypatch):
    """The program in this process: exit code, standard output, standard error."""

    def run(*arguments, stdin=""):
        if arguments[:1] in (("index",), ("query",)):
            arguments = (arguments[0], "--gpu=cpu", stated(), *arguments[1:])  # the same on every machine
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code, out, err = call("search.py", list(map(str, arguments)), monkeypatch, capfd)
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def checkpoint(runs, name="one"):
    return [f"--output_dir={runs.folder}", f"--datetime={name}", "--gpu=cpu", "--num_workers=0"]


@pytest.fixture
def made(search, runs, tmp_path):
    """Index a folder with the model of `one`; returns the function, which gives what was printed."""

    def index(folder, *flags):
        done = search("index", f"--videos_dir={folder}", f"--index={tmp_path / 'index'}", *checkpoint(runs), *flags)
        assert done.code == 0, done.err
        return done.out

    return index


def answers(done):
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def opened(folder):
    return Store(folder, read_head(folder))


def features_by_file(folder):
    """Frame features of each clip, by name of the file and part."""
    held = opened(folder)
    return {
        (os.path.basename(clip.file), clip.part): held.frames([place])[0]
        for clip, place in held.clips.values()
        if place.row is not None
    }


@torch.no_grad()
def slow_encoded(model, path, start=None, end=None):
    """What is encoded of a video (1, ...), on its own."""
    frames = torch.from_numpy(read_frames(path, FRAMES, start=start, end=end)).permute(0, 3, 1, 2)
    return in_halves(model.encode_videos(evaluation_transform(64)(frames)[None]))


def slow_features(*video):
    """Its frame features (F, D)."""
    return slow_encoded(*video).frames[0]


def in_halves(encoded):
    """Tokens as an index and an evaluation keep them."""
    return encoded if encoded.tokens is None else encoded._replace(tokens=encoded.tokens.bfloat16())


# ---------------------------------------------------------------------------------------------------------------------
# The index follows the folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_those_of_an_evaluation(made, runs, videos, tmp_path, precision):
    assert f"{VIDEOS} clips encoded" in made(videos, f"--precision={precision}")
    found = features_by_file(tmp_path / "index")
    assert len(found) == VIDEOS
    for path in videos.rglob("*.mp4"):
        assert_near(found[path.name, 0], slow_features(runs.one, path), precision)


def test_only_what_is_new_or_has_changed_is_encoded(made, runs, videos, tmp_path):
    made(videos, "--precision=fp32")
    before = features_by_file(tmp_path / "index")
    assert "\n0 clips encoded" in made(videos, "--precision=fp32")

    draw(videos / "new.mp4", 20)
    draw(videos / "clip1.mp4", 21)  # another one under the same name
    (videos / "clip2.mp4").unlink()
    (videos / "notes.txt").write_text("no video")
    printed = made(videos, "--precision=fp32")
    assert "2 to encode; 1 in the index have changed, 1 are gone" in printed
    assert "2 clips encoded" in printed
    after = features_by_file(tmp_path / "index")
    assert after.keys() == before.keys() - {("clip2.mp4", 0)} | {("new.mp4", 0)}
    for name in ("new.mp4", "clip1.mp4"):
        assert_near(after[name, 0], slow_features(runs.one, videos / name), "fp32")
    for key in before.keys() & after.keys() - {("clip1.mp4", 0)}:
        assert torch.equal(after[key], before[key])
    assert len(list((tmp_path / "index").glob("*.safetensors"))) == 1  # what was dropped takes no place


def test_a_folder_does_not_push_another_one_out(made, drawn, tmp_path):
    for number in range(2):
        (tmp_path / f"f{number}").mkdir()
        shutil.copy(drawn / f"clip{number}.mp4", tmp_path / f"f{number}")
        made(tmp_path / f"f{number}")
    assert {name for name, _ in features_by_file(tmp_path / "index")} == {"clip0.mp4", "clip1.mp4"}


def test_broken_videos_are_listed_and_read_again_only_when_they_change(made, videos, tmp_path, monkeypatch):
    (videos / "clip1.mp4").write_text("no video")
    (videos / "empty.webm").touch()
    printed = made(videos)
    assert f"{VIDEOS - 1} clips encoded" in printed
    assert "2 clips do not decode" in printed
    assert f"skipped: video {videos / 'clip1.mp4'} does not open" in printed

    read = []
    monkeypatch.setattr(
        encoding, "_as_read", lambda clip, original=encoding._as_read: read.append(clip) or original(clip)
    )
    again = made(videos)
    assert read == []
    assert f"skipped: video {videos / 'clip1.mp4'} does not open" in again
    draw(videos / "clip1.mp4", 1)
    assert "1 clips encoded" in made(videos)
    assert [clip.file for clip in read] == [str(videos / "clip1.mp4")]
    assert ("clip1.mp4", 0) in features_by_file(tmp_path / "index")


def index_and_hang(arguments):
    """The program, which hangs between the features and the lines of its third shard."""
    torch.set_num_threads(1)
    encoding.SAVE_SECONDS = 0.0
    write, calls = Store._write_lines, []

    def hang(self, shard, placed):
        calls.append(shard)
        if len(calls) == 3:
            time.sleep(600)
        write(self, shard, placed)

    Store._write_lines = hang
    sys.argv = ["search.py", *arguments]
    os._exit(run_program("search.py", entry_point.main))


def test_a_killed_indexing_goes_on(made, search, runs, videos, tmp_path):
    index = tmp_path / "index"
    arguments = ["index", f"--videos_dir={videos}", f"--index={index}", "--precision=fp32", *checkpoint(runs)]
    child = multiprocessing.get_context("fork").Process(target=index_and_hang, args=([*arguments, "--batch_size=1"],))
    child.start()
    deadline = time.monotonic() + 60
    while not (index / "000003.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    other = search(*arguments, "--batch_size=1")
    assert other.code == 2
    assert "is being written by another process" in other.err
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    assert len(opened(index)) == 2
    assert f"{VIDEOS - 2} clips encoded" in made(videos, "--precision=fp32")
    assert [path.name for path in sorted(index.iterdir())] == [
        ".lock",
        "000004.jsonl",
        "000004.safetensors",
        "index.json",
    ]
    found = features_by_file(index)
    assert len(found) == VIDEOS
    for path in videos.rglob("*.mp4"):
        assert_near(found[path.name, 0], slow_features(runs.one, path), "fp32")


def clips_named(*names):
    return [IndexedClip(name, 1, 1) for name in names]


def new_store(folder, clips=(), frames=None, tokens=None):
    held = Store.create(folder, Head("a test", {}, {}, 30.0))
    if clips:
        held.add(clips, EncodedVideos(frames, tokens))
    return held


@pytest.mark.parametrize("with_tokens", [True, False])
def test_shards_stay_few_and_keep_every_clip(tmp_path, monkeypatch, with_tokens):
    monkeypatch.setattr(store, "SHARD_CLIPS", 8)
    held, generator, expected = new_store(tmp_path / "index"), np.random.default_rng(0), {}
    for step in range(60):
        names = [f"/v/{number}" for number in generator.choice(40, size=3, replace=False)]
        held.drop(set(names))
        if step % 3 == 2:
            for name in names:
                expected.pop(name, None)
        else:
            frames, tokens = torch.randn(3, 2, 4), torch.randn(3, 5, 2).bfloat16()
            held.add(clips_named(*names), EncodedVideos(frames, tokens if with_tokens else None))
            expected |= dict(zip(names, zip(frames, tokens, strict=True), strict=True))
        held.compact()
        held = opened(tmp_path / "index")
        assert {clip.file for clip, _ in held.clips.values()} == expected.keys()
        for clip, place in held.clips.values():
            frames, tokens = expected[clip.file]
            assert torch.equal(held.frames([place])[0], frames)
            assert torch.equal(held.video_features([place])[0], frames.mean(0))
            assert torch.equal(held.tokens([place])[0], tokens) if with_tokens else held.tokens([place]) is None
        assert len(held.lines) <= 1 + len(expected) // 4


def test_of_two_lines_about_a_clip_the_one_of_the_later_shard_counts(tmp_path):
    """As after a death between writing shards together and deleting them."""
    held = new_store(tmp_path / "index", clips_named("/a", "/b"), torch.zeros(2, 2, 4))
    held.add(clips_named("/b"), EncodedVideos(torch.ones(1, 2, 4)))
    held = opened(tmp_path / "index")
    assert held.frames([held.clips["/b", 0][1]]).min() == 1
    held.compact()
    assert len(opened(tmp_path / "index")) == 2


def test_what_a_killed_indexing_left_goes_with_the_next_one(tmp_path):
    """Features without their lines, and files that were not written to their end; of a small index too."""
    folder = tmp_path / "index"
    held = new_store(folder, clips_named("/a"), torch.zeros(1, 2, 4))
    kept = sorted(folder.iterdir())
    (folder / "000007.safetensors").touch()
    (folder / ".000008.safetensors.tmp").touch()
    held.compact()
    assert sorted(folder.iterdir()) == kept
    assert len(opened(folder)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Long videos


@pytest.fixture(scope="module")
def three_colours(tmp_path_factory):
    """Six seconds: two of red noise, two of green, two of blue; and two seconds of green alone."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    parts = generator.integers(0, 60, (3, 24, 64, 64, 3), dtype=np.uint8)
    for channel in range(3):
        parts[channel, ..., channel] += 190
    write_video(folder / "long.mp4", parts.reshape(72, 64, 64, 3))
    write_video(folder / "green.mp4", parts[1])
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_long_video_is_searched_in_parts(made, search, runs, three_colours, tmp_path, precision):
    (tmp_path / "videos").mkdir()
    shutil.copy(three_colours / "long.mp4", tmp_path / "videos")
    assert "3 clips encoded" in made(tmp_path / "videos", "--window=2", f"--precision={precision}")
    held = sorted((clip.start, clip.end) for clip, _ in opened(tmp_path / "index").clips.values())
    assert held == [(0, 2), (2, 4), (4, 6)]
    found = features_by_file(tmp_path / "index")
    for part in range(3):
        expected = slow_features(runs.one, three_colours / "long.mp4", 2 * part, 2 * part + 2)
        assert_near(found["long.mp4", part], expected, precision)
    done = search("query", f"--index={tmp_path / 'index'}", f"--like={three_colours / 'green.mp4'}", "--json")
    best = answers(done)[0]["hits"][0]
    assert (best["start"], best["end"]) == (2, 4)
    refused = search("index", f"--videos_dir={tmp_path / 'videos'}", f"--index={tmp_path / 'index'}", "--window=3")
    assert refused.code == 2
    assert "parts of --window=2 seconds, not 3" in refused.err


def test_parts_are_of_about_the_window(three_colours):
    path = str(three_colours / "long.mp4")  # 6 seconds
    for window, ends in ((30, [6]), (6, [6]), (4.1, [6]), (3.9, [3.9, 6]), (2.5, [2.5, 6]), (1.7, [1.7, 3.4, 5.1, 6])):
        parts = parts_of(path, os.stat(path), window)
        assert [part.end for part in parts] == pytest.approx(ends)
        assert [part.start for part in parts] == pytest.approx([0, *ends[:-1]])
        assert {part.parts for part in parts} == {len(ends)}


# ---------------------------------------------------------------------------------------------------------------------
# Rankings

MODELS = {
    "textdiffs": lambda: small_textdiffs(CAPTIONS + SENTENCES, num_frames=FRAMES),
    "published": lambda: small_textdiffs(CAPTIONS + SENTENCES, num_frames=FRAMES, published=True),
    "tmass": lambda: small_tmass(num_frames=FRAMES, trials=4),
    "xpool": lambda: small_xpool(heads=2),
    "mean": lambda: small_baseline("avg"),
    "topk": lambda: small_baseline("topk"),
}


def searcher_of(model, folder, count, *flags, dtype=torch.float32):
    """A searcher over `count` random videos, and what is encoded of these."""
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(count, FRAMES, WIDTH, generator=generator)
    tokens = model.token_shape and torch.randn(count, *model.token_shape, generator=generator)
    encoded = in_halves(EncodedVideos(frames, tokens))
    held = new_store(folder, clips_named(*(f"/videos/{number}.mp4" for number in range(count))), *encoded)
    config = SearchConfig.parse(["query", "x", f"--index={folder}", *flags], prog="search.py")
    cpu = torch.device("cpu")
    return Searcher(model, held, config, cpu, dtype), encoded


@torch.no_grad()
def slow_scores(model, sentences, encoded):
    """The model's own score of every pair, one pair at a time: (texts, videos)."""
    tokens = model.tokenize(sentences)
    texts = model.texts(sentences, model.encode_texts(tokens.pop("token_ids")), **tokens)
    videos, zero = model.videos(encoded), torch.zeros(1, dtype=torch.long)
    return torch.tensor([
        [float(model.score_pairs(texts, videos, zero + text, zero + video).strict) for video in range(len(videos))]
        for text in range(len(sentences))
    ])  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_exact_ranking_is_that_of_the_models_own_score(name, tmp_path, precision):
    torch.manual_seed(0)
    model, close = MODELS[name](), {"atol": TOLERANCE[precision], "rtol": 0}
    exact = ("--pool_topk=0", "--rerank_topk=0", "--topk=25")
    searcher, encoded = searcher_of(model, tmp_path / "index", 25, *exact, dtype=DTYPES[precision])
    with autocast(precision):
        scores = slow_scores(model, SENTENCES, encoded)
    for sentence, expected in zip(SENTENCES, scores, strict=True):
        hits = searcher.by_text(sentence)
        assert len({hit.clip.file for hit in hits}) == 25
        found = torch.tensor([hit.score for hit in hits])
        ordered = torch.stack([expected[int(hit.clip.file[8:-4])] for hit in hits])
        torch.testing.assert_close(found, ordered, **close)  # each has its own score
        torch.testing.assert_close(found, expected.sort(descending=True).values, **close)
        assert {hit.stage for hit in hits} == {"rescored" if model.rescores else "pooled"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["textdiffs", "published"])
def test_stages_narrow_down(name, tmp_path):
    """15 of 40 are pooled, 4 of those rescored; each stage orders what it saw, and it stays before the rest."""
    torch.manual_seed(0)
    model = MODELS[name]()
    searcher, encoded = searcher_of(model, tmp_path / "index", 40, "--pool_topk=15", "--rerank_topk=4", "--topk=20")
    text, frames = model.encode_texts(model.tokenize(SENTENCES[:1])["token_ids"]), encoded.frames
    means = F.cosine_similarity(text, frames.mean(1)).argsort(descending=True)
    pooled = F.cosine_similarity(text, model.pool_frames(text, frames)[:, 0])
    by_pooling = means[:15][pooled[means[:15]].argsort(descending=True)]
    rescored = slow_scores(model, SENTENCES[:1], encoded)[0]
    expected = [*by_pooling[:4][rescored[by_pooling[:4]].argsort(descending=True)], *by_pooling[4:], *means[15:20]]
    hits = searcher.by_text(SENTENCES[0])
    assert [hit.clip.file for hit in hits] == [f"/videos/{int(index)}.mp4" for index in expected]
    assert [hit.stage for hit in hits] == ["rescored"] * 4 + ["pooled"] * 11 + ["mean_pooled"] * 5


def test_tokens_are_read_of_the_clips_of_the_third_stage_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    flags = ("--pool_topk=15", "--rerank_topk=4", "--topk=20")
    searcher, _ = searcher_of(MODELS["textdiffs"](), tmp_path / "index", 40, *flags)
    read, tokens = set(), Store.tokens
    monkeypatch.setattr(Store, "tokens", lambda self, places: read.update(places) or tokens(self, places))
    hits = searcher.by_text(SENTENCES[0])
    assert read == {searcher.store.clips[hit.clip.file, 0][1] for hit in hits if hit.stage == "rescored"}
    assert len(read) == 4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_of_indexed_videos_are_those_of_the_model(made, search, runs, videos, tmp_path, precision):
    made(videos, f"--precision={precision}")
    exact = ("--pool_topk=0", "--rerank_topk=0", f"--precision={precision}", "--json")
    index = f"--index={tmp_path / 'index'}"
    found = answers(search("query", *SENTENCES, index, *exact))
    paths = sorted(videos.rglob("*.mp4"))
    describe = (f"--describe={paths[0]}", "--captions=-")
    (described,) = answers(search("query", index, *describe, *exact, stdin="\n".join(SENTENCES)))
    with autocast(precision):
        encoded = join_rows([slow_encoded(runs.one, path) for path in paths])
        scores = slow_scores(runs.one, SENTENCES, encoded)
        others = slow_scores(runs.one, SENTENCES, encoded._replace(tokens=encoded.tokens.roll(1, 0)))
    assert (scores - others).abs().mean() > 2 * TOLERANCE[precision]  # the tokens matter
    for answer, expected in zip(found, scores, strict=True):
        told = {hit["file"]: hit["score"] for hit in answer["hits"]}
        told = torch.tensor([told[str(path)] for path in paths])
        torch.testing.assert_close(told, expected, atol=TOLERANCE[precision], rtol=0)
    told = {hit["caption"]: hit["score"] for hit in described["hits"]}
    told = torch.tensor([told[sentence] for sentence in SENTENCES])
    torch.testing.assert_close(told, scores[:, 0], atol=TOLERANCE[precision], rtol=0)


def test_sentences_are_ranked_by_the_models_own_score_and_the_best_part(runs, three_colours, tmp_path):
    new_store(tmp_path / "index", clips_named("/other"), torch.zeros(1, FRAMES, WIDTH))
    held = Store(tmp_path / "index", Head("a test", {}, {}, 2.0))
    arguments = ["query", "--describe=x", "--captions=x", "--index=x", f"--num_frames={FRAMES}", "--num_workers=0"]
    exact = ["--clip_arch=tiny", "--pool_topk=0", "--rerank_topk=0"]
    config = SearchConfig.parse([*arguments, *exact], prog="search.py")
    searcher = Searcher(runs.one, held, config, torch.device("cpu"), torch.float32)
    hits = searcher.describe(str(three_colours / "long.mp4"), SENTENCES)
    parts = [slow_encoded(runs.one, three_colours / "long.mp4", 2 * part, 2 * part + 2) for part in range(3)]
    scores, best = slow_scores(runs.one, SENTENCES, join_rows(parts)).max(1)
    order = scores.argsort(descending=True).tolist()
    assert [hit.sentence for hit in hits] == [SENTENCES[index] for index in order]
    assert [hit.clip.part for hit in hits] == best[order].tolist()
    torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores[order], atol=1e-4, rtol=0)


def test_like_finds_the_copy_and_not_the_video_itself(made, search, videos, tmp_path):
    shutil.copy(videos / "clip3.mp4", videos / "copy.mp4")
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    (answer,) = answers(search("query", index, f"--like={videos / 'clip3.mp4'}", "--json"))
    assert os.path.basename(answer["hits"][0]["file"]) == "copy.mp4"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert str(videos / "clip3.mp4") not in {hit["file"] for hit in answer["hits"]}
    shutil.move(videos / "clip3.mp4", tmp_path / "elsewhere.mp4")  # not in the index: it is encoded now
    (outside,) = answers(search("query", index, f"--like={tmp_path / 'elsewhere.mp4'}", "--json", "--topk=2"))
    assert {os.path.basename(hit["file"]) for hit in outside["hits"]} == {"copy.mp4", "clip3.mp4"}
    assert outside["hits"][1]["score"] == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Many clips


@pytest.fixture
def many(monkeypatch):
    """3,000 vectors near 60 centres, more than are compared one by one, and 20 queries near some of them."""
    monkeypatch.setattr(first_stage, "EXACT_ROWS", 2_999)
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(60, 32, generator=generator)
    means = centres[torch.randint(60, (3000,), generator=generator)] + torch.randn(3000, 32, generator=generator)
    return means, means[:20] + 0.1 * torch.randn(20, 32, generator=generator)


def test_faiss_finds_nearly_all_of_the_best(many, tmp_path, monkeypatch):
    means, queries = many
    approximate = FirstStage(means, tmp_path)
    assert approximate.faiss is not None
    assert FirstStage(means[:2_999], tmp_path).faiss is None
    cosines = F.cosine_similarity(queries[:, None], means[None], dim=-1)
    found = 0
    for query, expected in zip(queries, cosines, strict=True):
        scores, best = approximate.best(query[None], 30)
        torch.testing.assert_close(scores, expected[best])
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        found += len(set(best.tolist()) & set(expected.topk(30).indices.tolist()))
    assert found / (20 * 30) > 0.9
    scores, best = approximate.best(queries[:1], 0)  # all of them: exact
    assert sorted(best.tolist()) == list(range(3000))


def test_what_faiss_arranged_is_kept_until_the_index_changes(many, tmp_path, monkeypatch):
    means, queries = many
    before = FirstStage(means, tmp_path).best(queries[:1], 10)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(first_stage, "_arranged", lambda *_: pytest.fail("it was arranged again"))
        again = FirstStage(means, tmp_path).best(queries[:1], 10)
    assert torch.equal(before[1], again[1])
    FirstStage(means + 0.1, tmp_path)
    (other,) = tmp_path.iterdir()
    assert other != kept


def test_without_faiss_a_large_index_says_what_to_install(many, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        FirstStage(many[0], tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# What is printed


def test_queries_from_the_command_line_a_file_and_standard_input_agree(made, search, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    (tmp_path / "queries.txt").write_text("".join(f"{sentence}\n\n" for sentence in SENTENCES))
    ways = [
        answers(search("query", *SENTENCES[:2], index, "--json", *SENTENCES[2:])),
        answers(search("query", index, "--json", f"--queries={tmp_path / 'queries.txt'}")),
        answers(search("query", index, "--json", "--queries=-", stdin="\n".join(SENTENCES))),
    ]
    for way in ways:
        assert [answer["query"] for answer in way] == SENTENCES
        assert [answer["hits"] for answer in way] == [answer["hits"] for answer in ways[0]]
    (described,) = answers(search("query", index, "--json", f"--describe={videos / 'clip1.mp4'}", "--captions=-",
                                  stdin="\n".join(SENTENCES)))  # fmt: skip
    assert sorted(hit["caption"] for hit in described["hits"]) == sorted(SENTENCES)
    table = search("query", SENTENCES[0], index, "--topk=2").out.splitlines()
    assert table[0].startswith(SENTENCES[0])
    best = ways[0][0]["hits"][0]
    assert table[1].split() == ["1", f"{best['score']:.4f}", "0:00.0", "-", clock(best["end"]), best["file"]]
    assert len(table) == 3


def test_a_contact_sheet_shows_the_hits_and_says_what_is_gone(made, search, videos, tmp_path):
    made(videos)
    (videos / "clip1.mp4").unlink()
    sheet = tmp_path / "sheet.png"
    done = search("query", *SENTENCES[:2], f"--index={tmp_path / 'index'}", f"--contact_sheet={sheet}")
    assert done.code == 0, done.err
    assert f"no thumbnail: video {videos / 'clip1.mp4'} is gone" in done.err
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] > picture.shape[0] > 400
    assert picture.reshape(-1, 3).std(0).min() > 10  # it is not empty


def test_a_thumbnail_is_the_middle_of_the_part(three_colours, tmp_path):
    picture, problem = thumbnail(Hit(1.0, "pooled", IndexedClip(str(three_colours / "long.mp4"), 1, 1, 2, 3, 4.0, 6.0)))
    assert problem is None
    assert picture[..., 2].mean() > 150 > picture[..., :2].mean()
    picture, problem = thumbnail(Hit(1.0, "pooled", IndexedClip(str(tmp_path / "gone.mp4"), 1, 1)))
    assert picture is GREY
    assert "is gone" in problem


def test_names_that_are_no_text(made, search, drawn, tmp_path):
    folder = os.fsencode(tmp_path / "videos")
    os.mkdir(folder)
    name = os.path.join(folder, b"caf\xe9.mp4")  # Latin-1
    shutil.copy(os.fsencode(drawn / "clip0.mp4"), name)
    good = tmp_path / "videos" / "caf\u00e9 $x$.mp4"
    shutil.copy(drawn / "clip1.mp4", good)
    printed = made(tmp_path / "videos")
    assert "caf\ufffd.mp4: its name is not UTF-8" in printed
    assert "1 clips encoded" in printed
    index, sheet = f"--index={tmp_path / 'index'}", f"--contact_sheet={tmp_path / 'sheet.png'}"
    (answer,) = answers(search("query", "caf\u00e9 $x_$", index, "--json", sheet))
    assert answer["hits"][0]["file"] == str(good)
    assert str(good) in search("query", "a", index).out
    refused(search("query", index, f"--like={os.fsdecode(name)}"), "its name is not UTF-8")


def test_plain_clip_searches_too(search, videos, tmp_path):
    index = f"--index={tmp_path / 'plain'}"
    done = search("index", f"--videos_dir={videos}", index, "--clip_arch=tiny", "--gpu=cpu", "--num_workers=0")
    assert done.code == 0, done.err
    (answer,) = answers(search("query", "a red circle", index, "--json"))
    assert [hit["stage"] for hit in answer["hits"]] == ["pooled"] * VIDEOS
    assert read_head(tmp_path / "plain").made_with == "CLIP tiny (clip_baseline)"
    held = opened(tmp_path / "plain")
    assert held.tokens([place for _, place in held.clips.values()]) is None


def test_in_a_process_of_its_own(made, videos, tmp_path):
    made(videos)
    done = run_in_a_process("search.py", "query", "a red circle", f"--index={tmp_path / 'index'}", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == VIDEOS


def test_help_of_each_command_lists_its_flags(search):
    for arguments, shown, hidden in (
        (["--help"], ["index", "query", "Exit codes"], ["--topk"]),
        (["index", "--help"], ["--videos_dir", "--window", "--datetime"], ["--topk", "--num_epochs"]),
        (["query", "--help"], ["QUERY", "--topk", "--like", "--sampler"], ["--videos_dir", "--num_epochs"]),
    ):
        done = search(*arguments)
        assert done.code == 0
        assert all(name in done.out for name in shown)
        assert not any(f"{name} " in done.out for name in hidden)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def refused(done, *parts):
    """Exit code 2 and one line that says so."""
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("search.py: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    for part in parts:
        assert part in lines[0]


def test_an_index_refuses_another_model(made, search, runs, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    other = checkpoint(runs, "two")
    for command in (["query", "a"], ["index", f"--videos_dir={videos}"]):
        done = search(*command, index, *other)
        refused(done, "belongs to another model", "one/model_best.pth", "two/model_best.pth", "model weights")
    refused(search("query", "a", index, "--clip_arch=tiny"), "belongs to another model", "CLIP tiny")
    assert search("query", "a", index, *checkpoint(runs)).code == 0  # its own, named once more


def test_an_index_whose_checkpoint_has_gone_says_so(made, search, runs, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    shutil.copytree(runs.folder, tmp_path / "moved")
    head = json.loads((tmp_path / "index" / "index.json").read_text())
    head["flags"]["output_dir"] = str(tmp_path / "nowhere")
    (tmp_path / "index" / "index.json").write_text(json.dumps(head))
    refused(search("query", "a", index), "nowhere", "does not exist")
    assert search("query", "a", index, f"--output_dir={tmp_path / 'moved'}").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "command"),
        (["find"], "index"),
        (["index", "--index=x"], "--videos_dir is missing"),
        (["index", "--videos_dir=x"], "--index is missing"),
        (["index", "--videos_dir=nowhere", "--index=x"], "--videos_dir=nowhere is no folder"),
        (["index", "--videos_dir=empty", "--index=x"], "--videos_dir=empty holds no video file"),
        (["index", "--videos_dir=empty", "--index=x", "--topk=3"], "--topk"),
        (["index", "--videos_dir=empty", "--index=x", "--window=0"], "--window=0"),
        (["query", "a", "--index=x"], "--index=x is no index"),
        (["query", "a", "--index=other"], "is no TextDiffs video index"),
        (["query", "a", "--index=newer"], "version 99"),
        (["query", "a", "--index=older"], "version 2 and this program reads 3: index the videos anew"),
        (["query", "a", "--index=damaged"], "index.json cannot be read"),
        (["query", "--index=x"], "give one of"),
        (["query", "a", "--queries=q", "--index=x"], "give one of"),
        (["query", " ", "--index=x"], "a query is empty"),
        (["query", "a", "--topk=0", "--index=x"], "--topk=0"),
        (["query", "--describe=v", "--index=x"], "--captions is missing"),
        (["query", "--describe=v", "--captions=c", "--contact_sheet=s", "--index=x"], "--contact_sheet"),
    ],
)
def test_bad_command_lines(search, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    of_version = '{"format": "TextDiffs video index", "version": %d}'
    heads = {"other": "{}", "newer": of_version % 99, "older": of_version % 2, "damaged": "{"}
    for name, text in heads.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(text)
    refused(search(*arguments), said)


def test_bad_files(made, search, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    refused(search("query", index, "--queries=nowhere.txt"), "--queries=nowhere.txt cannot be read: No such file")
    refused(search("query", index, "--queries=-", stdin="\n \n"), "--queries=- holds no line of text")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    refused(search("query", index, f"--queries={tmp_path / 'latin.txt'}"), "latin.txt cannot be read")
    refused(search("query", index, "--like=nowhere.mp4"), "nowhere.mp4 cannot be read: No such file")
    (tmp_path / "bad.mp4").write_text("no video")
    refused(search("query", index, f"--like={tmp_path / 'bad.mp4'}"), "bad.mp4 does not open")
    refused(search("query", "a", index, f"--contact_sheet={tmp_path / 'no' / 'sheet.png'}"), "cannot be written")
    (tmp_path / "index" / "000001.safetensors").write_bytes(b"cut")
    refused(search("query", "a", index), "000001.safetensors cannot be read")
    (tmp_path / "index" / "000001.jsonl").write_text('{"file":\n')
    refused(search("query", "a", index), "000001.jsonl cannot be read")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    done = search("index", f"--videos_dir={videos}", f"--index={tmp_path / 'full'}", "--clip_arch=tiny", "--gpu=cpu")
    refused(done, "holds files that are no index")
