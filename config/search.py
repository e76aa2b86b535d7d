"""The flags of search.py: those of its commands, and those of Config that say which model searches."""

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
    "index": ("videos_dir", "exclude", "window", *RUNTIME_FLAGS, *MODEL_FLAGS),
    "query": (
        "videos_dir", "queries", "like", "describe", "captions", "topk", "pool_topk", "rerank_topk", "json",
        "contact_sheet",
        "sampler", "sampling_steps", "stochasic_trials", "batch_size_split",
        *RUNTIME_FLAGS, *MODEL_FLAGS,
    ),
    **dict.fromkeys(("status", "list", "forget", "prune", "verify"), ("index",)),
}  # fmt: skip
POSITIONAL = {"query": "QUERY", "forget": "PATH"}  # what stands on the command line beside flags
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
    "index": "Encode the videos of a folder that are new or have changed; without --videos_dir, of all folders of the"
    " index. Those that are gone are not found any more. Without a checkpoint (--exp_name, --datetime), plain CLIP"
    " searches: --clip_arch or --clip_path.",
    "query": "Rank the videos of an index for a sentence. The model is that of the index.",
    "status": "Say what is in an index.",
    "list": "Show the files of an index, how long they are, and whether they are searched.",
    "forget": "Take files or folders out of an index. The next `index` takes them in again, unless --exclude says not.",
    "prune": "Take out of an index all files that are not there now, those of disks that are not mounted among them.",
    "verify": "Read all of an index; what is damaged leaves it, and the next `index` encodes it anew.",
}
ALL = "Search your own videos with a sentence. Each command has its own --help; without one it is a query."


@dataclass
class SearchConfig(Config):
    """All settings of search.py."""

    arch: str = field(default="clip_baseline", metadata=Config.__dataclass_fields__["arch"].metadata)  # plain CLIP
    index: str | None = flag(None, "folder of the index", group="search", metavar="DIR", unset="none, must be given")
    exclude: str | None = flag(
        None,
        "names or paths of files and folders that are left out, patterns (*, ?) with commas between them; they are kept"
        " for later runs",
        group="search",
        metavar="PATTERNS",
        unset="those of the run before",
    )
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
        self.texts: list[str] = []  # what stands beside the flags: queries, or what is to be forgotten

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, prog: str = "", description: str = ALL) -> "SearchConfig":
        """Read a command line: a command and its flags.

        :raises InputError: a flag is unknown or missing, or a value is not allowed.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        if argv and argv[0] not in (*COMMANDS, "-h", "--help"):
            argv = ["query", *argv]
        commands = Parser(prog, description, "python %(prog)s [COMMAND] [--flag=VALUE ...]")
        told = "; ".join(f"{name}: {said.split('. ')[0].rstrip('.')}" for name, said in DESCRIPTIONS.items())
        commands.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help=told.replace("`", ""))
        command = commands.parse_args(argv[:1]).command
        beside = POSITIONAL.get(command)
        usage = f"python %(prog)s{f' [{beside} ...]' if beside else ''} [--flag=VALUE ...]"
        parser = flag_parser(cls, f"{prog} {command}", DESCRIPTIONS[command], usage, COMMANDS[command], SEARCH_GROUPS)
        if beside:
            said = {"QUERY": "sentence to search with", "PATH": "file or folder that is to leave the index"}[beside]
            parser.add_argument("texts", nargs="*", metavar=beside, default=[], help=f"{said} (default: none)")
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
        if self.command == "forget" and not self.texts:
            raise InputError("give the files or folders that are to leave the index")
        if "exp_name" in self.explicit and self.datetime is None:
            raise InputError(f"--datetime is missing: which run of --exp_name={self.exp_name}")
        if self.command != "query":
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

    @property
    def gives_model(self) -> bool:
        """Whether the command line says anything of what an index was made with."""
        return not self.explicit.isdisjoint((*MODEL_FLAGS, "window"))

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
