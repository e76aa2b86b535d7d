"""report.html: one evaluation as a page that needs no other file and no network, and its plots as PNG."""

import logging
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure

from config import Config
from config.flags import flags_of
from config.run_flags import REPORT_ALONE
from datasets.annotations import Split
from datasets.holdout import Selection
from diffusion_lm.vocabulary import END
from evaluation.embeddings import Embeddings
from evaluation.evaluator import Evaluator
from evaluation.results import COLUMNS, REFERENCES, Evaluation
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from modules.bootstrap import mean_interval
from modules.similarity import Similarity
from modules.text_potential import is_word
from report import charts
from report.caption_groups import recall_by_caption
from report.findings import CASES, Query, RankedText, VideoQuery, find, rank_histogram
from report.history import History, read_before_training, read_history
from report.ranks import RANKS_FILE, SEED, compare, most_changed, queries_of, read_ranks, write_ranks
from report.thumbnails import FRAMES, HEIGHT, Thumbnails
from trainer.run_folder import CONFIG_FILE
from utils.errors import InputError
from utils.files import written_or_refused

logger = logging.getLogger(__name__)

PAGE = "report.html"
FULL_COLOUR = 3.0  # nats of a word, from which its colour is the strongest: it is 20 times as likely
DIRECTIONS = {"t2v": "Text to video", "v2t": "Video to text"}
PACKAGES = (
    "textdiffs", "torch", "torchvision", "transformers", "safetensors", "numpy", "opencv-python-headless", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A plot of the page."""

    figure: Figure
    title: str
    text: str  # what it shows, for those who do not see it, too


@dataclass(frozen=True)
class Word:
    """A word of a caption, and how a video explains it."""

    text: str
    ratio: float  # log p with the video - log p without, in nats
    is_end: bool

    @property
    def strength(self) -> float:
        """Of its colour, 0 to 1."""
        return min(1.0, abs(self.ratio) / FULL_COLOUR)


class Report:
    """Collects what the page tells while an evaluation goes on, in the main process, and writes it.

    :param checkpoint: that is evaluated; None for an untrained model.
    :param selection: what chose it.
    :raises InputError: the report of --report=DIR is not there, or of other queries.
    """

    def __init__(
        self, split: Split, config: Config, checkpoint: Path | None, selection: Selection, device: torch.device
    ) -> None:
        self.split, self.config, self.checkpoint, self.device = split, config, checkpoint, device
        self.selection = selection
        self.trained = _config_of_training(checkpoint)
        self.other = None if config.report == REPORT_ALONE else read_ranks(Path(config.report), split)
        self.words: dict[tuple[int, int], list[Word]] = {}  # of text and video
        self.nat = 0.0  # what one nat adds to a score

    def look(self, scores: Similarity) -> None:
        """Find what is to be told of the score matrices."""
        self.findings = find(scores, self.split.segment_of_caption)

    @torch.no_grad()
    def read_words(self, evaluator: Evaluator, model: RetrievalModel, embeddings: Embeddings) -> None:
        """How the words of the queries are explained by the right video and by the one that was ranked first, if the
        score looks at words."""
        if not isinstance(model, TextDiffs):
            return
        queries = [*self.findings.best, *self.findings.worst, *self.findings.sample]
        hits = [(query.text, hit) for query in queries for hit in query.hits]
        pairs = sorted({(text, hit.video) for text, hit in hits if hit.right or hit.rank == 1})
        ratios, word_ids = evaluator.word_ratios(model, embeddings, *torch.tensor(pairs).unbind(1))
        counted = is_word(torch.from_numpy(word_ids)).numpy()
        for pair, *row in zip(pairs, ratios, word_ids, counted, strict=True):
            self.words[pair] = [
                Word(model.vocabulary.id_to_token[index], float(ratio), index == END)
                for ratio, index, counts in zip(*row, strict=True)
                if counts
            ]
        self.nat = float(model.nat)

    def write(self, folder: Path, evaluation: Evaluation) -> Path:
        """Write report.html, its plots as report-<name>.png and the rank of each query as report-ranks.csv.

        :param evaluation: with the matrices of which `look` was called.
        :return: the page.
        :raises InputError: they cannot be written.
        """
        plots = self._plots(self._history())
        page = self._page(plots, evaluation, folder)
        path = folder / PAGE
        write_ranks(folder / RANKS_FILE, self.split, self.findings.ranks)
        for name, plot in plots.items():
            charts.write_png(plot.figure, folder / f"report-{name}.png")
        with written_or_refused(path, f"report {path} cannot be written") as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        return path

    def _history(self) -> History | None:
        """Of the run that the checkpoint is of."""
        try:
            return self.checkpoint and read_history(self.checkpoint.parent)
        except InputError as error:
            logger.info("the report has no training curves: %s", error)
            return None

    def _plots(self, history: History | None) -> dict[str, Plot]:
        found, gallery = self.findings.ranks, self.findings.gallery
        plots = {
            f"recall-{direction}": Plot(
                charts.recall(found[direction], gallery), f"Recall at K, {name.lower()}",
                "Share of the queries whose right candidate is among the first K.",
            )
            for direction, name in DIRECTIONS.items()
        }  # fmt: skip
        strict = {direction: kinds["strict"] for direction, kinds in found.items()}
        plots["ranks"] = Plot(
            charts.histogram(strict, gallery), "Ranks, strict", "Share of the queries whose right candidate has a rank."
        )
        if history is not None and history.losses():
            plots["loss"] = Plot(charts.losses(history), "Loss", "Terms of the loss over the steps of training.")
        if history is not None and "eval/t2v_strict/R1" in history.series:
            plots["training"] = Plot(
                charts.training_recall(history),
                f"Recall on the {self.trained.select_on if self.trained else 'unknown'} split",
                "Strict recall of each evaluation in training.",
            )
        return plots

    def _page(self, plots: dict[str, Plot], evaluation: Evaluation, folder: Path) -> str:
        thumbnails, findings = Thumbnails(self.split, self.config, folder), self.findings
        queries = {name: self._shown(getattr(findings, name), thumbnails) for name in ("best", "worst", "sample")}
        videos = {
            name: [self._shown_video(query, thumbnails) for query in getattr(findings, name)]
            for name in ("worst_videos", "sampled_videos")
        }
        before = (
            read_before_training(self.checkpoint.parent, self.config.dataset_name, evaluation)
            if self.checkpoint
            else []
        )
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
            lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        return environment.get_template("report.html.jinja").render(
            config=self.config,
            checkpoint=self.checkpoint,
            run=self.checkpoint and f"{self.checkpoint.resolve().parent.parent.name} / {self.checkpoint.parent.name}",
            written=datetime.now().strftime("%Y-%m-%d %H:%M"),
            evaluation=evaluation,
            selection=self.selection,
            captions=len(self.split.captions),
            columns=COLUMNS,
            directions=DIRECTIONS,
            tables={direction: _rows(evaluation, before, direction) for direction in DIRECTIONS},
            interval=_interval,
            groups=recall_by_caption(self.split, findings.ranks["t2v"]["strict"]),
            ranks_file=RANKS_FILE,
            other=self.other and self.config.report,
            compared={direction: self._compared(direction) for direction in DIRECTIONS} if self.other else {},
            histograms={d: rank_histogram(kinds["strict"], findings.gallery) for d, kinds in findings.ranks.items()},
            plots={
                name: {"title": plot.title, "text": plot.text, "uri": charts.svg_uri(plot.figure)}
                for name, plot in plots.items()
            },
            queries=queries | videos,
            nat=self.nat,
            full_colour=FULL_COLOUR,
            reads_words=bool(self.words),
            frames=FRAMES,
            thumbnails=sum(uri is not None for uri in thumbnails.made.values()),
            thumbnail_height=HEIGHT,
            evaluated_with=_settings(self.config, "test"),
            trained_with=_settings(self.trained, "train") if self.trained else [],
            versions=_versions(),
            machine=f"{platform.system()} {platform.machine()}, {_device_name(self.device)}",
        )

    def _shown(self, queries: list[Query], thumbnails: Thumbnails) -> list[dict[str, Any]]:
        captions, segments = self.split.captions, self.split.segments
        return [
            {
                "caption": captions[query.text],
                "rank": query.rank,
                "words": self._words(query),
                "hits": [
                    asdict(hit)
                    | self._video(hit.video, thumbnails)
                    | {"caption": segments[hit.video].captions[0], "more": segments[hit.video].captions[1:]}
                    for hit in query.hits
                ],
            }
            for query in queries
        ]

    def _shown_video(self, query: VideoQuery, thumbnails: Thumbnails) -> dict[str, Any]:
        captions, owner = self.split.captions, self.split.segment_of_caption

        def shown(hit: RankedText) -> dict[str, Any]:
            of_video = self._video(owner[hit.text], thumbnails)
            return asdict(hit) | of_video | {"caption": captions[hit.text], "more": (), "thumbnail": None}

        return self._video(query.video, thumbnails) | {"rank": query.rank, "hits": [shown(hit) for hit in query.hits]}

    def _video(self, segment: int, thumbnails: Thumbnails) -> dict[str, str | None]:
        return {
            "id": self.split.segments[segment].video_id,
            "thumbnail": thumbnails[segment],
            "link": thumbnails.link(segment),
        }

    def _compared(self, direction: str) -> dict[str, Any]:
        """Metrics of this evaluation and of the other one, and the queries whose ranks differ most."""
        own, other = self.findings.ranks[direction]["strict"], self.other[direction]
        queries = [query for query in queries_of(self.split) if query[0] == direction]
        changed = [
            {"video": queries[index][1], "caption": queries[index][2], "own": own[index], "other": other[index]}
            for index in most_changed(own, other, 2 * CASES)
        ]
        return {"metrics": compare(own, other), "changed": changed}

    def _words(self, query: Query) -> dict[str, list[Word]]:
        """Those of a query, by the video that explains them."""
        (right,) = (hit for hit in query.hits if hit.right)
        shown = {"right video": right} | ({"ranked first": query.hits[0]} if query.rank > 1 else {})
        return {of: self.words[query.text, hit.video] for of, hit in shown.items() if self.words}


def _config_of_training(checkpoint: Path | None) -> Config | None:
    """Of the run that a checkpoint is of; None where its folder does not tell."""
    path = checkpoint and checkpoint.parent / CONFIG_FILE
    if not path or not path.exists():
        return None
    try:
        return Config.load(path)
    except InputError as error:
        logger.warning("the report tells no settings of training: %s", error)
        return None


def _rows(evaluation: Evaluation, before: list[dict[str, Any]], direction: str) -> list[dict[str, Any]]:
    """Rows of the recall table of a direction: both protocols, the references, and strict before training; the same
    again with DSL."""
    rows = [row | {"label": row["protocol"]} for row in evaluation.results]
    rows += [row | {"label": REFERENCES[row["scores"]]} for row in evaluation.references]
    rows += [row | {"label": "before training"} for row in before]
    return [row for row in rows if row["metric"] == direction]


def _interval(row: dict[str, Any]) -> tuple[float, float] | None:
    """95 % interval of the R@1 of a row; None where all or none are found, which resampling cannot tell from sure."""
    found = 100.0 * (np.arange(row["queries"]) < round(row["R1"] * row["queries"] / 100))
    _, low, high = mean_interval(found, SEED)
    return (low, high) if low < high else None


def _settings(config: Config, program: str) -> list[dict[str, Any]]:
    """Flags of a program that concern the arch, with their values and whether these are not the defaults."""
    return [
        {"name": name, "value": getattr(config, name), "changed": getattr(config, name) != f.default}
        for name, (f, declared) in flags_of(config).items()
        if declared.shown_by(program) and declared.what_follows.told and not declared.no_effect
        and (declared.archs is None or config.arch in declared.archs)
    ]  # fmt: skip


def _versions() -> dict[str, str]:
    """Of Python and of the packages that are installed by the usual name."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions | {"torch": torch.__version__}  # which says for what device it was built


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
