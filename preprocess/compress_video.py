"""Make the small copy of videos that this field trains on: 3 frames a second, shorter side 224, no sound.

`python preprocess/compress_video.py --input_root=DIR --output_root=DIR` goes through all subfolders on all cores. A
copy takes its place when it is whole, so an interrupted run goes on where it was; what is there and whole is kept. One
line for each failure, exit code 1 if there was one.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

from datasets.container import WHOLE, Film, condition_of
from datasets.files import VIDEO_EXTENSIONS, split_name, walk
from datasets.timeline import MOMENT, timeline
from preprocess.check_data import check_video
from utils.command_line import Parser, number
from utils.errors import InputError, RunError
from utils.processes import each
from utils.program import run_program

logger = logging.getLogger(__name__)

TOLERATED_SECONDS = 1.0  # that a copy may be shorter than its video, besides a frame


class Job(NamedTuple):
    """One video to copy."""

    source: Path
    target: Path
    fps: float
    short_side: int


def main() -> None:
    parser = Parser("preprocess/compress_video.py", __doc__)
    parser.add_argument("--input_root", type=Path, required=True, metavar="DIR", help="folder of the videos")
    parser.add_argument(
        "--output_root", type=Path, required=True, metavar="DIR", help="folder of the copies, with the same subfolders"
    )
    parser.add_argument(
        "--fps", type=number(float, 0.01), default=3.0, metavar="FPS", help="frames a second of the copies"
    )
    parser.add_argument(
        "--short_side",
        type=number(int, 2),
        default=224,
        metavar="PIXELS",
        help="shorter side of the copies; smaller videos keep their size",
    )
    args = parser.parse_args()
    if not args.input_root.is_dir():
        raise InputError(f"--input_root={args.input_root} is not a folder")
    if args.output_root.exists() and not args.output_root.is_dir():
        raise InputError(f"--output_root={args.output_root} is not a folder")
    jobs = find_jobs(args.input_root, args.output_root, args.fps, args.short_side)
    failed = 0
    for job, reason in each(compress, jobs, "videos"):
        if reason:
            logger.warning("%s: %s", job.source, reason)
            failed += 1
    logger.info("%d of %d videos are in %s", len(jobs) - failed, len(jobs), args.output_root)
    if failed:
        raise RunError(f"{failed} of {len(jobs)} videos could not be copied")


def find_jobs(input_root: Path, output_root: Path, fps: float, short_side: int) -> list[Job]:
    """All videos below a folder, and where their copies belong. Copies that lie below it are none of its videos.

    :raises InputError: there is none, or two would have the same copy, or a copy would lie on its video.
    """
    jobs: dict[Path, Job] = {}
    copies, films = output_root.resolve(), input_root.resolve()
    if copies == films:
        raise InputError(f"--output_root={output_root} is --input_root: a copy would replace its video")
    copies_lie_below = copies not in films.parents
    for path in walk(input_root):
        stem, extension = split_name(path.name)
        if extension.lower() not in VIDEO_EXTENSIONS and (extension or not _opens(path)):
            continue  # DiDeMo has names that end in the dot, and some have none
        target = output_root / path.relative_to(input_root).parent / f"{stem}.mp4"
        if target.resolve() == path.resolve():
            raise InputError(f"--output_root={output_root}: the copy of {path} would replace it")
        if copies_lie_below and copies in path.resolve().parents:
            continue
        if target in jobs:
            raise InputError(f"{jobs[target].source} and {path} would have the same copy {target}")
        jobs[target] = Job(path, target, fps, short_side)
    if not jobs:
        raise InputError(f"--input_root={input_root} holds no video")
    return list(jobs.values())


def _opens(path: Path) -> bool:
    try:
        Film(path).close()
    except InputError:
        return False
    return True


def compress(job: Job) -> str:
    """Make one copy, unless a good one is there. Returns what was wrong, if anything was."""
    name = hashlib.sha256(os.fsencode(job.target.name)).hexdigest()[:16]  # the longest names have no room for more
    unfinished = job.target.with_name(f".{os.getpid()}-{name}.mp4")
    try:
        if is_done(job):
            return ""
        job.target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(ffmpeg_command(job, unfinished), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        failed = _last_line(done.stderr) or f"ffmpeg failed with exit code {done.returncode}"
        reason = failed if done.returncode else what_is_wrong(job, unfinished)
        if not reason:
            os.replace(unfinished, job.target)
        return reason
    except InputError as error:  # of the video
        return str(error)
    except OSError as error:
        return f"the copy cannot be written: {error}"
    finally:
        with suppress(OSError):  # where it could not be written there is none
            unfinished.unlink()


def is_done(job: Job) -> bool:
    """Whether a copy is there that is whole and not older than its video."""
    return (
        job.target.is_file()
        and job.target.stat().st_mtime >= job.source.stat().st_mtime
        and check_video(job.target)[0] == "whole"
    )


def what_is_wrong(job: Job, copy: Path) -> str:
    """Why a copy that was just made is no good: it does not decode, or its video lacks its end or lost it on the way;
    else empty."""
    state, reason = check_video(copy)
    if state != "whole":
        return f"the copy is {state}: {reason}"
    if lost := condition_of(job.source, decode=False).cut_short:
        return f"cut short: {lost}"
    wanted, made = timeline(job.source).end, timeline(copy).end
    if made < wanted * WHOLE - TOLERATED_SECONDS - 1 / job.fps:
        return f"cut short: {made:.1f} of {wanted:.1f} s could be read"
    return ""


def ffmpeg_command(job: Job, output: Path) -> list[str]:
    """FFmpeg of the system, else of the imageio-ffmpeg wheel.

    The copy keeps the clock of the video: what is shown so many seconds after the beginning of the file is shown then,
    by its first frame where the picture begins late. Pixels become square, and sizes even, as H.264 needs them.
    """
    with Film(job.source) as film:
        stream = film.stream.index
    times = timeline(job.source).times
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    step = f"PTS-PREV_INPTS+if(lt(PTS-PREV_INPTS,-{MOMENT}/TB),PREV_INPTS-PTS+{usual:.6f}/TB)"  # back: put together
    times_of_frames = f"setpts='if(isnan(PREV_INPTS),{times[0]:.6f}/TB,PREV_OUTPTS+{step})'"
    square = "scale=w='if(eq(sar,1),iw,round(iw*sar))':h=ih,setsar=1"
    side = f"2*trunc(min({job.short_side},min(iw,ih))/2)"
    scale = f"scale=w='if(gt(iw,ih),-2,{side})':h='if(gt(iw,ih),{side},-2)'"
    rate = (
        f"fps={job.fps:g}:start_time=0:eof_action=pass"  # pass: else a film of less than half a frame would have none
    )
    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    quiet = ["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1"]
    picture = ["-map", f"0:{stream}", "-vf", f"{times_of_frames},{rate},{square},{scale}", "-an", "-sn", "-dn"]
    encoding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"]
    # FFmpeg would take out the time for which a picture stands in some formats, and begin anew where the size changes
    clock = ["-dts_delta_threshold", "40000", "-reinit_filter", "0"]
    return [program, *quiet, *clock, "-i", f"file:{job.source}", *picture, *encoding, f"file:{output}"]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(run_program("compress_video.py", main))
