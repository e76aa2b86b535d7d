"""Every frame that is asked for is that frame, in whichever way the file is read."""

import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from datasets import video
from datasets.container import index_packets
from datasets.video import decode_clip, frame_indices, read_frames
from diffusion_lm.errors import InputError
from tests.conftest import ROOT

H264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast"]
VARIABLE = ["-vf", "select='lt(mod(n\\,100)\\,50)+not(mod(n\\,5))'", "-fps_mode", "vfr"]


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def make(path, *encoding, rate="25", seconds=16, size="64x48"):
    """A film in which every frame is another."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}", *encoding, path)
    return path


def every_frame(path):
    """The slow and obvious way: all frames of a video in RGB."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while capture.grab():
        frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return frames


def seek_each(path, indices):
    """The published way: a seek to each frame."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    for index in indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        ok, frame = capture.read()
        assert ok
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return np.stack(frames)


@pytest.fixture
def planned(monkeypatch):
    """What became of every plan: True when the frames were read by it."""
    outcomes, decode_planned = [], video._decode_planned

    def watched(*arguments):
        frames = decode_planned(*arguments)
        outcomes.append(frames is not None)
        return frames

    monkeypatch.setattr(video, "_decode_planned", watched)
    return outcomes


def check(path, seeks_are_exact=True):
    """Uniform and random frames against decoding everything, and against seeking where that can be relied on."""
    film = every_frame(path)
    for rng in (None, 1, 2, 3):
        generator, again = (None if rng is None else np.random.default_rng(rng) for _ in range(2))
        wanted = frame_indices(len(film), 12, generator)
        frames = read_frames(path, 12, again)
        assert np.array_equal(frames, np.stack([film[i] for i in wanted]))
        if generator is not None:
            assert again.integers(2**62) == generator.integers(2**62)  # as much was drawn
        if seeks_are_exact:
            assert np.array_equal(frames, seek_each(path, wanted))
    return len(film)


PLANNED = {
    "b-frames.mp4": [*H264, "-bf", "3", "-g", "48"],
    "open-gop.mp4": [*H264, "-bf", "3", "-g", "12", "-x264-params", "open-gop=1"],
    "one-key-frame.mkv": [*H264, "-g", "9999"],
    "fragments.mp4": [*H264, "-g", "24", "-movflags", "+frag_keyframe+empty_moov"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", "24"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "48", "-deadline", "realtime", "-cpu-used", "8"],
}


@pytest.mark.parametrize("name", PLANNED)
def test_long_videos_are_read_by_a_plan(tmp_path, planned, name):
    assert check(make(tmp_path / name, *PLANNED[name])) == 400
    assert planned == [True] * 4


@pytest.mark.parametrize("rate", ["30000/1001", "12.5", "1000/33"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_odd_frame_rates(tmp_path, planned, rate, suffix):
    check(make(tmp_path / f"rate{suffix}", *H264, "-g", "30", rate=rate, seconds=24))
    assert planned == [True] * 4


def test_variable_frame_rate(tmp_path, planned):
    """OpenCV numbers frames by time x mean rate, so its seek lands elsewhere; the plan reads the frames asked for."""
    path = make(tmp_path / "variable.mp4", *VARIABLE, *H264, "-g", "12", seconds=24)
    assert check(path, seeks_are_exact=False) == 360
    assert planned == [True] * 4
    film, wanted = every_frame(path), frame_indices(360, 12)
    assert not np.array_equal(seek_each(path, wanted), np.stack([film[i] for i in wanted]))


def test_variable_frame_rate_with_one_key_frame(tmp_path):
    """Here seeking counts from the first frame and is exact."""
    check(make(tmp_path / "variable.mp4", *VARIABLE, *H264, "-g", "9999", seconds=24))


UNRELIABLE = {
    "decode-times.avi": ["-c:v", "mpeg4", "-g", "24", "-bf", "2"],  # AVI tells when packets are decoded, only
    "program.mpg": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2"],  # no times of many packets
}


@pytest.mark.parametrize("name", UNRELIABLE)
def test_containers_that_do_not_tell_when_frames_are_shown(tmp_path, planned, name):
    check(make(tmp_path / name, *UNRELIABLE[name]))
    assert not any(planned)


def test_headers_that_count_too_few_or_too_many(tmp_path, planned):
    """An edit list hides frames that the header counts; at a variable rate the header of a .mkv is a guess."""
    whole = make(tmp_path / "whole.mp4", *H264, "-g", "48", seconds=20)
    ffmpeg("-ss", "1.3", "-i", whole, "-c", "copy", tmp_path / "trimmed.mp4")
    ffmpeg(
        "-i", make(tmp_path / "v.mp4", *VARIABLE, *H264, "-g", "12", seconds=24), "-c", "copy", tmp_path / "guess.mkv"
    )
    for name in ("trimmed.mp4", "guess.mkv"):
        said = cv2.VideoCapture(str(tmp_path / name)).get(cv2.CAP_PROP_FRAME_COUNT)
        assert check(tmp_path / name, seeks_are_exact=name != "guess.mkv") != said
    assert not any(planned)


def test_a_file_that_was_cut_short(tmp_path, planned):
    data = make(tmp_path / "whole.mp4", *H264, "-g", "24", "-movflags", "+faststart", seconds=24).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert 300 < check(tmp_path / "cut.mp4") < 500
    assert not planned


def test_rotation_flags(tmp_path, planned):
    ffmpeg("-display_rotation", "90", "-i", make(tmp_path / "a.mp4", *H264), "-c", "copy", tmp_path / "rotated.mp4")
    check(tmp_path / "rotated.mp4")
    assert read_frames(tmp_path / "rotated.mp4", 2).shape == (2, 64, 48, 3)
    assert all(planned)


def test_a_size_that_changes(tmp_path):
    """The frames of one stream may change size; all take that of the first."""
    for index, size in enumerate(("64x48", "96x80")):
        make(tmp_path / f"{index}.ts", *H264, seconds=1, size=size)
    (tmp_path / "both.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    assert read_frames(tmp_path / "both.ts", 8).shape == (8, 48, 64, 3)


def test_one_frame_and_no_frame(tmp_path):
    one = make(tmp_path / "one.mp4", *H264, "-frames:v", "1")
    frames = read_frames(one, 4)
    assert np.array_equal(frames, np.stack([every_frame(one)[0]] * 4))
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", tmp_path / "audio.mp4")
    none = make(tmp_path / "none.mkv", *H264, "-frames:v", "0")
    for path in (tmp_path / "audio.mp4", none):
        with pytest.raises(InputError, match=path.name):
            read_frames(path, 4)


def test_shared_videos():
    folder = ROOT.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    for path in sorted(folder.iterdir()):
        film = every_frame(path)
        for n in (4, 12):
            frames, wanted = read_frames(path, n), frame_indices(len(film), n)
            assert np.array_equal(frames, seek_each(path, wanted))
            assert np.array_equal(frames, np.stack([film[i] for i in wanted]))


def test_clips_of_long_videos_are_planned(tmp_path, planned):
    path = make(tmp_path / "long.mp4", *H264, "-g", "25", seconds=40)
    film = every_frame(path)
    frames = read_frames(path, 4, start=20.0, end=30.0)
    assert np.array_equal(frames, np.stack([film[500 + i] for i in frame_indices(250, 4)]))
    assert planned == [True]


def test_a_plan_decodes_few_frames(tmp_path, monkeypatch):
    """At a key frame every 12 frames, a wanted one costs its way from a key frame, not all that lie before it."""
    path = make(tmp_path / "long.mp4", *H264, "-g", "12", seconds=40)
    packets = index_packets(path)
    assert packets.times.tolist() == pytest.approx([40 * i for i in range(1000)])
    assert packets.keys.tolist() == list(range(0, 1000, 12))
    grabs = []
    real = cv2.VideoCapture

    class Counting:
        def __init__(self, *arguments):
            self.capture = real(*arguments)

        def grab(self):
            grabs.append(1)
            return self.capture.grab()

        def __getattr__(self, name):
            return getattr(self.capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Counting)
    clip = decode_clip(path, lambda n: np.array([10, 500, 505, 900]))
    assert clip.count == 1000
    assert clip.pixels.shape == (4, 48, 64, 3)
    assert len(grabs) <= 11 + 1 + 5 + 1 + 1  # decoded by OpenCV's seeks: not counted here, at most 28 frames each


def test_a_file_that_changed_is_indexed_again(tmp_path):
    path = make(tmp_path / "v.mp4", *H264, seconds=2)
    assert len(index_packets(path).times) == 50
    make(path, *H264, seconds=3)
    assert len(index_packets(path).times) == 75
    assert index_packets(tmp_path / "nowhere.mp4") is None
