"""The flags of search.py: those of its two commands, and those of Config that say which model searches."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from config.config import GROUPS, Config, flag, flag_parser
from utils.command_line import Parser
from utils.errors import InputError

# which model, and with what it encodes; an index keeps those that were given
MODEL_FLAGS = (
    "arch", "recipe", "clip_arch", "clip_path", "embed_dim", "num_frames", "input_res", "pooling_type", "k",
    "attention_temperature", "num_mha_heads", "diffusion_steps", "diffusion_lm", "diffusion_text_len",
    "stochastic_prior", "stochastic_prior_std", "seed", "load_epoch", "exp_name", "output_dir", "datetime",
)  # fmt: skip
WHICH_MODEL = ("arch", "clip_arch", "clip_path", "datetime", "load_epoch")  # of those: naming one names another model
PATH_FLAGS = ("output_dir", "diffusion_lm", "clip_path")  # of those: kept as absolute paths
RUNTIME_FLAGS = ("index", "gpu", "precision", "num_workers", "batch_size")
COMMANDS = {
    "index": ("videos_dir", "window", *RUNTIME_FLAGS, *MODEL_FLAGS),
    "query": (
        "queries", "like", "describe", "captions", "topk", "pool_topk", "rerank_topk", "json", "contact_sheet",
        "sampler", "sampling_steps", "stochasic_trials", "batch_size_split",
        *RUNTIME_FLAGS, *MODEL_FLAGS,
    ),
}  # fmt: skip
SEARCH_GROUPS = {
    "search": "What is searched for, and what is shown.",
    **GROUPS,
    "data": "Which videos, and how many frames of each.",
    "training": "How many are encoded at once, and the seed of all noise.",
    "evaluation": "How many pairs are scored at once.",
    "test.py only": "With --datetime: which checkpoint of the run it is.",
    "output": "The run whose checkpoint searches.",
}
DESCRIPTIONS = {
    "index": "Encode the videos of a folder that are new or have changed; those that are gone leave the index. Without"
    " a checkpoint (--exp_name, --datetime), plain CLIP searches: --clip_arch or --clip_path.",
    "query": "Rank the videos of an index for a sentence. The model is that of the index.",
}
BOTH = "Search your own videos with a sentence. Each command has its own --help."


@dataclass
class SearchConfig(Config):
    """All settings of search.py."""

    arch: str = field(default="clip_baseline", metadata=Config.__dataclass_fields__["arch"].metadata)  # plain CLIP
    index: str | None = flag(None, "folder of the index", group="search", metavar="DIR", unset="none, must be given")
    window: float | None = flag(
        None,
        "videos longer than this are searched in parts of about this length",
        group="search",
        minimum=1,
        metavar="SECONDS",
        unset="30, or that of the index",
    )
    queries: str | None = flag(
        None, "file with a query in each line; - is standard input", group="search", metavar="FILE"
    )
    like: str | None = flag(
        None, "video, in the index or not: rank the others by how much they are like it", group="search",
        metavar="FILE",
    )  # fmt: skip
    describe: str | None = flag(
        None, "video, in the index or not: rank the sentences of --captions for it", group="search", metavar="FILE"
    )
    captions: str | None = flag(
        None, "file with a sentence in each line; - is standard input", group="search", metavar="FILE",
        needs="describe",
    )  # fmt: skip
    topk: int = flag(10, "hits that are shown", group="search", minimum=1)
    pool_topk: int = flag(
        500,
        "all videos are ranked by the mean of their frames, then the frames of the best N are pooled for the query;"
        " 0: of all",
        group="search",
        minimum=0,
    )
    rerank_topk: int = flag(
        20,
        "then each of the best N is scored by how well it explains the words (T-MASS: by samples around the text); 0:"
        " each that was pooled",
        group="search",
        minimum=0,
        archs=("clip_stochastic", "clip_tmass"),
    )
    json: bool = flag(False, "print one JSON object for each query instead of a table", group="search")
    contact_sheet: str | None = flag(
        None, "picture (.png) of thumbnails of the hits, a row for each query", group="search", metavar="FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.command = ""
        self.texts: list[str] = []  # queries on the command line

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, prog: str = "", description: str = BOTH) -> "SearchConfig":
        """Read a command line: a command and its flags.

        :raises InputError: a flag is unknown or missing, or a value is not allowed.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        commands = Parser(prog, description, "python %(prog)s {index,query} [--flag=VALUE ...]")
        commands.add_argument("command", choices=tuple(COMMANDS), help="index: encode videos; query: search them")
        command = commands.parse_args(argv[:1]).command
        usage = f"python %(prog)s{' [QUERY ...]' * (command == 'query')} [--flag=VALUE ...]"
        parser = flag_parser(cls, f"{prog} {command}", DESCRIPTIONS[command], usage, COMMANDS[command], SEARCH_GROUPS)
        if command == "query":
            parser.add_argument(
                "texts", nargs="*", metavar="QUERY", default=[], help="sentence to search with (default: none)"
            )
        given = vars(parser.parse_intermixed_args(argv[1:]))
        texts = given.pop("texts", [])
        config = cls(**given)
        config.explicit = frozenset(given)
        config.command, config.texts = command, texts
        config._check_command()
        config._resolve()
        return config

    def _check_command(self) -> None:
        if self.index is None:
            raise InputError("--index is missing: the folder of the index")
        if self.command == "index":
            if self.videos_dir is None:
                raise InputError("--videos_dir is missing: the folder of the videos")
            return
        wanted = [bool(self.texts), *(name is not None for name in (self.queries, self.like, self.describe))]
        if sum(wanted) != 1:
            raise InputError("give one of: a query, --queries=FILE, --like=VIDEO, --describe=VIDEO")
        if not all(text.strip() for text in self.texts):
            raise InputError("a query is empty")
        if self.describe is not None and self.captions is None:
            raise InputError("--captions is missing: the file of the sentences that --describe ranks")
        if self.describe is not None and self.contact_sheet is not None:
            raise InputError("--contact_sheet shows videos, but --describe ranks sentences")

    def _resolve(self) -> None:
        if self.datetime is not None and self.load_epoch is None:
            self.load_epoch = 0
        super()._resolve()

    @property
    def names_model(self) -> bool:
        """Whether the command line says which model it is."""
        return not self.explicit.isdisjoint(WHICH_MODEL)

    def model_flags(self) -> dict[str, Any]:
        """The given flags that say which model it is, to be kept with an index."""
        flags = {name: getattr(self, name) for name in MODEL_FLAGS if name in self.explicit}
        if "datetime" in flags:
            flags["output_dir"] = self.output_dir
        for name in PATH_FLAGS:
            if name in flags and Path(flags[name]).exists():  # else it is the hub id of a CLIP
                flags[name] = str(Path(flags[name]).resolve())
        return flags

    def take_model(self, flags: dict[str, Any]) -> None:
        """Be about the model of an index, as if its flags had been given; those that were given stay.

        :param flags: what `model_flags` gave.
        """
        unknown = sorted(set(flags) - {f.name for f in fields(self)})
        if unknown:
            raise InputError(f"--index={self.index} was made with flags that are not known here: {', '.join(unknown)}")
        for name in flags.keys() - self.explicit:
            setattr(self, name, flags[name])
        self.explicit |= flags.keys()
        if "input_res" not in self.explicit:
            self.input_res = None  # it follows from --clip_arch
        if "sampling_steps" not in self.explicit:
            self.sampling_steps = None
        self._resolve()
