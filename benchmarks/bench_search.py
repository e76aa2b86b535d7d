"""Seconds that search.py takes to index and to query.

    python benchmarks/bench_search.py [--quick] [--json FILE] [--films | --segments N | --index DIR]

100 entries are videos of MovingShapes, which are drawn, decoded, encoded and written. Of 1,000 and 10,000 the features
are synthetic, so indexing them is writing alone. A query is all that happens from a sentence to its ranking once the
index is loaded: by TextDiffs of the demo's sizes on the tiny CLIP (untrained, which costs the same), and by X-Pool with
features as wide and of as many frames as those of ViT-B/32. The first stage is measured on its own among 200,000
vectors, too, and the same queries are asked of the page's server. Programs are started with the tiny CLIP, and with a
checkpoint of ViT-B/32 with random weights.

With --segments, so many (a multiple of 100) of X-Pool on the tiny CLIP are written and searched; 1,000,000 take 4 GB.

With --films, films of 10 and of 40 minutes (160x96, 25 fps) are indexed in each container by the program.

With --index, the queries of search_queries.json are searched for in an index, and the ranks of the right videos shown:

    python search.py index --videos_dir=data/MovingShapes/videos --index=INDEX --exp_name=demo --datetime=RUN
    python search.py index --videos_dir=MORE --index=INDEX
    python benchmarks/bench_search.py --index=INDEX
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from threading import Thread
from urllib.parse import urlencode
from urllib.request import urlopen

import imageio_ffmpeg
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPConfig

from config import Config, SearchConfig
from datasets.moving_shapes import generate
from diffusion_lm.denoiser import DENOISERS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from evaluation.embeddings import TOKENS_DTYPE
from model.clip import EncodedVideos
from model.factory import create_model, video_encoder
from model.pretrained import CLIP_CONFIGS, TINY_FOLDER, build_clip
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.xpool import XPool
from modules.text_potential import TextPotential
from trainer.checkpoints import BEST, save_checkpoint
from trainer.throughput import memory_gb
from utils.command_line import Parser, home_path, number
from utils.device import set_up
from utils.errors import InputError
from utils.program import run_program
from video_index.encoding import Encoder, features_of, update
from video_index.files import listing
from video_index.head import Head
from video_index.names import follow, missing, root_at
from video_index.page.library import Library
from video_index.page.server import PageServer
from video_index.query import Query
from video_index.ranking import nearest
from video_index.searching import Searcher
from video_index.searching_model import load_model
from video_index.store import Span, Store

logger = logging.getLogger(__name__)

QUERIES = json.loads(Path(__file__).with_name("search_queries.json").read_text(encoding="utf-8"))["queries"]
CPU = torch.device("cpu")
FRAMES, LENGTH, STEPS, DENOISER = 6, 20, 10, "tiny"  # of the demo
WIDE_FRAMES, WIDE = 12, 512  # of ViT-B/32
SEARCH = Path(__file__).resolve().parent.parent / "search.py"
STARTS = 5
MINUTES = (10, 40)  # of the films
ENCODINGS = {  # of the pictures, and the containers that they are put into
    "libx264 -preset ultrafast -bf 2 -g 48": ("mp4", "mov", "mkv", "flv", "ts", "m2ts"),
    "mpeg4 -g 24 -bf 2": ("avi", "3gp"),
    "mpeg2video -g 12 -bf 2 -b:v 1M": ("mpg", "vob", "mxf"),
    "libvpx-vp9 -g 48 -deadline realtime -cpu-used 8": ("webm",),
    "wmv2 -g 48": ("wmv",),
    "libtheora -g 48": ("ogv",),
}
MOST_SECONDS = 1.0  # that a query among 10,000 may take
TITLE = f"{'entries':<18}{'index s':>10}{'load s':>10}{'query s':>14}{'slowest s':>14}"
Figures = dict[str, dict[str, float]]


def textdiffs() -> TextDiffs:
    """As the demo's, untrained."""
    vocabulary = Vocabulary.from_captions([query["query"] for query in QUERIES])
    clip = build_clip(CLIPConfig.from_pretrained(TINY_FOLDER).to_dict(), TINY_FOLDER)
    encoder = video_encoder(clip[0], FRAMES)
    student = Denoiser(DENOISERS[DENOISER], len(vocabulary), video_width=encoder.width)
    table = student.word_embedding.weight.detach().clone()
    potential = TextPotential(student, table, encoder, GaussianDiffusion.sqrt(STEPS), LENGTH)
    return TextDiffs(*clip, potential, vocabulary).eval()


def wide_xpool() -> XPool:
    """X-Pool whose tiny CLIP gives features as wide as those of ViT-B/32."""
    clip = CLIPConfig.from_pretrained(TINY_FOLDER).to_dict() | {"projection_dim": WIDE}
    return XPool(*build_clip(clip, TINY_FOLDER)).eval()


def settings(index: Path, frames: int = FRAMES) -> SearchConfig:
    """Those of a query, with all defaults."""
    return SearchConfig.parse(["query", "x", f"--index={index}", "--clip_arch=tiny", f"--num_frames={frames}"])


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds of a call, and what it returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def new_store(folder: Path, model: RetrievalModel, frames: int) -> Store:
    return Store.create(folder, Head("a benchmark", {}, {}, 30.0, (frames, model.embed_dim), model.token_shape))


def query_seconds(model: RetrievalModel, folder: Path, frames: int) -> tuple[float, list[float]]:
    """Seconds to load an index, and of each query."""
    loading, searcher = timed(lambda: Searcher(model, Store(folder), settings(folder, frames), CPU, torch.float32))
    searcher.search(Query(("a first query, which starts threads",)))
    return loading, [timed(lambda text=query["query"]: searcher.search(Query((text,))))[0] for query in QUERIES]


def real_videos(folder: Path, count: int, figures: Figures) -> str:
    """Index videos; once more when nothing has changed; and query."""
    generate(folder / "data", train_videos=0, test_videos=count)
    model = textdiffs()
    held = new_store(folder / "real", model, FRAMES)
    encoder = Encoder(model, settings(folder / "real"), CPU, torch.float32)

    def index(held: Store) -> int:
        root = root_at(held, str(folder / "data"), None)
        follow(held, root, listing(root.folder))
        return update(held, missing(held, [root]), encoder)

    index(new_store(folder / "before", model, FRAMES))  # libraries and processes start here
    first, _ = timed(lambda: index(held))
    again, _ = timed(lambda: index(held))
    figures["seconds"] |= {f"index_{count}_videos": first, f"index_{count}_again": again}
    return row(f"{count} videos", first, *query_seconds(model, folder / "real", FRAMES), str(count), figures)


def synthetic(
    folder: Path, model: RetrievalModel, count: int, frames: int, name: str, figures: Figures, together: int = 1
) -> str:
    """Write an index of random features, so many videos at once, load and query it."""
    generator = torch.Generator().manual_seed(count)
    held, seconds = new_store(folder / name, model, frames), 0.0
    root = root_at(held, "/videos", None)
    for index in range(0, count, together):
        features, tokens = (
            shape and torch.randn(together, *shape, generator=generator)
            for shape in (held.head.frames, held.head.tokens)
        )
        videos = EncodedVideos(features, None if tokens is None else tokens.to(TOKENS_DTYPE))
        seconds += timed(lambda index=index, videos=videos: write(held, root.id, index, videos))[0]
    figures["seconds"][f"write_{name}"] = seconds
    return row(name, seconds, *query_seconds(model, folder / name, frames), name, figures)


def write(held: Store, root: int, first: int, videos: EncodedVideos) -> None:
    """Put videos of 10 seconds, numbered from `first` on, into an index, as indexing does with each."""
    with held.transaction():
        for number in range(len(videos.frames)):
            path = f"{first + number}.mp4".encode()
            values = (first + number, path, 10.0)
            id = held.execute("INSERT INTO videos (size, hash, seconds) VALUES (?, ?, ?)", values).lastrowid
            held.rows("INSERT INTO files (root, path, mtime_ns, video) VALUES (?, ?, 1, ?)", (root, path, id))
            tokens = None if videos.tokens is None else videos.tokens[number : number + 1]
            held.add(id, Span(0, 1, 0.0, 10.0), features_of(EncodedVideos(videos.frames[number : number + 1], tokens)))


def row(label: str, index: float, loading: float, queries: list[float], name: str, figures: Figures) -> str:
    """A line of the table; its figures are kept."""
    figures["seconds"] |= {
        f"load_{name}": loading, f"query_{name}": median(queries), f"slowest_query_{name}": max(queries)
    }  # fmt: skip
    return f"{label:<18}{index:10.2f}{loading:10.2f}{median(queries):14.3f}{max(queries):14.3f}"


def through_the_page(model: RetrievalModel, folder: Path, frames: int, name: str, figures: Figures) -> str:
    """Answers of the page's server, from request to reply: the best moment of each video."""
    searcher = Searcher(model, Store(folder), settings(folder, frames), CPU, torch.float32)
    with PageServer(Library(searcher), "127.0.0.1", 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def ask(text: str) -> int:
            with urlopen(f"{server.address}search?{urlencode({'q': text, 'per_video': 1})}") as reply:
                return len(reply.read())

        ask("a first query, which starts threads")
        spent = [timed(lambda text=query["query"]: ask(text))[0] for query in QUERIES]
        server.shutdown()
    figures["seconds"] |= {f"page_{name}": median(spent), f"slowest_page_{name}": max(spent)}
    return f"page, {name}: {median(spent):.3f} s, slowest {max(spent):.3f} s"


def first_candidates(count: int, figures: Figures) -> str:
    """The first stage of `count` vectors."""
    means, queries = (F.normalize(torch.randn(rows, 128), dim=-1) for rows in (count, 20))
    spent = median(timed(lambda one=one: nearest(means, one[None])[0].topk(500))[0] for one in queries)
    figures["seconds"]["first_candidates"] = spent
    return f"500 of {count} vectors of 128: {1000 * spent:.2f} ms a query"


def large_index(folder: Path, count: int, figures: Figures) -> str:
    """An index of many segments with random features, its size and the memory of a process that searches it."""
    config = Config.parse(["--clip_arch=tiny", "--arch=clip_transformer", f"--num_frames={FRAMES}"])
    model, name = create_model(config).eval(), str(count)
    line = synthetic(folder, model, count, FRAMES, name, figures, together=100)
    disk = sum(path.stat().st_size for path in (folder / name).iterdir()) / 1e9
    figures["memory_gb"] |= {"peak": memory_gb(CPU), "disk": disk}
    return f"{line}\n{disk:.2f} GB on disk, {figures['memory_gb']['peak']:.2f} GB at most in this process"


def start_up(folder: Path, figures: Figures) -> str:
    """The programs as people start them: indexing, once more without anything new, and a query."""
    index = f"--index={folder / 'started'}"
    commands = {
        "start_index": ["index", f"--videos_dir={folder / 'data'}", index, "--clip_arch=tiny-shapes", "--gpu=cpu"],
        "start_index_again": ["index", index],
        "start_query": ["query", "a red circle", index, "--gpu=cpu"],
    }
    large, named = f"--index={folder / 'large'}", large_checkpoint(folder / "outputs")
    program("index", f"--videos_dir={folder / 'data'}", large, *named, "--gpu=cpu")
    commands["start_query_large"] = ["query", "a red circle", large, "--gpu=cpu"]
    for name, command in commands.items():
        times = [program(*command) for _ in range(1 if name == "start_index" else STARTS)]
        figures["seconds"][name] = median(times)
    told = ", ".join(f"{name} {figures['seconds'][name]:.2f} s" for name in commands)
    return f"as programs, median of {STARTS}: {told}"


def program(*arguments: str) -> float:
    """Seconds of a call of search.py."""
    return timed(partial(subprocess.run, [sys.executable, SEARCH, *arguments], check=True, capture_output=True))[0]


def large_checkpoint(outputs: Path) -> list[str]:
    """Write that of a run of X-Pool on a ViT-B/32 with random weights and the words of the tiny CLIP; the flags that
    name it."""
    folder = outputs / "clip"
    clip, tokenizer = build_clip(CLIP_CONFIGS["ViT-B/32"], TINY_FOLDER)
    for part in (clip.config, tokenizer):
        part.save_pretrained(folder)
    save_file(clip.state_dict(), folder / "model.safetensors")
    config = Config.parse([f"--clip_path={folder}", "--arch=clip_transformer"])
    (outputs / "exp" / "large").mkdir(parents=True)
    save_checkpoint(outputs / "exp" / "large" / BEST, create_model(config), config, 1, 1)
    return [f"--output_dir={outputs}", "--datetime=large"]


def films(folder: Path, figures: Figures) -> str:
    """Index a film of each length in each container; a line for each."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    lines = [f"{'container':<12}" + "".join(f"{f'{minutes} min, s':>12}" for minutes in MINUTES)]
    for encoding, containers in ENCODINGS.items():
        source = folder / "source.mkv"
        pictures = f"testsrc2=size=160x96:rate=25:duration={60 * max(MINUTES)}"
        made = [*ffmpeg, "-f", "lavfi", "-i", pictures, "-c:v", *encoding.split(), "-pix_fmt", "yuv420p", source]
        subprocess.run(made, check=True)
        for container in containers:
            spent = [_film_seconds(folder, [*ffmpeg, "-i", source], container, minutes) for minutes in MINUTES]
            figures["seconds"] |= {f"film_{container}_{minutes}": s for minutes, s in zip(MINUTES, spent, strict=True)}
            lines.append(f"{container:<12}" + "".join(f"{seconds:12.2f}" for seconds in spent))
    return "\n".join(lines)


def _film_seconds(folder: Path, ffmpeg: list, container: str, minutes: int) -> float:
    """Seconds of the program with so many minutes of the film in a container."""
    videos, index = folder / "film", folder / "film-index"
    for path in (videos, index):
        shutil.rmtree(path, ignore_errors=True)
    videos.mkdir()
    subprocess.run([*ffmpeg, "-t", str(60 * minutes), "-c", "copy", videos / f"film.{container}"], check=True)
    return program("index", f"--videos_dir={videos}", f"--index={index}", "--clip_arch=tiny-shapes", "--gpu=cpu")


def found_first(index: Path, figures: Figures) -> str:
    """Search for the queries of search_queries.json; the rank of each right video."""
    store = Store(index)
    config = SearchConfig.parse(["query", "x", f"--index={index}", "--gpu=cpu", "--topk=1000000"])
    config, model, _ = load_model(config, store.head, CPU)
    searcher = Searcher(model, store, config, CPU, torch.float32)
    lines, ranks = [], []
    for query in QUERIES:
        names = [Path(hit.segment.file).name for hit in searcher.search(Query((query["query"],)))]
        if query["video"] not in names:
            raise InputError(f"--index={index} does not hold {query['video']}")
        ranks.append(names.index(query["video"]) + 1)
        lines.append(f"{ranks[-1]:4}  {query['video']:<18}{query['query']}")
    first = sum(rank == 1 for rank in ranks)
    figures["ratios"] |= {
        "right_first": first / len(ranks),
        "right_in_first_5": sum(r <= 5 for r in ranks) / len(ranks),
    }
    lines.append(
        f"{first} of {len(ranks)} right first, median rank {median(ranks):g}, {len(searcher.segments)} segments"
    )
    return "\n".join(["rank", *lines])


def main() -> None:
    parser = Parser("benchmarks/bench_search.py", __doc__.splitlines()[0])
    parser.add_argument("--json", type=home_path, help="file for the figures (default: none)")
    parser.add_argument("--quick", action="store_true", help="10 videos, 100 entries, to see that it runs")
    parser.add_argument(
        "--index", type=home_path, help="search it for the queries of search_queries.json (default: time it all)"
    )
    parser.add_argument(
        "--segments", type=number(int, 100), metavar="N", help="time an index of so many (default: all else)"
    )
    parser.add_argument("--films", action="store_true", help="time long films in each container alone")
    arguments = parser.parse_args()
    set_up(CPU, 0)
    figures: Figures = {"seconds": {}, "ratios": {}, "memory_gb": {}, "errors": {}}
    if arguments.index:
        logger.info(found_first(arguments.index, figures))
    else:
        logger.info("%d threads, torch %s", torch.get_num_threads(), torch.__version__)
        with tempfile.TemporaryDirectory() as folder:
            if arguments.films:
                logger.info(films(Path(folder), figures))
            elif arguments.segments:
                logger.info(TITLE)
                logger.info(large_index(Path(folder), arguments.segments, figures))
            else:
                measure(Path(folder), arguments.quick, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, quick: bool, figures: Figures) -> None:
    """All times."""
    logger.info(TITLE)
    logger.info(real_videos(folder, 10 if quick else 100, figures))
    sizes = (100,) if quick else (1_000, 10_000)
    model = textdiffs()
    for count in sizes:
        logger.info(synthetic(folder, model, count, FRAMES, str(count), figures))
    wide, name = wide_xpool(), f"{sizes[-1]}_wide"
    logger.info(synthetic(folder, wide, sizes[-1], WIDE_FRAMES, name, figures))
    for searched, frames, of in ((model, FRAMES, str(sizes[-1])), (wide, WIDE_FRAMES, name)):
        logger.info(through_the_page(searched, folder / of, frames, of, figures))
    logger.info(start_up(folder, figures))
    figures["ratios"]["query_to_limit"] = figures["seconds"][f"query_{sizes[-1]}"] / MOST_SECONDS
    if not quick:
        logger.info(first_candidates(200_000, figures))


if __name__ == "__main__":
    sys.exit(run_program("bench_search.py", main))
