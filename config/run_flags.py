"""The flags of a run: its data, its training, the machine, the evaluation and its files."""

from dataclasses import dataclass

from config.flags import flag, group
from config.model_flags import DIFFUSION_ARCHS, LEARNED_ARCHS, TMASS

DATASETS = ("MSRVTT", "MSVD", "LSMDC", "DiDeMo", "ActivityNet", "MovingShapes", "custom")

REPORT_ALONE = "alone"  # --report without the folder of another one

# A flag takes the lines that its words need.
# fmt: off


@group("data", "Which videos and captions, and where decoded frames are kept.", "data")
@dataclass(frozen=True)
class Data:
    dataset_name: str = flag("MSRVTT", "data set", choices=DATASETS)
    videos_dir: str | None = flag(None, "folder of the video files, which may lie in subfolders", role="files",
        metavar="DIR", unset="none; only MovingShapes, which makes its own, does without")
    data_dir: str = flag("./data", "folder that holds <Dataset>/ with the annotation files", role="files",
        metavar="DIR")
    annotations: str | None = flag(None,
        "file of --dataset_name=custom: .csv or .jsonl with video, caption and, if wanted, start, end, split",
        metavar="FILE", needs="dataset_name=custom")
    allow_missing: bool = flag(False, "go on without the videos that have no file; tables then say n of N")
    msrvtt_train_file: str = flag("9k", "training split of MSR-VTT", choices=("7k", "9k"))
    split: str = flag("usual", "test split: of MovingShapes also a large one, 500 videos that begin with the usual 100,"
        " and one of motion: 200 pairs of videos that differ in one fact", choices=("usual", "large", "motion"),
        needs="dataset_name=MovingShapes")
    video_sample_type: str = flag("uniform",
        "frame of each equal part of a video in training: its middle or a random one; tests take the middle",
        role="training", choices=("uniform", "rand"))
    frame_cache: str | None = flag(None,
        "folder that keeps decoded frames, so that only the first epoch decodes; runs may share it", role="files",
        metavar="DIR", unset="none, every epoch decodes")
    frame_cache_gb: float | None = flag(None, "size at which the frame cache takes no more, in GB", role="files",
        minimum=0, needs="frame_cache", metavar="GB", unset="no limit")
    raw_video: bool = flag(False, "frames come from video files", no_effect="they always do here")


@group("training", "The optimiser, its steps, and which of its models is the best.", "training")
@dataclass(frozen=True)
class Training:
    loss: str = flag("clip", "retrieval loss: symmetric InfoNCE", choices=("clip",))
    clip_lr: float = flag(1e-6, "learning rate of CLIP", minimum=0)
    noclip_lr: float = flag(1e-5, "learning rate of everything else; a published run may lie in <datetime>_<noclip_lr>",
        minimum=0, archs=LEARNED_ARCHS, programs="train test")
    num_epochs: int = flag(5, "passes over the training pairs", minimum=1, metavar="EPOCHS")
    weight_decay: float = flag(0.2, "weight decay of AdamW; biases, norms and scales have none", minimum=0)
    warmup_proportion: float = flag(0.1, "share of the steps, between 0 and 1, in which the learning rate rises",
        minimum=0, maximum=1, metavar="SHARE")
    select_on: str = flag("val", "split that chooses model_best.pth: val, that of the data set or training videos that"
        " are held out; or test, as published code does", choices=("val", "test"))
    evals_per_epoch: int = flag(1, "evaluations per epoch", minimum=1, metavar="EVALUATIONS")
    eval_window_size: int = flag(5, "evaluations in the window average of the log", minimum=1, metavar="EVALUATIONS")
    skip_eval: bool = flag(False, "train without evaluations; the last epoch becomes model_best.pth")


@group("machine", "Where it is computed, in which arithmetic, and how much at once.", "machine")
@dataclass(frozen=True)
class Machine:
    gpu: str | None = flag(None, "index of the GPU, or cpu", metavar="INDEX",
        unset="the first GPU if there is one, else the CPU")
    precision: str = flag("auto", "arithmetic: auto is bf16 where the device is fast at it, else fp32",
        role="arithmetic", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = flag(False, "let torch.compile fuse the networks: slow to start, then faster; needs a C++ compiler",
        programs="train test")
    batch_size: int = flag(32,
        "pairs of a training step in each process; videos (on a CPU at most 8) or captions of an encoding step in "
        "evaluation", minimum=1, metavar="PAIRS")
    grad_accum: int = flag(1,
        "a step takes K x batch_size pairs in the memory of batch_size, with the loss of all of them together",
        minimum=1, metavar="K", programs="train", quiet="test")
    gradient_checkpointing: bool = flag(False,
        "compute the layers of CLIP twice instead of keeping what they hold: less memory", programs="train",
        quiet="test")
    batch_size_split: int | None = flag(None, "(text, video) pairs diffused at once", aliases=("chunk_size",),
        minimum=1, metavar="PAIRS", unset="by free memory", programs="train test query serve")
    save_memory_mode: bool = flag(False, "few pairs at once, and score matrices in files below --output_dir",
        programs="train test")
    num_workers: int = flag(8, "processes that decode videos, at most one per CPU core; 0 decodes in the main process",
        minimum=0, metavar="PROCESSES")


@group("evaluation", "What is evaluated, and what is shown or kept of it.", "testing")
@dataclass(frozen=True)
class Evaluation:
    metric: str = flag("t2v", "direction of the printed table, and of the recall that chooses model_best.pth",
        role="score", choices=("t2v", "v2t"), programs="train test")
    DSL: bool = flag(False, "add rows with the dual softmax, which looks at all queries at once", role="files")
    rerank_topk: int = flag(0, "rank all pairs with the original text embeddings, then score with the diffusion, or"
        " with samples, only the K best of each query, in each direction; 0: all pairs", role="score", minimum=0,
        archs=(*DIFFUSION_ARCHS, *TMASS), metavar="K")
    save_embeddings: str | None = flag(None, "safetensors file for the text and frame features", metavar="FILE")
    load_embeddings: str | None = flag(None,
        "file of --save_embeddings: features are taken from there and no video is read", metavar="FILE")
    save_sims: str | None = flag(None, "npz file for the score matrices", metavar="FILE")
    report: str | None = flag(None,
        "write report.html beside the results: tables, curves, queries with what was found, their ranks as CSV;"
        " with the folder of another report also what differs from that one", alone=REPORT_ALONE, metavar="DIR",
        unset="no report")
    output_json: str | None = flag(None, "file for the results", role="files", metavar="FILE",
        unset="results.json in the run's folder")


@group("run", "Which run, and which of its checkpoints.", "source")
@dataclass(frozen=True)
class Run:
    exp_name: str = flag("exp", "name of the experiment: runs lie in <output_dir>/<exp_name>/<datetime>")
    output_dir: str = flag("./outputs", "folder of all runs", metavar="DIR")
    datetime: str | None = flag(None, "name of the run's folder", unset="in train.py the time now", names_model=True)
    load_epoch: int | None = flag(None, "epoch of the checkpoint to evaluate; 0 or -1 is model_best.pth", minimum=-1,
        metavar="EPOCH", unset="the untrained model", programs="test index", quiet="train query", names_model=True)
    resume: str | None = flag(None,
        "go on with a run: its checkpoint or folder; alone: the newest of --datetime, else of --exp_name",
        role="running", alone="latest", metavar="PATH", unset="a new run")


@group("output", "What a run writes, and how often.", "running")
@dataclass(frozen=True)
class Output:
    save_every: int = flag(1, "epochs between checkpoint-epoch<N>.pth files", minimum=1, metavar="EPOCHS")
    save_steps: int | None = flag(None, "steps between checkpoints within an epoch", minimum=1, metavar="STEPS",
        unset="at the end of epochs only")
    keep_last: int | None = flag(None, "newest checkpoints that are kept beside model_best.pth", minimum=1,
        metavar="FILES", unset="all")
    log_step: int = flag(10, "steps between log lines", minimum=1, metavar="STEPS")
    no_tensorboard: bool = flag(False, "write no TensorBoard files")
    tb_log_dir: str | None = flag(None, "folder of the TensorBoard files", metavar="DIR",
        unset="tensorboard in the run's folder")
    noloss_record: bool = flag(False, "keep the losses out of TensorBoard")
