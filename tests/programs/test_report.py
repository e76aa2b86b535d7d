"""test.py --report: what the page says is what was computed, and a browser shows it well."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import read_image

from evaluation.results import COLUMNS, REFERENCES
from modules.metrics import summary
from modules.similarity import Similarity, choose_candidates
from report.findings import HITS, evenly, find, rank_histogram, recall_curve
from tests.chromium import Chromium, find_chromium
from tests.made_up import TEST_VIDEOS, call_program
from tests.runs.test_evaluation import Place
from tests.training_runs import Run

HOSTILE = '<script>document.title = "taken"</script> & "quoted" <b>bold</b>'
LONG = "unbroken" * 40


class Page(HTMLParser):
    """What is on a page: texts of tables, pictures, and the queries with their hits."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables, self.images, self.queries, self.tags, self.ids = [], [], [], set(), set()
        self.texts, self.open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.ids.add(attributes.get("id"))
        self.open.append((tag, attributes.get("class", "")))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(attributes["src"])
        elif tag == "article":
            self.queries.append({"caption": "", "rank": "", "words": [], "hits": []})
        elif tag == "li":
            self.queries[-1]["hits"].append({"right": attributes.get("class") == "right", "rank": "", "meta": ""})
        elif tag == "span" and "title" in attributes:
            number, unit = attributes["title"].split()
            assert unit == "nats"
            self.queries[-1]["words"][-1][1].append(["", float(number)])
        if tag in ("img", "meta", "link"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1][0] == "style":
            return
        self.texts.append(data)
        tag, kind = self.open[-1]
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        elif tag == "h4":
            self.queries[-1]["caption"] += data.strip()
        elif kind.startswith("badge"):
            self.queries[-1]["rank"] = int(data.split()[1])
        elif kind == "of":
            self.queries[-1]["words"].append((data, []))
        elif kind.startswith("word ") and self.queries:
            self.queries[-1]["words"][-1][1][-1][0] += data.strip()
        elif kind == "rank":
            self.queries[-1]["hits"][-1]["rank"] = int(data)
        elif any(tag == "p" and kind == "meta" for tag, kind in self.open):
            self.queries[-1]["hits"][-1]["meta"] += data

    def recall_tables(self):
        """By direction and DSL: rows of label and figures."""
        tables = [table for table in self.tables if table[0][0] == "score"]
        keys = [(direction, dsl) for direction in ("t2v", "v2t") for dsl in (False, True)]
        return {key: {row[0]: row[1:] for row in table[1:]} for key, table in zip(keys, tables, strict=True)}

    def ranks(self):
        """Counts of the bins, (bins, directions)."""
        (table,) = (table for table in self.tables if table[0] == ["rank", "t2v", "v2t"])
        return np.array([[int(cell) for cell in row[1:]] for row in table[1:]])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def done():
    """Evaluations by their arguments: none is made twice."""
    return {}


@pytest.fixture
def evaluate(place, done, monkeypatch, capfd):
    """Runs test.py --report in this process: the page, its folder and the results."""

    def evaluated(*more, run="textdiffs"):
        if (run, *more) not in done:
            folder = place.root / f"evaluation{len(done)}"
            code, err = call_program("test.py", arguments_of(place, folder, *more, run=run), monkeypatch, capfd)
            assert code == 0, err
            done[run, *more] = Page(folder / "report.html"), folder, json.loads((folder / "results.json").read_text())
        return done[run, *more]

    return evaluated


def arguments_of(place, folder, *more, run="textdiffs"):
    own = ["--report", f"--output_json={folder / 'results.json'}"]
    return [*place.arguments(f"{folder.name}/sims", run=run), *own, *more]


def custom(place, captions_of):
    """Arguments of a data set with the made-up test videos and captions of one's own."""
    file = place.root / "own.jsonl"
    videos = [f"video{9000 + index}.mp4" for index in range(TEST_VIDEOS)]
    rows = [{"video": v, "caption": c} for index, v in enumerate(videos) for c in captions_of(index)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return ["--dataset_name=custom", f"--annotations={file}"]


def strict_ranks(folder):
    """Rank of each text's video, counted from the saved scores."""
    with np.load(folder / "sims.npz") as file:
        scores, owner = file["strict"], file["video_of_text"]
    return [int((line >= line[video]).sum()) for line, video in zip(scores, owner, strict=True)]


def test_the_page_says_what_the_results_say(evaluate):
    page, folder, results = evaluate()
    tables = page.recall_tables()
    rows = [(row["protocol"], row) for row in results["results"]]
    rows += [(REFERENCES[row["scores"]], row) for row in results["references"]]
    assert len(rows) == sum(map(len, tables.values())) == 16
    for label, row in rows:
        assert tables[row["metric"], row["dsl"]][label] == [f"{row[name]:.1f}" for name in COLUMNS]
    counts = page.ranks()
    assert counts.sum(axis=0).tolist() == [TEST_VIDEOS, TEST_VIDEOS]
    assert counts[0, 0] == strict_ranks(folder).count(1)
    for value in ("clip_stochastic", torch.__version__, "rerank_topk", f"{results['pairs_diffused']} pairs diffused"):
        assert value in page.text


def test_queries_show_what_was_found(evaluate):
    """Six queries are all there are: each in all three lists, with five videos and the right one at its rank."""
    page, folder, _ = evaluate()
    ranks = strict_ranks(folder)
    assert len(page.queries) == 3 * TEST_VIDEOS
    assert sorted(query["rank"] for query in page.queries[-TEST_VIDEOS:]) == sorted(ranks)
    assert page.queries[0]["rank"] == min(ranks) and page.queries[TEST_VIDEOS]["rank"] == max(ranks)
    for query in page.queries:
        assert [hit["rank"] for hit in query["hits"][:HITS]] == list(range(1, HITS + 1))
        right = [hit["rank"] for hit in query["hits"] if hit["right"]]
        assert right == [query["rank"]] and ("✓ right" in page.text)
    with np.load(folder / "sims.npz") as file:
        scores = np.sort(file["strict"], axis=1)[:, ::-1]
    for query, line in zip(page.queries[-TEST_VIDEOS:], scores, strict=True):
        shown = [float(re.search(r"-?\d\.\d{3}", hit["meta"])[0]) for hit in query["hits"][:HITS]]
        np.testing.assert_allclose(shown, line[:HITS], atol=5.1e-4)


def test_an_untrained_student_explains_nothing(place, evaluate):
    """It is the teacher: all ratios are 0, of all words and the end, and the scores are the cosines."""
    page, folder, _ = evaluate(run=None)
    known = json.loads((place.root / "teacher" / "vocab.json").read_text())
    for query in page.queries:
        caption = [word if word in known else "UNK" for word in query["caption"].strip("“”").split()]
        assert [of for of, _ in query["words"]] == ["right video", *["ranked first"] * (query["rank"] > 1)]
        for _, words in query["words"]:
            assert [word for word, _ in words] == [*caption, "end"][:11]  # of 12 tokens one is the start
            assert {ratio for _, ratio in words} == {0.0}
    with np.load(folder / "sims.npz") as file:
        np.testing.assert_allclose(file["strict"], file["undiffused"], atol=1e-5)


def test_the_words_are_what_a_score_has_beyond_the_cosine(place, evaluate):
    """By the weights of the potential and the logit scale that the checkpoint holds."""
    page, folder, _ = evaluate()
    checkpoint = place.root / "outputs" / "exp" / "textdiffs" / "model_best.pth"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    nat = float(state["potential.read_weight"] * state["potential.weight"] / state["clip.logit_scale"].exp())
    with np.load(folder / "sims.npz") as file:
        strict, beyond = file["strict"], file["strict"] - file["undiffused"]
    assert f"a cosine plus {nat:.3g} for each nat" in page.text
    assert np.abs(beyond).max() > 0.01
    for text, query in enumerate(page.queries[-TEST_VIDEOS:]):  # evenly from all: each once, in order
        videos = {"right video": text, "ranked first": int(strict[text].argmax())}
        for of, words in query["words"]:
            assert sum(ratio for _, ratio in words) * nat == pytest.approx(beyond[text, videos[of]], abs=1e-3)


def test_reranking_marks_what_was_not_diffused(evaluate):
    page, _, results = evaluate("--rerank_topk=2")
    assert page.ranks().sum(axis=0).tolist() == [TEST_VIDEOS, TEST_VIDEOS]
    for query in page.queries:
        assert [("≈" in hit["meta"]) for hit in query["hits"]] == [hit["rank"] > 2 for hit in query["hits"]]
        assert [hit["rank"] for hit in query["hits"] if hit["right"]] == [query["rank"]]
    mean = np.mean([query["rank"] for query in page.queries[-TEST_VIDEOS:]])
    assert mean == pytest.approx(next(row["MeanR"] for row in results["results"]))


@pytest.mark.parametrize(
    ("run", "more"),
    [(None, ["--arch=clip_tmass", "--rerank_topk=3"]), (None, ["--arch=clip_baseline"]), ("published", [])],
)
def test_scores_that_do_not_read_words(evaluate, run, more):
    page, _, _ = evaluate(*more, run=run)
    assert "Which words the video explains" not in page.text
    assert [query["words"] for query in page.queries] == [[]] * len(page.queries)
    assert page.ranks().sum(axis=0).tolist() == [TEST_VIDEOS, TEST_VIDEOS]


def test_plots_lie_beside_the_page(evaluate):
    page, folder, _ = evaluate()
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == [f"report-{name}.png" for name in ("ranks", "recall-t2v", "recall-v2t")]
    assert all(read_image(folder / name).float().std() > 1 for name in pictures)
    assert sum(image.startswith("data:image/svg+xml;base64,") for image in page.images) == len(pictures)


def test_several_captions_that_want_to_be_markup(place, evaluate):
    page, _, results = evaluate(*custom(place, lambda index: [f"{HOSTILE} {index}", LONG]))
    assert {row["protocol"] for row in results["results"]} == {"strict"}
    assert "it is not defined here" in page.text and "and 1 more" in page.text
    assert "script" not in page.tags and "b" not in page.tags
    assert f"“{HOSTILE} 0”" in {query["caption"] for query in page.queries}
    assert page.ranks().sum(axis=0).tolist() == [2 * TEST_VIDEOS, TEST_VIDEOS]


def test_thumbnails_need_the_files(place, evaluate):
    file = place.root / "features.safetensors"
    page, _, _ = evaluate(f"--save_embeddings={file}")
    assert "left out" not in page.text and len(page.images) > HITS
    with_files, _, _ = evaluate(f"--load_embeddings={file}")
    assert with_files.images == page.images
    without, _, _ = evaluate(f"--load_embeddings={file}", "--videos_dir=/nonexistent")
    assert "Thumbnails are left out: the video files are not there." in without.text
    assert not any("jpeg" in image for image in without.images) and len(without.images) == 3
    assert without.queries == page.queries


def test_one_of_several_processes_writes_it(place, evaluate):
    alone, _, _ = evaluate()
    folder = place.root / "together"
    run = Run(arguments_of(place, folder), place.root / "logs", size=2, program="test.py")
    assert run.wait() == [0, 0], run.errors()
    assert run.output().count("report.html") == 1
    together = Page(folder / "report.html")
    assert together.queries == alone.queries and len(together.images) == len(alone.images)
    assert together.recall_tables() == alone.recall_tables()


def test_a_page_that_cannot_be_written(place, monkeypatch, capfd):
    folder = place.root / "in-the-way"
    (folder / "report.html").mkdir(parents=True)
    code, err = call_program("test.py", arguments_of(place, folder), monkeypatch, capfd)
    assert code == 2 and err.count("\n") == 1 and "report.html cannot be written" in err


@pytest.fixture
def trained(place, monkeypatch, capfd):
    """The page of a run that was trained."""
    run = ["--exp_name=exp", "--datetime=run"]
    arguments = [a for a in place.arguments("x", run=None) if not a.startswith(("--save_sims", "--output_json"))]
    if not (place.root / "outputs" / "exp" / "run" / "model_best.pth").exists():
        more = ["--num_epochs=2", "--batch_size=4", "--log_step=2", "--no_tensorboard", "--rerank_topk=1"]
        code, err = call_program("train.py", [*arguments, *run, *more], monkeypatch, capfd)
        assert code == 0, err
    code, err = call_program("test.py", [*arguments, *run, "--load_epoch=0", "--report"], monkeypatch, capfd)
    assert code == 0, err
    return place.root / "outputs" / "exp" / "run" / "report.html"


def test_a_trained_run_has_curves_and_its_settings(trained):
    page = Page(trained)
    assert {f"report-{name}.png" for name in ("loss", "training")} <= {path.name for path in trained.parent.iterdir()}
    assert "exp / run · model_best.pth" in page.text and "Trained with" in page.text
    (settings,) = (dict(table) for table in page.tables if ["num_epochs", "2"] in table)
    assert settings["batch_size"] == "4" and "report" not in settings


def test_a_browser_shows_it_well(place, evaluate, trained):
    """At the width of a desk and of phones: nothing sticks out, every picture is there, nothing is fetched, and a
    caption that wants to be a script is none."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: install one, or name it in the variable CHROMIUM")
    _, folder, _ = evaluate(*custom(place, lambda index: [f"{HOSTILE} {index}", LONG]), "--rerank_topk=1")
    with Chromium(program) as browser:
        for page in (trained, folder / "report.html"):
            for width in (1280, 390, 320):
                browser.open(page, width, 800)
                assert browser.evaluate("document.title").endswith("TextDiffs report")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                columns = browser.evaluate("getComputedStyle(document.querySelector('.cards')).gridTemplateColumns")
                assert len(columns.split()) == (2 if width > 600 else 1)
                loaded = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
                assert len(loaded) == len(Page(page).images) and all(loaded)
                assert browser.evaluate("[...document.images].every(i => i.clientWidth > 20 && i.clientHeight > 8)")
            assert browser.pdf().startswith(b"%PDF")
        assert browser.complaints == []
        assert {url.split(":")[0] for url in browser.requests} == {"data", "file"}
        assert sum(url.startswith("file:") for url in browser.requests) == 6  # the pages themselves


# ---------------------------------------------------------------------------------------------------------------------
# findings


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


def test_evenly():
    assert evenly(5, 12).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(evenly(27763, 1000)) == 1000
