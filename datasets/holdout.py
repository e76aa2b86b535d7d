"""Which videos choose the model: the validation split of a data set, or training videos that are held out.

No two videos of one film lie on both sides, where their names tell.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Container, Hashable
from dataclasses import asdict, dataclass, replace

from config import Config
from datasets.annotations import Split, load_split, own_validation
from datasets.files import identity
from utils.errors import InputError

logger = logging.getLogger(__name__)

SHARE = 20  # one of so many training videos is held out
MOST = 500  # videos that are held out
FEW = 20  # validation videos, below which R@1 tells little
LAST_EPOCH = "it is that of the last epoch"
TEST_CHOOSES = "--select_on=test lets the test split choose model_best.pth, as published code does"
TIME_STAMP = re.compile(r"_\d\d\.\d\d\.\d\d\.\d{3}-\d\d\.\d\d\.\d\d\.\d{3}$")  # of LSMDC: from, to
SECONDS = re.compile(r"_\d+_\d+$")  # of MSVD: from, to
NUMBER_AND_ARTICLE = re.compile(r"^\d+_(the_|an?_)?")  # LSMDC has a film twice: 1040_The_Ugly_Truth, 3086_UGLY_TRUTH


@dataclass(frozen=True)
class Selection:
    """What chose a model; `results.json` holds its fields."""

    split: str | None  # "val" or "test"; None where no evaluation chose, "unknown" where nobody knows
    how: str
    videos: int | None = None
    captions: int | None = None

    @classmethod
    def by(cls, split: Split, how: str) -> "Selection":
        """By the evaluations of a split."""
        return cls(split.name, how, len(split.segments), len(split.captions))

    def to_dict(self) -> dict[str, str | int | None]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "split"}

    def __str__(self) -> str:
        if self.split is None:
            return f"chosen by no evaluation: {self.how}"
        size = "" if self.videos is None else f" ({self.captions} texts, {self.videos} videos)"
        return f"chosen on the {self.split} split{size}: {self.how}"


@dataclass(frozen=True)
class TrainingSplits:
    """What a training run reads."""

    train: Split
    val: Split | None  # chooses the model; None where the test split does, or nothing
    test: Split | None  # None without evaluations
    selection: Selection


def training_splits(config: Config) -> TrainingSplits:
    """The splits of a training run.

    :raises InputError: a file or folder is missing or not what it should be, or too little is left for training.
    """
    places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    train = load_split(config.dataset_name, "train", *places)
    if config.skip_eval:
        return TrainingSplits(train, None, None, Selection(None, LAST_EPOCH))
    test = load_split(config.dataset_name, config.test_split, *places)
    if config.select_on == "test":
        return TrainingSplits(
            train, None, test, Selection.by(test, "the best of all evaluations on it, as in published code")
        )
    if own_validation(config.dataset_name, config.dataset_dir):
        try:
            val = load_split(config.dataset_name, "val", *places)
        except InputError as error:
            raise InputError(f"{error}; {TEST_CHOOSES}") from error
        val, how = apart(val, train), "the validation split of the data set"
    else:
        train, val = hold_out(train, config.seed)
        how = f"held out of the training videos by --seed={config.seed}"
    if len(val.segments) < FEW:
        logger.warning(
            "model_best.pth is chosen on only %d validation video(s): R@1 among so few tells little; %s",
            len(val.segments),
            TEST_CHOOSES,
        )
    return TrainingSplits(train, val, test, Selection.by(val, how))


def hold_out(train: Split, seed: int) -> tuple[Split, Split]:
    """A training split without the videos that are held out of it, and these: 5 % of the videos, at most 500, at least
    one, with all their captions.

    Whole films are drawn, those that fit; the smallest one where none does. A function of the seed and the names of the
    videos, whatever their order.

    :raises InputError: nothing would be left for training.
    """
    films = films_of(train)
    sizes = Counter(films)
    if len(sizes) < 2:
        raise InputError(
            f"of {len(films)} training videos of {len(sizes)} film none can be held out for validation: {TEST_CHOOSES}"
        )
    number = min(MOST, max(1, len(films) // SHARE))
    names: dict[Hashable, str] = {}  # which, unlike the paths of custom, are the same wherever the videos lie
    for segment, film in zip(train.segments, films, strict=True):
        names[film] = min(segment.video_id, names.get(film, segment.video_id))
    order = sorted(sizes, key=lambda film: hashlib.sha256(f"{seed} {names[film]}".encode()).digest())
    held, left = set(), number
    for film in order:
        if sizes[film] <= left:
            held.add(film)
            left -= sizes[film]
    held = held or {min(order, key=sizes.get)}
    val = replace(_part(train, films, held), name="val", missing=(), unannotated=())
    return _part(train, films, set(order) - held), val


def apart(val: Split, train: Split) -> Split:
    """A validation split without the videos whose films are in training, which are logged.

    :raises InputError: none is left.
    """
    films, trained = films_of(val), set(films_of(train))
    both = sorted({segment.video_id for segment, film in zip(val.segments, films, strict=True) if film in trained})
    if not both:
        return val
    what = f"{len(both)} val videos of {val.dataset} are of films that are in training: {', '.join(both[:5])}"
    rest = _part(val, films, set(films) - trained)
    if not rest.segments:
        raise InputError(f"all {what}; {TEST_CHOOSES}")
    logger.warning("%s; validation leaves them out", what)
    return rest


def films_of(split: Split) -> list[Hashable]:
    """For each segment of a split its film: the part of its name before the times, its file for custom."""
    if split.dataset == "custom":  # a file may have several names: with and without folder and extension, and links
        return [identity(segment.path) for segment in split.segments]
    names = [segment.video_id for segment in split.segments]
    if split.dataset == "LSMDC":
        return [NUMBER_AND_ARTICLE.sub("", TIME_STAMP.sub("", name).lower()) for name in names]
    if split.dataset == "MSVD":
        return [SECONDS.sub("", name) for name in names]
    return names


def _part(split: Split, films: list[Hashable], wanted: Container[Hashable]) -> Split:
    """The segments of these films."""
    return replace(split, segments=tuple(c for c, film in zip(split.segments, films, strict=True) if film in wanted))
