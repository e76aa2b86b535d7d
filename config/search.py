"""The flags of search.py: those of its commands, and those of Config that say which model searches."""

import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from config.config import Config
from config.flags import PLACES, flag, flag_again, flag_parser, flags_of, group, names_of
from utils.command_line import Parser
from utils.errors import InputError

DESCRIPTIONS = {
    "index": "Encode the videos of a folder that are new or have changed; without --videos_dir, of all folders of the"
    " index. Those that are gone are not found any more. The checkpoint of a run (--exp_name, --datetime) brings its"
    " own model; without one, plain CLIP searches: --clip_arch or --clip_path.",
    "query": "Rank the videos of an index for a sentence. The model is that of the index; flags of `search.py index`"
    " that name another are taken, too.",
    "serve": "Show a page to search in, at an address of this machine that a browser opens. It follows the index.",
    "status": "Say what is in an index.",
    "list": "Show the files of an index, how long they are, and whether they are searched.",
    "forget": "Take files or folders out of an index. The next `index` takes them in again, unless --exclude says not.",
    "prune": "Take out of an index all files that are not there now, those of disks that are not mounted among them.",
    "verify": "Read all of an index; what is damaged leaves it, and the next `index` encodes it anew.",
}
BESIDE = {"query": ("QUERY", "sentence to search with"), "forget": ("PATH", "file or folder that leaves the index")}
ALL = "Search your own videos with a sentence. Each command has its own --help; without one it is a query."
FORMATS = ("table", "json", "csv", "paths", "paths0", "m3u", "edl")
PICTURES = (".png", ".jpg", ".jpeg")
INDEX_ONLY = {"programs": "index", "quiet": ""}
SERVE_ONLY = {"programs": "serve", "quiet": ""}
TO_SEARCH = {"programs": "query serve", "quiet": ""}


@group("search", "What is searched, for what, and what is shown.", "query")
@dataclass(frozen=True)
class SearchConfig(Config):
    """All settings of search.py."""

    # fmt: off
    index: str | None = flag(None, "folder of the index", metavar="DIR", unset="none, must be given",
        programs=" ".join(DESCRIPTIONS))
    videos_dir: str | None = flag_again(Config, "videos_dir", None, group="search", help="folder of the videos, or"
        " NAME=DIR where one of the index lies now", unset="all folders of the index", programs="index query serve",
        quiet="")
    exclude: str | None = flag(None, "names or paths of files and folders that are left out, patterns (*, ?) with"
        " commas between them; they are kept for later runs", metavar="PATTERNS", unset="those of the run before",
        **INDEX_ONLY)
    window: float | None = flag(None, "videos longer than this are searched in segments of about this length",
        minimum=1, metavar="SECONDS", unset="30, or that of the index", **INDEX_ONLY)
    queries: str | None = flag(None, "file with a query in each line; - is standard input", metavar="FILE")
    plus: tuple[str, ...] = flag((), "what hits should show as well; may be given again", metavar="TEXT")
    without: tuple[str, ...] = flag((), "what hits should not show, which counts half; may be given again",
        metavar="TEXT")
    like: str | None = flag(None, "video, in the index or not: rank the others by how much they are like it, and show"
        " what a query says where there is one", metavar="FILE")
    describe: str | None = flag(None, "video, in the index or not: rank the sentences of --captions for it",
        metavar="FILE")
    captions: str | None = flag(None, "file with a sentence in each line; - is standard input", metavar="FILE",
        needs="describe")
    folder: tuple[str, ...] = flag((), "search the files below this folder alone; may be given again", metavar="DIR",
        aliases=("in",), unset="all")
    since: str | None = flag(None, "search files alone that were last changed at this time or later: 2024, 2024-05,"
        " 2024-05-31 or 2024-05-31T18:30", metavar="DATE")
    until: str | None = flag(None, "or at this time at the latest, the whole year, month or day", metavar="DATE")
    topk: int = flag(10, "hits that are shown", minimum=1)
    per_video: bool = flag(False, "one hit for each video: its best segment, with neighbours that fit nearly as well")
    min_score: float = flag(0.0, "hits alone that are before so much of the library", minimum=0, maximum=100,
        metavar="PERCENT")
    pool_topk: int = flag(500, "all videos are ranked by the mean of their frames, then the frames of the best N are"
        " pooled for the query; 0: of all", minimum=0, **TO_SEARCH)
    rerank_topk: int = flag(20, "then each of the best N is scored by how well it explains the words (T-MASS: by"
        " samples around the text); 0: each that was pooled", minimum=0, archs=("clip_stochastic", "clip_tmass"),
        **TO_SEARCH)
    format: str = flag("table", "what is printed: a table; json, an object for each query; csv; paths of the files,"
        " paths0 (or -0) with NUL behind each; m3u or edl (of mpv), which play the moments", choices=FORMATS)
    contact_sheet: str | None = flag(None, "picture (.png, .jpg) of thumbnails of the hits", metavar="FILE")
    cut: str | None = flag(None, "folder into which the moments are written as files, copied without loss from the key"
        " frame before where their format allows it", metavar="DIR")
    host: str = flag("127.0.0.1", "address at which the page is served; of another than this machine's own, such as"
        " 0.0.0.0, a token in the address of the page keeps strangers out", metavar="ADDRESS", **SERVE_ONLY)
    port: int = flag(8642, "port of the page; 0: any that is free", minimum=0, maximum=65535, **SERVE_ONLY)
    # what is otherwise in search.py
    arch: str = flag_again(Config, "arch", "clip_baseline")
    pooling_type: str = flag_again(Config, "pooling_type", "avg")
    diffusion_lm: str | None = flag_again(Config, "diffusion_lm", None, unset="none, a checkpoint knows its words")
    batch_size: int = flag_again(Config, "batch_size", 32,
        help="videos (on a CPU at most 8) or queries that are encoded at once", metavar="N")
    datetime: str | None = flag_again(Config, "datetime", None, unset="none, plain CLIP searches")
    load_epoch: int | None = flag_again(Config, "load_epoch", None,
        help="epoch of the checkpoint of --datetime; 0 or -1 is model_best.pth", unset="0")
    # fmt: on
    command: str = field(default="", compare=False)
    texts: tuple[str, ...] = field(default=(), compare=False)  # what stands beside the flags

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, prog: str = "search.py", description: str = ALL) -> Self:
        """Read a command line: a command and its flags.

        :raises InputError: a flag is unknown or missing, or a value is not allowed.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        if argv and argv[0] not in (*DESCRIPTIONS, "-h", "--help"):
            argv = ["query", *argv]
        commands = Parser(prog, description, "python %(prog)s [COMMAND] [--flag=VALUE ...]")
        told = "; ".join(f"{name}: {said.split('. ')[0].rstrip('.')}" for name, said in DESCRIPTIONS.items())
        commands.add_argument("command", choices=tuple(DESCRIPTIONS), metavar="COMMAND", help=told.replace("`", ""))
        command = commands.parse_args(argv[:1]).command
        name, said = BESIDE.get(command, ("", ""))
        usage = f"python %(prog)s{f' [{name} ...]' if name else ''} [--flag=VALUE ...]"
        parser = flag_parser(cls, command, f"{prog} {command}", DESCRIPTIONS[command], usage)
        if name:
            parser.add_argument("texts", nargs="*", metavar=name, default=[], help=f"{said} (default: none)")
        if command == "query":
            parser.add_argument(
                "-0", dest="format", action="store_const", const="paths0", default=SUPPRESS, help=SUPPRESS
            )
        flags, behind = _parted(argv[1:])
        if sum(argument.partition("=")[0] == "--like" for argument in flags) > 1:
            raise InputError("--like is given twice: it takes one video")
        given = vars(parser.parse_intermixed_args(flags))
        texts = (*given.pop("texts", ()), *behind)
        if behind and not name:
            raise InputError(f"{command} takes flags alone, not {behind[0]}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        config = cls(**given, explicit=frozenset(given), command=command, texts=texts)
        config._check_command()
        return config.resolved()

    def _check_command(self) -> None:
        if self.index is None:
            raise InputError("--index is missing: the folder of the index")
        if self.command == "forget" and not self.texts:
            raise InputError("give the files or folders that are to leave the index")
        if "exp_name" in self.explicit and self.datetime is None:
            raise InputError(f"--datetime is missing: which run of --exp_name={self.exp_name}")
        if self.command != "query":
            return
        asked = [bool(self.texts), self.queries is not None, self.describe is not None]
        if sum(asked) > 1 or not (any(asked) or self.like is not None):
            raise InputError(
                "give one of: a query, --queries=FILE, --describe=VIDEO; or --like=VIDEO, also with a query"
            )
        if not all(text.strip() for text in (*self.texts, *self.plus, *self.without)):
            raise InputError("a query is empty")
        if self.describe is not None:
            self._check_describe()
        if self.contact_sheet is not None and not self.contact_sheet.lower().endswith(PICTURES):
            raise InputError(f"--contact_sheet={self.contact_sheet} ends in none of {', '.join(PICTURES)}")

    def _check_describe(self) -> None:
        """:raises InputError: flags of other queries are given, or there are no sentences."""
        if self.captions is None:
            raise InputError("--captions is missing: the file of the sentences that --describe ranks")
        others = (
            "plus", "without", "like", "folder", "since", "until", "per_video", "min_score", "contact_sheet", "cut"
        )  # fmt: skip
        if given := next((name for name in others if name in self.explicit), None):
            raise InputError(
                f"--{'in' if given == 'folder' else given} is about videos, but --describe ranks sentences"
            )
        if self.format not in ("table", "json", "csv"):
            raise InputError(f"--format={self.format} is about videos, but --describe ranks sentences")

    def resolved(self) -> Self:
        """With what follows from other flags: a run's best checkpoint, where it is not said which."""
        best = 0 if self.datetime is not None and self.load_epoch is None else self.load_epoch
        return super(SearchConfig, replace(self, load_epoch=best)).resolved()

    @property
    def names_model(self) -> bool:
        """Whether the command line says which model it is."""
        return not self.explicit.isdisjoint(names_of(self, lambda declared: declared.names_model))

    @property
    def gives_model(self) -> bool:
        """Whether the command line says anything of what an index is made with."""
        return bool(self.model_flags()) or "window" in self.explicit

    def model_flags(self) -> dict[str, Any]:
        """The given flags that say which model it is, to be kept with an index; paths as absolute ones."""
        kept = {
            name: (getattr(self, name), declared)
            for name, (_, declared) in flags_of(self).items()
            if name in self.explicit | ({"output_dir"} if self.datetime else set())
            and declared.what_follows.kept
            and declared.taken_by("index")
        }
        return {
            name: str(Path(value).resolve()) if declared.metavar in PLACES and Path(value).exists() else value
            for name, (value, declared) in kept.items()  # a path that does not exist is the hub id of a CLIP
        }

    def with_model(self, flags: Mapping[str, Any]) -> Self:
        """About the model of an index, as if its flags had been given; those that were given stay.

        :param flags: what `model_flags` gave.
        """
        unknown = sorted(flags.keys() - flags_of(self).keys())
        if unknown:
            raise InputError(f"--index={self.index} was made with flags that are not known here: {', '.join(unknown)}")
        new = {name: value for name, value in flags.items() if name not in self.explicit}
        return replace(self, **new, explicit=self.explicit | flags.keys()).resolved()


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before -- and those behind it, which are no flags whatever they begin with."""
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    return argv[:cut], argv[cut + 1 :]
