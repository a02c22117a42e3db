import csv

import numpy as np

from veilmark.report.evaluation_plots import read_faces_csv


def write(path, rows):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["method", "box", "size", "face", "nme"])
        table.writerows(rows)
    return path


def test_curves_are_read_by_size_and_box_without_the_floor(tmp_path):
    rows = [
        ("dhln", "annotated", 16, "a", 5.0),
        ("dhln", "annotated", 16, "b", 6.5),
        ("dhln", "finder", 16, "a", 7.0),
        ("mean shape", "annotated", 16, "a", 20.0),
    ]
    curves = read_faces_csv(write(tmp_path / "faces.csv", rows))
    assert list(curves) == ["16 px, annotated box", "16 px, finder box"]
    np.testing.assert_allclose(curves["16 px, annotated box"], [5.0, 6.5])


def test_of_many_sizes_three_are_kept(tmp_path):
    rows = [("dhln", "annotated", size, "a", 5.0) for size in (16, 24, 32, 48, 64, 128)]
    curves = read_faces_csv(write(tmp_path / "faces.csv", rows))
    assert [label.split()[0] for label in curves] == ["16", "32", "128"]


def test_nothing_but_the_floor_makes_no_curve(tmp_path):
    assert read_faces_csv(write(tmp_path / "faces.csv", [("mean shape", "annotated", 16, "a", 20.0)])) == {}
