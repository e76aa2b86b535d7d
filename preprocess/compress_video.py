"""Make the small copy of videos that this field trains on: 3 frames a second, shorter side 224, no sound.

`python preprocess/compress_video.py --input_root=DIR --output_root=DIR` goes through all subfolders on all cores. A
copy takes its place when it is whole, so an interrupted run goes on where it was; what is there and whole is kept. One
line for each failure, exit code 1 if there was one.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio_ffmpeg

from datasets.files import VIDEO_EXTENSIONS
from datasets.video import check_name, open_video
from diffusion_lm.command_line import Parser, number
from diffusion_lm.errors import InputError, RunError
from preprocess.check_data import check_video
from preprocess.parallel import each
from trainer.run_folder import run_program

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
    """All videos below a folder, and where their copies belong.

    :raises InputError: there is none, or two would have the same copy, or a copy would lie on its video.
    """
    jobs: dict[Path, Job] = {}
    for path in sorted(input_root.rglob("*")):
        stem, _, extension = path.name.rpartition(".")
        if not stem or extension.lower() not in (*VIDEO_EXTENSIONS, "") or not path.is_file():
            continue  # DiDeMo has names that end in the dot
        target = output_root / path.relative_to(input_root).parent / f"{stem}.mp4"
        if target in jobs:
            raise InputError(f"{jobs[target].source} and {path} would have the same copy {target}")
        if target.resolve() == path.resolve():
            raise InputError(f"--output_root={output_root}: the copy of {path} would replace it")
        jobs[target] = Job(path, target, fps, short_side)
    if not jobs:
        raise InputError(f"--input_root={input_root} holds no video")
    return list(jobs.values())


def compress(job: Job) -> str:
    """Make one copy, unless a good one is there. Returns what was wrong, if anything was."""
    try:
        check_name(job.source)
        check_name(job.target)
    except InputError as error:  # before FFmpeg works for nothing: the copy could not be looked at
        return str(error)
    if is_done(job):
        return ""
    unfinished = job.target.with_name(f".{os.getpid()}-{job.target.name}")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(ffmpeg_command(job, unfinished), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        reason = _last_line(done.stderr) if done.returncode else what_is_wrong(job, unfinished)
        if not reason:
            os.replace(unfinished, job.target)
        return reason
    except OSError as error:
        return f"the copy cannot be written: {error}"
    finally:
        unfinished.unlink(missing_ok=True)


def is_done(job: Job) -> bool:
    """Whether a copy is there that opens, is not older than its video and not shorter."""
    return (
        job.target.is_file()
        and job.target.stat().st_mtime >= job.source.stat().st_mtime
        and not what_is_wrong(job, job.target)
    )


def what_is_wrong(job: Job, copy: Path) -> str:
    """Why a copy is no good: it does not decode, or is shorter than the header of its video says; else empty."""
    state, reason = check_video(copy)
    if state != "whole":
        return f"the copy is {state}: {reason}"
    wanted, made = (_length(path) for path in (job.source, copy))
    if made < wanted * 0.98 - TOLERATED_SECONDS - 1 / job.fps:
        return f"cut short: {made:.1f} of {wanted:.1f} s could be read"
    return ""


def _length(path: Path) -> float:
    """Seconds, by the header."""
    capture = open_video(path)
    frames, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return frames / fps if frames > 0 and fps > 0 else 0.0


def ffmpeg_command(job: Job, output: Path) -> list[str]:
    """FFmpeg of the system, else of the imageio-ffmpeg wheel; even sizes, as H.264 needs them."""
    side = f"2*trunc(min({job.short_side},min(iw,ih))/2)"
    scale = f"scale=w='if(gt(iw,ih),-2,{side})':h='if(gt(iw,ih),{side},-2)'"
    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    quiet = ["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1"]
    picture = ["-map", "0:v:0", "-vf", f"fps={job.fps:g},{scale}", "-an", "-sn"]
    encoding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"]
    return [program, *quiet, "-i", f"file:{job.source}", *picture, *encoding, f"file:{output}"]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["ffmpeg failed"])[-1]


if __name__ == "__main__":
    sys.exit(run_program("compress_video.py", main))
