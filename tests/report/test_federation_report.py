"""Reports of federations: figures are those of the files, and bad files are named."""

import json
import re

import numpy as np
import pytest

from veilmark.faces.images import write_png
from veilmark.report.federation import compare_runs, comparison_table, write_comparison, write_federation_report
from veilmark.run.errors import DataError


def accuracy(mean):
    return {"mean": mean, "min": mean - 3, "max": mean + 2, "per_client": [mean], "own_distribution": mean + 1}


def a_run(path, method="ppidsg", rounds=3, mean=71.25, bytes_up=7_840_000, **changes):
    path.mkdir(parents=True)
    lines = [
        {
            "step": step,
            "accuracy": accuracy(mean - 5 * (rounds - step)),
            "losses": {"class": 2.0 / step, "accuracy": 10.0},
            "bytes_up": 2 * bytes_up,
            "bytes_down": 2 * bytes_up,
            "seconds": 4.5,
        }
        for step in range(1, rounds + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "title": f"{method}: classify on digits",
        "created": "2026-11-24T07:25:00+00:00",
        "method": method,
        "task": "classify",
        "dataset": "digits",
        "partition": "iid",
        "alpha": None,
        "clients": 2,
        "rounds": rounds,
        "seed": 0,
        "engine": "in-process",
        "options": {"head": "key", "generator_lr": 0.001},
        "accuracy": accuracy(mean),
        "bytes_up_per_client_round": bytes_up,
        "bytes_down_per_client_round": bytes_up,
        "seconds": 13.5,
        "peak_rss_mb": 612.0,
        "test_images": 100,
        "classes": ["0", "1", "2"],
        "counts": [[5, 3, 2], [1, 8, 1]],
        "samples": ["x", "scramble(x)", "G(x)"],
        "refused": [],
    }
    (path / "summary.json").write_text(json.dumps(summary | changes))
    (path / "config.yaml").write_text("method: ppidsg\n")
    write_png(path / "samples.png", np.zeros((9, 12, 3), dtype=np.uint8))
    return path


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


def test_a_report_shows_the_figures_of_its_files(tmp_path):
    page = write_federation_report(a_run(tmp_path / "run"))
    text = text_of(page)
    for words in ("71.2 %", "68.2 to 73.2", "7.8 MB", "612 MB", "15.7", "method: ppidsg", "not privacy"):
        assert words in text, words
    assert "opens the key" in text
    assert page.read_text().count("<img") == 4
    assert "://" not in re.sub(r"data:[^\"]+", "", page.read_text())


def test_a_method_that_leaves_pictures_alone_has_no_sheet(tmp_path):
    text = text_of(write_federation_report(a_run(tmp_path / "run", "none", samples=["x"])))
    assert "opens the key" not in text
    assert "What the method makes" not in text


def test_refused_updates_are_listed_and_words_from_files_are_escaped(tmp_path):
    run = a_run(tmp_path / "run", refused=["round 1, client 1: <script>alert(1)</script>"])
    page = write_federation_report(run).read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_runs_side_by_side(tmp_path):
    runs = [a_run(tmp_path / "a", "none", mean=90), a_run(tmp_path / "b", "local", mean=80, bytes_up=0)]
    comparison = compare_runs(runs)
    assert [(row.name, row.mean, row.megabytes_up) for row in comparison.rows] == [("a", 90, 7.84), ("b", 80, 0)]
    assert comparison.warnings == []
    assert comparison_table(comparison).row_count == 2
    page = write_comparison(runs, tmp_path / "out")
    assert "90.0" in text_of(page)
    assert json.loads((tmp_path / "out/comparison.json").read_text())["rows"][1]["method"] == "local"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "not the same seed (a: 0, b: 1)"),
        ({"dataset": "mnist"}, "not the same dataset"),
        ({"clients": 5}, "not the same clients"),
        ({"partition": "dirichlet", "alpha": 0.5}, "not the same partition"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(tmp_path, changes, words):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", **changes)]
    assert any(words in warning for warning in compare_runs(runs).warnings)


def test_runs_of_different_length_and_one_run_alone_can_be_drawn(tmp_path):
    runs = [a_run(tmp_path / "a", rounds=2), a_run(tmp_path / "b", rounds=5)]
    assert "Careful" in text_of(write_comparison(runs, tmp_path / "out"))
    assert "Careful" not in text_of(write_comparison(runs[:1], tmp_path / "one"))


def test_options_that_differ_are_named(tmp_path):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", options={"head": "kept", "generator_lr": 0.001})]
    assert [row.options for row in compare_runs(runs).rows] == ["head=key", "head=kept"]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    run = a_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "acc')
    assert "76.2" not in text_of(write_federation_report(run))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("summary.json", None, "summary.json"),
        ("summary.json", "{", "is not JSON"),
        ("summary.json", "{}", "title"),
        ("metrics.jsonl", None, "metrics.jsonl"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n', "is .* the folder of a federation"),
    ],
)
def test_missing_and_damaged_files_are_named(tmp_path, file, content, words):
    run = a_run(tmp_path / "run")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(DataError, match=words):
        write_federation_report(run)
