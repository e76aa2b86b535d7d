"""How the flags of a program are declared, read and explained. A program's settings are a frozen dataclass whose fields
are flags, inherited from one dataclass for each group of its help:

    @group("network", "Its size.", role="shape")
    @dataclass(frozen=True)
    class Network:
        steps: int = flag(10, "steps of the diffusion", minimum=1)

The role of a flag says who needs it; what programs list, what a resumed run must keep, what an index or a report holds
follow from the roles, by `names_of`.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from utils.command_line import MANY_FLAGS, Parser, at_home
from utils.errors import InputError

PLACES = ("DIR", "FILE", "PATH")  # what the help calls paths: in these a leading ~ is the home folder
CHOICES_WIDTH = 24  # of the help, up to which choices stand beside the name of a flag


@dataclass(frozen=True)
class Role:
    """What follows from what a flag is for."""

    shown: str = ""  # programs whose help lists it, by blanks
    quiet: str = ""  # programs that take it, too, and do not list it
    agrees: bool = False  # a run that goes on keeps the value that it began with
    kept: bool = False  # an index keeps what was given of it
    told: bool = True  # the report tells it


ROLES = {
    # shapes the model: a checkpoint brings its own
    "shape": Role("train test index", "query", agrees=True, kept=True),
    # where the model comes from
    "source": Role("train test index", "query", kept=True),
    # how a model scores: a test may choose
    "score": Role("train test query serve", agrees=True, kept=True),
    "arithmetic": Role("train test index query serve", agrees=True),
    # which videos and captions
    "data": Role("train test", agrees=True),
    # what the model becomes
    "training": Role("train", "test", agrees=True),
    # how fast, and with how much memory
    "machine": Role("train test index query serve"),
    # where files lie, and what is told
    "files": Role("train test", told=False),
    # how a run saves, tells and goes on
    "running": Role("train", "test", told=False),
    "testing": Role("test", "train", told=False),
    "query": Role("query", told=False),
}


@dataclass(frozen=True)
class Flag:
    """What is declared of a flag beside its name, type and default."""

    help: str
    role: str = ""  # of ROLES; "" is that of the group
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    archs: tuple[str, ...] | None = None  # for which it does something; None: those of the group
    recipe: str = ""  # the only --recipe for which it does something; "": both
    minimum: float | None = None
    maximum: float | None = None
    no_effect: str = ""  # why it never does anything here, for flags that are there so that known commands run
    alone: str | None = None  # its value when it is given without one
    needs: str = ""  # the flag without which it does nothing, or FLAG=VALUE
    metavar: str = ""  # what the help calls its value: a unit, or a kind of text; a path has one of PLACES
    unset: str = "none"  # what the help says of a default of None
    programs: str | None = None  # whose help lists it; None: those of the role
    quiet: str | None = None  # that take it, too; None: those of the role
    names_model: bool = False  # who gives it to search.py names another model than that of the index
    group: str = ""

    @property
    def what_follows(self) -> Role:
        """Its role, with what it says itself."""
        role = ROLES.get(self.role, Role())
        own = {"shown": self.programs, "quiet": self.quiet}
        return replace(role, **{name: value for name, value in own.items() if value is not None})

    def taken_by(self, program: str) -> bool:
        """Whether a program has this flag; "" has all."""
        return not program or program in (*self.what_follows.shown.split(), *self.what_follows.quiet.split())

    def shown_by(self, program: str) -> bool:
        """Whether the help of a program lists it."""
        return not program or program in self.what_follows.shown.split()


def flag(default: Any, help: str, **declared: Any) -> Any:
    """A field that is a flag, with what `Flag` says of it."""
    return field(default=default, metadata={"flag": Flag(help, **declared)})


def flag_again(cls: type, name: str, default: Any, **declared: Any) -> Any:
    """A flag of a base class with another default, or declared otherwise."""
    return field(default=default, metadata={"flag": replace(flags_of(cls)[name][1], **declared)})


def group(title: str, said: str, role: str = "", archs: tuple[str, ...] | None = None) -> Callable[[type], type]:
    """Make the flags that a dataclass declares a group of the help.

    :param said: what they are for.
    :param role: of those that declare none; and `archs`.
    """

    def grouped(cls: type) -> type:
        cls.flag_group = (title, said)
        for f in fields(cls):
            if (own := f.metadata.get("flag")) and not own.group:
                own = replace(own, role=own.role or role, archs=archs if own.archs is None else own.archs, group=title)
                f.metadata = {"flag": own}
        return cls

    return grouped


def flags_of(cls: Any) -> dict[str, tuple[Field, Flag]]:
    """The flags of a class or of an object of it, by name."""
    return {f.name: (f, f.metadata["flag"]) for f in fields(cls) if "flag" in f.metadata}


def names_of(cls: Any, wanted: Callable[[Flag], bool]) -> list[str]:
    """The names of the flags of a class of which something holds."""
    return [name for name, (_, declared) in flags_of(cls).items() if wanted(declared)]


def values_of(settings: Any) -> dict[str, Any]:
    """The flags as plain values."""
    return {name: getattr(settings, name) for name in flags_of(settings)}


def check_bounds(settings: Any) -> None:
    """:raises InputError: a number is not finite, or outside of the bounds of its flag."""
    for name, (_, declared) in flags_of(settings).items():
        value = getattr(settings, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name}={value} is not a finite number")
        if value is not None and declared.minimum is not None and value < declared.minimum:
            raise InputError(f"--{name}={value} is too small: at least {declared.minimum}")
        if value is not None and declared.maximum is not None and value > declared.maximum:
            raise InputError(f"--{name}={value} is too large: at most {declared.maximum}")


def flag_parser(cls: type, program: str = "", prog: str = "", description: str = "", usage: str = MANY_FLAGS) -> Parser:
    """The parser of a command line; what it reads holds the flags that were given, no others. A flag whose field is a
    tuple may be given several times.

    :param program: whose flags they are, as roles call it; "": all.
    :param prog: what the help calls it, and `description` says of it.
    """
    parser = Parser(prog, description, usage)
    for (title, said), members in _groups(cls, program):
        listed = [declared.shown_by(program) for _, declared in members]
        part = parser.add_argument_group(title, said) if any(listed) else parser
        for (f, declared), is_listed in zip(members, listed, strict=True):
            _add(part if is_listed else parser, f, declared, is_listed)
    return parser


def _groups(cls: type, program: str) -> Iterator[tuple[tuple[str, str], list[tuple[Field, Flag]]]]:
    """Title, explanation and flags of each group of a program."""
    flags = {name: entry for name, entry in flags_of(cls).items() if entry[1].taken_by(program)}
    for base in cls.__mro__:
        if title := base.__dict__.get("flag_group"):
            own = [flags[name] for name in base.__annotations__ if name in flags]
            yield title, [(f, declared) for f, declared in own if declared.group == title[0]]


def _add(part: Any, f: Field, declared: Flag, is_listed: bool) -> None:
    """A flag to a parser or a group of it."""
    names = [f"--{name}" for name in (f.name, *declared.aliases)]
    options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS}
    options["help"] = _help_of(f.default, declared) if is_listed else argparse.SUPPRESS
    if f.type is bool:
        part.add_argument(*names, action="store_true", **options)
        return
    value_type = (
        str if get_origin(f.type) is Literal else next((t for t in get_args(f.type) if t is not NoneType), f.type)
    )
    if declared.alone:
        options |= {"nargs": "?", "const": declared.alone}
    options |= {"choices": declared.choices or None, "metavar": _metavar_of(declared, value_type)}
    if get_origin(f.type) is tuple:
        options["action"] = "append"
    is_place = declared.metavar in PLACES and value_type is str
    part.add_argument(*names, type=at_home if is_place else value_type, **options)


def _help_of(default: Any, declared: Flag) -> str:
    """The help of a flag: what it is, its choices where they are too many to stand beside its name, its default."""
    help, choices = declared.help, declared.choices
    if not _fit_beside_the_name(choices) and not all(choice in help for choice in choices):
        help += f"; one of {', '.join(choices)}"
    if declared.no_effect:
        help += f"; no effect: {declared.no_effect}"
    default = declared.unset if default in (None, ()) else "off" if default is False else default
    return f"{help} (default: {default})".replace("%", "%%")


def _metavar_of(declared: Flag, value_type: type) -> str | None:
    """What the help calls the value of a flag; None: its choices."""
    if declared.choices and _fit_beside_the_name(declared.choices):
        return None
    return declared.metavar or {int: "N", float: "X"}.get(value_type, "NAME")


def _fit_beside_the_name(choices: Sequence[str]) -> bool:
    return len(",".join(choices)) <= CHOICES_WIDTH
