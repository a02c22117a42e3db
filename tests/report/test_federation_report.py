"""Reports of federations: figures are those of the files, and bad files are named."""

import json
import re

import numpy as np
import pytest

from veilmark.faces.images import write_png
from veilmark.report.federation import compare_runs, comparison_table, write_comparison, write_federation_report
from veilmark.run.errors import DataError

DATA = {"layout": "digits", "per_client": 100, "test": 100, "partition": "iid", "alpha": None, "head_widths": [16, 8]}
TRAINING = {"batch": 64, "epochs": 1, "local_steps": 0, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9}


def accuracy(mean):
    each = [mean - 3, mean + 2]
    return {"mean": mean, "min": min(each), "max": max(each), "per_client": each, "own_distribution": mean + 1}


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
        "data": DATA,
        "training": TRAINING,
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


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("data", "per_client", 200, "(a: 100, b: 200)"),
        ("data", "head_widths", [32, 8], "(a: [16, 8], b: [32, 8])"),
        ("data", "test_part", 1, "(a: not said, b: 1)"),
        ("training", "lr", 0.1, "(a: 0.01, b: 0.1)"),
        ("training", "epochs", 2, "(a: 1, b: 2)"),
        ("training", "batch", 32, "(a: 64, b: 32)"),
        ("training", "local_steps", 5, "(a: 0, b: 5)"),
        ("training", "momentum", 0.5, "(a: 0.9, b: 0.5)"),
        ("training", "optimizer", "adamw", "(a: sgd, b: adamw)"),
    ],
)
def test_settings_that_differ_are_named_with_their_values(tmp_path, section, key, value, said):
    changed = {section: {"data": DATA, "training": TRAINING}[section] | {key: value}}
    runs = [a_run(tmp_path / "a", "none"), a_run(tmp_path / "b", "local", **changed)]
    comparison = compare_runs(runs)
    assert comparison.warnings == [f"not the same {section}.{key} {said}: figures may differ by that alone"]
    assert comparison.rows[1].options == f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
    assert f"{section}.{key}" in text_of(write_comparison(runs, tmp_path / "out"))


def test_a_partition_is_not_said_twice(tmp_path):
    unlike = {"partition": "dirichlet", "alpha": 0.5}
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", **unlike, data=DATA | unlike)]
    assert [warning.split(" (")[0] for warning in compare_runs(runs).warnings] == [
        "not the same partition",
        "not the same alpha",
    ]


def test_older_runs_are_read_and_said_to_be_silent(tmp_path):
    old, new = a_run(tmp_path / "old"), a_run(tmp_path / "new")
    summary = json.loads((old / "summary.json").read_text())
    (old / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k not in ("data", "training")}))
    assert compare_runs([old]).warnings == []
    (warning,) = compare_runs([old, new]).warnings
    assert warning.startswith("summary.json of old is of an older version and says nothing of data and training")
    assert [row.options for row in compare_runs([old, new]).rows] == ["", ""]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [a_run(tmp_path / "a/none"), a_run(tmp_path / "b/none", seed=1)]
    assert compare_runs(runs).warnings == [
        f"not the same seed ({runs[0]}: 0, {runs[1]}: 1): figures cannot be compared"
    ]


def test_a_round_in_which_a_client_was_not_scored_says_so(tmp_path):
    run = a_run(tmp_path / "run")
    assert "Clients scored" not in text_of(write_federation_report(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[1]["accuracy"]["per_client"] = [None, 70.0]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_federation_report(run).read_text()
    assert re.findall(r'data-label="Clients scored"[^>]*>\s*(\d)', page) == ["2", "1", "2"]


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
