import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from veilmark.faces import images
from veilmark.faces.images import (
    ImageError,
    list_images,
    picture_size,
    pixel_kind,
    png_notes,
    read_image,
    write_image,
    write_png,
)
from veilmark.run.errors import DataError

COLOURS = np.array([[[200, 10, 30], [0, 250, 0]], [[5, 5, 255], [90, 91, 92]]], dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(COLOURS), COLOURS[0, 0]),  # plain RGB
        (Image.new("L", (2, 2), 77), (77, 77, 77)),  # grayscale
        (Image.new("1", (2, 2), 1), (255, 255, 255)),  # one bit
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), (255, 255, 255)),  # 16 bits, white
        (Image.fromarray(np.full((2, 2), 257 * 40, np.uint16)), (40, 40, 40)),  # 16 bits, scaled, not clipped
        (Image.fromarray(np.full((2, 2), 200, np.uint16)), (1, 1, 1)),  # 16 bits, rounded to the nearest
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),  # clear: white shows
        (Image.new("RGBA", (2, 2), (255, 0, 0, 128)), (255, 127, 127)),  # half clear
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),  # grayscale with alpha
        (Image.fromarray(COLOURS).quantize(4), COLOURS[0, 0]),  # palette
    ],
)
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, picture: Image.Image, expected: tuple[int, int, int]) -> None:
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (2, 2, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image[0, 0], expected)


def test_palette_with_a_clear_colour_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).quantize(4).save(tmp_path / "a.png", transparency=0)
    clear = np.asarray(Image.fromarray(COLOURS).quantize(4)) == 0
    assert (read_image(tmp_path / "a.png")[clear] == 255).all()


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg")[8, 8], (255, 0, 0), atol=6)


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    stored = np.full((24, 40, 3), 255, np.uint8)
    stored[:8, :8] = 0  # where the first stored corner is shown is what the tag says
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))
    assert image[corner].max() < 40
    assert [c for c in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if image[c].max() < 40] == [corner]
    assert picture_size(tmp_path / "a.jpg") == image.shape[1::-1]


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), COLOURS)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),  # missing
        (lambda path: path.mkdir(), "a folder"),  # a folder of that name
        (lambda path: path.write_bytes(b""), "empty"),  # no byte
        (lambda path: path.write_text("dear diary"), "convert it"),  # text
        (lambda path: Image.new("RGB", (2, 2)).save(path, format="GIF"), "convert it"),  # another format
        (truncated, "truncated"),  # cut off
        (lambda path: path.write_bytes(png_header(12_000, 12_000)), "100 megapixels"),  # just too large
        (lambda path: path.write_bytes(png_header(60_000, 60_000)), "100 megapixels"),  # Pillow's own limit
        (os.mkfifo, "regular file"),  # a pipe, which would block
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, make, said: str) -> None:
    path = tmp_path / "a.jpg"
    make(path)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=said) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "LARGEST_IMAGE", 3)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="megapixels"):
        read_image(tmp_path / "a.png")


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, COLOURS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The mode does not stop an administrator, under whom tests may run.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: no permission"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on broken EXIF
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), seed=st.integers(0, 2**32 - 1))
def test_damage_is_never_another_error(tmp_path: Path, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind == "BMP" else {"exif": exif}
    path = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(path, format=kind, **options)
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), 6):
        data[position] = rng.integers(0, 256)
    path.write_bytes(bytes(data))
    for look in (read_image, pixel_kind, png_notes, picture_size):
        outcome = str(path)
        try:
            look(path)
        except ImageError as error:
            outcome = str(error)
        # Anything but an answer or an ImageError has already failed the test.
        assert str(path) in outcome


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rgb=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.webp"])
def test_lossless_formats_give_back_what_was_written(tmp_path: Path, name: str, rgb: np.ndarray) -> None:
    write_image(tmp_path / name, rgb)
    np.testing.assert_array_equal(read_image(tmp_path / name), rgb)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_jpeg_is_written_close(tmp_path: Path) -> None:
    rgb = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    write_image(tmp_path / "a.jpeg", rgb)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpeg"), rgb, atol=3)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", COLOURS)

    def full(self: Image.Image, file: object, **options: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"a\.png: cannot be written \(No space left"):
        write_png(tmp_path / "a.png", COLOURS[::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOURS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.tiff", "a", "no/such/folder/a.png"])
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot"):
        write_image(tmp_path / name, COLOURS)


@pytest.mark.parametrize("wrong", [COLOURS[:, :, 0], COLOURS.astype(np.float32), COLOURS[:0]])
def test_only_rgb_bytes_are_written(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", wrong)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.png",
        "a.JPG",
        "in/c.webp",
        "in/deep/d.bmp",
        "notes.txt",
        ".hidden/e.png",
        "in/._f.png",
        "x[1].png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    (tmp_path / "void").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["."], ["a.JPG", "b.png", "in/c.webp", "in/deep/d.bmp", "x[1].png"]),  # folder, recursive, no dot names
        (["b.png", "a.JPG", "b.png"], ["a.JPG", "b.png"]),  # sorted and unique
        (["b.png", "in/../b.png"], ["b.png"]),  # one file under two names
        (["*.png"], ["b.png", "x[1].png"]),  # pattern
        (["*"], ["a.JPG", "b.png", "x[1].png"]),  # pattern filtered by suffix; folders left out
        (["in/**"], ["in/c.webp", "in/deep/d.bmp"]),  # pattern across folders
        (["x[1].png"], ["x[1].png"]),  # a name that looks like a pattern
        (["notes.txt"], ["notes.txt"]),  # a named file, whatever its suffix
    ],
)
def test_listing(tree: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], expected: list[str]) -> None:
    monkeypatch.chdir(tree)
    assert [path.as_posix() for path in list_images(inputs)] == expected


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], r"\.jpg.*\.bmp"),  # nothing named
        (["void"], r"void: no picture.*\.jpg.*\.bmp"),  # empty folder
        (["*.gif"], r"\*\.gif: no picture.*\.jpg.*\.bmp"),  # no match
        (["gone.png"], r"gone\.png: no such file"),  # missing
        (["b.png", "gone"], "gone: no such file"),  # one of several missing
    ],
)
def test_listing_nothing_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], said: str) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(DataError, match=said):
        list_images(inputs)
