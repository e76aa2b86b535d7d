"""Every frame that is asked for is that frame, on the clock of a player, in whichever way the file is read."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from datasets import timeline as timelines
from datasets.container import Film, condition_of
from datasets.files import shown
from datasets.timeline import timeline
from datasets.video import decode_segment, decode_segments, frame_indices, read_frames
from tests.conftest import ROOT
from tests.films import (
    CONTAINERS,
    H264,
    VARIABLE,
    at_times,
    by_ffmpeg,
    every,
    ffmpeg,
    make,
    numbered,
    numbers,
    shown_in,
)  # fmt: skip
from utils.errors import InputError

COUNTED = {"mpeg2.mpg", "dvd.vob", "no-times.h264"}  # some or all packets have no time stamp of their own


def every_frame(path):
    """The slow and obvious way: all frames of a video in RGB."""
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


@pytest.fixture
def decoded(monkeypatch):
    """How many frames have been decoded."""
    count, decode = [0], Film.decode

    def counting(film, packet):
        frames = decode(film, packet)
        count[0] += len(frames)
        return frames

    monkeypatch.setattr(Film, "decode", counting)
    return count


# which frames


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path, name):
    """Uniform, random and clipped frames: frame k is shown at k / 25 s."""
    path = numbered(tmp_path / name, 400, *CONTAINERS[name])
    film = by_ffmpeg(path)
    assert film == list(range(400))
    for rng in (None, 1, 2):
        generators = [None if rng is None else np.random.default_rng(rng) for _ in range(2)]
        wanted = frame_indices(400, 12, generators[0]).tolist()
        assert numbers(read_frames(path, 12, generators[1])) == wanted
        if rng is not None:
            assert generators[0].integers(2**62) == generators[1].integers(2**62)  # as much was drawn
    spans = [(4.0, 9.0), (9.0, 9.4), (None, 2.0), (13.0, None)]
    segments = [numbers(segment.pixels) for segment in decode_segments(path, every, spans)]
    for (start, end), segment in zip(spans, segments, strict=True):
        assert segment == list(range(round(25 * (start or 0)), round(25 * (end or 16))))
    if name not in COUNTED:
        assert not timeline(path).counted


@pytest.mark.parametrize("rate", ["30000/1001", "12.5", "1000/33"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_odd_frame_rates(tmp_path, rate, suffix):
    path = numbered(tmp_path / f"rate{suffix}", 500, *H264, "-g", "30", "-bf", "0", rate=rate)
    for start in (1, 4, 7):
        expected = [k for k in range(500) if start <= k / float(Fraction(rate)) + 5e-4 < start + 3]
        assert numbers(decode_segment(path, every, start, start + 3).pixels) == expected
    assert not timeline(path).counted


VARYING = {
    "30 to 2 a second": "if(lt(N,150),N/30,5+(N-150)/2)",
    "30 to 24 a second": "if(lt(N,150),N/30,5+(N-150)/24)",
    "2 to 30 a second": "if(lt(N,20),N/2,10+(N-20)/30)",
    "always another": "N/25+0.3*sin(N/40)",
}


@pytest.mark.parametrize("kind", VARYING)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv", ".webm"])
def test_variable_frame_rates(tmp_path, kind, suffix):
    codec = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "400k"] if suffix == ".webm" else H264
    path = numbered(tmp_path / f"film{suffix}", 300, *at_times(VARYING[kind]), *codec, "-g", "30")
    assert not timeline(path).counted
    spans = [(1.0, 3.0), (2.5, 7.5), (6.0, 9.0), (8.0, 11.0)]
    for span, segment in zip(spans, decode_segments(path, every, spans), strict=True):
        assert numbers(segment.pixels) == shown_in(path, *span)
    assert numbers(read_frames(path, 6)) == frame_indices(300, 6).tolist()


@pytest.mark.parametrize("cut", [0.5, 1.3, 3.4, 7.0])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_lossless_cuts(tmp_path, cut, suffix):
    """An edit list hides the frames between the key frame and the cut; they decode but are not shown."""
    whole = numbered(tmp_path / f"whole{suffix}", 500, *H264, "-g", "90")
    path = tmp_path / f"cut{suffix}"
    ffmpeg("-ss", cut, "-i", whole, "-c", "copy", path)
    film = by_ffmpeg(path)
    assert numbers(decode_segment(path, every).pixels) == film
    for count in (4, 6, 12):
        assert numbers(read_frames(path, count)) == [film[i] for i in frame_indices(len(film), count)]
    assert numbers(decode_segment(path, every, 5, 8).pixels) == shown_in(path, 5, 8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_picture_that_begins_late(tmp_path, suffix):
    """The clock is that of the file, which begins with the sound."""
    sound = ["-f", "lavfi", "-i", "sine=duration=14"]
    path = tmp_path / f"late{suffix}"
    streams = ["-map", "1:v", "-map", "0:a", "-c:a", "aac"]
    numbered(path, 250, *streams, *at_times("4+N/25"), *H264, "-g", "50", inputs=sound)
    assert timeline(path).times[0] == pytest.approx(4, abs=0.1)
    assert timeline(path).end == pytest.approx(14, abs=0.1)
    first = float(timeline(path).times[0])
    for start, end in ((5, 7), (2, 6), (10, 13)):
        expected = [k for k in range(250) if start <= first + k / 25 + 5e-4 < end]
        assert numbers(decode_segment(path, every, start, end).pixels) == expected
    assert numbers(decode_segment(path, every, 0, 2).pixels) == [0]  # nothing is shown then


SOUND = ("-f", "lavfi", "-i", "sine=duration=5")


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
@pytest.mark.parametrize("later", [0.03, -500, 500])
def test_recordings_that_were_put_together(tmp_path, codec, later):
    """Where time goes back the second recording follows the first; where it leaps forward, the picture stands."""
    parts = [tmp_path / name for name in ("a.ts", "b.ts")]
    for path, begins in zip(parts, (1000, 1000 + later), strict=True):
        numbered(path, 100, "-c:v", codec, "-pix_fmt", "yuv420p", "-bf", "2", "-output_ts_offset", begins)
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clock = timeline(path)
    seam = later if later > 4 else 4
    np.testing.assert_allclose(clock.times, [*(np.arange(100) / 25), *(seam + np.arange(100) / 25)], atol=2e-3)
    assert clock.end == pytest.approx(seam + 4, abs=0.05)
    assert numbers(decode_segment(path, every, seam + 1, seam + 2).pixels) == list(range(25, 50))
    assert numbers(decode_segment(path, every, 1, 2).pixels) == list(range(25, 50))


@pytest.mark.parametrize("late", [0, 3])
def test_h264_in_avi(tmp_path, late):
    """Copied without encoding it has a unit of 1/600 s, stamps of showing out of order, and the last frames have none.
    The delay of the codec is known to some frames only."""
    film = numbered(tmp_path / "v.mp4", 100, *H264)
    sound = ["-map", "1:v", "-map", "0:a", "-c:v", "copy", "-c:a", "mp3"]
    ffmpeg(*SOUND, "-itsoffset", late, "-i", film, *sound, tmp_path / "v.avi")
    clock = timeline(tmp_path / "v.avi")
    np.testing.assert_allclose(clock.times, late + np.arange(100) / 25, atol=0.14)
    assert numbers(decode_segment(tmp_path / "v.avi", every, late + 1, late + 2).pixels) == pytest.approx(
        list(range(25, 50)), abs=4
    )


def test_the_same_time_twice(tmp_path):
    path = numbered(tmp_path / "v.mkv", 100, *at_times("floor(N/2)*0.08"), *H264)
    np.testing.assert_allclose(timeline(path).times, np.arange(100) // 2 * 0.08, atol=2e-3)
    assert numbers(decode_segment(path, every, 2, 3).pixels) == list(range(50, 76))


def test_stamps_that_are_lost(tmp_path):
    """Where a file is damaged the clock goes on by the stamps, although frames are gone."""
    path = numbered(tmp_path / "v.ts", 200, "-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-b:v", "2M")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    segment = decode_segment(path, every)
    clock = timeline(path)
    assert 180 < segment.count < 200
    behind = clock.times > 5
    np.testing.assert_allclose(clock.times[behind], np.array(numbers(segment.pixels))[behind] / 25, atol=2e-3)


FAR = {"all": "TS+A", "from the middle on": "TS+A*gt(N,50)", "one": "TS+A*eq(N,50)", "the first": "TS-A*lt(N,2)"}


@pytest.mark.parametrize("stamps", FAR)
@pytest.mark.parametrize("suffix", [".mkv", ".nut"])
def test_stamps_farther_on_than_a_film_lasts(tmp_path, stamps, suffix):
    """As FFmpeg writes them into lossless cuts of Theora: 4 s that seem to take thousands of years."""
    film = numbered(tmp_path / f"film{suffix}", 100, *H264, "-g", "25")
    path = tmp_path / f"far{suffix}"
    ffmpeg("-i", film, "-c", "copy", "-bsf:v", f"setts=ts='{FAR[stamps].replace('A', '5e12')}'", path)
    clock = timeline(path)
    assert np.allclose(clock.times, np.arange(100) / 25, atol=1e-3)
    assert clock.end == pytest.approx(4, abs=0.01)
    assert numbers(decode_segment(path, every, 2, 3).pixels) == list(range(50, 75))


@pytest.mark.parametrize("first", ["sound", "time code"])
def test_the_picture_is_not_the_first_stream(tmp_path, first):
    """Also of the shortest films, which decoders give up only at the end."""
    path = tmp_path / "v.mov"
    if first == "sound":
        numbered(path, 3, "-map", "0:a", "-map", "1:v", *H264, "-c:a", "aac", inputs=SOUND)
    else:
        ffmpeg("-i", numbered(tmp_path / "v.mp4", 3, *H264), "-c", "copy", "-timecode", "10:00:00:00", path)
    assert numbers(decode_segment(path, every).pixels) == [0, 1, 2]
    condition = condition_of(path)
    assert (condition.decoded, condition.cut_short) == (3, "")


def test_streams_that_turn_up_on_the_way(tmp_path):
    """A stream of data that begins in the middle of a FLV."""
    path = numbered(tmp_path / "v.flv", 100, *H264, "-c:a", "mp3", inputs=SOUND)
    data = bytearray(path.read_bytes())
    at = 13
    while at < len(data):  # what kind a tag is, and its length
        if data[at] == 8 and at > len(data) // 2:
            data[at] = 18  # of script data
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    path.write_bytes(data)
    assert numbers(decode_segment(path, every).pixels) == list(range(100))
    assert condition_of(path).decoded == 100


def test_what_headers_promise_wrongly(tmp_path):
    """Times that begin late, headers that were written before the length was known, recordings that begin anywhere."""
    film = numbered(tmp_path / "v.mp4", 200, *H264, "-g", "40")
    ffmpeg("-copyts", "-ss", 3, "-i", film, "-c", "copy", tmp_path / "late.mkv")
    (tmp_path / "pipe.avi").write_bytes(ffmpeg("-i", film, "-c:v", "mpeg4", "-f", "avi", "-"))
    ffmpeg("-i", film, "-c", "copy", tmp_path / "v.ts")
    data = (tmp_path / "v.ts").read_bytes()
    (tmp_path / "between.ts").write_bytes(data[188 * (len(data) // 10 // 188) :])
    for name in ("late.mkv", "pipe.avi", "between.ts"):
        assert condition_of(tmp_path / name).cut_short == "", name


def test_a_picture_that_stands(tmp_path):
    """As in a talk with slides: the slide on screen belongs to a segment that begins in the middle of it."""
    path = numbered(tmp_path / "talk.mp4", 4, *at_times("N*10"), *H264, "-g", "2")
    for start, end, expected in ((0, 5, [0]), (5, 9, [0]), (5, 15, [0, 1]), (10, 25, [1, 2]), (9.5, 15, [1])):
        assert numbers(decode_segment(path, every, start, end).pixels) == expected


def test_thousands_of_packets_of_sound_between_two_frames(tmp_path):
    sound = ["-f", "lavfi", "-i", "sine=duration=130"]
    times = at_times("if(lt(N,10),N/10,120+N/10)")
    for name in ("talk.mp4", "talk.mkv"):
        path = numbered(tmp_path / name, 40, "-map", "1:v", "-map", "0:a", *times, *H264, "-c:a", "aac", inputs=sound)
        assert numbers(read_frames(path, 40)) == list(range(40))
        assert timeline(path).end == pytest.approx(124, abs=0.2)


def test_times_that_are_not_in_the_film(tmp_path):
    path = numbered(tmp_path / "short.mp4", 75, *H264)  # 3 s
    spans = [(0, 3), (0, 5), (2.9, 3.5), (3, 4), (100, 120), (0, 3000)]
    segments = list(decode_segments(path, every, spans))
    assert [bool(segment.beyond) for segment in segments] == [False, False, False, True, True, True]
    assert numbers(segments[4].pixels) == [74]
    assert segments[4].beyond == "a segment from 100 to 120 s, of a film of 3.0 s"


# how they are reached


def test_one_pass_for_all_windows(tmp_path, decoded):
    """Whatever the container, a film is decoded about once for all of its parts: its frames between two key frames
    twice at most, or where packets tell nothing once to count them and once to read them."""
    for name in ("mpeg4.avi", "h264.flv", "mpeg1.mpg", "mpeg2.mpg", "mpeg2.ts", "vp9.webm", "b-frames.mp4"):
        path = numbered(tmp_path / name, 400, *CONTAINERS[name])
        spans = [(float(start), start + 1.0) for start in range(16)]
        decoded[0] = 0
        segments = list(decode_segments(path, lambda n: frame_indices(n, 4), spans))
        assert numbers(np.concatenate([segment.pixels for segment in segments]))[:4] == [2, 8, 14, 21]
        assert decoded[0] <= 400 * (2 if timeline(path).counted else 1.2), name


def test_a_seek_decodes_few_frames(tmp_path, decoded):
    """With a key frame every 12 frames, a wanted one costs its way from a key frame, not all that lie before it."""
    path = numbered(tmp_path / "long.mp4", 1000, *H264, "-g", "12")
    clock = timeline(path)
    assert clock.times.tolist() == pytest.approx([k / 25 for k in range(1000)])
    assert np.searchsorted(clock.pts, clock.key_pts).tolist() == list(range(0, 1000, 12))
    for wanted in ([10, 500, 505, 900], [998]):
        decoded[0] = 0
        segment = decode_segment(path, lambda n, wanted=wanted: np.array(wanted))
        assert segment.count == 1000
        assert numbers(segment.pixels) == wanted
        assert decoded[0] <= 40 + 16 * 12  # what the threads of the main process have begun, too


@pytest.mark.parametrize("name", ["b-frames.mp4", "open-gop.mp4", "hevc.mp4", "matroska.mkv", "h264.flv", "h264.m2ts"])
def test_frames_that_nobody_refers_to_are_left_out_rightly(tmp_path, name):
    """Every single frame, far from the others, is the one that decoding all gives."""
    path = make(tmp_path / name, *CONTAINERS[name], "-bf", "3", seconds=6)
    film = every_frame(path)
    for number in range(0, 150, 7):
        segment = decode_segment(path, lambda n, number=number: np.array([number]))
        assert np.array_equal(segment.pixels[0], film[number])


def test_a_recording_that_begins_between_key_frames(tmp_path):
    """What comes before the first key frame does not decode; frames are counted from the first that does."""
    data = numbered(tmp_path / "whole.ts", 400, *H264, "-g", "50").read_bytes()
    (tmp_path / "part.ts").write_bytes(data[188 * (len(data) // 188 // 5) :])
    film = by_ffmpeg(tmp_path / "part.ts")
    assert film[0] > 20
    assert numbers(read_frames(tmp_path / "part.ts", 12)) == [film[i] for i in frame_indices(len(film), 12)]


def test_a_file_that_was_cut_short(tmp_path):
    path = numbered(tmp_path / "whole.mp4", 400, *H264, "-g", "24", "-movflags", "+faststart")
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    film = by_ffmpeg(tmp_path / "cut.mp4")
    assert 200 < len(film) < 390
    there = numbers(decode_segment(tmp_path / "cut.mp4", every).pixels)
    assert there == film[: len(there)]
    assert len(there) >= len(film) - 1  # FFmpeg shows what it has of a last frame


def test_a_damaged_place(tmp_path):
    """Frames behind it are found by their times; none is taken for another."""
    path = numbered(tmp_path / "film.mkv", 400, *H264, "-g", "25")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    got = numbers(decode_segment(path, every, 12, 15).pixels)
    assert got == list(range(300, 375))


def test_a_file_that_changed_is_read_again(tmp_path):
    path = make(tmp_path / "v.mp4", *H264, seconds=2)
    assert len(timeline(path).pts) == 50
    make(path, *H264, seconds=3)
    assert len(timeline(path).pts) == 75
    with pytest.raises(InputError, match="No such file"):
        timeline(tmp_path / "nowhere.mp4")


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(timelines, "REMEMBERED_FRAMES", 120)
    monkeypatch.setattr(timelines, "_memory", timelines._Memory())
    paths = [make(tmp_path / f"{i}.mp4", *H264, seconds=2) for i in range(4)]
    for path in (*paths, paths[0]):
        timeline(path)
    assert [key[0] for key in timelines._memory.timelines] == [str(paths[3]), str(paths[0])]
    assert timelines._memory.frames == 100


# what is in them


def test_frames_are_those_of_decoding_everything(tmp_path):
    path = make(tmp_path / "film.mp4", *VARIABLE, *H264, "-g", "12", seconds=24)
    film = every_frame(path)
    assert np.array_equal(read_frames(path, 12), np.stack([film[i] for i in frame_indices(len(film), 12)]))


@pytest.mark.parametrize("space", ["bt709", "smpte170m"])
@pytest.mark.parametrize("span", ["tv", "pc"])
def test_colours_are_those_of_ffmpeg(tmp_path, space, span):
    path = tmp_path / "colours.mp4"
    tags = ["-colorspace", space, "-color_primaries", space, "-color_trc", space, "-color_range", span]
    scale = f"scale=out_color_matrix={'bt709' if space == 'bt709' else 'bt601'}:out_range={span}"
    make(path, "-vf", scale, *H264, *tags, seconds=1, size="320x240")
    raw = ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(240, 320, 3).astype(int)
    frame = decode_segment(path, lambda n: np.array([0])).pixels[0].astype(int)
    assert np.abs(frame - expected).mean() < 1.5


def test_pixels_are_square(tmp_path):
    """A disc of a film whose pixels are 4/3 as wide as high is as wide as high."""
    path = make(tmp_path / "wide.mp4", "-vf", "setsar=4/3", *H264, seconds=1, size="120x90")
    assert read_frames(path, 2).shape == (2, 90, 160, 3)
    ffmpeg("-display_rotation", "90", "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    assert read_frames(tmp_path / "turned.mp4", 2).shape == (2, 160, 90, 3)
    make(path, "-vf", "setsar=1/1000", *H264, seconds=1, size="120x90")
    assert read_frames(path, 2).shape == (2, 90, 120, 3)  # what cannot be is not believed


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [[], ["-display_hflip"], ["-display_vflip"]])
def test_pictures_are_upright(tmp_path, angle, flip):
    path = make(tmp_path / "a.mp4", *H264, seconds=1, size="96x64")
    ffmpeg("-display_rotation", angle, *flip, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    raw = ffmpeg("-i", tmp_path / "turned.mp4", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    frame = decode_segment(tmp_path / "turned.mp4", lambda n: np.array([0])).pixels[0]
    assert frame.shape == ((64, 96, 3) if angle % 180 == 0 else (96, 64, 3))
    assert np.abs(frame.astype(int) - np.frombuffer(raw, np.uint8).reshape(frame.shape)).mean() < 1.5


def test_a_size_that_changes(tmp_path):
    """The frames of one stream may change size; all take that of the first."""
    for index, size in enumerate(("64x48", "96x80")):
        make(tmp_path / f"{index}.ts", *H264, seconds=1, size=size)
    (tmp_path / "both.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    assert read_frames(tmp_path / "both.ts", 8).shape == (8, 48, 64, 3)


def test_one_frame_and_no_frame(tmp_path):
    one = make(tmp_path / "one.mp4", *H264, "-frames:v", "1")
    assert np.array_equal(read_frames(one, 4), np.stack([every_frame(one)[0]] * 4))
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", tmp_path / "audio.mp4")
    none = make(tmp_path / "none.mkv", *H264, "-frames:v", "0")
    for path in (tmp_path / "audio.mp4", none):
        with pytest.raises(InputError, match=path.name):
            read_frames(path, 4)


def test_the_picture_of_a_cover_is_no_video(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:duration=0.04", "-frames:v", "1", tmp_path / "cover.png")
    path = tmp_path / "song.m4a"
    sound = ["-f", "lavfi", "-i", "sine=duration=2", "-i", tmp_path / "cover.png"]
    ffmpeg(*sound, "-map", "0", "-map", "1", "-c:a", "aac", "-c:v", "copy", "-disposition:v:0", "attached_pic", path)
    with pytest.raises(InputError, match="no video but a picture of a cover"):
        read_frames(path, 4)


def test_of_several_pictures_the_one_that_players_show(tmp_path):
    first, second = tmp_path / "small.mp4", numbered(tmp_path / "main.mp4", 100, *H264)
    make(first, *H264, seconds=4, size="32x32")
    path = tmp_path / "both.mkv"
    maps = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default"]
    ffmpeg("-i", first, "-i", second, *maps, path)
    assert numbers(read_frames(path, 5)) == frame_indices(100, 5).tolist()


def test_names_and_kinds_of_files(tmp_path):
    """A name may look like a protocol or a pattern, or be no text; a folder, a pipe and a playlist are no videos."""
    film = numbered(tmp_path / "film.mp4", 30, *H264)
    for name in ("concat:a|b.mp4", "http:x.mp4", "film%03d.mp4", "-i.mp4", os.fsdecode(b"caf\xe9.mp4")):
        (tmp_path / name).hardlink_to(film)
        assert numbers(read_frames(tmp_path / name, 3)) == [4, 14, 24]
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile:{film}\n#EXT-X-ENDLIST\n")
    (tmp_path / "script.mp4").write_text(f"ffconcat version 1.0\nfile {film}\n")
    for name in ("pipe.mp4", ".", "list.mp4", "script.mp4"):
        with pytest.raises(InputError, match=r"is no file|does not open"):
            read_frames(tmp_path / name, 3)
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\ufffd"


def test_shared_videos():
    folder = ROOT.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    for path in sorted(folder.iterdir()):
        film = every_frame(path)
        for n in (4, 12):
            frames, wanted = read_frames(path, n), frame_indices(len(film), n)
            assert frames.shape[1] == film[0].shape[0]
            if frames.shape[2] == film[0].shape[1]:  # pixels are square
                assert np.array_equal(frames, np.stack([film[i] for i in wanted]))
