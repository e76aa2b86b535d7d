"""The model card of a run: what was trained on what, what chose it, and what was found."""

import json
import subprocess
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from config import Config
from datasets.annotations import Split
from model.model_config import ModelConfig
from trainer.run_folder import RESULTS_FILE
from utils.files import written_or_refused

CARD_FILE = "README.md"
ROOT = Path(__file__).resolve().parent.parent
LICENCE = "mit"  # of the code
COLUMNS = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MedR": "MedR"}
USE = """```python
from textdiffs import load_model

model = load_model("FOLDER")  # this one, or its id on the hub
texts, videos = model.embed_texts(["a dog runs"]), model.embed_videos(["a.mp4", "b.mp4"])
model.rank(texts, videos).videos_of_texts  # for each text the videos, best first
```"""
LICENCES = """The licence above is that of the code. Weights come from the encoder and from the training data, which
have licences of their own."""
PROTOCOLS = """Strict is what a search can do. Published is the protocol of T-MASS and of what was built on its code,
for comparison with their tables alone: there each video comes with a trace of its own caption."""


def model_card(model: ModelConfig, told: list[str] | None = None) -> ModelCard:
    """The card of a model, with a head that the hub's library reads.

    :param told: paragraphs of what is known beyond the model itself.
    """
    head = ModelCardData(library_name="textdiffs", license=LICENCE, tags=["text-video-retrieval"])
    about = (
        f"Text-video retrieval: `--arch={model.arch}`, encoder `{model.clip_path or model.clip_arch}` "
        f"({model.clip_config['model_type']}), {model.num_frames} frames of {model.input_res} x {model.input_res} a "
        f"video, seed {model.seed}."
    )
    return ModelCard(
        "\n\n".join([f"---\n{head.to_yaml()}\n---", f"# {model.arch}", about, *(told or []), USE, LICENCES])
    )


def write_card(folder: Path, config: Config, model: ModelConfig, train: Split) -> None:
    """Write the card of a run into its folder, with what its test has found, if there was one.

    :raises InputError: the folder cannot be written.
    """
    told = [
        f"Trained on {len(train.segments)} videos of {train.dataset} with {len(train.captions)} captions, "
        f"{config.num_epochs} epochs, batches of {config.batch_size}{_commit()}."
    ]
    results = Path(config.output_json or folder / RESULTS_FILE)
    if results.is_file():
        told += _found(json.loads(results.read_text(encoding="utf-8")))
    path = folder / CARD_FILE
    with written_or_refused(path, f"the model card cannot be written to {path}") as unfinished:
        unfinished.write_text(f"{model_card(model, told)}\n", encoding="utf-8")


def _found(results: dict[str, Any]) -> list[str]:
    """What chose the checkpoint, and a table of what it found."""
    chosen, videos = results["selected_on"], results["test_videos"]
    by = "no evaluation" if chosen["split"] is None else f"the {chosen['split']} split"
    lines = [f"| {results['split']} split | {' | '.join(COLUMNS.values())} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for row in results["results"]:
        if not row["dsl"]:
            figures = " | ".join(f"{row[name]:.1f}" for name in COLUMNS)
            lines.append(f"| {row['metric']}, {row['protocol']}, {row['queries']} x {row['gallery']} | {figures} |")
    count = f"{videos['evaluated']} of {videos['annotated']} videos"
    return [
        f"The checkpoint was chosen by {by}: {chosen['how']}.",
        f"Tested on {results['dataset']}, {count}:",
        "\n".join(lines),
        PROTOCOLS,
    ]


def _commit() -> str:
    """The commit of the code, where it is known."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return f", with the code at {done.stdout.strip()}" if done.returncode == 0 else ""
