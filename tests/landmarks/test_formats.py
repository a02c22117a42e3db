import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from veilmark.landmarks import formats, reading
from veilmark.landmarks.formats import FORMATS, PointsError, Record
from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import SCHEMES, Scheme

COORDINATE = st.floats(-5000, 5000, width=32)


def faces(n, seed=0):
    rng = np.random.default_rng(seed)
    return Landmarks(
        rng.uniform(-5, 200, (n, 68, 2)),
        rng.uniform(0, 9, (n, 68)),
        rng.uniform(0, 1, n),
        rng.uniform([0, 0, 60, 60], [50, 50, 110, 110], (n, 4)),
    )


def record(file="a.jpg", n=1, seed=0, frame=None):
    return Record(file, 320, 240, faces(n, seed), frame)


def same(a, b):
    assert (a.file, a.width, a.height, a.frame) == (b.file, b.width, b.height, b.frame)
    for name in ("points", "expected_error", "trust", "boxes"):
        np.testing.assert_array_equal(getattr(a.landmarks, name), getattr(b.landmarks, name))


def header(k=68):
    return ["file", *(f"{axis}{i}" for i in range(k) for axis in "xy")]


def table(path, *rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_reads_back_to_the_last_bit(tmp_path):
    records = [record(n=2), record("sub/b,ü.jpg", n=0), record("c.jpg", seed=3)]
    formats.write_json(tmp_path / "out.json", records)
    read = reading.read_json(tmp_path / "out.json")
    assert len(read) == 3
    for a, b in zip(read, records, strict=True):
        same(a, b)


def test_json_states_its_coordinates_and_scheme(tmp_path):
    formats.write_json(tmp_path / "out.json", [record()])
    written = json.loads((tmp_path / "out.json").read_text())
    assert "top-left corner" in written["coordinates"]
    (image,) = written["images"]
    assert image["scheme"] == "ibug68"
    assert set(image["faces"][0]) == {"points", "expected_error", "trust", "box"}


def test_numbers_are_written_in_their_shortest_form(tmp_path):
    tenths = Landmarks(np.full((1, 68, 2), 12.3), np.full((1, 68), 0.1), [0.7], [[0, 0, 9.9, 9]])
    formats.write_json(tmp_path / "out.json", [Record("a.jpg", 9, 9, tenths)])
    assert '"expected_error": [0.1, 0.1' in (tmp_path / "out.json").read_text()


def test_json_lines_hold_one_self_contained_frame_each(tmp_path):
    records = [record("clip.mp4", n=i % 2, seed=i, frame=i) for i in range(4)]
    path = tmp_path / "clip.jsonl"
    with formats.json_lines(path) as write:
        for one in records:
            write(one)
        assert not path.exists()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3]
    assert all("coordinates" in line and "scheme" in line for line in lines)
    for a, b in zip(reading.read_json(path), records, strict=True):
        same(a, b)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "clip.jsonl"
    path.write_text("old")

    def interrupted():
        with formats.json_lines(path) as write:
            write(record(frame=0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["json", "csv", "coco"])
def test_every_writer_makes_folders_and_replaces_files(name, tmp_path):
    path = tmp_path / "new" / "out"
    for n in (2, 1):
        FORMATS[name](path, [record(n=n)])
    assert list(path.parent.iterdir()) == [path]
    FORMATS[name](tmp_path / "once", [record(n=1)])
    assert path.read_text() == (tmp_path / "once").read_text()


def test_csv_has_a_row_per_face(tmp_path):
    two = record("a,b.jpg", n=2)
    formats.write_csv(tmp_path / "out.csv", [two, record("none.jpg", n=0)])
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        *["file", "face", "trust", "box_x0", "box_y0", "box_x1", "box_y1"],
        *header()[1:],
        *(f"e{i}" for i in range(68)),
    ]
    assert [(row["file"], row["face"]) for row in rows] == [("a,b.jpg", "0"), ("a,b.jpg", "1")]
    for i, row in enumerate(rows):
        assert np.float32(row["trust"]) == two.landmarks.trust[i]
        assert np.float32(row["box_y1"]) == two.landmarks.boxes[i, 3]
        assert np.float32(row["y67"]) == two.landmarks.points[i, 67, 1]
        assert np.float32(row["e5"]) == two.landmarks.expected_error[i, 5]


def test_csv_of_video_names_the_frame(tmp_path):
    formats.write_csv(tmp_path / "out.csv", [record("clip.mp4", frame=7)])
    first, second = (tmp_path / "out.csv").read_text().splitlines()
    assert first.startswith("file,frame,face,trust")
    assert second.startswith("clip.mp4,7,0,")


def test_coco_says_the_same_in_its_own_words(tmp_path):
    records = [record("a.jpg", n=0), record("b.jpg", n=2)]
    formats.write_coco(tmp_path / "out.json", records)
    coco = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "b.jpg"]
    (category,) = coco["categories"]
    assert category["keypoints"][:2] == ["jaw_0", "jaw_1"]
    assert category["keypoints"][36] == "left_eye_0"
    assert len(set(category["keypoints"])) == 68
    # 1-based: the jaw starts 1-2, the closed left eye returns from 42 to 37, the open jaw does not return.
    assert category["skeleton"][0] == [1, 2]
    assert [42, 37] in category["skeleton"]
    assert [17, 1] not in category["skeleton"]
    assert np.ptp(category["skeleton"], axis=None) == 67
    assert [a["id"] for a in coco["annotations"]] == [1, 2]
    for i, annotation in enumerate(coco["annotations"]):
        assert annotation["image_id"] == coco["images"][1]["id"]
        triples = np.reshape(annotation["keypoints"], (68, 3))
        np.testing.assert_array_equal(triples[:, :2].astype(np.float32), records[1].landmarks.points[i])
        assert set(triples[:, 2]) == {2}
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], records[1].landmarks.boxes[i], rtol=1e-6)
        assert annotation["score"] == pytest.approx(records[1].landmarks.trust[i])


def test_the_first_pixels_centre_in_pts(tmp_path):
    formats.write_pts(tmp_path / "a.pts", [[0.5, 0.5], [10, 20.25]])
    assert (tmp_path / "a.pts").read_text() == (
        "version: 1\nn_points: 2\n{\n1.000000 1.000000\n10.500000 20.750000\n}\n"
    )


@settings(max_examples=50, deadline=None)
@given(points=arrays(np.float32, st.tuples(st.integers(1, 70), st.just(2)), elements=COORDINATE))
def test_pts_round_trip(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("pts") / "a.pts"
    formats.write_pts(path, points)
    np.testing.assert_allclose(reading.read_pts(path), points, atol=6e-7)


def test_pts_as_others_write_it(tmp_path):
    path = tmp_path / "a.pts"
    path.write_bytes(b"version: 1\r\nn_points:  2\r\n{\r\n 1 1\r\n3.5\t 4e1 \r\n}\r\n\r\n")
    np.testing.assert_array_equal(reading.read_pts(path), [[0.5, 0.5], [3, 39.5]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version: 1\nn_points: 1\n1 2\n", "no points between"),
        (b"version: 1\nn_points: 1\n{\n1 2\n", "no points between"),  # cut off
        (b"version: 1\nn_points: 3\n{\n1 2\n3 4\n}\n", "n_points: 3, but 2"),
        (b"{\n1 2\n}\n", "no n_points"),
        (b"version: 1\nn_points: 2\n{\n1 2\n3 4 5\n}\n", "line 5: '3 4 5'"),
        (b"version: 1\nn_points: 2\n{\n1 2\n3 x\n}\n", "line 5: 'x'"),
        (b"version: 1\nn_points: 1\n{\nnan 2\n}\n", "line 4: 'nan'"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
    ],
)
def test_broken_pts_is_named(content, message, tmp_path):
    path = tmp_path / "a.pts"
    path.write_bytes(content)
    with pytest.raises(PointsError, match=rf"a\.pts.*{message}"):
        reading.read_pts(path)


def test_pts_folder_names(tmp_path):
    records = [
        record("x.jpg", n=2),
        record("sub/x.jpg"),
        record("/far/away.png"),
        record("../up.png"),
        record("none.jpg", n=0),
        record("clip.mp4", frame=12),
    ]
    FORMATS["pts"](tmp_path, records)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == ["away.pts", "clip_frame000012.pts", "sub/x.pts", "up.pts", "x.pts", "x_1.pts"]
    np.testing.assert_allclose(reading.read_pts(tmp_path / "x_1.pts"), records[0].landmarks.points[1], atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (record("a.jpg"), record("a.png")),
        (record("a.jpg", n=2), record("a_1.jpg")),
    ],
)
def test_pts_never_overwrites_a_face_with_another(first, second, tmp_path):
    with pytest.raises(PointsError, match=f"both {first.file} and {second.file}"):
        FORMATS["pts"](tmp_path, [first, second])
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r'[A-Za-zäß ,"\'.-]{0,6}\.jpg', fullmatch=True).map(str.strip),
        arrays(np.float64, (3, 2), elements=st.floats(-1e6, 1e6)),
        min_size=1,
        max_size=4,
    )
)
def test_points_csv_round_trip(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("csv") / "points.csv"
    formats.write_points_csv(path, points)
    read = reading.read_points_csv(path, k=3)
    assert list(read) == list(points)
    for name in points:
        np.testing.assert_array_equal(read[name], points[name])


def test_whole_pixels_stay_whole(tmp_path):
    formats.write_points_csv(tmp_path / "a.csv", {"a.jpg": np.array([[3.0, 4.5]])})
    assert (tmp_path / "a.csv").read_text() == "file,x0,y0\na.jpg,3,4.5\n"


@pytest.mark.parametrize("points", [{}, {"a": np.zeros((2, 2)), "b": np.zeros((3, 2))}])
def test_points_of_no_or_several_sizes_are_not_written(points, tmp_path):
    with pytest.raises(ValueError, match="landmarks"):
        formats.write_points_csv(tmp_path / "a.csv", points)
    assert not list(tmp_path.iterdir())


def test_columns_are_found_by_name(tmp_path):
    path = tmp_path / "a.csv"
    # A byte order mark and CRLF (spreadsheets), a column more, another order, a blank line.
    path.write_bytes("\ufeffyaw,y0,x0,file\r\n9,2,1,a.jpg\r\n\r\n8,4,3,b.jpg\r\n".encode())
    read = reading.read_points_csv(path, k=1)
    assert {name: points.tolist() for name, points in read.items()} == {"a.jpg": [[1, 2]], "b.jpg": [[3, 4]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("file,x0,y0,x1,y1\n", "no rows"),
        ("file,x0,y0,x1\na,1,2,3\n", "column 'y1' is missing"),
        ("name,x0,y0,x1,y1\na,1,2,3,4\n", "column 'file' is missing"),
        ("file,x0,y0,x1,y1,x2,y2\na,1,2,3,4,5,6\n", "more than the 2 points"),  # not silently the first 2
        ("file,x0,x0,y0,x1,y1\na,1,1,2,3,4\n", "'x0' appears twice"),
        ("file,x0,y0,x1,y1\na,1,2,3,4\nb,1,2,3\n", "row 3: 4 columns"),
        ("file,x0,y0,x1,y1\na,1,2,3,4,5\n", "row 2: 6 columns"),
        ("file,x0,y0,x1,y1\na,1,2,3,4\n\na,1,2,3,4\n", "row 4: 'a' is already named"),
        ("file,x0,y0,x1,y1\n ,1,2,3,4\n", "row 2: column 'file' is empty"),
        ("file,x0,y0,x1,y1\na,1,2,3,4\nb,1,2,three,4\n", "row 3, column 'x1': 'three' is not a finite"),
        ("file,x0,y0,x1,y1\na,1,,3,4\n", "row 2, column 'y0': ''"),
        ("file,x0,y0,x1,y1\na,1,nan,3,4\n", "row 2, column 'y0': 'nan'"),
        ("file,x0,y0,x1,y1\na,1,2,3,-inf\n", "row 2, column 'y1': '-inf'"),
        ("file,x0,y0,x1,y1\na,1_0,2,3,4\n", "row 2, column 'x0': '1_0'"),
        ('file,x0,y0,x1,y1\n"a,1,2,3,4\n', "row 2: "),  # a quote that is never closed
        ('file,x0,y0,x1,y1\n"a"b,1,2,3,4\n', "row 2: .* expected"),  # not silently 'ab'
    ],
)
def test_broken_points_csv_is_named(content, message, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(content)
    with pytest.raises(PointsError, match=rf"points\.csv.*{message}"):
        reading.read_points_csv(path, k=2)


def test_unreadable_points_csv_is_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes("file,x0,y0\nä.jpg,1,2\n".encode("latin-1"))
    with pytest.raises(PointsError, match=r"latin\.csv: byte 11 is not UTF-8"):
        reading.read_points_csv(tmp_path / "latin.csv", k=1)
    with pytest.raises(PointsError, match=r"none\.csv: cannot be read \(No such file"):
        reading.read_points_csv(tmp_path / "none.csv", k=1)


@pytest.mark.parametrize(
    ("point", "fine"),
    [
        ((0, 0), True),
        ((-100, 120), True),  # outside by exactly the picture's size
        ((200, -60), True),
        ((-100.5, 10), False),
        ((200.5, 10), False),
        ((10, 120.5), False),
        ((10, -61), False),
        ((np.nan, 10), False),
    ],
)
def test_points_far_outside_the_picture(point, fine):
    points = np.full((5, 2), 30.0)
    points[3] = point
    if fine:
        reading.check_points(points, 100, 60, "a.csv, row 4")
    else:
        with pytest.raises(PointsError, match=r"a\.csv, row 4: point 3 at \(.*100 x 60"):
            reading.check_points(points, 100, 60, "a.csv, row 4")


@pytest.mark.parametrize("name", ["out.json", "out.csv"])
def test_predictions_of_ours_take_the_most_trusted_face(name, tmp_path):
    two = record("a.jpg", n=3)
    best = int(np.argmax(two.landmarks.trust))
    assert best > 0
    FORMATS[name[4:]](tmp_path / name, [two, record("none.jpg", n=0), record("b.jpg", seed=5)])
    read = reading.read_predictions(tmp_path / name)
    assert list(read) == ["a.jpg", "b.jpg"]
    points, errors = read["a.jpg"]
    np.testing.assert_array_equal(points.astype(np.float32), two.landmarks.points[best])
    np.testing.assert_array_equal(errors.astype(np.float32), two.landmarks.expected_error[best])


def test_predictions_of_another_method_may_claim_nothing(tmp_path):
    path = table(tmp_path / "a.csv", header(2), ["a.jpg", 1, 2, 3, 4])
    points, errors = reading.read_predictions(path, k=2)["a.jpg"]
    assert points.tolist() == [[1, 2], [3, 4]]
    assert errors is None


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ([], [[], []], "row 3: 'a.jpg' is already named"),  # no trust to choose by
        (["e0"], [[1]], "column 'e1' is missing"),
        (["e0", "e1"], [[1, -2]], "row 2: column 'e1' is negative"),
        (["frame"], [[0]], "video frames"),
    ],
)
def test_unusable_prediction_tables(columns, rows, message, tmp_path):
    lines = [["a.jpg", 1, 2, 3, 4, *row] for row in rows]
    path = table(tmp_path / "a.csv", [*header(2), *columns], *lines)
    with pytest.raises(PointsError, match=message):
        reading.read_predictions(path, k=2)


@pytest.mark.parametrize(
    ("records", "k", "message"),
    [
        ([record(), record()], 68, "'a.jpg' is named by two images"),
        ([record(n=0), record()], 68, "two images"),
        ([record(frame=3)], 68, "video frames"),
        ([record()], 98, "98 points expected"),
    ],
)
def test_unusable_json_predictions(records, k, message, tmp_path):
    formats.write_json(tmp_path / "a.json", records)
    with pytest.raises(PointsError, match=message):
        reading.read_predictions(tmp_path / "a.json", k)


def _broken(**changes):
    image = {"file": "a", "width": 9, "height": 9, "scheme": "ibug68", "faces": []} | changes
    return json.dumps({"images": [{key: value for key, value in image.items() if value is not None}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not Veilmark's JSON"),
        ("[]", "not Veilmark's JSON"),
        ("{}", "not Veilmark's JSON .*images"),
        (_broken(scheme="dlib5"), "image 0: unknown landmark scheme 'dlib5'"),
        (_broken(scheme=None), "image 0: 'scheme' is missing"),
        (_broken(width="wide"), "image 0: .*wide"),
        (_broken(faces=[{"points": [], "trust": 1, "box": [0, 0, 1, 1]}]), "'expected_error' is missing"),
        (
            _broken(faces=[{"points": [[1, 2]], "trust": 1, "box": [0, 0, 1, 1], "expected_error": [1]}]),
            "shape",
        ),
        (_broken(faces=[7]), "image 0: "),
        ('{"images": [4]}', "image 0: "),
    ],
)
def test_broken_json_is_named(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(PointsError, match=rf"a\.json.*{message}"):
        reading.read_json(path)


def test_one_csv_holds_one_scheme(tmp_path, monkeypatch):
    pair = Scheme("pair", {"jaw": (0, 1)}, frozenset(), (1, 0), (0, 1), (0,), (1,))
    monkeypatch.setitem(SCHEMES, "pair", pair)
    other = Record("b.jpg", 9, 9, Landmarks.empty("pair"))
    with pytest.raises(ValueError, match="several schemes: ibug68, pair"):
        formats.write_csv(tmp_path / "a.csv", [record(), other])
