"""What CLIP's tokenizer is given of a caption: the text that OpenAI's own tokenizer splits."""

import html
import random
import string

import ftfy
import pytest
import torch

from model.clip import ClipRetrieval, clean_caption
from tests.small_models import small_clip, small_textdiffs

# what ftfy.fix_text, html.unescape twice, single blanks and lower case give, as OpenAI's simple_tokenizer has them
CLEANED = [
    ("don’t stop", "don't stop"),
    ("“Quoted” ‘once’", "\"quoted\" 'once'"),
    ("cats &amp; dogs", "cats & dogs"),
    ("cats &amp;amp; dogs", "cats & dogs"),
    ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # ftfy takes a text with < for HTML, and leaves its entities
    ("R&B &lt;live&gt; &quot;here&quot;&nbsp;now", 'r&b <live> "here" now'),
    ("cafÃ© donâ€™t", "café don't"),
    ("ﬁre in ＦＵＬＬ width", "fire in full width"),
    (" two\u00a0 blanks\tand\r\nlines\u2028here ", "two blanks and lines here"),
    ("e\u0301clair", "éclair"),
    ("\x1b[31mred\x1b[0m\x00", "red"),
    ("Plain ASCII, it's 50% done!", "plain ascii, it's 50% done!"),
    ("日本語 😀", "日本語 😀"),
]


@pytest.mark.parametrize(("caption", "cleaned"), CLEANED)
def test_captions_are_cleaned(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_plain_text_needs_no_repair():
    """The short way of plain text gives what the long one gives."""
    generator = random.Random(0)
    letters = string.printable.replace("&", "")
    for _ in range(2000):
        text = "".join(generator.choices(letters, k=generator.randrange(30)))
        assert clean_caption(text) == " ".join(html.unescape(ftfy.fix_text(text)).split()).lower()


@pytest.mark.parametrize(("caption", "cleaned"), CLEANED)
def test_tokens_are_those_of_the_cleaned_caption(caption, cleaned):
    """Of a query and of a caption alike: both come through `tokenize`."""
    model = ClipRetrieval(*small_clip())
    assert torch.equal(model.tokenize([caption])["token_ids"], model.tokenize([cleaned])["token_ids"])


def test_words_of_the_diffusion_are_those_of_the_caption_as_it_is():
    """spaCy's words, which published vocabularies hold, know curly quotes."""
    model = small_textdiffs(["I don’t know"])
    assert model.tokenize(["I don’t know"])["word_ids"][0, :6].tolist() == [
        0, *(model.vocabulary.token_to_id[word] for word in ("I", "do", "n’t", "know")), 1
    ]  # fmt: skip
