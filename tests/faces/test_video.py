"""Videos made on the spot: round trip, rotation, breaks, and the errors."""

import sys

import numpy as np
import pytest

from veilmark.faces import video
from veilmark.faces.video import VideoError, VideoWriter, frame_count, frame_rate, is_video, read_frames

av = pytest.importorskip("av")

RED = (200, 30, 30)


def picture(height=48, width=64, level=100):
    """Gray of some level with a red top left quarter."""
    image = np.full((height, width, 3), level, dtype=np.uint8)
    image[: height // 2, : width // 2] = RED
    return image


def write(path, frames, fps=25):
    with VideoWriter(path, fps=fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (48, 64, (48, 64)),  # even stays
        (47, 64, (48, 64)),  # one row more
        (48, 63, (48, 64)),  # one column more
        (33, 35, (34, 36)),  # both
    ],
)
def test_what_is_written_is_read(tmp_path, height, width, expected):
    path = write(tmp_path / "a.mp4", [picture(height, width, level) for level in (40, 120, 200)], fps=10)
    frames = list(read_frames(path))
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2])
    for frame, level in zip(frames, (40, 120, 200), strict=True):
        assert frame.image.shape == (*expected, 3)
        assert frame.image.dtype == np.uint8
        # The added row and column repeat the edge; colours survive yuv420p to a few levels.
        assert frame.image[-1, -1].tolist() == pytest.approx([level] * 3, abs=6)
        assert frame.image[4, 4].tolist() == pytest.approx(RED, abs=12)
    assert frame_count(path) == 3
    assert frame_rate(path) == pytest.approx(10)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("fps", [29.97, 30000 / 1001, 12.5, 1.0])
def test_odd_frame_rates_survive(tmp_path, fps):
    assert frame_rate(write(tmp_path / "a.mp4", [picture()] * 4, fps=fps)) == pytest.approx(fps, rel=1e-4)


def test_h264_in_yuv420p(tmp_path):
    with av.open(str(write(tmp_path / "a.mp4", [picture()]))) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def turned(path, matrix):
    """The file with another display matrix in its track header, as a phone writes it."""
    data = path.read_bytes()
    header = data.find(b"tkhd")
    place = data.find((0x10000).to_bytes(4, "big"), header + 40)
    a, b, c, d = ((value * 0x10000 & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    zero = bytes(4)
    path.write_bytes(data[:place] + a + b + zero + c + d + zero + data[place + 24 :])
    return path


@pytest.mark.parametrize(
    ("matrix", "shape", "red"),
    [
        ((1, 0, 0, 1), (48, 64), (4, 4)),  # upright
        ((0, 1, -1, 0), (64, 48), (4, -4)),  # shown turned clockwise: top left goes to top right
        ((-1, 0, 0, -1), (48, 64), (-4, -4)),  # upside down
        ((0, -1, 1, 0), (64, 48), (-4, 4)),  # counter-clockwise
    ],
)
def test_the_cameras_rotation_is_applied(tmp_path, matrix, shape, red):
    (frame,) = read_frames(turned(write(tmp_path / "a.mp4", [picture()]), matrix))
    assert frame.image.shape[:2] == shape
    assert frame.image.flags.c_contiguous
    assert frame.image[red].tolist() == pytest.approx(RED, abs=12)


def test_frames_before_a_break_are_yielded(tmp_path):
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0)
    # The index goes first, so that a file cut short can be opened at all.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            image = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    seen: list[int] = []
    frames = read_frames(path)
    with pytest.raises(VideoError, match=r"a\.mp4: damaged"):
        while True:
            seen.append(next(frames).index)
    assert seen == list(range(len(seen)))
    assert 10 < len(seen) < 30


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "damaged or no video"),
        (lambda path: path.write_bytes(b"text" * 100), "damaged or no video"),
        (audio_only, "has no pictures, only audio"),
        (lambda path: path.mkdir(), "damaged or no video"),
    ],
    ids=["missing", "empty", "text", "audio", "folder"],
)
def test_files_that_are_no_video(tmp_path, make, message):
    path = tmp_path / "bad.mp4"
    make(path)
    for read in (frame_count, frame_rate, lambda p: next(read_frames(p))):
        with pytest.raises(VideoError, match=rf"bad\.mp4: {message}"):
            read(path)


def test_a_failed_or_empty_video_leaves_no_file_and_keeps_the_old_one(tmp_path):
    old = write(tmp_path / "a.mp4", [picture()]).read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", fps=25) as writer:
        writer.write(picture())
        raise KeyboardInterrupt
    with VideoWriter(tmp_path / "b.mp4", fps=25):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == old


def test_writing_errors_name_the_file(tmp_path):
    with (
        pytest.raises(VideoError, match=r"64 x 40 in a video of 64 x 48"),
        VideoWriter(tmp_path / "a.mp4", 25) as writer,
    ):
        writer.write(picture(48, 64))
        writer.write(picture(40, 64))
    with (
        pytest.raises(VideoError, match=r"b\.mp4: cannot be written"),
        VideoWriter(tmp_path / "gone" / "b.mp4", 25) as writer,
    ):
        writer.write(picture())
    for fps in (0, -1, float("nan")):
        with pytest.raises(VideoError, match="frames per second"):
            VideoWriter(tmp_path / "c.mp4", fps)


def test_without_pyav_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"any")
    for use in (lambda: next(read_frames(tmp_path / "a.mp4")), lambda: VideoWriter(tmp_path / "b.mp4", 25)):
        with pytest.raises(VideoError, match=r"pip install 'veilmark\[video\]'"):
            use()


@pytest.mark.parametrize(
    ("name", "expected"), [("a.mp4", True), ("A.MOV", True), ("x/y.webm", True), ("a.jpg", False), ("mp4", False)]
)
def test_videos_are_told_by_their_ending(name, expected):
    assert is_video(name) is expected
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in video.VIDEO_SUFFIXES)
