"""test.py --report: what the page says is what was computed, and a browser shows it well."""

import csv
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from torchvision.io import read_image

from evaluation.results import COLUMNS, REFERENCES
from modules.metrics import video_ranks
from report.findings import HITS
from report.ranks import RANKS_FILE
from tests.chromium import Chromium, find_chromium
from tests.made_up import TEST_VIDEOS, call_program
from tests.report_page import Page
from tests.runs.test_evaluation import Place
from tests.training_runs import Run

HOSTILE = '<script>document.title = "taken"</script> & "quoted" <b>bold</b>'
LONG = "unbroken" * 40
SOME_RIGHT = ["--arch=clip_baseline", "--seed=3"]  # of the made-up videos this model finds two first, others none
FAINT = """[...document.querySelectorAll('body *')].map(element => {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
  if (!own || !element.checkVisibility()) return null
  const numbers = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a] }
  const layers = []
  for (let e = element; e; e = e.parentElement) layers.unshift(numbers(getComputedStyle(e).backgroundColor))
  const white = [255, 255, 255]
  const under = layers.reduce((below, [r, g, b, a]) => below.map((v, i) => a * [r, g, b][i] + (1 - a) * v), white)
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
  const [low, high] = [light(numbers(getComputedStyle(element).color)), light(under)].sort((a, b) => a - b)
  const ratio = (high + .05) / (low + .05)
  return ratio < 4.5 ? `${element.className}: ${ratio}` : null
}).filter(Boolean)"""  # texts whose contrast is less than WCAG 2 asks for at level AA


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


def test_recall_has_its_interval(evaluate):
    """That of resampling the queries, at the top, in the table and for each group of captions; none of 0 and 100 %."""
    page, folder, _ = evaluate(*SOME_RIGHT, run=None)
    hits = np.array(strict_ranks(folder)) == 1
    assert 0 < hits.sum() < TEST_VIDEOS
    drawn = np.random.default_rng(3).choice(100.0 * hits, (20_000, TEST_VIDEOS)).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert f"strict; 95 % {low:.0f}–{high:.0f}; median" in page.text
    assert f"<td>{100 * hits.mean():.1f}<small>{low:.0f}–{high:.0f}</small></td>" in page.source
    assert "<td>0.0<small>" not in page.source and "<td>100.0<small>" not in page.source
    (groups,) = (table for table in page.tables if table[0] == ["captions", "texts", "R@1", "95 %"])
    assert sum(int(row[1]) for row in groups[1:]) == TEST_VIDEOS  # by length: each in one group
    assert sum(int(row[1]) * float(row[2]) for row in groups[1:]) == pytest.approx(100 * hits.sum(), abs=0.5)


def test_which_split_chose_is_said(evaluate):
    page, _, results = evaluate()
    assert f"Test split; model chosen on the {results['selected_on']['split']} split" in page.text


def test_ranks_of_all_queries_lie_beside_the_page(place, evaluate):
    page, folder, results = evaluate()
    with open(folder / RANKS_FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert RANKS_FILE in page.links
    assert [int(row["strict"]) for row in rows if row["direction"] == "t2v"] == strict_ranks(folder)
    assert [row["caption"] for row in rows[:TEST_VIDEOS]] == [q["caption"][1:-1] for q in page.queries[-TEST_VIDEOS:]]
    for row in results["results"]:
        if not row["dsl"]:
            found = [int(line[row["protocol"]]) for line in rows if line["direction"] == row["metric"]]
            assert np.mean(found) == pytest.approx(row["MeanR"])


def test_two_evaluations_are_compared(evaluate):
    _, there, first = evaluate()
    page, here, second = evaluate(*SOME_RIGHT, f"--report={there}", run=None)
    tables = [table for table in page.tables if table[0] == ["metric", "here", "there", "difference", "95 %"]]
    for direction, table in zip(("t2v", "v2t"), tables, strict=True):
        (was,), (now,) = (
            [row for row in results["results"] if (row["metric"], row["protocol"]) == (direction, "strict")][:1]
            for results in (first, second)
        )
        for name, *figures, interval in table[1:]:
            own, other = (row[name.replace("@", "")] for row in (now, was))
            assert figures == [f"{own:.1f}", f"{other:.1f}", f"{own - other:+.1f}"]
            low, high = map(float, interval.split(" to "))
            assert low <= float(figures[2]) <= high
    ranks = [tuple(pair) for pair in zip(strict_ranks(here), strict_ranks(there), strict=True)]
    changed, _ = ([list(map(int, row[1:])) for row in t[1:]] for t in page.tables if t[0][0] == "changed most")
    assert sorted(map(tuple, changed)) == sorted(pair for pair in ranks if pair[0] != pair[1])
    factors = [max(pair) / min(pair) for pair in changed]
    assert factors == sorted(factors, reverse=True)


def test_with_what_it_is_compared_must_fit(place, evaluate, monkeypatch, capfd):
    """It is told before the videos are read."""
    _, there, _ = evaluate()
    others = custom(place, lambda index: [f"something else {index}"])
    for more, said in [([f"--report={place.root}"], "test.py --report writes it"),
                       ([*others, f"--report={there}"], "has other queries")]:  # fmt: skip
        folder = place.root / "unfit"
        code, err = call_program("test.py", arguments_of(place, folder, *more), monkeypatch, capfd)
        assert code == 2 and said in err and RANKS_FILE in err and not (folder / "results.json").exists()


def test_videos_show_the_texts_that_they_find(evaluate):
    """Five of six videos' texts, the right one at its rank, with the scores of the matrix."""
    page, folder, _ = evaluate()
    with np.load(folder / "sims.npz") as file:
        scores, owner = file["strict"], file["video_of_text"]
    ranks = video_ranks(scores, owner)
    assert len(page.videos) == 2 * TEST_VIDEOS
    assert [card["rank"] for card in page.videos[:TEST_VIDEOS]] == sorted(ranks, reverse=True)
    for video, card in enumerate(page.videos[TEST_VIDEOS:]):  # evenly from all: each once, in order
        assert card["rank"] == ranks[video]
        assert [hit["rank"] for hit in card["hits"] if hit["right"]] == [card["rank"]]
        shown = [float(re.search(r"-?\d\.\d{3}", hit["meta"])[0]) for hit in card["hits"][:HITS]]
        np.testing.assert_allclose(shown, np.sort(scores[:, video])[::-1][:HITS], atol=5.1e-4)


def test_videos_are_links(evaluate):
    page, folder, _ = evaluate()
    links = [link for link in page.links if not link.startswith(("#", RANKS_FILE))]
    assert len(links) == sum(1 + len(card["hits"]) for card in page.videos) + sum(len(q["hits"]) for q in page.queries)
    assert all((folder / unquote(link)).is_file() for link in links)


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
    [
        (None, ["--arch=clip_tmass", "--rerank_topk=3"]),
        (None, ["--arch=clip_baseline"]),
        (None, ["--arch=clip_wti"]),
        ("published", []),
    ],
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
    folder = place.root / "outputs" / "exp" / "run"
    before = [*arguments, *place.model(), *run, f"--output_json={folder / 'before_training.json'}"]
    for program in (before, [*arguments, *run, "--load_epoch=0", "--report"]):
        code, err = call_program("test.py", program, monkeypatch, capfd)
        assert code == 0, err
    return folder / "report.html"


def test_a_trained_run_has_curves_and_its_settings(trained):
    page = Page(trained)
    assert {f"report-{name}.png" for name in ("loss", "training")} <= {path.name for path in trained.parent.iterdir()}
    assert "exp / run · model_best.pth" in page.text and "Trained with" in page.text
    (settings,) = (dict(table) for table in page.tables if ["num_epochs", "2"] in table)
    assert settings["batch_size"] == "4" and "report" not in settings


def test_a_trained_run_stands_beside_what_it_was_before(trained, evaluate):
    tables = Page(trained).recall_tables()
    before = json.loads((trained.parent / "before_training.json").read_text())
    rows = [row for row in before["results"] if row["protocol"] == "strict"]
    assert len(rows) == len(tables) == 4
    for row in rows:
        assert tables[row["metric"], row["dsl"]]["before training"] == [f"{row[name]:.1f}" for name in COLUMNS]
    assert not any("before training" in table for table in evaluate()[0].recall_tables().values())


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
            assert browser.evaluate(FAINT) == []
            assert browser.pdf().startswith(b"%PDF")
            cut = "[...document.querySelectorAll('summary')].some(s => s.scrollHeight > s.clientHeight + 1)"
            assert browser.evaluate(cut)
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert not browser.evaluate(cut)
        assert browser.complaints == []
        assert {url.split(":")[0] for url in browser.requests} == {"data", "file"}
        assert sum(url.startswith("file:") for url in browser.requests) == 6  # the pages themselves
