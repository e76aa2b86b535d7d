"""search.py: rankings are those of the model, and what is printed."""

import json
import os
import shutil
import sqlite3

import cv2
import pytest
import torch
from torch.nn import functional as F

from config import SearchConfig
from model.clip import EncodedVideos
from model.retrieval import join_rows
from modules.frame_pooling import mean_of_frames
from tests.made_up import CAPTIONS
from tests.made_up import run_program as run_in_a_process
from tests.precision import DTYPES, PRECISIONS, TOLERANCE, autocast
from tests.small_models import small_baseline, small_textdiffs, small_tmass, small_xpool
from tests.video_index.made_up import (
    FRAMES,
    SENTENCES,
    VIDEOS,
    WIDTH,
    answers,
    checkpoint,
    in_halves,
    new_store,
    refused,
    slow_encoded,
)
from video_index.answers import clock
from video_index.contact_sheet import GREY, thumbnail
from video_index.database import create
from video_index.head import FORMAT, read_head
from video_index.query import Query
from video_index.ranking import nearest
from video_index.searching import Hit, Searcher
from video_index.store import IndexedSegment, Store

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
    held = new_store(folder, [f"{number}.mp4" for number in range(count)], *encoded)
    config = SearchConfig.parse(["query", "x", f"--index={folder}", *flags], prog="search.py")
    cpu = torch.device("cpu")
    return Searcher(model, held, config, cpu, dtype), encoded


@torch.no_grad()
def slow_scores(model, sentences, encoded):
    """The model's own score of every pair, one pair at a time: (texts, videos)."""
    tokens = model.tokenize(sentences)
    texts = model.texts(sentences, model.encode_texts(tokens["token_ids"]), tokens)
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
        hits = searcher.search(Query((sentence,)))
        assert len({hit.segment.file for hit in hits}) == 25
        found = torch.tensor([hit.score for hit in hits])
        ordered = torch.stack([expected[int(hit.segment.file[8:-4])] for hit in hits])
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
    means = F.cosine_similarity(text, mean_of_frames(frames)).argsort(descending=True)
    pooled = F.cosine_similarity(text, model.pool_frames(text, frames)[:, 0])
    by_pooling = means[:15][pooled[means[:15]].argsort(descending=True)]
    rescored = slow_scores(model, SENTENCES[:1], encoded)[0]
    expected = [*by_pooling[:4][rescored[by_pooling[:4]].argsort(descending=True)], *by_pooling[4:], *means[15:20]]
    hits = searcher.search(Query((SENTENCES[0],)))
    assert [hit.segment.file for hit in hits] == [f"/videos/{int(index)}.mp4" for index in expected]
    assert [hit.stage for hit in hits] == ["rescored"] * 4 + ["pooled"] * 11 + ["mean_pooled"] * 5


def test_tokens_are_read_of_the_clips_of_the_third_stage_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    flags = ("--pool_topk=15", "--rerank_topk=4", "--topk=20")
    searcher, _ = searcher_of(MODELS["textdiffs"](), tmp_path / "index", 40, *flags)
    read, tokens = set(), Store.tokens
    monkeypatch.setattr(Store, "tokens", lambda self, ids: read.update(ids) or tokens(self, ids))
    hits = searcher.search(Query((SENTENCES[0],)))
    assert read == {hit.segment.id for hit in hits if hit.stage == "rescored"}
    assert len(read) == 4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_of_indexed_videos_are_those_of_the_model(made, search, runs, videos, tmp_path, precision):
    made(videos, f"--precision={precision}")
    exact = ("--pool_topk=0", "--rerank_topk=0", f"--precision={precision}", "--format=json")
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
    held = new_store(tmp_path / "index", ["other"], torch.zeros(1, FRAMES, WIDTH), window=2.0)
    arguments = ["query", "--describe=x", "--captions=x", "--index=x", f"--num_frames={FRAMES}", "--num_workers=0"]
    exact = ["--clip_arch=tiny", "--pool_topk=0", "--rerank_topk=0"]
    config = SearchConfig.parse([*arguments, *exact], prog="search.py")
    searcher = Searcher(runs.one, held, config, torch.device("cpu"), torch.float32)
    hits = searcher.describe(str(three_colours / "long.mp4"), SENTENCES)
    parts = [slow_encoded(runs.one, three_colours / "long.mp4", 2 * part, 2 * part + 2) for part in range(3)]
    scores, best = slow_scores(runs.one, SENTENCES, join_rows(parts)).max(1)
    order = scores.argsort(descending=True).tolist()
    assert [hit.sentence for hit in hits] == [SENTENCES[index] for index in order]
    assert [hit.segment.part for hit in hits] == best[order].tolist()
    torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores[order], atol=1e-4, rtol=0)


def test_like_finds_the_copy_and_not_the_video_itself(made, search, videos, tmp_path):
    (videos / "copy.mp4").write_bytes((videos / "clip3.mp4").read_bytes() + bytes(8))  # the same frames
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    (answer,) = answers(search("query", index, f"--like={videos / 'clip3.mp4'}", "--format=json"))
    assert os.path.basename(answer["hits"][0]["file"]) == "copy.mp4"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert str(videos / "clip3.mp4") not in {hit["file"] for hit in answer["hits"]}
    shutil.move(videos / "clip3.mp4", tmp_path / "elsewhere.mp4")  # not in the index: it is encoded now
    (outside,) = answers(search("query", index, f"--like={tmp_path / 'elsewhere.mp4'}", "--format=json", "--topk=2"))
    assert {os.path.basename(hit["file"]) for hit in outside["hits"]} == {"copy.mp4", "clip3.mp4"}
    assert outside["hits"][1]["score"] == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Many segments


def test_the_nearest_vectors_are_those_of_all_cosines():
    """Of several vectors the nearest counts."""
    generator = torch.Generator().manual_seed(0)
    means, queries = torch.randn(3000, 32, generator=generator), torch.randn(3, 32, generator=generator)
    expected = F.cosine_similarity(means[:, None], queries[None], dim=-1).amax(1)
    cosines, rows = nearest(F.normalize(means, dim=-1), queries)
    torch.testing.assert_close(cosines, expected)
    torch.testing.assert_close(cosines, F.cosine_similarity(means, queries[rows], dim=-1))


# ---------------------------------------------------------------------------------------------------------------------
# What is printed


def test_queries_from_the_command_line_a_file_and_standard_input_agree(made, search, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    (tmp_path / "queries.txt").write_text("".join(f"{sentence}\n\n" for sentence in SENTENCES))
    ways = [
        answers(search("query", *SENTENCES[:2], index, "--format=json", *SENTENCES[2:])),
        answers(search("query", index, "--format=json", f"--queries={tmp_path / 'queries.txt'}")),
        answers(search("query", index, "--format=json", "--queries=-", stdin="\n".join(SENTENCES))),
    ]
    for way in ways:
        assert [answer["query"] for answer in way] == SENTENCES
        assert [answer["hits"] for answer in way] == [answer["hits"] for answer in ways[0]]
    (described,) = answers(search("query", index, "--format=json", f"--describe={videos / 'clip1.mp4'}", "--captions=-",
                                  stdin="\n".join(SENTENCES)))  # fmt: skip
    assert sorted(hit["caption"] for hit in described["hits"]) == sorted(SENTENCES)
    table = search("query", SENTENCES[0], index, "--topk=2").out.splitlines()
    assert table[0].startswith(SENTENCES[0])
    best = ways[0][0]["hits"][0]
    assert table[1].split() == ["1", f"{best['score']:.4f}", "100.0%", "0:00.0", "-", clock(best["end"]), best["file"]]
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
    picture, problem = thumbnail(
        Hit(1.0, "pooled", IndexedSegment(1, 1, str(three_colours / "long.mp4"), 2, 3, 4.0, 6.0))
    )
    assert problem is None
    assert picture[..., 2].mean() > 150 > picture[..., :2].mean()
    picture, problem = thumbnail(Hit(1.0, "pooled", IndexedSegment(1, 1, str(tmp_path / "gone.mp4"))))
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
    assert "1 segments encoded" in printed
    index, sheet = f"--index={tmp_path / 'index'}", f"--contact_sheet={tmp_path / 'sheet.png'}"
    (answer,) = answers(search("query", "caf\u00e9 $x_$", index, "--format=json", sheet))
    assert answer["hits"][0]["file"] == str(good)
    assert str(good) in search("query", "a", index).out
    refused(search("query", index, f"--like={os.fsdecode(name)}"), "its name is not UTF-8")


def test_plain_clip_searches_too(search, videos, tmp_path):
    index = f"--index={tmp_path / 'plain'}"
    done = search("index", f"--videos_dir={videos}", index, "--clip_arch=tiny", "--gpu=cpu", "--num_workers=0")
    assert done.code == 0, done.err
    (answer,) = answers(search("query", "a red circle", index, "--format=json"))
    assert [hit["stage"] for hit in answer["hits"]] == ["pooled"] * VIDEOS
    assert read_head(tmp_path / "plain").made_with == "CLIP tiny (clip_baseline)"
    assert Store(tmp_path / "plain").tokens([1]) is None


def test_in_a_process_of_its_own(made, videos, tmp_path):
    made(videos)
    done = run_in_a_process("search.py", "query", "a red circle", f"--index={tmp_path / 'index'}", "--format=json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == VIDEOS


def test_help_of_each_command_lists_its_flags(search):
    for arguments, shown, hidden in (
        (["--help"], ["index", "query", "Exit codes"], ["--topk"]),
        (["index", "--help"], ["--videos_dir", "--window", "--datetime"], ["--topk", "--num_epochs"]),
        (["query", "--help"], ["QUERY", "--topk", "--like", "--sampler"], ["--exclude", "--num_epochs"]),
        (["forget", "--help"], ["PATH", "--index"], ["--topk", "--window"]),
        (["serve", "--help"], ["--host", "--port", "--index"], ["--topk", "--window", "--clip_arch"]),
    ):
        done = search(*arguments)
        assert done.code == 0
        assert all(name in done.out for name in shown)
        assert not any(f"{name} " in done.out for name in hidden)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


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
    database = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    flags = json.loads(database.execute("SELECT value FROM about WHERE name = 'flags'").fetchone()[0])
    flags["output_dir"] = str(tmp_path / "nowhere")
    with database:
        database.execute("UPDATE about SET value = ? WHERE name = 'flags'", (json.dumps(flags),))
    database.close()
    refused(search("query", "a", index), "nowhere", "does not exist")
    assert search("query", "a", index, f"--output_dir={tmp_path / 'moved'}").code == 0
    refused(search("query", "a", index), "nowhere", "does not exist")
    assert search("index", index, f"--output_dir={tmp_path / 'moved'}").code == 0  # from now on
    assert search("query", "a", index).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["find"], "--index is missing"),
        (["index", "--index=x"], "--videos_dir is missing"),
        (["index", "--videos_dir=x"], "--index is missing"),
        (["index", "--videos_dir=nowhere", "--index=x"], "nowhere is no folder"),
        (["index", "--videos_dir=empty", "--index=x"], "empty holds no video file"),
        (["index", "--videos_dir=empty", "--index=x", "--topk=3"], "--topk"),
        (["index", "--videos_dir=empty", "--index=x", "--window=0"], "--window=0"),
        (["query", "a", "--index=x"], "--index=x is no index"),
        (["serve", "--index=x"], "--index=x is no index"),
        (["serve", "--index=x", "--port=99999"], "--port=99999"),
        (["query", "a", "--index=other"], "is no TextDiffs video index"),
        (["query", "a", "--index=newer"], "version 99"),
        (
            ["query", "a", "--index=older"],
            "`python search.py index --videos_dir=/v --index=older-new --clip_arch=tiny`",
        ),
        (["query", "a", "--index=damaged"], "--index=damaged is damaged (file is not a database)"),
        (["verify", "--index=damaged"], "cannot be healed"),
        (["status", "--index=x"], "--index=x is no index"),
        (["prune", "--index=empty"], "--index=empty is no index"),
        (["forget", "--index=x"], "give the files or folders"),
        (["index", "--index=x", "--videos_dir=empty", "--exp_name=e"], "--datetime is missing: which run"),
        (["query", "--index=x"], "give one of"),
        (["query", "a", "--queries=q", "--index=x"], "give one of"),
        (["query", "a", "--describe=v", "--captions=c", "--index=x"], "give one of"),
        (["query", "--plus=a", "--index=x"], "give one of"),
        (["query", " ", "--index=x"], "a query is empty"),
        (["query", "a", "--without= ", "--index=x"], "a query is empty"),
        (["query", "--like=a", "--like=b", "--index=x"], "--like is given twice"),
        (["query", "a", "--min_score=101", "--index=x"], "--min_score=101"),
        (["query", "a", "--format=xml", "--index=x"], "--format"),
        (["query", "a", "--contact_sheet=x.gif", "--index=x"], "x.gif ends in none of .png"),
        (["query", "--describe=v", "--captions=c", "--in=f", "--index=x"], "--in is about videos"),
        (["query", "--describe=v", "--captions=c", "--format=m3u", "--index=x"], "--format=m3u is about videos"),
        (["status", "--index=x", "--", "a"], "status takes flags alone, not a"),
        (["query", "a", "--topk=0", "--index=x"], "--topk=0"),
        (["query", "--describe=v", "--index=x"], "--captions is missing"),
        (["query", "--describe=v", "--captions=c", "--contact_sheet=s", "--index=x"], "--contact_sheet"),
    ],
)
def test_bad_command_lines(search, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("other", "newer", "older", "damaged"):
        (tmp_path / name).mkdir()
    for name, head in (("other", {}), ("newer", {"format": FORMAT, "version": 99})):
        create(tmp_path / name / "index.sqlite", [(key, json.dumps(value)) for key, value in head.items()])
    former = {"format": FORMAT, "version": 3, "flags": {"clip_arch": "tiny"}}
    (tmp_path / "older" / "index.json").write_text(json.dumps(former))
    (tmp_path / "older" / "000001.jsonl").write_text('{"file": "/v/a/1.mp4"}\n{"file": "/v/2.mp4"}\n')
    (tmp_path / "damaged" / "index.sqlite").write_text("no database " * 100)
    before = sorted(tmp_path.rglob("*"))
    refused(search(*arguments), said)
    assert [
        path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock" and "sqlite-" not in path.name
    ] == before


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
    for flag in (f"--contact_sheet={tmp_path / 'bad.mp4' / 'sheet.png'}", f"--cut={tmp_path / 'bad.mp4' / 'moments'}"):
        done = search("query", "a", index, flag)
        refused(done, "cannot be written")
        assert not done.out  # it is known before the first answer
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    done = search("index", f"--videos_dir={videos}", f"--index={tmp_path / 'full'}", "--clip_arch=tiny", "--gpu=cpu")
    refused(done, "holds files that are no index")
    assert os.listdir(tmp_path / "full") == ["something"]
