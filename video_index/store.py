"""The folder of an index: features in safetensors, what they belong to in JSON Lines.

    index.json              {"format", "version", "made_with", "model", "flags", "window"}
    <number>.safetensors    frame_features (n, F, D) and video_features (n, D), their mean over the frames, float32; of
                            models that read them video_tokens (n, S, W), bfloat16
    <number>.jsonl          one clip a line: {"file", "size", "mtime_ns", "part", "parts", "start", "end", "row"}, or
                            {..., "error"} instead of the row where the clip does not decode

A pair of files is a shard. Its .jsonl is written last, whole, so a shard without one is none. A clip counts where its
line stands in the shard with the highest number. So every moment at which a process may die leaves a good index.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.clip import EncodedVideos
from utils.errors import InputError
from utils.files import written_whole

logger = logging.getLogger(__name__)

FORMAT, VERSION = "TextDiffs video index", 3
HEAD_FILE, LOCK_FILE = "index.json", ".lock"
SHARD_CLIPS = 512  # a shard is full: 90 MB with the tokens of ViT-B/32, and it is written from memory


@dataclass(frozen=True)
class IndexedClip:
    """A video, or one of its parts, of the size and time at which it was read."""

    file: str  # absolute
    size: int
    mtime_ns: int
    part: int = 0
    parts: int = 1
    start: float | None = None  # seconds; None: of the whole video, whose length is not known
    end: float | None = None
    error: str | None = None  # why it has no features


@dataclass(frozen=True)
class Place:
    """Where the line and the features of a clip are."""

    shard: int
    row: int | None  # None without features


@dataclass(frozen=True)
class Head:
    """What an index belongs to.

    :param made_with: the model, for people.
    :param model: marks of it by the name that a message can use.
    :param flags: those that build it again.
    :param window: seconds of a part of a long video.
    """

    made_with: str
    model: dict[str, str]
    flags: dict[str, Any]
    window: float


def read_head(folder: Path) -> Head | None:
    """index.json; None where there is none.

    :raises InputError: it is none of ours or of another version.
    """
    path = folder / HEAD_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise InputError(f"{path} is no {FORMAT}")
        if values["version"] != VERSION:
            raise InputError(
                f"--index={folder} has version {values['version']} and this program reads {VERSION}: index the videos "
                "anew into another folder"
            )
        return Head(values["made_with"], values["model"], values["flags"], values["window"])
    except (OSError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error!r}") from error


class Store:
    """The clips of an index and their features.

    :param folder: that holds index.json.
    :raises InputError: a file is damaged.
    """

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head
        self.clips: dict[tuple[str, int], tuple[IndexedClip, Place]] = {}  # by file and part
        self.lines: dict[int, int] = {}  # of each shard, those that do not count included
        for shard in sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal()):
            self._read(shard)

    @classmethod
    def create(cls, folder: Path, head: Head) -> "Store":
        """A new index.

        :raises InputError: the folder holds something else, or cannot be written.
        """
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise InputError(f"--index={folder} holds files that are no index: give an empty folder")
            with written_whole(folder / HEAD_FILE) as unfinished:
                text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(head)}, indent=2)
                unfinished.write_text(text + "\n", encoding="utf-8")
        return cls(folder, head)

    def _read(self, shard: int) -> None:
        path = self._path(shard, "jsonl")
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.lines[shard] = len(records)
            for record in records:
                place = Place(shard, record.pop("row", None))
                clip = IndexedClip(**record)
                self.clips[clip.file, clip.part] = clip, place
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read: {error}; delete it and index again") from error

    def __len__(self) -> int:
        """Clips with features."""
        return sum(place.row is not None for _, place in self.clips.values())

    def broken(self) -> list[IndexedClip]:
        """Clips without features."""
        return [clip for clip, _ in self.clips.values() if clip.error is not None]

    def add(self, clips: Sequence[IndexedClip], videos: EncodedVideos) -> None:
        """Write a shard.

        :param videos: n of them, those clips that have no error, in their order; tokens as `Encoder` makes them.
        :raises InputError: the disk is full or the folder cannot be written.
        """
        shard = max(self.lines, default=0) + 1
        rows = iter(range(len(videos.frames)))
        placed = [(clip, Place(shard, next(rows) if clip.error is None else None)) for clip in clips]
        tensors = {"frame_features": videos.frames.contiguous(), "video_features": videos.frames.mean(1)}
        if videos.tokens is not None:
            tensors["video_tokens"] = videos.tokens.contiguous()
        with _writing(self.folder), written_whole(self._path(shard, "safetensors")) as unfinished:
            unfinished.write_bytes(save(tensors))  # save_file would let nobody else read it
        self._write_lines(shard, placed)
        self.clips |= {(clip.file, clip.part): (clip, place) for clip, place in placed}

    def drop(self, files: Collection[str]) -> None:
        """Take the clips of files out."""
        gone = {key for key in self.clips if key[0] in files}
        touched = {self.clips.pop(key)[1].shard for key in gone}
        members = self._members()
        for shard in touched:
            if members[shard]:
                self._write_lines(shard, members[shard])
            else:
                self._delete(shard)

    def compact(self) -> None:
        """Put shards together that are less than half full, so that neither their number nor what is dropped grows."""
        self._delete_unfinished()
        members = self._members()
        small = [shard for shard in sorted(self.lines) if len(members[shard]) < SHARD_CLIPS / 2]
        if len(small) == 1 and self._rows(small[0]) == sum(place.row is not None for _, place in members[small[0]]):
            return
        group: list[int] = []
        for shard in small:
            group.append(shard)
            if sum(len(members[number]) for number in group) >= SHARD_CLIPS or shard == small[-1]:
                self._merge(group, members)
                group = []

    def _merge(self, shards: Sequence[int], members: dict[int, list[tuple[IndexedClip, Place]]]) -> None:
        placed = [clip for shard in shards for clip in members[shard]]
        if placed:
            places = [place for _, place in placed if place.row is not None]
            self.add([clip for clip, _ in placed], EncodedVideos(self.frames(places), self.tokens(places)))
        for shard in shards:
            self._delete(shard)

    def _delete_unfinished(self) -> None:
        """What processes that died have left."""
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) not in self.lines:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def video_features(self, places: Sequence[Place]) -> Tensor:
        """Mean over the frames of each clip (n, D)."""
        return self._rows_of("video_features", places)

    def frames(self, places: Sequence[Place]) -> Tensor:
        """Frame features of clips (n, F, D); reads those rows alone."""
        return self._rows_of("frame_features", places)

    def tokens(self, places: Sequence[Place]) -> Tensor | None:
        """Tokens of clips (n, S, W), bfloat16; reads those rows alone. None where the model has none."""
        held = self._open(next(iter(self.lines)), lambda file: "video_tokens" in file.keys())  # noqa: SIM118 (no dict)
        return self._rows_of("video_tokens", places) if held else None

    def _rows_of(self, name: str, places: Sequence[Place]) -> Tensor:
        if not places:
            return self._open(next(iter(self.lines)), lambda file: file.get_slice(name)[:0])
        by_shard = defaultdict(list)
        for position, place in enumerate(places):
            by_shard[place.shard].append((position, place.row))
        result = None
        for shard, wanted in by_shard.items():
            positions, rows = zip(*wanted, strict=True)
            values = self._open(shard, lambda file, rows=rows: _pick(file.get_slice(name), rows))
            if result is None:
                result = values.new_empty(len(places), *values.shape[1:])
            result[list(positions)] = values
        return result

    def _rows(self, shard: int) -> int:
        return self._open(shard, lambda file: file.get_slice("video_features").get_shape()[0])

    def _open(self, shard: int, read: Callable[[Any], Any]) -> Any:
        path = self._path(shard, "safetensors")
        try:
            with safe_open(path, "pt") as file:
                return read(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read: {error}; search again, or delete it and index again") from error

    def _members(self) -> dict[int, list[tuple[IndexedClip, Place]]]:
        """The clips that count, by shard."""
        members = defaultdict(list)
        for clip, place in self.clips.values():
            members[place.shard].append((clip, place))
        return members

    def _write_lines(self, shard: int, placed: Iterable[tuple[IndexedClip, Place]]) -> None:
        lines = []
        for clip, place in placed:
            record = {name: value for name, value in asdict(clip).items() if value is not None}
            lines.append(json.dumps(record | ({} if place.row is None else {"row": place.row})))
        with _writing(self.folder), written_whole(self._path(shard, "jsonl")) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.lines[shard] = len(lines)

    def _delete(self, shard: int) -> None:
        for kind in ("jsonl", "safetensors"):
            self._path(shard, kind).unlink(missing_ok=True)
        self.lines.pop(shard, None)

    def _path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:06}.{kind}"


class StoredTokens:
    """Tokens of M clips (M, S, W), of which `tokens[index]` reads those rows alone: memory may not hold all of them.

    :param places: of the M clips.
    """

    def __init__(self, store: Store, places: Sequence[Place]) -> None:
        self.store, self.places = store, places

    def __getitem__(self, index: Tensor) -> Tensor:
        """Those of the clips `index` (n,): (n, S, W), bfloat16."""
        return self.store.tokens([self.places[row] for row in index.tolist()])


def _pick(rows: Any, wanted: Sequence[int]) -> Tensor:
    """Rows of a tensor in a file: one by one when they are few, else with those between them."""
    first, last = min(wanted), max(wanted) + 1
    if len(wanted) * 8 > last - first:
        return rows[first:last][torch.tensor(wanted) - first]
    return torch.cat([rows[row : row + 1] for row in wanted])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """:raises InputError: what is done inside cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"--index={folder} cannot be written: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process changes the index.

    :raises InputError: another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK_FILE, "w")  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the process ends
        except BlockingIOError as error:
            raise InputError(f"--index={folder} is being written by another process") from error
        yield
