"""Films whose frames show their own number, made and read with the ffmpeg program."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

WIDTH, HEIGHT, BITS = 160, 96, 10
H264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-bf", "2"]
VARIABLE = ["-vf", "select='lt(mod(n\\,100)\\,50)+not(mod(n\\,5))'", "-fps_mode", "vfr"]

CONTAINERS = {  # what people's films are in
    "b-frames.mp4": [*H264, "-g", "48"],
    "open-gop.mp4": [*H264, "-g", "12", "-x264-params", "open-gop=1"],
    "fragments.mp4": [*H264, "-g", "24", "-movflags", "+frag_keyframe+empty_moov"],
    "hevc.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-x265-params", "log-level=error"],
    "quicktime.mov": [*H264, "-g", "24"],
    "phone.3gp": ["-c:v", "mpeg4", "-g", "24"],
    "matroska.mkv": [*H264, "-g", "60"],
    "one-key-frame.mkv": [*H264, "-g", "9999"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "48", "-deadline", "realtime", "-cpu-used", "8"],
    "vp8.webm": ["-c:v", "libvpx", "-g", "48", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "400k"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", "24"],
    "b-frames.avi": ["-c:v", "mpeg4", "-g", "24", "-bf", "2"],
    "div3.avi": ["-c:v", "msmpeg4", "-g", "50"],
    "motion-jpeg.avi": ["-c:v", "mjpeg", "-q:v", "3"],
    "sorenson.flv": ["-c:v", "flv", "-g", "48"],
    "h264.flv": [*H264, "-g", "48"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "2M"],
    "h264.m2ts": [*H264, "-g", "48"],
    "mpeg1.mpg": ["-c:v", "mpeg1video", "-g", "12", "-bf", "2", "-b:v", "1M"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "2M"],
    "dvd.vob": ["-c:v", "mpeg2video", "-g", "15", "-bf", "2", "-b:v", "2M", "-f", "vob"],
    "windows.wmv": ["-c:v", "wmv2", "-g", "48"],
    "theora.ogv": ["-c:v", "libtheora", "-g", "48", "-q:v", "7"],
    "broadcast.mxf": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "2M"],
    "animation.gif": [],
    "no-times.h264": [*H264, "-g", "48"],
}


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    """Run the ffmpeg program, and return what it writes to standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, input=data).stdout


def make(path: Path, *encoding: str, rate: str = "25", seconds: float = 16, size: str = "64x48") -> Path:
    """A film in which every frame is another."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}", *encoding, path)
    return path


def numbered(path: Path, n: int, *encoding: object, rate: object = 25, inputs: tuple = ()) -> Path:
    """A film whose frame k shows k as ten bars, black or white.

    :param inputs: of ffmpeg, besides the pictures, which are the last input.
    """
    bits = np.arange(n)[:, None] >> np.arange(BITS) & 1
    row = np.repeat(np.where(bits, 235, 16).astype(np.uint8), WIDTH // BITS, axis=1)
    pictures = np.broadcast_to(row[:, None, :, None], (n, HEIGHT, WIDTH, 3))
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "-"]
    ffmpeg(*inputs, *raw, *encoding, path, data=pictures.tobytes())
    return path


def at_times(expression: str) -> list[str]:
    """Encoding by which frame N of `numbered` is shown at so many seconds."""
    return [
        "-vf",
        f"settb=1/90000,setpts='({expression})*90000'",
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "1:90000",
    ]


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames (F, H, W, 3) show."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 4 : 3 * height // 4].mean(axis=(1, 3))
    edges = [(int((bit + 0.3) * width / BITS), int((bit + 0.7) * width / BITS)) for bit in range(BITS)]
    bits = np.stack([middle[:, low:high].mean(axis=1) > 127 for low, high in edges], axis=1)
    return (bits << np.arange(BITS)).sum(axis=1).tolist()


def by_ffmpeg(path: Path, condition: str = "1", video: str = "0:v:0") -> list[int]:
    """The numbers of the frames that the ffmpeg program selects; t is the time from the beginning of the file."""
    select = f"select='{condition}',scale={WIDTH}:{HEIGHT}"
    output = ["-map", video, "-vf", select, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = ffmpeg("-copyts", "-start_at_zero", "-i", path, *output)
    return numbers(np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3))


def every(n: int) -> np.ndarray:
    """All frames of a segment, for decode_segment."""
    return np.arange(n)


def shown_in(path: Path, start: float, end: float) -> list[int]:
    """The numbers of the frames of which FFmpeg says that they begin in [start, end)."""
    return by_ffmpeg(path, f"gte(t,{start}-0.0005)*lt(t,{end}-0.0005)")
