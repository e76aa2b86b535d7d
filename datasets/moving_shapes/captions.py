"""What is said of a MovingShapes video: sentences, and what they claim. `words.toml` has the words and the forms."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from numpy.random import Generator

from datasets.moving_shapes.scene import Facts, Figure, MovingObject, Scene, T, pick

LANGUAGE = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
WORDS: dict[str, dict[str, list[str]]] = LANGUAGE["words"]  # by attribute and value
TOLD = {"size": 0.5, "colour": 0.97, "shape": 0.85}  # how often
BACKGROUND_TOLD = 0.87
ORDERS = ("earlier first",) * 3 + ("later first",)


@dataclass(frozen=True)
class Caption:
    """A sentence and what it claims: each of the mentions is of another object of the scene."""

    text: str
    mentions: tuple[Facts, ...]
    background: str | None = None  # one of the wordings
    in_order: bool = False  # whether it claims that the first object changes before the second


def holds(caption: Caption, scene: Scene) -> bool:
    """Whether all that the caption claims is true of the scene, for some choice of an object for each mention."""
    if caption.background and caption.background not in WORDS["background"][scene.background]:
        return False
    return any(
        all(mention <= shown.facts() for mention, shown in zip(caption.mentions, chosen, strict=True))
        and (not caption.in_order or chosen[0].change_at < chosen[1].change_at)
        for chosen in permutations(scene.objects, len(caption.mentions))
    )


def has_usual_length(caption: Caption) -> bool:
    """Whether it has 6 to 18 words."""
    return 6 <= len(caption.text.split()) <= 18


class _Noun(NamedTuple):
    """An object's name and the facts that it states."""

    text: str
    facts: Facts


class _Predicate(NamedTuple):
    """What an object does: "move left", "moves left", "moving left"."""

    move: str
    moves: str
    moving: str
    facts: Facts


class _Clause(NamedTuple):
    """An object and what it does, as a sentence and as what can follow "there is" or, when seen, "we see"."""

    finite: str
    nominal: str
    facts: Facts


def _word(rng: Generator, wordings: Sequence[T]) -> T:
    """Draw one of the wordings, which stand from common to rare: the first of ten 3.6 times as often as the last."""
    return wordings[int(3 * ((len(wordings) + 3) / 3) ** rng.random()) - 3]


# ---------------------------------------------------------------------------------------------------------------------
# Nouns and verbs


def _noun(rng: Generator, shown: MovingObject | Figure, article: str, earlier: _Noun | None = None) -> _Noun:
    """Name an object, perhaps by what it shares with the one named earlier. article: "a", "the" or none."""
    words, facts = [], {}
    for attribute, often in TOLD.items():
        value = getattr(shown, attribute)
        if rng.random() < often and value in WORDS[attribute]:
            words.append(_word(rng, WORDS[attribute][value]))
            facts[attribute] = value
    alike = earlier and "something" not in earlier.text and dict(earlier.facts).get("shape") == facts.get("shape")
    if "shape" not in facts:
        words.append(_word(rng, LANGUAGE["untold"]["shape"]))
    if alike and len(words) > 1 and rng.random() < 0.6:
        words[-1] = "one"
    elif "shape" not in facts and "colour" in facts:
        form = rng.random()
        if form < 0.3:
            article, words = "", ["something", " and ".join(words[:-1])]
        elif form < 0.5:
            article = "another" if article == "a" and earlier and "size" not in facts else article
            words[-2:] = [words[-1], "in", words[-2]]
    if article:
        words.insert(0, "an" if article == "a" and words[0][0] in "aeiou" else article)
    return _Noun(" ".join(words), frozenset(facts.items()))


def _nouns(rng: Generator, told: Sequence[MovingObject | Figure], article: str) -> list[_Noun]:
    first = _noun(rng, told[0], article)
    return [first, *(_noun(rng, shown, article, first if len(told) == 2 else None) for shown in told[1:])]


def _verb(phrase: str) -> tuple[str, str, str]:
    """What stands before the verb of a phrase, the verb, and the rest."""
    return re.fullmatch(r"(suddenly )?(\w+)(.*)", phrase).groups(default="")


def third_person(phrase: str) -> str:
    """Inflect the verb of a phrase: "stop moving" becomes "stops moving"."""
    adverb, verb, rest = _verb(phrase)
    verb = re.sub(r"([^aeiou])y$", r"\1ie", verb)
    return f"{adverb}{verb}{'es' if re.search('(o|s|x|ch|sh)$', verb) else 's'}{rest}"


def participle(phrase: str) -> str:
    """Inflect the verb of a phrase: "spin around" becomes "spinning around"."""
    for base, inflected in LANGUAGE["participles"].items():
        if phrase.startswith(base):
            return inflected + phrase.removeprefix(base)
    adverb, verb, rest = _verb(phrase)
    stem = verb + verb[-1] if verb in LANGUAGE["verbs"]["doubled"] else verb.removesuffix("e")
    return f"{adverb}{stem}ing{rest}"


def _filled(rng: Generator, words: str, shown: MovingObject, facts: dict[str, str]) -> _Predicate:
    """What the words say of the object, which states the facts."""
    then = (WORDS["colour"] if shown.change == "colour" else LANGUAGE["turned"]).get(shown.then)
    options = {"go": LANGUAGE["go"], "picture": LANGUAGE["picture"], "then": then}
    drawn = {place: _word(rng, options[place]) for place in options if f"{{{place}}}" in words}
    text = words.format(edge=LANGUAGE["edge"].get(shown.change, {}).get(shown.path), **drawn)
    return _Predicate(text, third_person(text), participle(text), frozenset(facts.items()))


def _true_to_the_end(words: str, shown: MovingObject) -> bool:
    """Whether the change of the object leaves these words about its path true."""
    return not any(shown.change in no["changes"] and re.search(no["path"], words) for no in LANGUAGE["untrue"])


def _path(rng: Generator, shown: MovingObject) -> _Predicate:
    wordings = [words for words in WORDS["path"][shown.path] if _true_to_the_end(words, shown)]
    return _filled(rng, _word(rng, wordings), shown, {"path": shown.path})


def _change(rng: Generator, shown: MovingObject, among_opposites: bool = False) -> _Predicate:
    wordings = WORDS["change"] | (LANGUAGE["opposites"] if among_opposites else {})
    words = _word(rng, wordings[shown.change])
    facts = {"change": shown.change}
    if "{then}" in words:
        facts["then"] = shown.then
    if "{edge}" in words:
        facts["path"] = shown.path
    return _filled(rng, words, shown, facts)


def _predicate(rng: Generator, shown: MovingObject, changes: bool) -> _Predicate:
    """What the object does: its path, its change, or both. changes: whether only the change will do."""
    change = _change(rng, shown) if shown.change and (changes or rng.random() < 0.6) else None
    if change and (changes or rng.random() < 0.4):
        return change
    path = _path(rng, shown)
    if not change:
        return path
    bearing = LANGUAGE["bearing"].get(shown.change, "ends" if shown.path == "still" else "goes on")
    template = _word(rng, LANGUAGE["path_and_change"][bearing])
    fixed = {"moves": path.moves, "moving": path.moving, "changes": change.moves, "changing": change.moving}
    forms = (template.format(move=path[i], change=change[i], **fixed) for i in range(3))
    return _Predicate(*forms, path.facts | change.facts)


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def _without_duration(templates: Sequence[str], facts: Facts) -> Sequence[str]:
    """The templates that can tell the facts: nobody says that something "is stopping"."""
    if "change" not in dict(facts):
        return templates
    return [words for words in templates if not re.search("(is|are|both) {moving}", words)]


def _clause(rng: Generator, noun: _Noun, predicate: _Predicate, seen: bool = False) -> _Clause:
    words = {"noun": noun.text} | predicate._asdict()
    finite, nominal = (
        _word(rng, _without_duration(LANGUAGE["clause"][form], predicate.facts)).format(**words)
        for form in ("finite", "seen" if seen else "nominal")
    )
    return _Clause(finite, nominal, noun.facts | predicate.facts)


def _shared(rng: Generator, first: MovingObject, second: MovingObject) -> _Predicate | None:
    """What both objects do, if what is drawn for the first holds for the second too."""
    drawn = (_change if first.change and rng.random() < 0.5 else _path)(rng, first)
    same_path = dict(drawn.facts).get("path", second.path) == second.path  # not only after a turn
    true = _true_to_the_end(drawn.move, second)
    negated = drawn.move == "do not move"  # which "just like" and "both" would leave unclear
    return drawn if same_path and true and not negated and drawn.facts <= second.facts() else None


def _sentence(
    rng: Generator, told: Sequence[MovingObject], article: str, form: str, order: str | None
) -> tuple[str, tuple[Facts, ...]]:
    """A sentence and the facts that it states of each object. order: whose change is told first, one of ORDERS."""
    nouns = _nouns(rng, told, article)
    names = [noun.text for noun in nouns]
    if len(told) == 3:
        templates = LANGUAGE["together"]["3 shown" if form == "finite" else "3"]
        return _word(rng, templates).format(*names), tuple(noun.facts for noun in nouns)
    if len(told) == 2 and not order and (shared := _shared(rng, *told)):
        template = _word(rng, _without_duration(LANGUAGE["both"][form], shared.facts))
        text = re.sub(r"\bits\b", "their", template.format(*names, **shared._asdict()))
        return text, tuple(noun.facts | shared.facts for noun in nouns)
    predicates = [_predicate(rng, shown, changes=bool(order)) for shown in told]
    clauses = [_clause(rng, *pair, seen=form == "seen") for pair in zip(nouns, predicates, strict=True)]
    mentions = tuple(clause.facts for clause in clauses)
    row = "finite" if form == "finite" else "nominal"
    if len(told) == 1:
        return getattr(clauses[0], row), mentions
    apart = all("change" in dict(predicate.facts) for predicate in predicates)
    templates = LANGUAGE["joined"][order or ("apart" if apart else "at once")][row]
    if form == "seen":  # we do not "see a ball stop with a ring move"
        templates = [template for template in templates if not re.search("with|by", template)]
    return _word(rng, templates).format(*clauses), mentions


def _perhaps_background(rng: Generator, scene: Scene) -> str | None:
    return _word(rng, WORDS["background"][scene.background]) if rng.random() < BACKGROUND_TOLD else None


def _with_background(
    rng: Generator, background: str | None, text: str, article: str, objects: int, at_end: bool = False
) -> str:
    """The text with its background, if that is told. at_end: whether to name it last, without a verb."""
    if not background:
        return text
    look = re.fullmatch("an? (.+) background", background)
    forms = LANGUAGE["behind"]
    patterned = "background" not in background and any(background in WORDS["background"][p] for p in forms["patterned"])
    templates = forms["any"] + (forms["adjective"] if look else forms["pattern"] if patterned else [])
    if at_end:
        templates = [words for words in templates if words.startswith("{text}") and "{look}" not in words]
    background = background if article else re.sub("^an? ", "", background)
    them = "it" if objects == 1 else "them"
    return _word(rng, templates).format(text=text, background=background, look=look and look[1], them=them)


def _draft(scene: Scene, rng: Generator) -> Caption:
    count = min(len(scene.objects), pick(rng, (1, 2, 2, 2, 2, 2, 2, 2, 2, 3)))
    told = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:count]]
    times = {shown.change_at for shown in told if shown.change}  # those of two objects that enter are the same
    order = None
    # An object that comes in (at 0.0) takes a while, so what happens soon after it is not clearly later.
    if count == 2 and len(times) == 2 and (min(times) > 0 or max(times) > 0.5) and rng.random() < 0.7:
        order = pick(rng, ORDERS)
        told.sort(key=lambda shown: shown.change_at, reverse=order == "later first")
    form = pick(rng, ("finite",) * 6 + ("nominal",) * 4 + ("seen",) * 2)
    article = "a" if form == "seen" else _article(rng)
    text, mentions = _sentence(rng, told, article, form, order)
    if form == "seen":
        text = text.replace(" do not ", " not ")
    if form == "nominal" and article == "a" and rng.random() < 0.3:
        text, form = f"there is {text}", "finite"
    background = _perhaps_background(rng, scene)
    opened = form == "seen" or (article and rng.random() < (0.25 if form == "nominal" else 0.12))
    text = _with_background(rng, background, text, article, count, at_end=opened or form == "nominal")
    if opened:
        text = f"{_word(rng, LANGUAGE['openings'][form])} {text}"
    return Caption(text, mentions[::-1] if order == "later first" else mentions, background, order is not None)


def _article(rng: Generator) -> str:
    return pick(rng, ("a",) * 5 + ("the", ""))


def describe(scene: Scene, rng: Generator) -> Caption:
    """Say part of what the scene shows, in 6 to 18 words."""
    while True:
        caption = _draft(scene, rng)
        if has_usual_length(caption):
            return caption


def describe_motion(scene: Scene, rng: Generator, in_order: bool) -> Caption:
    """Say how the first object moves or changes, or which of the first two changes first; and perhaps the background.

    Equal random numbers give twins, which differ in that alone, captions that differ in that alone.

    :param in_order: whether the order of the changes of two objects is told.
    """
    form = "finite" if in_order else pick(rng, ("finite", "nominal"))  # of which the second clause may be finite
    article = pick(rng, ("a",) * 3 + ("the", ""))
    clauses = []
    for shown in scene.objects[: 2 if in_order else 1]:
        noun = _noun(rng, shown, article)
        does = _change(rng, shown, among_opposites=not in_order) if shown.change else _path(rng, shown)
        clauses.append(_clause(rng, noun, does))
    text = getattr(clauses[0], form)
    if in_order:
        if scene.objects[0].change_at > scene.objects[1].change_at:
            clauses.reverse()
        order = pick(rng, ORDERS)
        as_told = clauses if order == "earlier first" else clauses[::-1]
        text = _word(rng, LANGUAGE["joined"][order][form]).format(*as_told)
    background = _perhaps_background(rng, scene)
    text = _with_background(rng, background, text, article, len(clauses), at_end=form == "nominal")
    return Caption(text, tuple(clause.facts for clause in clauses), background, in_order)


def describe_picture(background: str, shown: Sequence[Figure], rng: Generator) -> str:
    """Say part of what a single frame shows: of some of its objects what they look like, and perhaps the background."""
    behind = _word(rng, WORDS["background"][background])
    if not shown:
        return behind
    told = [shown[i] for i in rng.permutation(len(shown))[: rng.integers(1, len(shown) + 1)]]
    article = _article(rng)
    names = [noun.text for noun in _nouns(rng, told, article)]
    text = _word(rng, LANGUAGE["together"][str(len(told))]).format(*names)
    return _with_background(rng, behind if rng.random() < BACKGROUND_TOLD else None, text, article, len(told))
