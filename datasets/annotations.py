"""Which videos and captions a split of a data set has. One function per data set reads its files as distributed."""

import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from datasets.annotation_file import AnnotationFile, first_of, report
from datasets.files import find_videos, split_name
from utils.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """A video, or the part of it from `start` to `end` seconds, and what people wrote about it."""

    video_id: str
    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Split:
    """The segments of one split of a data set."""

    dataset: str
    name: str  # "train", "val", "test"; of MovingShapes also "test-large" and "test-motion"
    segments: tuple[Segment, ...]
    flip: bool = True  # whether a mirrored video still fits its captions
    missing: tuple[str, ...] = ()  # videos with annotations but no file
    unannotated: tuple[str, ...] = ()  # videos that the data set lists without annotating them

    @property
    def captions(self) -> list[str]:
        """All captions, segment by segment."""
        return [caption for segment in self.segments for caption in segment.captions]

    @property
    def segment_of_caption(self) -> list[int]:
        """For each caption of `captions` the index of its segment."""
        return [index for index, segment in enumerate(self.segments) for _ in segment.captions]


LARGE_TEST, MOTION_TEST = "test-large", "test-motion"  # of MovingShapes

# video, captions (none: listed but not annotated), start, end
Entry = tuple[str, tuple[str, ...], float | None, float | None]
Entries = Iterable[Entry]


def load_split(
    dataset: str,
    split: str,
    data_dir: Path,
    videos_dir: Path | None,
    train_file: str = "9k",
    allow_missing: bool = False,
) -> Split:
    """Read the annotations of a split and find its videos.

    :param dataset: a key of DATASETS.
    :param split: "train" or "test", of MovingShapes also "test-large" and "test-motion", or "val" where there is
        `own_validation`.
    :param data_dir: folder with the annotation files of this data set; the file itself for "custom".
    :param videos_dir: folder of the videos; MovingShapes brings its own.
    :param train_file: training split of MSR-VTT, "7k" or "9k".
    :param allow_missing: leave out videos that have no file, and say so; else they are an error.
    :raises InputError: a file or folder is missing or not what it should be; one line that names it.
    """
    read = read_split(dataset, split, data_dir, videos_dir, train_file)
    if read.missing:
        videos = len({segment.video_id for segment in read.segments}) + len(read.missing)
        what = f"{len(read.missing)} of {videos} {split} videos of {dataset} are not in {videos_dir}"
        if not (allow_missing and read.segments):
            remedy = " (--allow_missing goes on without them)" if read.segments else ""
            raise InputError(f"{what}: {first_of(read.missing)}{remedy}")
        report(f"--allow_missing: {what}", read.missing)
    return read


def read_split(dataset: str, split: str, data_dir: Path, videos_dir: Path | None, train_file: str = "9k") -> Split:
    """As `load_split`, but videos without a file are only listed in `missing`, even if these are all."""
    _check_name(dataset)
    if split == "val" and dataset not in OWN_VALIDATION:
        raise InputError(f"{dataset} has no val split")
    data_dir = Path(data_dir)
    if dataset == "MovingShapes":
        _ensure_moving_shapes(data_dir, split)
        videos_dir = data_dir / "videos" if videos_dir is None else videos_dir
    elif videos_dir is None:
        raise InputError(f"--videos_dir is missing: the folder of the videos of {dataset}")
    if not Path(videos_dir).is_dir():
        raise InputError(f"--videos_dir={videos_dir} is not a folder")
    listed = list(DATASETS[dataset](data_dir, split, train_file))
    entries = [entry for entry in listed if entry[1]]
    if not entries:
        raise InputError(f"{data_dir} holds no {split} pairs of {dataset}")
    unannotated = tuple(video_id for video_id, captions, *_ in listed if not captions)
    if unannotated:
        report(f"{len(unannotated)} of {len(listed)} {split} videos of {dataset} have no annotation", unannotated)
    names = dict.fromkeys(video_id for video_id, *_ in entries)
    found, doubtful = find_videos(Path(videos_dir), names, paths=dataset == "custom")
    if doubtful:
        chosen = tuple(path.relative_to(videos_dir).as_posix() for path in doubtful)
        report(f"{len(doubtful)} videos of {dataset} are in {videos_dir} more than once, taken are", chosen)
    segments = tuple(Segment(name, found[name], *rest) for name, *rest in entries if name in found)
    missing = tuple(dict.fromkeys(name for name, *_ in entries if name not in found))
    flip = dataset != "MovingShapes"  # its captions say left and right
    return Split(dataset, split, segments, flip, missing, unannotated)


OWN_VALIDATION = ("MSVD", "DiDeMo", "custom")


def own_validation(dataset: str, data_dir: Path) -> bool:
    """Whether a data set has a validation split.

    :raises InputError: the file of a custom set is not what it should be.
    """
    return dataset in OWN_VALIDATION and (dataset != "custom" or any(_custom(Path(data_dir), "val", "")))


def _check_name(dataset: str) -> None:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset}: known are {', '.join(DATASETS)}")


def load_annotations(dataset: str, split: str, data_dir: Path, train_file: str = "9k") -> Split:
    """A split without its videos: the path of a segment is only its id."""
    _check_name(dataset)
    if dataset == "MovingShapes":
        _ensure_moving_shapes(Path(data_dir), split)
    entries = DATASETS[dataset](Path(data_dir), split, train_file)
    return Split(dataset, split, tuple(Segment(name, Path(name), *rest) for name, *rest in entries if rest[0]))


def load_captions(dataset: str, data_dir: Path, train_file: str = "9k") -> list[str]:
    """All training captions of a data set, for which no video is needed."""
    return load_annotations(dataset, "train", data_dir, train_file).captions


def _caption(text: object) -> str:
    """One blank between words, none around. ValueError when nothing is left, or it is no text that can be written."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"not a caption: {text!r:.80}")
    text.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    if "\0" in text:
        raise ValueError(f"a caption with a null character: {text!r:.80}")
    return " ".join(text.split())


def _seconds(text: object) -> float:
    """A time. ValueError when it is none."""
    is_number = isinstance(text, str | int | float) and not isinstance(text, bool) and "_" not in str(text)
    try:
        seconds = float(text) if is_number else math.nan  # float() would take 1_30 for 130
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < 1e9:
        raise ValueError(f"not a time in seconds: {text!r:.80}")
    return seconds


def _msrvtt(data_dir: Path, split: str, train_file: str) -> Entries:
    """MSR-VTT: training on 9k or 7k videos with 20 captions each, test on the 1k-A split of JSFUSION."""
    if split == "test":
        file = AnnotationFile(data_dir / "MSRVTT_JSFUSION_test.csv")
        for line, row in file.rows(("video_id", "sentence")):
            yield row["video_id"], (_checked(file, line, row["sentence"]),), None, None
        return
    file = AnnotationFile(data_dir / "MSRVTT_data.json")
    content = file.json()
    captions: dict[str, list[str]] = {}
    if not isinstance(content, dict) or not isinstance(content.get("sentences"), list):
        raise file.error(1, 'it has no list "sentences" with "video_id" and "caption"')
    for index, sentence in enumerate(content["sentences"]):
        try:
            captions.setdefault(_name(sentence["video_id"]), []).append(_caption(sentence["caption"]))
        except (TypeError, KeyError, ValueError) as error:
            word = sentence.get("video_id") if isinstance(sentence, dict) else sentence
            raise file.error_at(word, f'"sentences", entry {index + 1}: no "video_id" and "caption"') from error
    training = AnnotationFile(data_dir / f"MSRVTT_train.{train_file}.csv")
    for line, row in training.rows(("video_id",)):
        video_id = row["video_id"]
        if video_id not in captions:
            raise training.error(line, f"{file.path} has no caption for {video_id}")
        yield video_id, tuple(captions[video_id]), None, None


def _msvd(data_dir: Path, split: str, train_file: str) -> Entries:
    """MSVD: 1,200 training and 670 test videos with about 40 captions each."""
    file, names = AnnotationFile(data_dir / "captions_msvd.json"), AnnotationFile(data_dir / f"{split}_list.txt")
    captions = file.json()
    if not isinstance(captions, dict):
        raise file.error(1, "not a mapping of video to captions")
    for line, text in names.lines():
        for video_id in text.split():
            if not captions.get(video_id):
                raise names.error(line, f"{file.path} has no caption for {video_id}")
            try:
                yield video_id, tuple(map(_caption, _list(captions[video_id]))), None, None
            except ValueError as error:
                raise file.error_at(video_id, f"{video_id}: {error}") from error


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r:.80}")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"not a video: {value!r:.80}")
    value.encode()
    return value


def _checked(file: AnnotationFile, line: int, caption: str) -> str:
    try:
        return _caption(caption)
    except ValueError as error:
        raise file.error(line, str(error)) from error


LSMDC_FILES = {"train": "LSMDC16_annos_training.csv", "test": "LSMDC16_challenge_1000_publictect.csv"}


def _lsmdc(data_dir: Path, split: str, train_file: str) -> Entries:
    """LSMDC: one caption a segment, in files of six tab-separated columns: segment, four times, sentence."""
    file = AnnotationFile(data_dir / LSMDC_FILES[split])
    for line, text in file.lines():
        if not text and line > 1:  # what follows the last line
            continue
        columns = text.split("\t")
        if len(columns) != 6 or not columns[0].strip() or not columns[5].strip():
            raise file.error(line, "not six tab-separated columns with a sentence")
        yield columns[0], (_checked(file, line, columns[5]),), None, None


DIDEMO_TIME = re.compile(r"tensor\(\[+(.*?)\]+\)")  # tensor([[31]])


def _didemo(data_dir: Path, split: str, train_file: str) -> Entries:
    """DiDeMo: all sentences of a video as one paragraph, for its part from `starts` to `ends` seconds."""
    file = AnnotationFile(data_dir / f"didemo_{split}_label.csv")
    for line, row in file.rows(("video_path", "starts", "ends", "text")):
        video_id, _ = split_name(Path(row["video_path"]).name)
        try:
            start, end = (_seconds(DIDEMO_TIME.sub(r"\1", row[name])) for name in ("starts", "ends"))
            if not (video_id and end > start):
                raise ValueError(f"no time from {row['starts']} to {row['ends']}")
        except ValueError as error:
            raise file.error(line, f"{row['video_path']}: {error}") from error
        yield video_id, (_checked(file, line, row["text"]),), start, end


def _activitynet(data_dir: Path, split: str, train_file: str) -> Entries:
    """ActivityNet Captions: all sentences of a video as one paragraph, for its annotated duration; tests on val_1."""
    annotations, ids = ("train.json", "train_ids.json") if split == "train" else ("val_1.json", "val_ids.json")
    file, list_file = AnnotationFile(data_dir / annotations), AnnotationFile(data_dir / ids)
    captions, wanted = file.json(), list_file.json()
    if not isinstance(captions, dict):
        raise file.error(1, "not a mapping of videos")
    if not isinstance(wanted, list):
        raise list_file.error(1, "not a list of videos")
    for video_id in wanted:
        try:
            if _name(video_id) not in captions:
                yield video_id, (), None, None
                continue
        except ValueError as error:
            raise list_file.error_at(video_id, str(error)) from error
        try:
            entry = captions[video_id]
            paragraph = " ".join(map(_caption, _list(entry["sentences"])))
            yield video_id, (_caption(paragraph),), 0.0, _seconds(entry["duration"])
        except (KeyError, TypeError, ValueError) as error:
            raise file.error_at(video_id, f"{video_id} has no sentences and duration ({error})") from error


def _moving_shapes(data_dir: Path, split: str, train_file: str) -> Entries:
    """MovingShapes, the embedded data set."""
    from datasets import moving_shapes  # which draws, and is needed for this set alone

    more = {LARGE_TEST: (moving_shapes.LARGE, "test"), MOTION_TEST: (moving_shapes.MOTION, "motion")}
    file, listed = more.get(split, (moving_shapes.ANNOTATIONS, split))
    for entry in AnnotationFile(data_dir / file).json()[listed]:
        yield entry["video_id"], tuple(entry["captions"]), None, None


def _ensure_moving_shapes(data_dir: Path, split: str) -> None:
    from datasets import moving_shapes

    ensure = {LARGE_TEST: moving_shapes.ensure_large, MOTION_TEST: moving_shapes.ensure_motion}
    ensure.get(split, moving_shapes.ensure)(data_dir)


CUSTOM_COLUMNS = ("video", "caption", "start", "end", "split")
CUSTOM_SPLITS = ("train", "val", "test")


def _custom(path: Path, split: str, train_file: str) -> Entries:
    """Your own videos: rows of video, caption and, if wanted, start and end in seconds and split.

    Rows of the same video and times are one segment with several captions. Where no row has a split, all are taken for
    training and test, none for validation.
    """
    file = AnnotationFile(path)
    if path.suffix == ".csv":
        rows: Iterable[tuple[int, object]] = file.rows(("video", "caption"), CUSTOM_COLUMNS)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        rows = ((line, file.json_of(text, line)) for line, text in file.lines() if text.strip())
    else:
        raise InputError(f"annotation file {path} is neither .csv nor .jsonl (JSON Lines)")
    segments: dict[tuple[str | None, str, float | None, float | None], list[str]] = {}
    of_none = []  # lines of the rows without a split
    for line, row in rows:
        if isinstance(row, dict):
            file.check_names(line, "key", row, CUSTOM_COLUMNS)
        try:
            of_split, video, start, end, caption = _custom_row(row)
        except ValueError as error:
            raise file.error(line, str(error)) from error
        segments.setdefault((of_split, video, start, end), []).append(caption)
        of_none += [str(line)] if of_split is None else []
    undivided = all(of_split is None for of_split, *_ in segments)
    if undivided and split == "val":
        return
    if undivided and segments:
        logger.warning("%s has no column split: all of it is used for the %s split", path, split)
    elif of_none and split == "train":
        report(f"{path}: {len(of_none)} rows have no split and are for training, from line", tuple(of_none))
    for (of_split, video, start, end), captions in segments.items():
        if undivided or (of_split or "train") == split:
            yield video, tuple(captions), start, end


def _custom_row(row: object) -> tuple[str | None, str, float | None, float | None, str]:
    """Split, video, start, end and caption. ValueError says what is wrong with them."""
    if not isinstance(row, dict) or not {"video", "caption"} <= set(row):
        raise ValueError("it has no video and caption")
    video, of_split = _name(row["video"]), None if row.get("split") == "" else row.get("split")
    as_windows = PureWindowsPath(video)  # both kinds of slash
    if ".." in as_windows.parts or as_windows.anchor or "\0" in video:
        raise ValueError(f"video {video!r} is not a path below --videos_dir")
    if of_split not in (None, *CUSTOM_SPLITS):
        raise ValueError(f"split {of_split!r:.80} is none of {', '.join(CUSTOM_SPLITS)}")
    start, end = (None if row.get(name) in (None, "") else _seconds(row[name]) for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {end:g} is not behind start {start or 0:g}")
    return of_split, video, start, end, _caption(row["caption"])


DATASETS: dict[str, Callable[[Path, str, str], Entries]] = {
    "MSRVTT": _msrvtt,
    "MSVD": _msvd,
    "LSMDC": _lsmdc,
    "DiDeMo": _didemo,
    "ActivityNet": _activitynet,
    "MovingShapes": _moving_shapes,
    "custom": _custom,
}
