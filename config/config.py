"""Every flag of train.py and test.py, declared once: name, type, default, help and the archs that it concerns."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from diffusion_lm.errors import InputError

DATASETS = ("MSRVTT", "MSVD", "LSMDC", "DiDeMo", "ActivityNet", "MovingShapes", "custom")
ARCHS = ("clip_stochastic", "clip_tmass", "clip_transformer", "clip_baseline")
ARCH_ALIASES = {"clip_textdiffs": "clip_stochastic"}
CLIP_INPUT_RES = {"ViT-B/32": 224, "ViT-B/16": 224, "ViT-L/14": 224, "tiny": 64}
PUBLISHED_TEXT_LENGTH = 64
DIFFUSION_ARCHS = ("clip_stochastic",)
TMASS = ("clip_tmass",)
BASELINE = ("clip_baseline",)
RECIPES = {  # defaults of the flags by which the recipes differ
    "published": {
        "cond_negatives": 0,
        "undiffused_loss_weight": 0.0,
        "score_fusion": 0.0,
        "condition": "tokens",
        "round_last": "yes",
    },
    "textdiffs": {
        "cond_negatives": 0,
        "undiffused_loss_weight": 0.0,
        "score_fusion": 0.0,
        "condition": "tokens",
        "round_last": "yes",
    },
}
CROSS_ATTENTION_ARCHS = ("clip_stochastic", "clip_tmass", "clip_transformer")


def flag(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    archs: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    no_effect: str = "",
    alone: str | None = None,
    needs: str = "",
) -> Any:
    """A field of Config that is a flag.

    :param archs: the archs for which the flag does something; None means all of them.
    :param no_effect: why the flag never does anything here, for flags kept so that known commands run.
    :param alone: the value of the flag when it is given without one.
    :param needs: the flag without which it does nothing, or FLAG=VALUE.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": tuple(choices),
        "aliases": tuple(aliases),
        "archs": archs,
        "minimum": minimum,
        "maximum": maximum,
        "no_effect": no_effect,
        "alone": alone,
        "needs": needs,
    }
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    """All settings of a run. `Config.parse` reads a command line; `save` and `load` keep it in config.json."""

    # data
    dataset_name: str = flag("MSRVTT", "data set", group="data", choices=DATASETS)
    videos_dir: str | None = flag(None, "folder of the video files (MovingShapes brings its own)", group="data")
    data_dir: str = flag("./data", "folder that holds <Dataset>/ with the annotation files", group="data")
    annotations: str | None = flag(
        None,
        "file of --dataset_name=custom: .csv or .jsonl with video, caption and, if wanted, start, end, split",
        group="data",
    )
    allow_missing: bool = flag(
        False, "go on without the videos that have no file; tables then say n of N", group="data"
    )
    msrvtt_train_file: str = flag("9k", "training split of MSR-VTT", group="data", choices=("7k", "9k"))
    split: str = flag(
        "usual",
        "test split: of MovingShapes also a large one, 500 videos that begin with the usual 100",
        group="data",
        choices=("usual", "large"),
        needs="dataset_name=MovingShapes",
    )
    num_frames: int = flag(12, "frames taken of each video", group="data", aliases=("num_frame",), minimum=1)
    video_sample_type: str = flag(
        "uniform",
        "frame of each equal part of a video in training: its middle or a random one; tests take the middle",
        group="data",
        choices=("uniform", "rand"),
    )
    input_res: int | None = flag(
        None, "side of the square input, pixels (default: that of the CLIP: 224, tiny 64)", group="data", minimum=1
    )
    num_workers: int = flag(
        8,
        "processes that decode videos, at most one per CPU core; 0 decodes in the main process",
        group="data",
        minimum=0,
    )
    frame_cache: str | None = flag(
        None, "folder that keeps decoded frames, so that only the first epoch decodes; may be shared", group="data"
    )
    frame_cache_gb: float | None = flag(
        None, "size at which the frame cache takes no more (default: no limit)", group="data", minimum=0,
        needs="frame_cache",
    )  # fmt: skip
    frame_cache_side: int = flag(
        256, "shorter side of larger frames in the frame cache", group="data", minimum=1, needs="frame_cache"
    )
    raw_video: bool = flag(False, "frames come from video files", group="data", no_effect="they always do here")

    # model
    arch: str = flag(
        "clip_stochastic",
        "retrieval model: TextDiffs (clip_stochastic, alias clip_textdiffs), T-MASS (clip_tmass), X-Pool"
        " (clip_transformer) or CLIP with simple pooling (clip_baseline)",
        group="model",
        choices=(*ARCHS, *ARCH_ALIASES),
    )
    recipe: str = flag(
        "textdiffs",
        "ours, or the published one in every detail",
        group="model",
        choices=("textdiffs", "published"),
        archs=DIFFUSION_ARCHS,
    )
    clip_arch: str = flag(
        "ViT-B/32",
        "CLIP that is fine-tuned; tiny is small, random and needs no download",
        group="model",
        choices=tuple(CLIP_INPUT_RES),
    )
    clip_path: str | None = flag(
        None,
        "CLIP instead of --clip_arch: hub id, local folder (config, weights, tokenizer) or state dict with OpenAI's"
        " names; with a checkpoint only its tokenizer is read",
        group="model",
    )
    embed_dim: int | None = flag(
        None, "width of the CLIP embedding; checked against the CLIP (ViT-B/32: 512)", group="model", minimum=1
    )
    pooling_type: str = flag(
        "transformer",
        "how frames become a video with clip_baseline (there avg is the default): their mean, the mean of the k most"
        " similar to the text, or weights by a softmax of that similarity; transformer is clip_transformer",
        group="model",
        choices=("avg", "topk", "attention", "transformer"),
        archs=BASELINE,
    )
    k: int = flag(
        -1, "frames of top-k pooling, at most --num_frames", group="model", archs=BASELINE, needs="pooling_type=topk"
    )
    attention_temperature: float = flag(
        0.01, "temperature of attention pooling", group="model", archs=BASELINE, needs="pooling_type=attention"
    )
    num_mha_heads: int = flag(
        1, "heads of the text-frame attention", group="model", minimum=1, archs=CROSS_ATTENTION_ARCHS
    )
    transformer_dropout: float = flag(
        0.3, "dropout of the frame pooling", group="model", minimum=0, maximum=1, archs=CROSS_ATTENTION_ARCHS
    )

    # diffusion
    diffusion_steps: int = flag(
        10, "T, steps of the text diffusion", group="diffusion", minimum=1, archs=DIFFUSION_ARCHS
    )
    diffusion_lm: str | None = flag(
        None,
        "folder of the pre-trained Diffusion-LM that teaches (default:"
        " Diffusion-LM/diffusion_models/<dataset_name>, else diffusion_models itself)",
        group="diffusion",
        archs=DIFFUSION_ARCHS,
    )
    diffusion_text_len: int = flag(
        PUBLISHED_TEXT_LENGTH,
        "L, word tokens of a caption in the diffusion",
        group="diffusion",
        minimum=3,
        maximum=512,
        archs=DIFFUSION_ARCHS,
    )
    cond_negatives: int | None = flag(
        None,
        "K: diffuse each text of a batch also towards K other videos, as evaluation does (default: by --recipe)",
        group="diffusion",
        minimum=0,
        archs=DIFFUSION_ARCHS,
    )
    hard_share: float = flag(
        0.5,
        "share of --cond_negatives that are the most similar videos of the batch; the others are any",
        group="diffusion",
        minimum=0,
        maximum=1,
        archs=DIFFUSION_ARCHS,
        needs="cond_negatives",
    )
    undiffused_loss_weight: float | None = flag(
        None,
        "weight of the retrieval loss of the texts as encoded (default: by --recipe)",
        group="diffusion",
        minimum=0,
        archs=DIFFUSION_ARCHS,
    )
    score_fusion: float | None = flag(
        None,
        "weight of the text as encoded in the score of a pair; the diffused text has the rest (default: by --recipe)",
        group="diffusion",
        minimum=0,
        maximum=1,
        archs=DIFFUSION_ARCHS,
    )
    condition: str | None = flag(
        None,
        "what the diffusion is conditioned on: cosines of the tokens with the frames, or also of the whole sentence"
        " (default: by --recipe)",
        group="diffusion",
        choices=("tokens", "sentence"),
        archs=DIFFUSION_ARCHS,
    )
    round_last: str | None = flag(
        None,
        "whether the last step of sampling rounds to words like the others, or keeps what the student predicts, as"
        " training does (default: by --recipe)",
        group="diffusion",
        choices=("yes", "no"),
        archs=DIFFUSION_ARCHS,
    )
    sampler: str = flag(
        "ddpm", "reverse process at inference", group="diffusion", choices=("ddpm", "ddim"), archs=DIFFUSION_ARCHS
    )
    sampling_steps: int | None = flag(
        None,
        "steps at inference, at most --diffusion_steps (default: all of them)",
        group="diffusion",
        minimum=1,
        archs=DIFFUSION_ARCHS,
    )

    # T-MASS
    support_loss_weight: float = flag(0.8, "weight of the support loss", group="T-MASS", minimum=0, archs=TMASS)
    stochastic_prior: str = flag(
        "uniform01",
        "what the text is sampled with: uniform numbers of [0, 1) or normal ones",
        group="T-MASS",
        choices=("uniform01", "normal"),
        archs=TMASS,
    )
    stochastic_prior_std: float = flag(
        1.0, "spread of the normal prior", group="T-MASS", minimum=0, archs=TMASS, needs="stochastic_prior=normal"
    )
    stochasic_trials: int = flag(
        20,
        "samples of the text for each pair at inference, of which the best counts",
        group="T-MASS",
        aliases=("stochastic_trials",),
        minimum=1,
        archs=TMASS,
    )

    # training
    loss: str = flag("clip", "retrieval loss: symmetric InfoNCE", group="training", choices=("clip",))
    clip_lr: float = flag(1e-6, "learning rate of CLIP", group="training", minimum=0)
    noclip_lr: float = flag(
        1e-5, "learning rate of everything else", group="training", minimum=0, archs=CROSS_ATTENTION_ARCHS
    )
    batch_size: int = flag(
        32,
        "pairs of a training step in each process; videos or captions of an encoding step in evaluation",
        group="training",
        minimum=1,
    )
    num_epochs: int = flag(5, "passes over the training pairs", group="training", minimum=1)
    weight_decay: float = flag(0.2, "AdamW weight decay (not on biases, norms and scales)", group="training", minimum=0)
    warmup_proportion: float = flag(
        0.1, "share of the steps in which the learning rate rises", group="training", minimum=0, maximum=1
    )
    seed: int = flag(24, "seed of everything random", group="training", minimum=0)
    gpu: str | None = flag(None, "index of the GPU, or cpu (default: the first GPU if there is one)", group="training")
    precision: str = flag(
        "auto",
        "arithmetic: auto is bf16 where the device is fast at it, else fp32",
        group="training",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = flag(
        False, "let torch.compile fuse the networks: slow to start, then faster; needs a C++ compiler", group="training"
    )
    grad_accum: int = flag(
        1,
        "K: a step takes K x batch_size pairs in the memory of batch_size, with the loss of all of them together",
        group="training",
        minimum=1,
    )
    gradient_checkpointing: bool = flag(
        False, "compute the layers of CLIP twice instead of keeping what they hold: less memory", group="training"
    )
    freeze_layer_num: int = flag(
        -1, "freeze CLIP's embeddings and its layers below this one; -1 freezes nothing", group="training", minimum=-1
    )
    detect_anomaly: bool = flag(
        False, "stop at the operation that makes a number that is not finite; slow", group="training"
    )
    profile: int = flag(0, "steps of which a profiler trace is written", group="training", minimum=0)
    resume: str | None = flag(
        None,
        "go on with a run: its checkpoint or folder; alone: the newest of --datetime, else of --exp_name",
        group="training",
        alone="latest",
    )

    # evaluation
    metric: str = flag("t2v", "direction of the printed table", group="evaluation", choices=("t2v", "v2t"))
    DSL: bool = flag(False, "add rows with the dual softmax, which looks at all queries at once", group="evaluation")
    eval_window_size: int = flag(5, "evaluations in the window average of the log", group="evaluation", minimum=1)
    evals_per_epoch: int = flag(1, "evaluations per epoch in training", group="evaluation", minimum=1)
    skip_eval: bool = flag(
        False, "train without evaluations; the last epoch becomes model_best.pth", group="evaluation"
    )
    load_epoch: int | None = flag(
        None,
        "checkpoint that test.py reads: N, or 0 or -1 for model_best.pth; without it the untrained model is evaluated",
        group="evaluation",
        minimum=-1,
    )
    batch_size_split: int | None = flag(
        None, "(text, video) pairs diffused at once (default: by free memory)", group="evaluation", minimum=1
    )
    chunk_size: int | None = flag(None, "like --batch_size_split, which wins", group="evaluation", minimum=1)
    save_memory_mode: bool = flag(
        False, "few pairs at once, and score matrices in files below --output_dir", group="evaluation"
    )
    rerank_topk: int = flag(
        0,
        "K: rank all pairs with the texts as encoded, then move (diffuse, sample) only the K best of each query, in"
        " each direction; 0: all pairs",
        group="evaluation",
        minimum=0,
        archs=(*DIFFUSION_ARCHS, *TMASS),
    )
    save_embeddings: str | None = flag(
        None, "safetensors file for the text and frame features that test.py encodes", group="evaluation"
    )
    load_embeddings: str | None = flag(
        None, "file of --save_embeddings: test.py takes the features from there and reads no video", group="evaluation"
    )
    save_sims: str | None = flag(None, "npz file for the score matrices of test.py", group="evaluation")
    sweep: str | None = flag(
        None,
        "more settings that test.py evaluates with the same features, as SAMPLER:STEPS or SAMPLER:STEPS:K with K of"
        " --rerank_topk, with commas between: ddpm:10,ddim:5,ddim:2:50; table in sweep.txt, sweep.csv, sweep.png",
        group="evaluation",
        archs=DIFFUSION_ARCHS,
    )

    report: bool = flag(
        False,
        "write report.html, which test.py leaves beside the results: tables, curves, queries with what was found; and"
        " its plots as PNG",
        group="evaluation",
    )

    # output
    exp_name: str = flag(
        "exp", "name of the experiment: runs lie in <output_dir>/<exp_name>/<datetime>", group="output"
    )
    output_dir: str = flag("./outputs", "folder of all runs", group="output")
    datetime: str | None = flag(None, "folder of the run (default in training: the time now)", group="output")
    save_every: int = flag(1, "epochs between checkpoint-epoch<N>.pth files", group="output", minimum=1)
    save_steps: int | None = flag(None, "steps between checkpoints within an epoch", group="output", minimum=1)
    keep_last: int | None = flag(
        None, "newest checkpoints that are kept beside model_best.pth (default: all)", group="output", minimum=1
    )
    log_step: int = flag(10, "steps between log lines", group="output", minimum=1)
    no_tensorboard: bool = flag(False, "write no TensorBoard files", group="output")
    tb_log_dir: str | None = flag(None, "folder of the TensorBoard files (default: the run's)", group="output")
    noloss_record: bool = flag(False, "keep the losses out of TensorBoard", group="output")
    output_json: str | None = flag(
        None, "file for the results instead of results.json in the run's folder", group="output"
    )

    def __post_init__(self) -> None:
        self.explicit: frozenset[str] = frozenset()  # flags that the command line gave, by field name

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, prog: str | None = None) -> "Config":
        """Read a command line.

        :raises InputError: a flag is unknown, or a value is not allowed.
        """
        parser = _parser(cls, prog)
        given = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))
        config = cls(**given)
        config.explicit = frozenset(given)
        config._resolve()
        return config

    def _resolve(self) -> None:
        """Check ranges and fill in defaults that follow from other flags."""
        self.arch = ARCH_ALIASES.get(self.arch, self.arch)
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{f.name}={value} is not a finite number")
            if meta["minimum"] is not None and value < meta["minimum"]:
                raise InputError(f"--{f.name}={value} is too small: at least {meta['minimum']}")
            if meta["maximum"] is not None and value > meta["maximum"]:
                raise InputError(f"--{f.name}={value} is too large: at most {meta['maximum']}")
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.input_res is None:
            self.input_res = CLIP_INPUT_RES[self.clip_arch]
        if self.dataset_name == "custom" and self.annotations is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")
        if self.frame_cache is not None and self.frame_cache_side < self.input_res:
            raise InputError(
                f"--frame_cache_side={self.frame_cache_side} is less than the {self.input_res} pixels of the input"
            )
        if self.arch == "clip_baseline":
            self._resolve_pooling()
        if self.sampling_steps is None:
            self.sampling_steps = self.diffusion_steps
        if self.sampling_steps > self.diffusion_steps:
            raise InputError(
                f"--sampling_steps={self.sampling_steps} is more than --diffusion_steps={self.diffusion_steps}"
            )

    def _resolve_pooling(self) -> None:
        if self.pooling_type == "transformer":
            if "pooling_type" in self.explicit:
                raise InputError("--pooling_type=transformer is --arch=clip_transformer; clip_baseline has the others")
            self.pooling_type = "avg"
        if self.pooling_type == "topk" and not 1 <= self.k <= self.num_frames:
            raise InputError(f"--pooling_type=topk needs --k of 1 to --num_frames={self.num_frames}, not {self.k}")
        if self.pooling_type == "attention" and self.attention_temperature <= 0:
            raise InputError(f"--attention_temperature={self.attention_temperature} is too small: it divides")

    def notes(self) -> list[str]:
        """One line for every given flag that cannot do anything in this run."""
        lines = []
        for f in fields(self):
            if f.name not in self.explicit:
                continue
            archs = f.metadata["archs"]
            if f.metadata["no_effect"]:
                lines.append(f"--{f.name} has no effect: {f.metadata['no_effect']}")
            elif f.name == "annotations" and self.dataset_name != "custom":
                lines.append("--annotations has no effect without --dataset_name=custom")
            elif archs is not None and self.arch not in archs:
                lines.append(f"--{f.name} has no effect with --arch={self.arch}: it belongs to {', '.join(archs)}")
            elif not self._has(f.metadata["needs"]):
                lines.append(f"--{f.name} has no effect without --{f.metadata['needs']}")
        return lines

    def _has(self, needed: str) -> bool:
        """Whether a flag is set, or has the value of FLAG=VALUE."""
        name, _, value = needed.partition("=")
        return not needed or (getattr(self, name) == value if value else bool(getattr(self, name)))

    @property
    def run_dir(self) -> Path:
        """Folder of the run; gives the run a name by the clock when it has none."""
        if self.datetime is None:
            self.datetime = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return Path(self.output_dir) / self.exp_name / self.datetime

    @property
    def test_split(self) -> str:
        """The name of the split that is tested on."""
        return "test-large" if self.split == "large" and self.dataset_name == "MovingShapes" else "test"

    @property
    def dataset_dir(self) -> Path:
        """Folder of the annotations of the data set; their file for custom."""
        if self.dataset_name == "custom" and self.annotations is not None:
            return Path(self.annotations)
        return Path(self.data_dir) / self.dataset_name

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """A Config of plain values; names that this version does not know are an error that lists them."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"configuration has unknown settings: {', '.join(unknown)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write config.json."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read config.json."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it holds no settings by name")
            return cls.from_dict(values)
        except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON, or settings that are not known
            raise InputError(f"{path} is not a configuration: {error}") from error


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors, so that every entry point reports bad input in the same way."""

    def error(self, message: str) -> None:
        raise InputError(message)


def _parser(cls: type[Config], prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups: dict[str, Any] = {}
    for f in fields(cls):
        meta = f.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        names = [f"--{name}" for name in (f.name, *meta["aliases"])]
        if f.type is bool:
            group.add_argument(*names, dest=f.name, action="store_true", default=argparse.SUPPRESS, help=meta["help"])
            continue
        value_type = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        shown = "" if f.default in (None, MISSING) else f" (default: {f.default})"
        group.add_argument(
            *names,
            dest=f.name,
            type=value_type,
            choices=meta["choices"] or None,
            default=argparse.SUPPRESS,
            help=(meta["help"] + shown).replace("%", "%%"),
            **({"nargs": "?", "const": meta["alone"]} if meta["alone"] else {}),
        )
    return parser
