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
import torch
from matplotlib.figure import Figure

from config import Config
from config.flags import flags_of
from datasets.annotations import Split
from datasets.holdout import Selection
from diffusion_lm.vocabulary import END
from evaluation.embeddings import Embeddings
from evaluation.evaluator import Evaluator
from evaluation.results import COLUMNS, REFERENCES, Evaluation
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from modules.similarity import Similarity
from modules.text_potential import is_word
from report import charts
from report.findings import Query, find, rank_histogram
from report.history import History, read_history
from report.thumbnails import FRAMES, HEIGHT, Thumbnails
from trainer.run_folder import CONFIG_FILE
from utils.errors import InputError
from utils.files import written_whole

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
    """

    def __init__(
        self, split: Split, config: Config, checkpoint: Path | None, selection: Selection, device: torch.device
    ) -> None:
        self.split, self.config, self.checkpoint, self.device = split, config, checkpoint, device
        self.selection = selection
        self.words: dict[tuple[int, int], list[Word]] = {}  # of text and video
        self.nat = 0.0  # what one nat adds to a score

    def look(self, scores: Similarity) -> None:
        """Find what is to be told of the score matrices."""
        self.findings = find(scores, self.split.clip_of_caption)

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
        """Write report.html, and its plots as report-<name>.png.

        :param evaluation: with the matrices of which `look` was called.
        :return: the page.
        :raises InputError: they cannot be written.
        """
        plots = self._plots(self._history())
        page = self._page(plots, evaluation)
        path = folder / PAGE
        for name, plot in plots.items():
            charts.write_png(plot.figure, folder / f"report-{name}.png")
        try:
            with written_whole(path) as unfinished:
                unfinished.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError(f"report {path} cannot be written: {error.strerror}") from error
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
                f"Recall on the {self._select_on()} split",
                "Strict recall of each evaluation in training.",
            )
        return plots

    def _page(self, plots: dict[str, Plot], evaluation: Evaluation) -> str:
        thumbnails, findings = Thumbnails(self.split, self.config), self.findings
        queries = {name: self._shown(getattr(findings, name), thumbnails) for name in ("best", "worst", "sample")}
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
            tables={direction: _rows(evaluation, direction) for direction in DIRECTIONS},
            histograms={d: rank_histogram(kinds["strict"], findings.gallery) for d, kinds in findings.ranks.items()},
            plots={
                name: {"title": plot.title, "text": plot.text, "uri": charts.svg_uri(plot.figure)}
                for name, plot in plots.items()
            },
            queries=queries,
            nat=self.nat,
            full_colour=FULL_COLOUR,
            reads_words=bool(self.words),
            frames=FRAMES,
            thumbnails=sum(uri is not None for uri in thumbnails.made.values()),
            thumbnail_height=HEIGHT,
            evaluated_with=_settings(self.config, "test"),
            trained_with=self._trained_with(),
            versions=_versions(),
            machine=f"{platform.system()} {platform.machine()}, {_device_name(self.device)}",
        )

    def _select_on(self) -> str:
        """The split of the evaluations in training."""
        path = self.checkpoint and self.checkpoint.parent / CONFIG_FILE
        try:
            return Config.load(path).select_on if path else ""
        except InputError:
            return "unknown"

    def _shown(self, queries: list[Query], thumbnails: Thumbnails) -> list[dict[str, Any]]:
        captions, clips = self.split.captions, self.split.clips
        return [
            {
                "caption": captions[query.text],
                "rank": query.rank,
                "words": self._words(query),
                "hits": [
                    asdict(hit)
                    | {
                        "id": clips[hit.video].video_id,
                        "caption": clips[hit.video].captions[0] if clips[hit.video].captions else "",
                        "more": max(0, len(clips[hit.video].captions) - 1),
                        "thumbnail": thumbnails[hit.video],
                    }
                    for hit in query.hits
                ],
            }
            for query in queries
        ]

    def _words(self, query: Query) -> dict[str, list[Word]]:
        """Those of a query, by the video that explains them."""
        (right,) = (hit for hit in query.hits if hit.right)
        shown = {"right video": right} | ({"ranked first": query.hits[0]} if query.rank > 1 else {})
        return {of: self.words[query.text, hit.video] for of, hit in shown.items() if self.words}

    def _trained_with(self) -> list[dict[str, Any]]:
        """Settings of the training run; none where its folder does not tell."""
        path = self.checkpoint and self.checkpoint.parent / CONFIG_FILE
        if not path or not path.exists():
            return []
        try:
            return _settings(Config.load(path), "train")
        except InputError as error:
            logger.warning("the report tells no settings of training: %s", error)
            return []


def _rows(evaluation: Evaluation, direction: str) -> list[dict[str, Any]]:
    """Rows of the recall table of a direction: both protocols, then the references; the same again with DSL."""
    rows = [row | {"label": row["protocol"]} for row in evaluation.results]
    rows += [row | {"label": REFERENCES[row["scores"]]} for row in evaluation.references]
    return [row for row in rows if row["metric"] == direction]


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
