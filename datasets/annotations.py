"""Which videos and captions a split of a data set has. One function per data set reads its files as distributed."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import moving_shapes
from diffusion_lm.errors import InputError

logger = logging.getLogger(__name__)

# of two files with the stem of a video, one with such an extension is taken: the other may be its subtitles
VIDEO_EXTENSIONS = {"3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ts", "webm", "wmv"}


@dataclass(frozen=True)
class Clip:
    """A video, or the part of it from `start` to `end` seconds, and what people wrote about it."""

    video_id: str
    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Split:
    """The clips of one split of a data set."""

    dataset: str
    name: str  # "train" or "test"
    clips: tuple[Clip, ...]
    flip: bool = True  # whether a mirrored video still fits its captions

    @property
    def captions(self) -> list[str]:
        """All captions, clip by clip."""
        return [caption for clip in self.clips for caption in clip.captions]

    @property
    def clip_of_caption(self) -> list[int]:
        """For each caption of `captions` the index of its clip."""
        return [index for index, clip in enumerate(self.clips) for _ in clip.captions]


# reads the captions and places of a split: (data folder, split name, version of the training split) -> entries
Entries = Iterable[tuple[str, tuple[str, ...], float | None, float | None]]


def load_split(
    dataset: str, split: str, data_dir: Path, videos_dir: Path | None, train_file: str = "9k", seed: int = 24
) -> Split:
    """Read the annotations of a split and find its videos.

    :param dataset: a key of DATASETS.
    :param split: "train" or "test".
    :param data_dir: folder with the annotation files of this data set.
    :param videos_dir: folder of the videos; MovingShapes brings its own.
    :param train_file: training split of MSR-VTT, "7k" or "9k".
    :param seed: of the MovingShapes data.
    :raises InputError: a file or folder is missing or not what it should be; one line that names it.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset}: known are {', '.join(DATASETS)}")
    data_dir = Path(data_dir)
    if dataset == "MovingShapes":
        moving_shapes.ensure(data_dir)
        videos_dir = data_dir / "videos" if videos_dir is None else videos_dir
    elif videos_dir is None:
        raise InputError(f"--videos_dir is missing: the folder of the videos of {dataset}")
    if not Path(videos_dir).is_dir():
        raise InputError(f"--videos_dir={videos_dir} is not a folder")
    entries = list(DATASETS[dataset](data_dir, split, train_file))
    if not entries:
        raise InputError(f"{data_dir} holds no {split} pairs of {dataset}")
    clips = tuple(_find_videos(dataset, split, Path(videos_dir), entries))
    return Split(dataset, split, clips, flip=dataset != "MovingShapes")  # its captions say left and right


def load_annotations(dataset: str, split: str, data_dir: Path, train_file: str = "9k") -> Split:
    """A split without its videos: the path of a clip is only its id."""
    if dataset == "MovingShapes":
        moving_shapes.ensure(Path(data_dir))
    entries = DATASETS[dataset](Path(data_dir), split, train_file)
    return Split(dataset, split, tuple(Clip(name, Path(name), *rest) for name, *rest in entries if rest[0]))


def load_captions(dataset: str, data_dir: Path, train_file: str = "9k") -> list[str]:
    """All training captions of a data set, for which no video is needed."""
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset}: known are {', '.join(DATASETS)}")
    if dataset == "MovingShapes":
        moving_shapes.ensure(Path(data_dir))
    return [c for _, captions, *_ in DATASETS[dataset](Path(data_dir), "train", train_file) for c in captions]


def _find_videos(dataset: str, split: str, videos_dir: Path, entries: Entries) -> Iterator[Clip]:
    """Clips of the entries; videos are found by stem, whatever the extension, in one walk of the folder."""
    wanted = {video_id for video_id, *_ in entries}
    by_stem: dict[str, Path] = {}
    for path in sorted(videos_dir.rglob("*")):
        stem, _, extension = path.name.rpartition(".")  # DiDeMo has names that end in the dot
        known = extension.lower() in VIDEO_EXTENSIONS
        if stem in wanted and (known or stem not in by_stem) and path.is_file():
            by_stem[stem] = path
    missing = [video_id for video_id, *_ in entries if video_id not in by_stem]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(entries)} {split} videos of {dataset} are not in {videos_dir}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    for video_id, captions, start, end in entries:
        yield Clip(video_id, by_stem[video_id], captions, start, end)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"annotation file {path} is not UTF-8 text (byte {error.start})") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"annotation file {path}, line {error.lineno}: not JSON ({error.msg})") from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    absent = [name for name in columns if name not in (reader.fieldnames or ())]
    if absent:
        raise InputError(f"annotation file {path}, line 1: column {', '.join(absent)} is missing")
    try:
        for row in reader:
            empty = [name for name in columns if not row[name]]
            if empty:
                raise InputError(f"annotation file {path}, line {reader.line_num}: no {', '.join(empty)}")
            yield row
    except csv.Error as error:
        raise InputError(f"annotation file {path}, line {reader.line_num}: {error}") from error


def _clean(caption: str) -> str:
    """One blank between words, none around."""
    return " ".join(caption.split())


def _msrvtt(data_dir: Path, split: str, train_file: str) -> Entries:
    """MSR-VTT: training on 9k or 7k videos with 20 captions each, test on the 1k-A split of JSFUSION."""
    if split == "test":
        for row in _read_csv(data_dir / "MSRVTT_JSFUSION_test.csv", ("video_id", "sentence")):
            yield row["video_id"], (_clean(row["sentence"]),), None, None
        return
    path = data_dir / "MSRVTT_data.json"
    captions: dict[str, list[str]] = {}
    try:
        for sentence in _read_json(path)["sentences"]:
            captions.setdefault(sentence["video_id"], []).append(_clean(sentence["caption"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f'annotation file {path} has no "sentences" with "video_id" and "caption"') from error
    for row in _read_csv(data_dir / f"MSRVTT_train.{train_file}.csv", ("video_id",)):
        video_id = row["video_id"]
        if video_id not in captions:
            raise InputError(f"annotation file {path} has no caption for {video_id} of MSRVTT_train.{train_file}.csv")
        yield video_id, tuple(captions[video_id]), None, None


def _msvd(data_dir: Path, split: str, train_file: str) -> Entries:
    """MSVD: 1,200 training and 670 test videos with about 40 captions each."""
    path = data_dir / "captions_msvd.json"
    captions = _read_json(path)
    names = _read_text(data_dir / f"{split}_list.txt").split()
    if not isinstance(captions, dict):
        raise InputError(f"annotation file {path} is not a mapping of video to captions")
    for video_id in names:
        if not captions.get(video_id):
            raise InputError(f"annotation file {path} has no caption for {video_id} of {split}_list.txt")
        yield video_id, tuple(map(_clean, captions[video_id])), None, None


LSMDC_FILES = {"train": "LSMDC16_annos_training.csv", "test": "LSMDC16_challenge_1000_publictect.csv"}


def _lsmdc(data_dir: Path, split: str, train_file: str) -> Entries:
    """LSMDC: one caption a clip, in files of six tab-separated columns: clip, four times, sentence."""
    path = data_dir / LSMDC_FILES[split]
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        columns = line.split("\t")
        if len(columns) != 6 or not columns[0] or not columns[5].strip():
            raise InputError(f"annotation file {path}, line {number}: not six tab-separated columns with a sentence")
        yield columns[0], (_clean(columns[5]),), None, None


def _didemo(data_dir: Path, split: str, train_file: str) -> Entries:
    """DiDeMo: all sentences of a video as one paragraph, for its part from `starts` to `ends` seconds."""
    path = data_dir / f"didemo_{split}_label.csv"
    for row in _read_csv(path, ("video_path", "starts", "ends", "text")):
        video_id = Path(row["video_path"]).name.rpartition(".")[0]  # a few names end in the dot
        start, end = (re.search(r"\d+(\.\d+)?", row[name]) for name in ("starts", "ends"))  # "tensor([[31]])"
        if not (start and end and float(end[0]) > float(start[0])):
            raise InputError(f"annotation file {path}: {video_id} has no time from {row['starts']} to {row['ends']}")
        yield video_id, (_clean(row["text"]),), float(start[0]), float(end[0])


def _activitynet(data_dir: Path, split: str, train_file: str) -> Entries:
    """ActivityNet Captions: all sentences of a video as one paragraph, for its annotated duration; tests on val_1."""
    annotations, ids = ("train.json", "train_ids.json") if split == "train" else ("val_1.json", "val_ids.json")
    path = data_dir / annotations
    captions, wanted = _read_json(path), _read_json(data_dir / ids)
    if not isinstance(captions, dict) or not isinstance(wanted, list):
        raise InputError(f"annotation files {path} and {ids} are not a mapping of videos and a list of them")
    absent = [video_id for video_id in wanted if video_id not in captions]
    if absent:
        logger.warning("%d of %d %s videos of ActivityNet have no annotation", len(absent), len(wanted), split)
    for video_id in wanted:
        if video_id in captions:
            try:
                entry = captions[video_id]
                yield video_id, (_clean(" ".join(entry["sentences"])),), 0.0, float(entry["duration"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"annotation file {path}: {video_id} has no sentences and duration") from error


def _moving_shapes(data_dir: Path, split: str, train_file: str) -> Entries:
    """MovingShapes, the embedded data set."""
    for entry in _read_json(data_dir / "annotations.json")[split]:
        yield entry["video_id"], tuple(entry["captions"]), None, None


DATASETS: dict[str, Callable[[Path, str, str], Entries]] = {
    "MSRVTT": _msrvtt,
    "MSVD": _msvd,
    "LSMDC": _lsmdc,
    "DiDeMo": _didemo,
    "ActivityNet": _activitynet,
    "MovingShapes": _moving_shapes,
}
