"""`veilmark scramble` and `unscramble` on real files."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from veilmark.cli import app, main
from veilmark.ppidsg.pictures import NOTE


def run(monkeypatch, *arguments):
    """The exit code and all that was said, as the console script does it."""
    monkeypatch.setattr("sys.argv", ["veilmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


@pytest.fixture
def key(tmp_path):
    assert CliRunner().invoke(app, ["keygen", str(tmp_path / "owner.key")]).exit_code == 0
    return tmp_path / "owner.key"


def draw(path, size=(61, 83), mode="RGB", seed=0):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "more", [(), ("--block", "16"), ("--per-image",), ("--without", "permute", "--without", "flip")]
)
def test_a_picture_of_any_size_comes_back_as_it_was(tmp_path, key, monkeypatch, mode, more):
    pixels = draw(tmp_path / "a.png", mode=mode)
    hidden, again = tmp_path / "hidden.png", tmp_path / "again.png"
    assert run(monkeypatch, "scramble", tmp_path / "a.png", "--key", key, "--out", hidden, *more) == 0
    with Image.open(hidden) as image:
        assert image.mode == mode
        assert image.size == ((64, 84) if "--block" not in more else (64, 96))
        assert not np.array_equal(np.asarray(image)[:83, :61], pixels)
    assert run(monkeypatch, "unscramble", hidden, "--key", key, "--out", again) == 0
    with Image.open(again) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), pixels)


def test_neither_key_nor_picture_stands_in_the_note(tmp_path, key, monkeypatch):
    draw(tmp_path / "a.png")
    assert run(monkeypatch, "scramble", tmp_path / "a.png", "--key", key, "--out", tmp_path / "b.png") == 0
    with Image.open(tmp_path / "b.png") as image:
        note = json.loads(image.text[NOTE])
    assert set(note) == {"version", "block", "steps", "size", "check"}
    assert len(note["check"]) == 8
    assert key.read_text().split()[-1] not in (tmp_path / "b.png").read_bytes().decode("latin1")


def test_the_same_picture_twice_per_image_looks_different(tmp_path, key, monkeypatch):
    draw(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        assert (
            run(monkeypatch, "scramble", tmp_path / "a.png", "--key", key, "--out", tmp_path / name, "--per-image") == 0
        )
    with Image.open(tmp_path / "b.png") as b, Image.open(tmp_path / "c.png") as c:
        assert not np.array_equal(np.asarray(b), np.asarray(c))


def test_unreadable_pictures_are_skipped_and_the_others_written(tmp_path, key, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    draw(folder / "a.png")
    draw(folder / "clear.png", mode="RGBA")
    (folder / "b.jpg").write_bytes(b"no picture")
    assert run(monkeypatch, "scramble", folder, "--key", key, "--out", tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    said = " ".join(capsys.readouterr().err.split())
    assert "skipped 2" in said
    assert "b.jpg" in said
    assert "has transparency" in said


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("other key", "scrambled with another secret"),
        ("plain", "not written by veilmark scramble"),
        ("note", "is damaged, or from another version"),
        ("cropped", "resized or cropped since it was scrambled"),
    ],
)
def test_what_cannot_be_unscrambled_is_said(tmp_path, key, monkeypatch, capsys, spoil, says):
    draw(tmp_path / "a.png")
    hidden = tmp_path / "b.png"
    assert run(monkeypatch, "scramble", tmp_path / "a.png", "--key", key, "--out", hidden) == 0
    if spoil == "other key":
        key = tmp_path / "other.key"
        assert run(monkeypatch, "keygen", key) == 0
    elif spoil == "plain":
        draw(hidden)
    else:
        with Image.open(hidden) as image:
            notes = PngInfo()
            notes.add_text(NOTE, '{"version": 2}' if spoil == "note" else image.text[NOTE])
            kept = image.crop((0, 0, 32, 32)) if spoil == "cropped" else image.copy()
        kept.save(hidden, pnginfo=notes)
    assert run(monkeypatch, "unscramble", hidden, "--key", key, "--out", tmp_path / "c.png") == 1
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.png", "--out", "b.jpg"), "survive in PNG only"),
        (("a.png", "c.png", "--out", "b.png"), "is one file, but there are 2 pictures"),
        (("a.png", "deep/a.png", "--out", "there"), "would both become"),
        (("a.png", "--out", "."), "is one of the pictures themselves"),
        (("a.png", "--out", "b.png", "--block", "5"), "block is 5; allowed: 2, 4, 8, 16"),
        (("a.png", "--out", "b.png", "--without", "shuffle"), "no step of the cipher"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, key, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "c.png", "deep/a.png"):
        draw(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert run(monkeypatch, "scramble", *arguments, "--key", key) == 1
    assert says in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
