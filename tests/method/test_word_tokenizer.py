"""tokenize_words against words split by spaCy's blank English tokenizer."""

import json
import os
from pathlib import Path

import pytest

from diffusion_lm.word_tokenizer import tokenize_words
from tests.made_up import ROOT

WORD_TOKENS = Path(os.environ.get("CONFORMANCE_DIR", ROOT.parent / "shared" / "conformance")) / "word_tokens.json"

# What spaCy 3.8 answers; words are separated by "|".
FACTS = {
    "contractions": [
        ("I don't think you can't", "I|do|n't|think|you|ca|n't"),
        ("it's I'm we're they'll he'd", "it|'s|I|'m|we|'re|they|'ll|he|'d"),
        ("they'll've Wouldn't've", "they|'ll|'ve|Would|n't|'ve"),
        ("don’t it’s", "do|n’t|it|’s"),
        ("dont ive cannot gonna Gotta let's y'all", "do|nt|i|ve|can|not|gon|na|Got|ta|let|'s|y'|all"),
        ("o'clock 'cause goin' rock'n'roll", "o'clock|'cause|goin'|rock'n'roll"),
        ("he is ill in its shell as we were", "he|is|ill|in|its|shell|as|we|were"),
    ],
    "possessives": [
        ("a man's dog", "a|man|'s|dog"),
        ("SOMEONE’s face", "SOMEONE|’s|face"),
        ("the boys' hats", "the|boys|'|hats"),
        ("St. John's", "St.|John|'s"),
    ],
    "abbreviations": [
        ("Mr. Smith lives in the U.S. now", "Mr.|Smith|lives|in|the|U.S.|now"),
        ("e.g. a cat, i.e. a pet", "e.g.|a|cat|,|i.e.|a|pet"),
        ("from 5p.m. to 10am (p.m.)", "from|5|p.m.|to|10|am|(|p.m.|)"),
        ("plan b. of the USA.", "plan|b.|of|the|USA|."),
        ("mister. ends", "mister|.|ends"),
    ],
    "hyphens": [
        ("t-shirt black-and-white", "t|-|shirt|black|-|and|-|white"),
        ("20-year-old 3-d", "20|-|year|-|old|3|-|d"),
        ("wait--no and then -- yes", "wait|--|no|and|then|--|yes"),
        ("well-i'm and what's-his-name", "well|-|i'm|and|what's|-|his|-|name"),
        ("-fun fun-", "-fun|fun-"),
    ],
    "inside a word": [
        ("he/she and/or 1/2 4x4 a&b", "he|/|she|and/or|1/2|4x4|a&b"),
        ("man,woman dog.Cat dog.cat", "man|,|woman|dog|.|Cat|dog.cat"),
        ("(a)b man(left)", "(|a)b|man(left|)"),
    ],
    "quotes and brackets": [
        ("'hello' \"there\"", "'|hello|'|\"|there|\""),
        ("“hi” (he said).", "“|hi|”|(|he|said|)|."),
        ("''air'' ``quotes``", "''|air|''|`|`|quotes|`|`"),
        ("dog!!! what?!", "dog|!|!|!|what|?|!"),
    ],
    "numbers": [
        ("3.5 4,000 1:30 1-2 5+3 +5", "3.5|4,000|1:30|1|-|2|5|+|3|+5"),
        ("10km 5kg 10% 5xy", "10|km|5|kg|10|%|5xy"),
        ("$5 £3.50 5€ US$5", "$|5|£|3.50|5|€|US$|5"),
        ("5° c 20°C.", "5|°|c|20|°|C|."),
        ("5'6\"", "5'6|\""),
    ],
    "ellipsis": [
        ("wait... what", "wait|...|what"),
        ("wait…what ..a", "wait|…|what|..|a"),
    ],
    "emoticons": [
        ("hi :) nice:) <3", "hi|:)|nice|:)|<3"),
        ("(-8 ^_^", "(-8|^_^"),
    ],
    "URLs": [
        ("see https://www.site.com/a-b/c.html.", "see|https://www.site.com/a-b/c.html|."),
        ("(www.my-site.com), me@my-site.org", "(|www.my-site.com|)|,|me@my-site.org"),
        ("8.8.8.8/a and 10.0.0.1/a", "8.8.8.8/a|and|10.0.0.1|/|a"),
    ],
    "Unicode": [
        ("café naïve über 日本", "café|naïve|über|日本"),
        ("élan-vital ЁЖ.ёж", "élan|-|vital|ЁЖ.ёж"),
        ("ёж.Ёж 日本、東京", "ёж|.|Ёж|日本、東京"),
        ("😀dog 🥹dog ©2020", "😀|dog|🥹dog|©|2020"),
    ],
    "whitespace": [
        ("", ""),
        (" a ", " |a"),
        ("a  b\n", "a| |b|\n"),
        ("\t a\u00a0b", "\t |a|\u00a0|b"),
        ("   ", "   "),
    ],
}


@pytest.mark.parametrize(
    ("caption", "words"),
    [pytest.param(*fact, id=f"{subject}-{fact[0]!r}") for subject, facts in FACTS.items() for fact in facts],
)
def test_splits_as_spacy(caption: str, words: str) -> None:
    assert tokenize_words(caption) == (words.split("|") if words else [])


def test_equals_the_conformance_file() -> None:
    if not WORD_TOKENS.exists():
        pytest.skip(f"{WORD_TOKENS} is absent; set CONFORMANCE_DIR to the folder that has it")
    examples = json.loads(WORD_TOKENS.read_text(encoding="utf-8"))
    assert examples
    wrong = [example for example in examples if tokenize_words(example["caption"]) != example["tokens"]]
    assert len(wrong) <= 0.005 * len(examples), wrong[:5]


def test_no_character_is_lost() -> None:
    captions = [caption for facts in FACTS.values() for caption, _ in facts]
    for caption in captions:
        assert "".join(tokenize_words(caption)).replace(" ", "") == caption.replace(" ", "")


def test_result_is_the_callers_own() -> None:
    tokenize_words("a man's dog").append("changed")
    assert tokenize_words("a man's dog") == ["a", "man", "'s", "dog"]
