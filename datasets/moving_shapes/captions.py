"""What is said of a MovingShapes video: sentences, and what they claim."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from numpy.random import Generator

from datasets.moving_shapes.scene import Facts, Figure, MovingObject, Scene, T, pick
from datasets.moving_shapes.words import (
    ANY_SHAPE,
    BEGINS,
    BEHIND,
    BEHIND_ADJECTIVE,
    BEHIND_PATTERN,
    BOTH,
    CLAUSE,
    DOUBLED,
    ENDS,
    ENTERS_FROM,
    GO,
    JOINED,
    LEAVES_AT,
    OPENINGS,
    OPPOSITES,
    PARTICIPLES,
    PATH_AND_CHANGE,
    PATTERNED,
    PICTURE,
    THREE,
    TOGETHER,
    TURNED,
    UNTRUE_WITH,
    WORDS,
)


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


class _Phrase(NamedTuple):
    """Words and the facts that they state."""

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


def third_person(phrase: str) -> str:
    """Inflect the verb of a phrase: "stop moving" becomes "stops moving"."""
    adverb, verb, rest = re.fullmatch(r"(suddenly )?(\w+)(.*)", phrase).groups(default="")
    verb = re.sub(r"([^aeiou])y$", r"\1ie", verb)
    return f"{adverb}{verb}{'es' if re.search('(o|s|x|ch|sh)$', verb) else 's'}{rest}"


def participle(phrase: str) -> str:
    """Inflect the verb of a phrase: "spin around" becomes "spinning around"."""
    for base, participle in PARTICIPLES.items():
        if phrase.startswith(base):
            return participle + phrase.removeprefix(base)
    adverb, verb, rest = re.fullmatch(r"(suddenly )?(\w+)(.*)", phrase).groups(default="")
    stem = verb + verb[-1] if verb in DOUBLED else verb.removesuffix("e")
    return f"{adverb}{stem}ing{rest}"


def _noun_phrase(rng: Generator, shown: MovingObject | Figure, article: str, earlier: _Phrase | None = None) -> _Phrase:
    """Name an object, perhaps by what it shares with the one named earlier. article: "a", "the" or none."""
    words, facts = [], {}
    for attribute, told in (("size", 0.5), ("colour", 0.97), ("shape", 0.85)):
        value = getattr(shown, attribute)
        if rng.random() < told and value in WORDS[attribute]:
            words.append(_word(rng, WORDS[attribute][value]))
            facts[attribute] = value
    alike = earlier and "something" not in earlier.text and dict(earlier.facts).get("shape") == facts.get("shape")
    if "shape" not in facts:
        words.append(_word(rng, ANY_SHAPE))
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
    return _Phrase(" ".join(words), frozenset(facts.items()))


def _filled(rng: Generator, words: str, shown: MovingObject) -> str:
    edge = (ENTERS_FROM if shown.change == "enter" else LEAVES_AT).get(shown.path)
    at = f"{'on' if edge in ('left', 'right') else 'at'} the {edge}"
    then = (WORDS["colour"] if shown.change == "colour" else TURNED).get(shown.then)
    options = {"go": GO, "picture": PICTURE, "then": then}
    drawn = {place: _word(rng, options[place]) for place in options if f"{{{place}}}" in words}
    return words.format(edge=edge, at=at, **drawn)


def _true_to_the_end(words: str, shown: MovingObject) -> bool:
    """Whether the change of the object leaves these words about its path true."""
    return shown.change not in UNTRUE_WITH or not re.search(UNTRUE_WITH[shown.change], words)


def _path_phrase(rng: Generator, shown: MovingObject) -> _Phrase:
    wordings = [words for words in WORDS["path"][shown.path] if _true_to_the_end(words, shown)]
    return _Phrase(_filled(rng, _word(rng, wordings), shown), frozenset({("path", shown.path)}))


def _change_phrase(
    rng: Generator, shown: MovingObject, wordings: Mapping[str, Sequence[str]] = WORDS["change"]
) -> _Phrase:
    words = _word(rng, wordings[shown.change])
    facts = {"change": shown.change}
    if "{then}" in words:
        facts["then"] = shown.then
    if "{edge}" in words or "{at}" in words:
        facts["path"] = shown.path
    return _Phrase(_filled(rng, words, shown), frozenset(facts.items()))


def _predicate(rng: Generator, shown: MovingObject, changes: bool) -> _Predicate:
    """What the object does: its path, its change, or both. changes: whether only the change will do."""
    change = _change_phrase(rng, shown) if shown.change and (changes or rng.random() < 0.6) else None
    if change and (changes or rng.random() < 0.4):
        return _inflected(change)
    path = _inflected(_path_phrase(rng, shown))
    if not change:
        return path
    change = _inflected(change)
    if shown.change in BEGINS:
        bearing = "begins"
    else:
        bearing = "ends" if shown.change in ENDS or shown.path == "still" else "goes on"
    template = _word(rng, PATH_AND_CHANGE[bearing])
    fixed = {"moves": path.moves, "moving": path.moving, "changes": change.moves, "changing": change.moving}
    forms = (
        template.format(move=move, change=changed, **fixed) for move, changed in zip(path[:3], change[:3], strict=True)
    )
    return _Predicate(*forms, path.facts | change.facts)


def _inflected(phrase: _Phrase) -> _Predicate:
    return _Predicate(phrase.text, third_person(phrase.text), participle(phrase.text), phrase.facts)


def _without_duration(templates: Sequence[str], facts: Facts) -> list[str]:
    """The templates that can tell the facts: nobody says that something "is stopping"."""
    if "change" not in dict(facts):
        return list(templates)
    return [words for words in templates if not re.search("(is|are|both) {moving}", words)]


def _clause(rng: Generator, noun: _Phrase, predicate: _Predicate, seen: bool) -> _Clause:
    finite, nominal = (
        _word(rng, _without_duration(CLAUSE[form], predicate.facts))
        for form in ("finite", "seen" if seen else "nominal")
    )
    words = {"noun": noun.text} | predicate._asdict()
    return _Clause(finite.format(**words), nominal.format(**words), noun.facts | predicate.facts)


def _shared(rng: Generator, first: MovingObject, second: MovingObject) -> _Phrase | None:
    """What both objects do, if what is drawn for the first holds for the second too."""
    phrase = (_change_phrase if first.change and rng.random() < 0.5 else _path_phrase)(rng, first)
    same_path = dict(phrase.facts).get("path", second.path) == second.path  # not only after a turn
    true = _true_to_the_end(phrase.text, second)
    negated = phrase.text == "do not move"  # which "just like" and "both" would leave unclear
    return phrase if same_path and true and not negated and phrase.facts <= second.facts() else None


def _sentence(
    rng: Generator, told: Sequence[MovingObject], article: str, form: str, order: str | None
) -> tuple[str, tuple[Facts, ...]]:
    """A sentence and the facts that it states of each object. order: whose change is told first, a key of JOINED."""
    nouns = [_noun_phrase(rng, told[0], article)]
    nouns += [_noun_phrase(rng, shown, article, nouns[0] if len(told) == 2 else None) for shown in told[1:]]
    names = [noun.text for noun in nouns]
    row = "finite" if form == "finite" else "nominal"
    if len(told) == 3:
        return _word(rng, THREE[row]).format(*names), tuple(noun.facts for noun in nouns)
    if len(told) == 2 and not order and (shared := _shared(rng, *told)):
        verbs = _inflected(shared._replace(text=re.sub(r"\bits\b", "their", shared.text)))
        template = _word(rng, _without_duration(BOTH[form], shared.facts))
        return template.format(*names, **verbs._asdict()), tuple(noun.facts | shared.facts for noun in nouns)
    predicates = [_predicate(rng, shown, changes=bool(order)) for shown in told]
    clauses = [_clause(rng, *pair, seen=form == "seen") for pair in zip(nouns, predicates, strict=True)]
    if len(told) == 1:
        text = getattr(clauses[0], row)
    else:
        apart = all("change" in dict(predicate.facts) for predicate in predicates)
        templates = JOINED[order or ("apart" if apart else "at once")][row]
        if form == "seen":  # we do not "see a ball stop with a ring move"
            templates = [template for template in templates if not re.search("with|by", template)]
        text = _word(rng, templates).format(*clauses)
    return text, tuple(clause.facts for clause in clauses)


def _with_background(rng: Generator, background: str, text: str, article: str, them: str, at_end: bool) -> str:
    """The text with its background. at_end: whether to name it last, without a verb."""
    look = re.fullmatch("an? (.+) background", background)
    patterned = any(background in WORDS["background"][kind] for kind in PATTERNED) and "background" not in background
    forms = BEHIND + (BEHIND_ADJECTIVE if look else BEHIND_PATTERN if patterned else ())
    if at_end:
        forms = [form for form in forms if form.startswith("{text}") and "{look}" not in form]
    return _word(rng, forms).format(
        text=text,
        background=background if article else re.sub("^an? ", "", background),
        look=look and look[1],
        them=them,
    )


def _draft(scene: Scene, rng: Generator) -> Caption:
    count = min(len(scene.objects), pick(rng, (1, 2, 2, 2, 2, 2, 2, 2, 2, 3)))
    told = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:count]]
    times = {shown.change_at for shown in told if shown.change}  # those of two objects that enter are the same
    order = None
    # An object that comes in (at 0.0) takes a while, so what happens soon after it is not clearly later.
    if count == 2 and len(times) == 2 and (min(times) > 0 or max(times) > 0.5) and rng.random() < 0.7:
        order = pick(rng, ("earlier first", "earlier first", "earlier first", "later first"))
        told.sort(key=lambda shown: shown.change_at, reverse=order == "later first")
    form = pick(rng, ("finite",) * 6 + ("nominal",) * 4 + ("seen",) * 2)
    article = "a" if form == "seen" else pick(rng, ("a", "a", "a", "a", "a", "the", ""))
    text, mentions = _sentence(rng, told, article, form, order)
    if form == "seen":
        text = text.replace(" do not ", " not ")
    if form == "nominal" and article == "a" and rng.random() < 0.3:
        text, form = f"there is {text}", "finite"
    background = _word(rng, WORDS["background"][scene.background]) if rng.random() < 0.87 else None
    opened = form == "seen" or (article and rng.random() < (0.25 if form == "nominal" else 0.12))
    if background:
        text = _with_background(
            rng, background, text, article, "it" if count == 1 else "them", opened or form == "nominal"
        )
    if opened:
        text = f"{_word(rng, OPENINGS[form])} {text}"
    return Caption(text, mentions[::-1] if order == "later first" else mentions, background, order is not None)


def describe(scene: Scene, rng: Generator) -> Caption:
    """Say part of what the scene shows, in 6 to 18 words."""
    while True:
        caption = _draft(scene, rng)
        if has_usual_length(caption):
            return caption


def has_usual_length(caption: Caption) -> bool:
    """Whether it has 6 to 18 words."""
    return 6 <= len(caption.text.split()) <= 18


def describe_motion(scene: Scene, rng: Generator, in_order: bool) -> Caption:
    """Say how the first object moves or changes, or which of the first two changes first; and perhaps the background.

    Equal random numbers give twins, which differ in that alone, captions that differ in that alone.

    :param in_order: whether the order of the changes of two objects is told.
    """
    form = "finite" if in_order else pick(rng, ("finite", "nominal"))  # of which the second clause may be finite
    article = pick(rng, ("a", "a", "a", "the", ""))
    told, clauses = scene.objects[: 2 if in_order else 1], []
    for shown in told:
        noun = _noun_phrase(rng, shown, article)
        if in_order or not shown.change:
            phrase = (_change_phrase if in_order else _path_phrase)(rng, shown)
        else:
            phrase = _change_phrase(rng, shown, WORDS["change"] | OPPOSITES)
        clauses.append(_clause(rng, noun, _inflected(phrase), seen=False))
    text, mentions = getattr(clauses[0], form), [clause.facts for clause in clauses]
    if in_order:
        order = pick(rng, ("earlier first", "earlier first", "earlier first", "later first"))
        first, second = sorted(range(2), key=lambda index: told[index].change_at)
        mentions = [mentions[first], mentions[second]]
        as_told = (first, second) if order == "earlier first" else (second, first)
        text = _word(rng, JOINED[order][form]).format(*(clauses[index] for index in as_told))
    background = _word(rng, WORDS["background"][scene.background]) if rng.random() < 0.87 else None
    if background:
        them = "them" if in_order else "it"
        text = _with_background(rng, background, text, article, them, at_end=form == "nominal")
    return Caption(text, tuple(mentions), background, in_order)


def describe_picture(background: str, shown: Sequence[Figure], rng: Generator) -> str:
    """Say part of what a single frame shows: of some of its objects what they look like, and perhaps the background."""
    behind = _word(rng, WORDS["background"][background])
    if not shown:
        return behind
    told = [shown[i] for i in rng.permutation(len(shown))[: rng.integers(1, len(shown) + 1)]]
    article = pick(rng, ("a", "a", "a", "a", "a", "the", ""))
    nouns = [_noun_phrase(rng, told[0], article)]
    nouns += [_noun_phrase(rng, figure, article, nouns[0] if len(told) == 2 else None) for figure in told[1:]]
    text = _word(rng, TOGETHER[len(told)]).format(*[noun.text for noun in nouns])
    if rng.random() < 0.87:
        text = _with_background(rng, behind, text, article, "it" if len(told) == 1 else "them", at_end=False)
    return text
