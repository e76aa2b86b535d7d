"""Make the configuration and the tokenizer of the CLIP that needs no download.

    python scripts/make_tiny_clip.py assets/clip-tiny

The tokenizer is CLIP's byte-level BPE with merges learned from the captions of MovingShapes and the words below, so it
reads any text: what it does not know becomes letters. Merges of equally frequent pairs come in an order that differs
from run to run: a new tokenizer reads as well, but checkpoints made with the old one do not fit it. Weights in the
folder do not either, so they are deleted; scripts/pretrain_clip.py makes new ones.
"""

import json
import logging
import sys
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPTokenizer

from datasets.moving_shapes import captions_of
from utils.command_line import Parser
from utils.files import check_writable
from utils.program import run_program

logger = logging.getLogger(__name__)

MAX_VOCABULARY = 2048
SIDE, PATCH, TEXT_POSITIONS = 64, 16, 77
WIDTH, LAYERS, HEADS, MLP_RATIO = 128, 3, 4, 2  # twice the width learns MovingShapes as fast as four times
WORDS = """
a an the and or of in on at to from with without by for up down left right over under near behind before after around
across into out off then while as is are was be being has have had do does did not no one two three four some many
several another other his her their its he she they it this that there who what where which people person man men woman
women boy girl child children baby kid guy lady group crowd player players team family friend friends dog cat horse bird
fish animal car truck train plane boat bike bicycle motorcycle road street house home room kitchen table chair bed door
window wall floor field park beach water sea ocean river lake mountain tree trees grass flower snow rain sky sun night
day city school stage game ball football soccer basketball tennis baseball cricket golf music song guitar piano drum
food meat fish vegetables fruit rice bread cake egg eggs potato onion tomato cheese sauce oil pan pot bowl plate knife
cup glass bottle water milk phone computer camera video movie film show news cartoon character paper book picture
hand hands head face hair eye eyes body shirt dress hat shoe red green blue yellow orange purple black white brown gray
big small large little long short young old new fast slow walk walks walking run runs running jump jumps jumping sit
sits sitting stand stands standing talk talks talking speak speaking sing sings singing dance dances dancing play plays
playing cook cooks cooking cut cuts cutting eat eats eating drink drinking drive drives driving ride rides riding swim
swimming fly flying throw throws throwing catch hit hits kick kicks look looks looking watch watching show shows showing
make makes making put puts putting take takes taking hold holds holding open opens opening close closes turn turns
turning move moves moving go goes going come comes coming get gets getting give gives giving use uses using wear wearing
work working fight fighting fall falls falling climb climbing push pull lift paint painting draw drawing write writing
read reading explain explains explaining demonstrate demonstrating discuss discussing review interview scene clip
begin begins start starts stop stops end ends continue continues first second next last together inside outside
someone something somebody circle square triangle star cross ring shape object thing background light dark
""".split()


def main() -> None:
    parser = Parser("scripts/make_tiny_clip.py", __doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; weights that lie there are deleted")
    folder = parser.parse_args().folder
    check_writable(folder / "config.json")

    captions = [caption.text for row in captions_of(24, "train", 1200) for caption in row]
    corpus = captions + WORDS * 20
    specials = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    learned = CLIPTokenizer(vocab=specials, merges=[]).train_new_from_iterator(corpus, MAX_VOCABULARY)
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in sorted(ByteLevel.alphabet()):  # every byte, inside and at the end of a word
        for token in (byte, byte + "</w>"):
            vocabulary.setdefault(token, len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.model_max_length = TEXT_POSITIONS
    tokenizer.save_pretrained(folder)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": MLP_RATIO * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": SIDE, "patch_size": PATCH}
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH).save_pretrained(folder)
    (folder / "model.safetensors").unlink(missing_ok=True)
    logger.info("written: %s", folder)


if __name__ == "__main__":
    sys.exit(run_program("make_tiny_clip.py", main))
