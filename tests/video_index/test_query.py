"""What a query can say beside its text: what else, what not, like which video, among which files, and what a hit is."""

import os
from datetime import datetime

import pytest
import torch
from torch.nn import functional as F

from config import SearchConfig
from tests.made_up import CAPTIONS
from tests.small_models import small_baseline, small_textdiffs
from tests.video_index.made_up import FRAMES, SENTENCES, WIDTH, add_film, new_store
from tests.video_index.test_search import searcher_of, slow_scores
from utils.errors import InputError
from video_index.query import Filters, Query, time_ns
from video_index.ranking import shares
from video_index.searching import Searcher

DAY = 24 * 3600 * 10**9


def searcher_over(folder, films, *flags, model=None):
    """A searcher with plain CLIP over films: names, parts (parts, D) and times of change."""
    store = new_store(folder, frames=torch.zeros(1, 1, WIDTH))
    for name, parts, mtime_ns in films:
        add_film(store, name, parts[:, None], mtime_ns=mtime_ns)
    config = SearchConfig.parse(["query", "x", f"--index={folder}", *flags])
    return Searcher(model or small_baseline("avg"), store, config, torch.device("cpu"), torch.float32)


@torch.no_grad()
def encoded_texts(model, texts):
    return model.encode_texts(model.tokenize(texts)["token_ids"])


@pytest.fixture
def random_films():
    generator = torch.Generator().manual_seed(3)
    return [(f"{'ab'[number % 2]}/{number}.mp4", torch.randn(1, WIDTH, generator=generator), number * DAY)
            for number in range(20)]  # fmt: skip


def names_of(hits):
    return [os.path.basename(hit.segment.file) for hit in hits]


def test_texts_and_a_video_are_one_vector(tmp_path, random_films):
    """The ranking is that of the sum of the unit vectors, what is not wanted counting half against it."""
    searcher = searcher_over(tmp_path / "index", random_films, "--topk=30")
    one, two, three = F.normalize(encoded_texts(searcher.model, SENTENCES[:3]), dim=-1)
    means = F.normalize(torch.cat([parts for _, parts, _ in random_films]), dim=-1)
    for query, vector, own in (
        (Query((SENTENCES[0], SENTENCES[1])), one + two, None),
        (Query((SENTENCES[0],), (SENTENCES[2],)), one - three / 2, None),
        (Query((SENTENCES[0],), like=5), one + means[4], 4),  # ids begin at 1
        (Query(like=5), means[4], 4),
        (Query((), (SENTENCES[2],), like=5), means[4] - three / 2, 4),
    ):
        cosines = F.cosine_similarity(means, vector[None])
        order = [index for index in cosines.argsort(descending=True).tolist() if index != own]
        hits = searcher.search(query)
        assert names_of(hits) == [f"{index}.mp4" for index in order]
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), cosines[order])


def test_of_a_long_video_the_part_counts_that_is_nearest(tmp_path, random_films):
    films = [*random_films, ("film.mp4", torch.cat([random_films[3][1], random_films[8][1]]), 0)]
    searcher = searcher_over(tmp_path / "index", films)
    model, flags = searcher.model, searcher.config
    film = next(segment for segment in searcher.segments if segment.file.endswith("film.mp4"))
    searcher.encoded = lambda video: searcher_parts(searcher, film.video)
    hits = searcher.search(Query(like="film.mp4"))
    assert set(names_of(hits)[:2]) == {"3.mp4", "8.mp4"}
    assert [hit.score for hit in hits[:2]] == pytest.approx([1, 1], abs=1e-5)
    assert "film.mp4" not in names_of(hits)
    text = F.normalize(encoded_texts(model, SENTENCES[:1]), dim=-1)
    both = searcher.search(Query(SENTENCES[:1], like="film.mp4"))
    vectors = F.normalize(text + F.normalize(films[-1][1], dim=-1), dim=-1)
    means = F.normalize(torch.cat([parts for _, parts, _ in random_films]), dim=-1)
    expected = (means @ vectors.t()).max(1).values.sort(descending=True)
    assert names_of(both) == [f"{index}.mp4" for index in expected.indices[: flags.topk].tolist()]
    torch.testing.assert_close(torch.tensor([hit.score for hit in both]), expected.values[: flags.topk])


def searcher_parts(searcher, video):
    held = [segment for segment in searcher.segments if segment.video == video]
    return held, searcher._held(held)


@torch.no_grad()
def test_the_third_stage_reads_the_words_of_the_main_text(tmp_path):
    """The cosine is that of the sum, the log ratio that of the main text alone."""
    torch.manual_seed(0)
    model = small_textdiffs(CAPTIONS + SENTENCES, num_frames=FRAMES)
    searcher, encoded = searcher_of(model, tmp_path / "index", 9, "--pool_topk=0", "--rerank_topk=0")
    main, other = encoded_texts(model, SENTENCES[:2])
    alone = slow_scores(model, SENTENCES[:1], encoded)[0]
    potential = alone - F.cosine_similarity(main, model.pool_frames(main[None], encoded.frames)[:, 0])
    total = F.normalize(F.normalize(main, dim=0) - F.normalize(other, dim=0) / 2, dim=0) * main.norm()
    expected = F.cosine_similarity(total, model.pool_frames(total[None], encoded.frames)[:, 0]) + potential
    assert potential.std() > 1e-3
    hits = searcher.search(Query(SENTENCES[:1], SENTENCES[1:2]))
    found = {int(hit.segment.file[8:-4]): hit.score for hit in hits}
    torch.testing.assert_close(torch.tensor([found[index] for index in range(9)]), expected, atol=1e-4, rtol=0)
    assert {hit.stage for hit in hits} == {"rescored"}


# ---------------------------------------------------------------------------------------------------------------------
# Filters


def test_folders_and_dates(tmp_path, random_films):
    searcher = searcher_over(tmp_path / "index", random_films, "--topk=30")
    even = {f"{number}.mp4" for number in range(0, 20, 2)}

    def found(**filters):
        return set(names_of(searcher.search(Query(SENTENCES[:1], filters=Filters(**filters)))))

    for folder in ("a", "/videos/a", "a/", "videos/a"):  # below a root, absolute, with the name of the root
        assert found(folders=(folder,)) == even
    assert found(folders=("a", "b")) == found(folders=("videos",)) == found() == {f"{n}.mp4" for n in range(20)}
    assert found(since_ns=5 * DAY, until_ns=8 * DAY) == {"5.mp4", "6.mp4", "7.mp4"}
    assert found(folders=("a",), until_ns=3 * DAY) == {"0.mp4", "2.mp4"}
    assert found(since_ns=90 * DAY) == set()
    for folder in ("c", "/videos/a/0", "/videos/../a", "vid"):
        with pytest.raises(InputError, match=f"--in={folder}: the index holds nothing there"):
            found(folders=(folder,))


def test_what_is_filtered_out_takes_no_place_in_later_stages(tmp_path, random_films):
    searcher = searcher_over(tmp_path / "index", random_films, "--pool_topk=3", "--topk=30")
    hits = searcher.search(Query(SENTENCES[:1], filters=Filters(("a",))))
    assert [hit.stage for hit in hits] == ["pooled"] * 3 + ["mean_pooled"] * 7


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("2024", (2024, 1, 1), (2025, 1, 1)),
        ("2024-12", (2024, 12, 1), (2025, 1, 1)),
        ("2024-02", (2024, 2, 1), (2024, 3, 1)),
        ("2024-02-29", (2024, 2, 29), (2024, 3, 1)),
        ("2024-05-31T23:59", (2024, 5, 31, 23, 59), (2024, 6, 1)),
    ],
)
def test_dates_are_whole_years_months_days_or_minutes(text, begins, ends):
    assert time_ns("since", text) == int(datetime(*begins).timestamp()) * 10**9
    assert time_ns("until", text, after=True) == int(datetime(*ends).timestamp()) * 10**9


@pytest.mark.parametrize("text", ["", "yesterday", "2024-13", "2024-02-30", "9999"])
def test_what_is_no_date(text):
    with pytest.raises(InputError, match=f"--until={text} is no date"):
        time_ns("until", text, after=True)


# ---------------------------------------------------------------------------------------------------------------------
# One moment a video, and the share of the library


def toward(text, *cosines):
    """Unit vectors whose cosines with a text are these."""
    text = F.normalize(text, dim=-1)
    aside = F.normalize(torch.eye(len(text))[0] - text[0] * text, dim=-1)
    return torch.stack([cosine * text + (1 - cosine**2) ** 0.5 * aside for cosine in cosines])


def test_one_moment_a_video_with_its_neighbours(tmp_path):
    """The library's mean is 0: neighbours belong to a moment that are at three quarters of its best part or above."""
    model = small_baseline("avg")
    text = encoded_texts(model, SENTENCES[:1])[0]
    films = [
        ("joined.mp4", toward(text, -0.5, 0.7, 0.8, 0.62, 0.1, 0.79), 0),
        ("alone.mp4", toward(text, 0.9, 0.5, 0.89), 0),
        ("rest.mp4", toward(text, *[-0.53] * 9), 0),
    ]
    searcher = searcher_over(tmp_path / "index", films, "--topk=30", model=model)
    assert len(searcher.search(Query(SENTENCES[:1]))) == 18
    hits = searcher.search(Query(SENTENCES[:1], per_video=True))
    assert names_of(hits) == ["alone.mp4", "joined.mp4", "rest.mp4"]
    assert [(hit.segment.part, hit.start, hit.end) for hit in hits[:2]] == [(0, 0, 30), (2, 30, 120)]
    assert hits[2].end - hits[2].start == 30  # what does not stand out stays as it is
    assert names_of(searcher.search(Query(SENTENCES[:1], per_video=True, topk=2))) == ["alone.mp4", "joined.mp4"]


def test_the_share_of_the_library_that_scores_less(tmp_path, random_films):
    """100 percent is the best of all, 0 the worst, with a filter as well."""
    searcher = searcher_over(tmp_path / "index", random_films, "--topk=30")
    everything = searcher.search(Query(SENTENCES[:1]))
    assert [hit.share for hit in everything] == pytest.approx([100 * (19 - rank) / 19 for rank in range(20)])
    some = searcher.search(Query(SENTENCES[:1], filters=Filters(("a",))))
    told = {hit.segment.file: hit.share for hit in everything}
    assert [hit.share for hit in some] == pytest.approx([told[hit.segment.file] for hit in some])
    best = searcher.search(Query(SENTENCES[:1], min_score=75))
    assert names_of(best) == names_of(everything)[:5]
    assert names_of(searcher.search(Query(SENTENCES[:1], min_score=100))) == names_of(everything)[:1]


def test_shares_of_a_library_of_one_clip():
    assert shares(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.3])).tolist() == [100]
