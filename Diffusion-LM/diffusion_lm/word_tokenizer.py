"""Words of a caption, split as spaCy's blank English tokenizer splits them.

The published vocabulary of the text diffusion model counts words in this splitting, so a caption has to be cut at the
same places for its words to be found. The tables below state spaCy 3's English rules; spaCy itself is not needed.

The order of the work: a caption falls into chunks at whitespace, a chunk sheds punctuation from both ends until
nothing more comes off or an exception is left, and the rest is cut at its infixes unless it is a URL.

Known differences: unit names and rare letters outside the Latin alphabet ("5км"), and symbols that entered Unicode
after version 11 in blocks other than the pictographs.
"""

import itertools
import re
from collections.abc import Mapping
from functools import lru_cache

import regex

# -- Characters ------------------------------------------------------------------------------------------------------
# Fragments of a character class, to be put between brackets. regex.V1 lets them hold sets of their own.

_LOWER = r"[\p{Ll}&&\p{Latin}]α-ωάέίόώήύёа-яәөүҗңһіїєґѓѕјљњќѐѝ"
_UPPER = r"[\p{Lu}&&\p{Latin}]Α-ΩΆΈΊΌΏΉΎЁА-ЯӘӨҮҖҢҺІЇЄҐЃЅЈЉЊЌЀЍ"
# Letters of scripts without case count as lower and as upper case: Hebrew, Arabic, Indic, Ethiopic, Hangul, Han, kana.
_UNCASED = (
    r"\u0591-\u05f4\u0620-\u064a\u066e-\u06d5\u06e5-\u06ff\u0750-\u077f\u08a0-\u08bd\u0900-\u09ff\u0b80-\u0cff"
    r"\u0d80-\u0dff\u1100-\u137f\u2e80-\u2fdf\u2ff0-\u30ff\u31c0-\u31ef\u3200-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\ufb1d-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdc7\ufdf0-\ufdfb\ufe30-\ufe4f\ufe70-\ufefc"
    r"\U0001ee00-\U0001eebb\U0001f200-\U0001f2ff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"
)
_LOWERS, _UPPERS, _LETTERS = _LOWER + _UNCASED, _UPPER + _UNCASED, _LOWER + _UPPER + _UNCASED
_PUNCTUATION = regex.escape("…,:;!?¿¡()[]{}<>_#*&·") + r"。？！，、；：～\u0964\u060c\u06d4\u061b\u061f\u066a"
_QUOTES = regex.escape("'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧") + r"\u2329\u232a"
# spaCy's list of symbols is that of Unicode 11: pictographs added later do not come off a word.
_SYMBOLS = (
    r"[\p{So}--[\U0001f10d-\U0001f10f\U0001f16c-\U0001f16f\U0001f1ad\U0001f1ae\U0001f6d5-\U0001f6df"
    r"\U0001f6fa-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d9-\U0001f7ff\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f90f"
    r"\U0001f93f\U0001f971\U0001f972\U0001f977-\U0001f979\U0001f97b\U0001f9a3-\U0001f9af\U0001f9ba-\U0001f9bf"
    r"\U0001f9c3-\U0001f9cf\U0001fa00-\U0001fa5f\U0001fa6e-\U0001fbff]]"
)
_CURRENCY = r"(?:US|[AC])?\$|[£€¥฿\ufdfc\u20a0-\u20bf]"
_UNITS = "|".join(
    """
        km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa
        mbar mb MB kb KB gb GB tb TB T G M K %
    """.split()
)

# -- Affix patterns --------------------------------------------------------------------------------------------------

_PREFIX = regex.compile(
    rf"[§%=—–{_PUNCTUATION}{_QUOTES}{_SYMBOLS}] | \.\.+ | \+(?![0-9]) | {_CURRENCY}", regex.V1 | regex.VERBOSE
)
# Searched from the left, so that the longest ending wins.
_SUFFIX = regex.compile(
    rf"""(?: [—–{_PUNCTUATION}{_QUOTES}{_SYMBOLS}] | …… | \.\.+ | ['’][sS]
    | (?<=[0-9])(?: \+ | {_CURRENCY} | {_UNITS} )
    | (?<=[0-9{_LOWERS}%²\-+|{_PUNCTUATION}{_QUOTES}] | °[CFK] | [{_UPPERS}][{_UPPERS}])\.
    )$""",
    regex.V1 | regex.VERBOSE,
)
_INFIX = regex.compile(
    rf"""\.\.+ | […{_SYMBOLS}]
    | (?<=[0-9])[+\-*^](?=[0-9\-])
    | (?<=[{_LOWERS}{_QUOTES}])\.(?=[{_UPPERS}{_QUOTES}])
    | (?<=[{_LETTERS}]),(?=[{_LETTERS}])
    | (?<=[{_LETTERS}0-9])(?: -{{1,3}} | – | —{{1,2}} | ~ | [:<>=/] )(?=[{_LETTERS}])""",
    regex.V1 | regex.VERBOSE,
)
_HOST_LETTER = r"[A-Za-z0-9\u00a1-\uffff]"
_URL = regex.compile(
    rf"""(?: [\w+\-.]{{2,}}:// )?                                               # scheme
    (?: \S+@ )?                                                                 # user, password
    (?: (?! 10\. | 127\. | 169\.254\. | 192\.168\. | 172\.(?:1[6-9]|2\d|3[01])\. )   # no private address
        (?: [1-9]\d? | 1\d\d | 2[01]\d | 22[0-3] )
        (?: \.(?: 1?\d{{1,2}} | 2[0-4]\d | 25[0-5] ) ){{2}}
        \.(?: [1-9]\d? | 1\d\d | 2[0-4]\d | 25[0-4] )
      | (?: {_HOST_LETTER} (?: (?:{_HOST_LETTER}|[_\-]){{0,62}} {_HOST_LETTER} )? \. )+ [{_LOWERS}]{{2,63}} )
    (?: :\d{{2,5}} )?                                                           # port
    (?: [/?\#]\S* )?                                                            # path, query, fragment""",
    regex.V1 | regex.VERBOSE,
)

# -- Exceptions ------------------------------------------------------------------------------------------------------

_WH_WORDS = "who what when where why how there "
_SUBJECTS = _WH_WORDS + "i you he she it we they that this these those "
_MODALS = "could might must should would "
_NEGATED = _MODALS + "ca do does did had may need ought sha wo "

# Ending, cut into its words -> the words that take it. Each also exists capitalised, and without its apostrophes.
_CONTRACTIONS = {
    "'m": "i",
    "'m a": "i",
    "'ll": _SUBJECTS,
    "'ll 've": _SUBJECTS,
    "'d": _SUBJECTS,
    "'d 've": _SUBJECTS,
    "'s": _WH_WORDS + "he she it that this",
    "'re": _WH_WORDS + "you we they these those",
    "'ve": _WH_WORDS + _MODALS + "i you we they these those not",
    "n't": _NEGATED + "ai are is was were have has dare",
    "n't 've": _NEGATED,
}
# What the apostrophe-free forms spell by accident.
_PLAIN_WORDS = ["ill", "its", "hell", "shell", "shed", "were", "well", "whore"]

_FUSED = ["can not", "gon na", "got ta", "let 's", "c'm on", "how 'd 'y"]
_FUSED_LOWER_CASE = ["y' all", "y all", "° c .", "° f .", "° k .", "° C .", "° F .", "° K ."]

_CLIPPED = ["doin'", "goin'", "havin'", "lovin'", "nothin'", "nuthin'", "ol'", "somethin'"]
_UNSPLIT = r"""
        '' 's 'S ‘s ‘S 'd 'll 're 'em 'nuff 'bout 'cause 'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz and/or w/o <space> \")
        a.m. p.m. e.g. E.g. i.e. I.e. v.s. vs. co. Co. Corp. Inc. Ltd. Bros. Adm. Dr. Gen. Gov. Jr. Messrs. Mr. Mrs. Ms.
        Ph.D. Prof. Rep. Rev. Sen. St. Mt. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ak. Ala. Ariz.
        Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Md. Mich. Minn. Miss. Mo. Mont.
        Neb. Nebr. Nev. Okla. Ore. Pa. Tenn. Va. Wash. Wis. :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =]
        :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =|
        :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D
        =D 8-D >.< >.> <.< ._. ;_; o.O <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) (ಠ_ಠ) (╯°□°）╯︵┻━┻ ><(((*>
    """.split()


def _build_exceptions() -> dict[str, tuple[str, ...]]:
    """Map each chunk that the punctuation rules would cut wrongly to its words."""
    entries: list[tuple[str, ...]] = [(word,) for word in _UNSPLIT]
    entries += [(word,) for clipped in _CLIPPED for word in (clipped, clipped.title())]
    entries += [(letter + ".",) for letter in "abcdefghijklmnopqrstuvwxyzäöü"]
    entries += [(str(hour), half) for hour in range(1, 13) for half in ("am", "pm", "a.m.", "p.m.")]
    entries += [tuple(cut.split()) for cut in _FUSED_LOWER_CASE]
    entries += [tuple(cut.split()) for fused in _FUSED for cut in (fused, fused[0].upper() + fused[1:])]
    for ending, words in _CONTRACTIONS.items():
        for word in words.split():
            for stem in (word, word.title()):
                entries += [(stem, *cut.split()) for cut in (ending, ending.replace("'", ""))]
    exceptions = {"".join(words): words for words in entries}
    for word in _PLAIN_WORDS:
        exceptions.pop(word, None)
        exceptions.pop(word.title(), None)
    curly = [tuple(word.replace("'", "’") for word in words) for words in exceptions.values()]
    return exceptions | {"".join(words): words for words in curly}


_EXCEPTIONS = _build_exceptions()

# -- Splitting -------------------------------------------------------------------------------------------------------

# One blank after a chunk separates and is dropped. From re, whose \s is str.isspace; that of regex is narrower.
_CHUNK = re.compile(r"(\S+|\s+) ?")


def tokenize_words(text: str) -> list[str]:
    """Split a caption into words, equal to ``[token.text for token in spacy.blank("en").tokenizer(text)]``.

    Whitespace is kept as spaCy keeps it: a single blank between words disappears, and what is left of a longer run,
    of a line break or of blanks in front of the caption is a word of its own ("a  b\\n" -> "a", " ", "b", "\\n"). The
    published vocabulary has "\\n" for this reason. Strip the caption and join its blanks first to have none of them.

    Args:
        text: one caption, any Unicode string. Its case and its characters are left as they are.

    Returns:
        The words in order, an empty list for an empty caption. Joined, they are the caption but for single blanks.
    """
    words: list[str] = []
    for chunk in _CHUNK.findall(text):
        words.extend(_split_chunk(chunk))
    return words


@lru_cache(maxsize=1 << 16)
def _split_chunk(chunk: str) -> tuple[str, ...]:
    return tuple(_restore_exceptions(_split_affixes(chunk, _EXCEPTIONS)))


def _split_affixes(chunk: str, exceptions: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Take prefixes and suffixes off in turns, up to an exception, and cut what remains at its infixes."""
    prefixes: list[str] = []
    suffixes: list[str] = []
    while chunk and chunk not in exceptions:
        head = _PREFIX.match(chunk)
        prefix = head[0] if head else ""
        tail = _SUFFIX.search(chunk[len(prefix) :])
        suffix = tail[0] if tail else ""
        if not prefix and not suffix:
            break
        # When one cut alone uncovers an exception, the other is not made: "(p.m." is "(", "p.m.".
        if prefix and chunk[len(prefix) :] in exceptions:
            suffix = ""
        elif suffix and chunk[: -len(suffix)] in exceptions:
            prefix = ""
        prefixes += [prefix] if prefix else []
        suffixes += [suffix] if suffix else []
        chunk = chunk[len(prefix) : len(chunk) - len(suffix)]
    core = exceptions[chunk] if chunk in exceptions else _split_infixes(chunk)
    return [*prefixes, *core, *reversed(suffixes)]


def _split_infixes(chunk: str) -> list[str]:
    if _URL.fullmatch(chunk):
        return [chunk]
    cuts = [0]
    for infix in _INFIX.finditer(chunk):
        if infix.start() > 0:
            cuts += infix.span()
    cuts.append(len(chunk))
    return [chunk[start:end] for start, end in itertools.pairwise(cuts) if start < end]


# Exceptions that the punctuation rules cut into several words, by these words.
_CUT_EXCEPTIONS = {
    words: chunk for chunk in _EXCEPTIONS if len(words := tuple(_split_affixes(chunk, exceptions={}))) > 1
}
_CUT_LENGTHS = sorted({len(words) for words in _CUT_EXCEPTIONS}, reverse=True)


def _restore_exceptions(words: list[str]) -> list[str]:
    """Undo cuts through exceptions inside a chunk: "nice:)" ends in ")" and ":" first, then in ":)".

    The longest run of words that spells an exception goes first, then the leftmost.
    """
    runs = [
        (start, start + length)
        for length in _CUT_LENGTHS
        for start in range(len(words) - length + 1)
        if tuple(words[start : start + length]) in _CUT_EXCEPTIONS
    ]
    restored: dict[int, int] = {}
    seen: set[int] = set()
    for start, end in runs:
        if start not in seen and end - 1 not in seen:
            restored[start] = end
        seen.update(range(start, end))  # also by a run that lost, as in spaCy

    result: list[str] = []
    position = 0
    while position < len(words):
        end = restored.get(position, position + 1)
        run = words[position:end]
        result += _EXCEPTIONS[_CUT_EXCEPTIONS[tuple(run)]] if position in restored else run
        position = end
    return result
