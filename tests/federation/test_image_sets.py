"""Image sets from tiny files in the formats as they are published."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from veilmark.federation.image_sets import BUNDLED, CIFAR10, FASHION, LAYOUTS, SOURCES, load_image_set, resized
from veilmark.federation.tasks.classify import ClassifyConfig, load_classify
from veilmark.run.errors import ConfigError, DataError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# MNIST's format


def idx(values, magic=None):
    magic = 0x0800 + values.ndim if magic is None else magic
    return struct.pack(f">I{values.ndim}I", magic, *values.shape) + values.tobytes()


PIXELS, NUMBERS = draw(7, 5, 4), np.array([3, 0, 9, 9, 1, 2, 3], dtype=np.uint8)


def write_idx(root, prefix="train", mark="-", suffix="", pixels=None, numbers=None):
    pack = gzip.compress if suffix else bytes
    (root / f"{prefix}-images{mark}idx3-ubyte{suffix}").write_bytes(pack(pixels or idx(PIXELS)))
    (root / f"{prefix}-labels{mark}idx1-ubyte{suffix}").write_bytes(pack(numbers or idx(NUMBERS)))


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("layout", ["mnist", "fashion-mnist"])
def test_idx_files_are_read(tmp_path, layout, split, prefix, suffix, mark):
    write_idx(tmp_path, prefix, mark, suffix)
    found = load_image_set(layout, tmp_path, split)
    assert found.name == layout
    assert found.images.shape == (7, 1, 5, 4)
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images[:, 0], PIXELS)
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == NUMBERS.tolist()
    assert len(found.classes) == 10
    assert found.classes[9] == ("9" if layout == "mnist" else "Ankle boot")


def test_a_file_that_a_browser_unpacked_but_still_calls_gz_is_read(tmp_path):
    write_idx(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(f"{path}.gz")
    assert len(load_image_set("mnist", tmp_path, "train")) == 7


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pixels": idx(PIXELS)[:-1]}, ["images", "139", "7 x 5 x 4 = 140"]),  # cut off
        ({"pixels": idx(PIXELS) + b"\0"}, ["images", "141", "140"]),  # too long
        ({"pixels": idx(PIXELS)[:9]}, ["images", "9 bytes"]),  # cut off in the header
        ({"pixels": idx(NUMBERS)}, ["images", "2049", "2051"]),  # labels in the place of images
        ({"pixels": idx(PIXELS, magic=0x0D03)}, ["images", "3331", "2051"]),  # floats
        ({"pixels": idx(PIXELS[:0])}, ["images", "0 x 5 x 4 = 0"]),  # nothing in it
        ({"numbers": idx(PIXELS)}, ["labels", "2051", "2049"]),  # images in the place of labels
        ({"numbers": idx(NUMBERS[:6])}, ["images", "7 images", "6 labels"]),  # counts differ
        ({"numbers": idx(NUMBERS + 1)}, ["labels", "image 2 ", "label 10", "0 to 9", "2 such"]),  # out of range
        ({"pixels": gzip.compress(idx(PIXELS))[:-20]}, ["images", "fetch it again"]),  # gzip cut off
    ],
)
def test_a_broken_idx_file_is_named_with_its_numbers(tmp_path, files, words):
    write_idx(tmp_path, **files)
    with pytest.raises(DataError) as error:
        load_image_set("mnist", tmp_path, "train")
    for word in [str(tmp_path), *words]:
        assert word in str(error.value)


# CIFAR-10


def record(label, image):
    return bytes([label]) + image.tobytes()


COLOUR = draw(12, 3, 32, 32)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_binary_batches_are_read_in_order(tmp_path, below):
    root = tmp_path / below
    root.mkdir(exist_ok=True)
    for number in range(1, 6):
        pair = (2 * number - 2, 2 * number - 1)
        (root / f"data_batch_{number}.bin").write_bytes(b"".join(record(i % 10, COLOUR[i]) for i in pair))
    (root / "test_batch.bin").write_bytes(record(9, COLOUR[11]))
    found = load_image_set("cifar10", tmp_path, "train")
    assert np.array_equal(found.images, COLOUR[:10])
    assert found.labels.tolist() == list(range(10))
    assert found.classes == CIFAR10
    test = load_image_set("cifar10", tmp_path, "test")
    assert np.array_equal(test.images, COLOUR[11:])
    assert test.labels.tolist() == [9]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (record(1, COLOUR[0])[:-1], ["3072 bytes", "3073"]),  # cut off
        (b"", ["0 bytes"]),  # empty
        (record(3, COLOUR[0]) + record(77, COLOUR[1]), ["image 1 ", "label 77", "0 to 9"]),  # not a class
    ],
)
def test_a_broken_batch_is_named_with_its_numbers(tmp_path, content, words):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_image_set("cifar10", tmp_path, "test")
    for word in ["test_batch.bin", *words]:
        assert word in str(error.value)


def test_a_batch_that_lacks_is_named(tmp_path):
    for number in (1, 2, 4, 5):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(record(0, COLOUR[0]))
    with pytest.raises(DataError, match=r"data_batch_3\.bin does not exist.*cifar\.html"):
        load_image_set("cifar10", tmp_path, "train")


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "data_batch_1", "cifar-10-python.tar.gz"])
def test_the_pickled_version_is_refused_unopened(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"pickles.*cifar-10-binary\.tar\.gz"):
        load_image_set("cifar10", tmp_path, "train")
    assert not (tmp_path / "opened").exists()


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def pictures(above="train/", classes=CIFAR10):
    """Two pictures a class by name, out of order; one of them gray."""
    files = {}
    for label, name in enumerate(classes):
        for number in (1, 0):
            files[f"{above}{name}/{number:04d}.png"] = png(COLOUR[label].transpose(1, 2, 0) // (number + 1))
    files[f"{above}{classes[0]}/0000.png"] = png(COLOUR[0, 0])
    return files


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_folders(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize("above", ["train/", "./train/", "", "/deep/down/"])
def test_cifar10_is_read_alike_from_a_tar_and_from_folders(tmp_path, above):
    write_folders(tmp_path / "a", pictures())
    (tmp_path / "b").mkdir()
    write_tar(
        tmp_path / "b" / "train.tar", {**pictures(above), f"{above}._hidden/0.png": b"", f"{above}notes.txt": b"a"}
    )
    for found in (load_image_set("cifar10", tmp_path / root, "train") for root in "ab"):
        assert found.images.shape == (20, 3, 32, 32)
        assert found.images.flags.c_contiguous
        assert found.labels.tolist() == [label for label in range(10) for _ in range(2)]
        assert np.array_equal(found.images[2::2], COLOUR[1:10])
        assert np.array_equal(found.images[1::2], COLOUR[:10] // 2)
        assert np.array_equal(found.images[0], np.repeat(COLOUR[0, :1], 3, axis=0))
        assert found.skipped == {}


def test_a_tar_s_unreadable_picture_is_listed_under_the_tar_s_own_path(tmp_path):
    write_tar(tmp_path / "test.tar", {**pictures("test/"), "test/cat/0002.png": b"not a picture"})
    found = load_image_set("cifar10", tmp_path, "test")
    assert len(found) == 20
    assert list(found.skipped) == [f"{tmp_path}/test.tar/cat/0002.png"]
    assert found.skipped[f"{tmp_path}/test.tar/cat/0002.png"].startswith(f"{tmp_path}/test.tar/cat/0002.png: ")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (pictures(classes=CIFAR10[1:]), ["missing: airplane", "unknown: none"]),  # a class lacks
        (pictures() | pictures(classes=("lorry",)), ["missing: none", "unknown: lorry"]),  # one too many
        (pictures() | {"test/cat/7.png": png(COLOUR[0, 0])}, ["train.tar", "in train and in test"]),  # both splits
        (pictures() | {"train/cat/7.png": png(COLOUR[0, 0, :9])}, ["train.tar/cat/7.png is 32 x 9", "resize"]),  # size
        (pictures() | {"/7.png": png(COLOUR[0, 0]), "../../7.png": b""}, None),  # none of a class: left out
    ],
)
def test_a_tar_of_another_shape_is_refused(tmp_path, files, words):
    write_tar(tmp_path / "train.tar", files)
    if words is None:
        assert len(load_image_set("cifar10", tmp_path, "train")) == 20
        return
    with pytest.raises(DataError) as error:
        load_image_set("cifar10", tmp_path, "train")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.999])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, keep):
    write_tar(tmp_path / "train.tar", pictures())
    # Cut at the end of a block, where tarfile itself sees nothing wrong.
    content = (tmp_path / "train.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "train.tar").write_bytes(content[: int(keep * len(content)) // 512 * 512])
    with pytest.raises(DataError, match=r"train\.tar does not end as a tar does"):
        load_image_set("cifar10", tmp_path, "train")


def test_pictures_of_another_size_are_not_cifar10(tmp_path):
    write_folders(tmp_path, {name: png(COLOUR[0, 0, :, :20]) for name in pictures()})
    with pytest.raises(DataError, match=r"20 x 32 pixels; those of CIFAR-10 are 32 x 32"):
        load_image_set("cifar10", tmp_path, "train")


# SVHN


def write_svhn(path, labels, images=COLOUR[:4], **variables):
    numbers = np.array(labels, dtype=np.uint8)[:, None]
    scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": numbers, **variables}, do_compression=True)


def test_svhn_is_read_and_ten_is_zero(tmp_path):
    write_svhn(tmp_path / "test_32x32.mat", [1, 10, 9, 10])
    found = load_image_set("svhn", tmp_path, "test")
    assert np.array_equal(found.images, COLOUR[:4])
    assert found.labels.tolist() == [1, 0, 9, 0]
    assert found.labels.dtype == np.int64
    assert found.classes[0] == "0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": [1, 0, 2, 3]}, ["image 1 ", "label 0", "1 to 10"]),  # 0 is not published
        ({"labels": [1, 2, 3, 11]}, ["image 3 ", "label 11"]),  # out of range
        ({"labels": [1, 2, 3]}, ["4 images", "3 labels"]),  # counts differ
        ({"labels": [1] * 4, "images": COLOUR[:4, :, :30]}, ["(30, 32, 3, 4)", "(32, 32, 3, n)"]),  # another size
        ({"labels": [1] * 4, "y": np.array([[1.0], [2.0], [2.5], [10.0]])}, ["image 2 ", "label 2.5"]),  # not whole
        ({"labels": [1] * 4, "X": np.zeros((32, 32, 3, 4))}, ["float64"]),  # not bytes
    ],
)
def test_a_broken_svhn_file_is_named_with_its_numbers(tmp_path, arguments, words):
    write_svhn(tmp_path / "train_32x32.mat", **arguments)
    with pytest.raises(DataError) as error:
        load_image_set("svhn", tmp_path, "train")
    for word in ["train_32x32.mat", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("keep", [0, 60, 140, 2000, 9000, -5])
def test_an_svhn_file_that_is_cut_off_is_refused(tmp_path, keep):
    path = tmp_path / "train_32x32.mat"
    write_svhn(path, [1, 2, 3, 4])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train_32x32\.mat"):
        load_image_set("svhn", tmp_path, "train")


# A folder per class


def gray(seed, height=9, width=8):
    return png(draw(height, width, seed=seed))


FOLDERS = {"train/b/1.png": gray(1), "train/a/2.png": gray(2), "train/a/1.png": gray(3), "test/b/1.png": gray(4)}


def test_splits_of_unlike_pictures_are_refused_before_any_work(tmp_path):
    write_folders(tmp_path, {f"train/{name}/{n}.png": gray(n, 28, 28) for name in "ab" for n in range(4)})
    write_folders(tmp_path, {f"test/{name}/0.png": gray(9, 32, 32) for name in "ab"})
    with pytest.raises(ConfigError, match="training pictures are gray, 28 x 28, test pictures gray, 32 x 32; make"):
        load_classify(ClassifyConfig(layout="folder", per_client=2), tmp_path, 2, 0)


def test_a_label_of_a_folder_means_the_same_in_both_splits(tmp_path):
    write_folders(tmp_path, FOLDERS | {"train/.cache/1.png": gray(5), "train/notes.txt": b"", "train/a/x.txt": b""})
    train, test = (load_image_set("folder", tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert train.images.shape == (3, 1, 9, 8)
    assert train.labels.tolist() == [0, 0, 1]
    assert np.array_equal(train.images[:, 0], [draw(9, 8, seed=seed) for seed in (3, 2, 1)])
    # test/ has no folder a.
    assert test.labels.tolist() == [1]


def test_unreadable_pictures_are_collected(tmp_path):
    write_folders(tmp_path, FOLDERS | {"train/a/0.png": b"nothing", "train/b/2.jpg": gray(1)[:40]})
    found = load_image_set("folder", tmp_path, "train")
    assert len(found) == 3
    assert set(found.skipped) == {str(tmp_path / "train/a/0.png"), str(tmp_path / "train/b/2.jpg")}
    assert found.take(np.array([0])).skipped == {}


@pytest.mark.parametrize(
    ("more", "split", "words"),
    [
        ({"train/b/0.png": gray(1, 9, 7)}, "train", ["b/0.png is 7 x 9 gray", "a/1.png is 8 x 9 gray", "resize"]),
        ({"train/b/0.png": png(draw(9, 8, 3))}, "train", ["b/0.png is 8 x 9 colour", "a/1.png is 8 x 9 gray"]),
        ({"test/c/1.png": gray(1)}, "test", ["test/c is no class", "a, b"]),  # unknown to training
        ({"train/c/notes.txt": b""}, "train", ["train/c: no picture"]),  # an empty class
        ({"test/b/1.png": b"nothing"}, "test", ["no picture could be read", "1 skipped"]),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path, more, split, words):
    write_folders(tmp_path, FOLDERS | more)
    with pytest.raises(DataError) as error:
        load_image_set("folder", tmp_path, split)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("files", "split", "words"),
    [
        ({}, "train", ["train has 0 class folders"]),
        ({"train/a/1.png": gray(1)}, "train", ["train has 1 class folders"]),
        ({"train/a/1.png": gray(1), "train/b/1.png": gray(1)}, "test", ["test has no class folders"]),
    ],
)
def test_class_folders_that_lack_are_named(tmp_path, files, split, words):
    write_folders(tmp_path, files)
    with pytest.raises(DataError) as error:
        load_image_set("folder", tmp_path, split)
    for word in [str(tmp_path), *words]:
        assert word in str(error.value)


# All of them


def test_the_digits_are_split_by_class_without_overlap():
    train, test = (load_image_set("digits", None, split) for split in ("train", "test"))
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    assert len(train) + len(test) == 1797
    for label in range(10):
        here, there = int((train.labels == label).sum()), int((test.labels == label).sum())
        assert there == (here + there) // 5
    assert {int(value) for value in np.unique(train.images)} <= {round(v * 255 / 16) for v in range(17)}
    assert train.images.max() == 255
    assert np.array_equal(train.images, load_image_set("digits", None, "train").images)
    # The set ends with classes in turn: a test image is a later one than any training image of its class.
    assert train.labels[:10].tolist() == list(range(10))


@pytest.mark.parametrize("layout", sorted(SOURCES))
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_that_is_not_there_says_where_to_get_it(tmp_path, layout, split):
    with pytest.raises(DataError) as error:
        load_image_set(layout, tmp_path / "nowhere", split)
    source = SOURCES[layout]
    for word in (str(tmp_path / "nowhere"), source.home, source.terms):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("layout", "given", "split", "words"),
    [
        ("imagenet", True, "train", ["'imagenet'", "cifar10, digits, fashion-mnist, folder, mnist, svhn"]),
        ("mnist", True, "val", ["'val'", "train, test"]),
        ("mnist", False, "train", ["'mnist'", "digits"]),  # no folder
        ("digits", True, "train", ["reads no folder"]),  # a folder that nobody would read
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, layout, given, split, words):
    with pytest.raises(ConfigError) as error:
        load_image_set(layout, tmp_path if given else None, split)
    for word in words:
        assert word in str(error.value)


def test_every_published_layout_has_a_source():
    assert set(SOURCES) | {"folder", *BUNDLED} == set(LAYOUTS)
    assert len(FASHION) == len(CIFAR10) == 10


def test_take_gives_the_images_in_the_order_asked_for_and_copies_them(tmp_path):
    write_idx(tmp_path)
    whole = load_image_set("mnist", tmp_path, "train")
    part = whole.take(np.array([6, 1]))
    assert part.labels.tolist() == [3, 0]
    assert np.array_equal(part.images[:, 0], PIXELS[[6, 1]])
    assert (part.name, part.classes) == (whole.name, whole.classes)
    part.images[:] = 0
    assert np.array_equal(whole.images[:, 0], PIXELS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 8), (28, 28)),  # scikit-learn's digits
        ((28, 28), (28, 28)),  # MNIST: as it is
        ((32, 32), (32, 32)),  # larger: as it is
        ((14, 20), (28, 40)),  # the shorter side decides
        ((40, 27), (41, 28)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_only_small_images_are_enlarged(before, after, channels):
    images = draw(2, channels, *before)
    big = resized(images)
    assert big.shape == (2, channels, *after)
    assert big.dtype == np.uint8
    if before == after:
        assert big is images


def test_enlarging_is_bilinear_with_pixel_centres():
    ramp = np.tile(np.array([0, 60, 120, 180], dtype=np.uint8), (2, 3, 4, 1))
    ramp[1, 2] = 7
    big = resized(ramp, side=8)
    assert big[0, 0, 0].tolist() == [0, 15, 45, 75, 105, 135, 165, 180]
    assert (big[1, 2] == 7).all()
