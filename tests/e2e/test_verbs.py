"""Every verb as a user starts it: through the console entry, on a temporary folder."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veilmark.audit import audits
from veilmark.cli import main
from veilmark.faces.datasets import load_faces
from veilmark.faces.images import read_image, write_png
from veilmark.faces.synthetic import render_face
from veilmark.federation import first_look
from veilmark.landmarks.formats import write_points_csv
from veilmark.sht.fptn import FPTN


@pytest.fixture
def verb(monkeypatch, capsys):
    """Runs ``veilmark ...`` in this process; gives the exit code and what a person would read."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["veilmark", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, " ".join((out + err).split())

    return run


@pytest.fixture
def faces_folder(tmp_path):
    """Rendered faces that fill their pictures, one broken file, one that is no picture."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["a.png", "more/b.png"]):
        write_png(folder / name, render_face(np.random.default_rng(number), 96).image)
    return folder


TINY = [
    "network.size=64", "network.structure_widths=[16,32,32]", "network.detail_widths=[16,32]", "schedule.epochs=1",
    "schedule.batch=2", "validate_sizes=[16,64]", "schedule.precision=32-true",
]  # fmt: skip


def settings(*extra):
    return [part for s in (*TINY, *extra) for part in ("--set", s)]


def test_help_teaches(verb):
    code, text = verb("--help")
    assert code == 0
    for name in ("demo", "detect", "train", "evaluate", "transfer"):
        assert name in text
        code, help_text = verb(name, "--help")
        assert code == 0
        assert f"Example: veilmark {name}" in help_text
    # Of arguments and of what stands in angle brackets too: pairs of releases lose one or the other.
    code, help_text = verb("federate", "--help")
    assert "A packaged recipe, e.g. ppidsg-mnist" in help_text.replace(" │ │ ", " ")
    assert "runs/RECIPE-METHOD" in help_text.replace("- ", "-")
    assert verb("--version")[1] == __import__("veilmark").__version__


def test_train_then_evaluate_then_detect(verb, synthetic_ytf68, faces_folder, tmp_path):
    run = tmp_path / "run"
    data = ("--data", synthetic_ytf68, "--cache", tmp_path / "cache")
    code, text = verb("train", "dhln-ytf68", *data, "--out", run, *settings())
    assert code == 0, text
    assert "weights:" in text
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "checkpoints/last.safetensors"):
        assert (run / name).exists(), name
    weights, scored = run / "weights", tmp_path / "scored"
    sizes = ("--sizes", "16,32,64")
    code, text = verb("evaluate", *data, "--split", "select", "--weights", weights, *sizes, "--out", scored)
    assert code == 0, text
    metrics = json.loads((scored / "metrics.json").read_text())
    rows = {(r["method"], r["box"], r["size"]): r for r in metrics["landmarks"] + metrics["mean_shape"]}
    assert set(rows) == {
        (m, b, s)
        for m, b in [("dhln", "annotated"), ("mean shape", "annotated"), ("dhln", "finder")]
        for s in (16, 32, 64)
    }
    row = rows["dhln", "annotated", 16]
    assert {"n", "nme", "nme_median", "fr10", "auc10", "calibration"} <= set(row)
    assert row["n"] == 4
    assert rows["mean shape", "annotated", 16]["nme"] == pytest.approx(rows["mean shape", "annotated", 64]["nme"])
    pictures = metrics["hallucination"]
    assert [p["size"] for p in pictures] == [16, 32]
    wanted = {"psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "bicubic_psnr_rgb", "bicubic_ssim_rgb"}
    assert wanted <= set(pictures[0])
    assert "inter-ocular" in metrics["protocol"]["normalisation"]
    for name in ("report.html", "faces.csv", "nme_by_size.png", "ced.png", "faces.png"):
        assert (scored / name).exists(), name
    code, text = verb("detect", faces_folder, "--finder", "none", "--weights", weights, "--min-trust", 0,
                      "--out", tmp_path / "found", "--draw", "--hallucinate")  # fmt: skip
    assert code == 0, text
    found = json.loads((tmp_path / "found" / "landmarks.json").read_text())
    assert len(found["images"]) == 2
    assert (tmp_path / "found" / "overlays" / "more" / "b.png").exists()
    assert read_image(tmp_path / "found" / "faces" / "a.png").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("format", "name"),
    [("json", "landmarks.json"), ("csv", "landmarks.csv"), ("pts", "pts/a.pts"), ("coco", "coco.json")],
)
def test_detect_writes_every_format(verb, faces_folder, tiny_weights, tmp_path, format, name):
    code, text = verb("detect", faces_folder, "--finder", "none", "--weights", tiny_weights, "--format", format,
                      "--min-trust", 0, "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, text
    assert (tmp_path / "out" / name).stat().st_size > 0


def test_one_bad_picture_stops_nothing(verb, faces_folder, tiny_weights, tmp_path):
    (faces_folder / "text.jpg").write_text("not a picture")
    whole = faces_folder / "whole.jpg"
    Image.fromarray(read_image(faces_folder / "a.png")).save(whole)
    (faces_folder / "short.jpg").write_bytes(whole.read_bytes()[:-900])
    Image.new("L", (20_000, 10_000)).save(faces_folder / "bomb.png")
    code, text = verb("detect", faces_folder, tmp_path / "missing.jpg", "--finder", "none", "--weights", tiny_weights,
                      "--min-trust", 0, "--out", tmp_path / "out")  # fmt: skip
    assert code == 1
    for words in ("text.jpg: not a picture", "short.jpg: truncated", "bomb.png: by its header", "missing.jpg: no such"):
        assert words in text, words
    assert "3 faces in 3 pictures" in text
    assert "Traceback" not in text


def test_a_face_under_8_px_is_named_and_the_others_are_done(verb, faces_folder, tiny_weights, tmp_path):
    write_png(faces_folder / "dot.png", np.full((6, 6, 3), 90, dtype=np.uint8))
    code, text = verb("detect", faces_folder, "--finder", "none", "--weights", tiny_weights,
                      "--min-trust", 0, "--out", tmp_path / "out")  # fmt: skip
    assert code == 1
    assert "dot.png: face box (0.7, 0.7, 5.3, 5.3) is under 8 px" in text
    assert "2 faces in 2 pictures" in text
    assert "Traceback" not in text


def test_a_picture_without_a_face_is_said(verb, tiny_weights, tmp_path):
    write_png(tmp_path / "sky.png", np.full((80, 80, 3), 200, dtype=np.uint8))
    code, text = verb("detect", tmp_path / "sky.png", "--weights", tiny_weights, "--out", tmp_path / "out")
    assert code == 2
    assert "no face: sky.png" in text


def test_an_empty_folder_is_said(verb, tiny_weights, tmp_path):
    (tmp_path / "empty").mkdir()
    code, text = verb("detect", tmp_path / "empty", "--weights", tiny_weights, "--out", tmp_path / "out")
    assert code == 1
    assert "no picture in this folder" in text


def test_a_video_gives_one_line_a_frame(verb, tiny_weights, tmp_path):
    pytest.importorskip("av", reason="PyAV is the extra `video`; without it there is no video to test")
    from veilmark.faces.video import VideoWriter

    face = render_face(np.random.default_rng(0), 96).image
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        for shift in range(5):
            writer.write(np.roll(face, shift, axis=1))
    code, text = verb("detect", tmp_path / "clip.mp4", "--finder", "none", "--weights", tiny_weights,
                      "--min-trust", 0, "--draw", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, text
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
    assert (tmp_path / "out" / "overlays" / "clip.mp4").stat().st_size > 0


@pytest.fixture(scope="module")
def tiny_transfer(tmp_path_factory):
    """A folder with the weights of a tiny, untrained pose transfer network."""
    folder = tmp_path_factory.mktemp("transfer")
    FPTN(size=64, channels=16, blocks=1, painter_width=16).save_pretrained(folder)
    return folder


def test_transfer_paints_and_says_what_it_is(verb, faces_folder, tiny_weights, tiny_transfer, tmp_path):
    inputs = (faces_folder / "a.png", faces_folder / "more" / "b.png")
    networks = ("--weights", tiny_weights, "--transfer-weights", tiny_transfer)
    code, text = verb("transfer", *inputs, "--out", tmp_path / "c.png", *networks, "--finder", "none", "--sheet")
    assert code == 0, text
    assert "no evidence" in text
    assert "a.png: trust" in text
    assert read_image(tmp_path / "c.png").shape == (64, 64, 3)
    assert read_image(tmp_path / "c-sheet.png").shape == (64, 256, 3)
    assert "no evidence" in verb("transfer", "--help")[1]


@pytest.mark.parametrize(
    ("a", "out", "more", "words"),
    [
        ("sky.png", "c.png", (), "sky.png: no face found; give another picture, or --finder none"),
        ("text.png", "c.png", (), "text.png: not a picture"),
        ("missing.png", "c.png", (), "missing.png: no such file"),
        ("sky.png", "sky.png", (), "sky.png is one of the input pictures"),
        ("sky.png", "nowhere/c.png", (), "does not exist; make it first"),
        ("sky.png", "c.png", ("--transfer-weights", "fptn-none"), "no weights 'fptn-none'"),
        ("sky.png", "c.png", ("--weights", "TRANSFER"), "is not an option of DHLN"),
    ],
)
def test_transfer_refuses(verb, tiny_weights, tiny_transfer, tmp_path, a, out, more, words):
    write_png(tmp_path / "sky.png", np.full((80, 80, 3), 200, dtype=np.uint8))
    (tmp_path / "text.png").write_text("not a picture")
    before = (tmp_path / "sky.png").read_bytes()
    networks = {"--weights": tiny_weights, "--transfer-weights": tiny_transfer}
    networks |= {more[i]: tiny_transfer if more[i + 1] == "TRANSFER" else more[i + 1] for i in range(0, len(more), 2)}
    options = [part for pair in networks.items() for part in pair]
    code, text = verb("transfer", tmp_path / a, tmp_path / "sky.png", "--out", tmp_path / out, *options)
    assert code == 1
    assert words in text
    assert "Traceback" not in text
    assert not (tmp_path / "c.png").exists()
    assert (tmp_path / "sky.png").read_bytes() == before


def test_predictions_of_any_method_are_scored(verb, synthetic_ytf68, tiny_weights, tmp_path):
    faces = load_faces("ytf68", synthetic_ytf68, "val").labelled
    eyes = (36, 45)
    moved = {}
    for face in faces:
        inter_ocular = np.linalg.norm(face.points[eyes[0]] - face.points[eyes[1]])
        moved[face.name] = face.points + np.array([0.05 * inter_ocular, 0])
    write_points_csv(tmp_path / "mine.csv", moved)
    common = ("evaluate", "--data", synthetic_ytf68, "--split", "val", "--weights", tiny_weights)
    code, text = verb(*common, "--predictions", tmp_path / "mine.csv", "--sizes", "32", "--out", tmp_path / "out")
    assert code == 0, text
    row = json.loads((tmp_path / "out" / "metrics.json").read_text())["landmarks"][0]
    assert (row["method"], row["box"], row["size"]) == ("mine", "given", 32)
    assert row["nme"] == pytest.approx(5.0, abs=0.02)
    moved.popitem()
    write_points_csv(tmp_path / "less.csv", moved)
    code, text = verb(*common, "--predictions", tmp_path / "less.csv", "--out", tmp_path / "out")
    assert code == 1
    assert "has no points for 1 of 4 faces" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "dhln-ytf68", "--set", "schedule.epoch=3"), "unknown key 'schedule.epoch'; allowed here: batch"),
        (("train", "dhln-ytf68", "--set", "schedule.lr=-1"), "schedule.lr = -1"),
        (("train", "dhln-ytf99"), "unknown recipe 'dhln-ytf99'; packaged: dhln-ytf68"),
        (("evaluate", "--sizes", "16,400"), "400 is out of range; allowed: 8 to 128"),
        (("evaluate", "--sizes", "small"), "expected whole numbers"),
        (
            ("evaluate", "--layout", "ytf69"),
            "unknown layout 'ytf69'; known: 300w, aflw, celeba, cofw, folder, helen, wflw, ytf68",
        ),
        (("evaluate", "--split", "test"), "test.csv does not exist; splits found there: train, val"),
        (("evaluate", "--split", "val", "--finder", "yunet"), "--finder-weights"),
    ],
)
def test_bad_input_is_refused_before_any_work(verb, synthetic_ytf68, tiny_weights, tmp_path, arguments, words):
    where = ["--data", synthetic_ytf68, "--out", tmp_path / "run"]
    if arguments[0] == "evaluate":
        where += ["--weights", tiny_weights]
    code, text = verb(*arguments, *where)
    assert code == 1
    assert words in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("[!.]*"))


def test_demo_shows_every_face(verb, tmp_path):
    code, text = verb("demo", "--out", tmp_path / "demo")
    assert code == 0, text
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert [row["size"] for row in summary["faces"][0]["rows"]] == [16, 24, 32, 64, 128]
    assert len(summary["faces"]) == 5
    # The packaged network must know a face when it sees one, and place it alike at all sizes.
    rows = summary["faces"][0]["rows"]
    assert all(row["trust"] > 0.5 for row in rows)
    assert all(row["shift_percent"] < 12 for row in rows[:-1])
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "veilmark.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __import__("veilmark").__version__


SMALL = [
    part
    for change in ("data.per_client=6", "data.test=20", "data.head_widths=[16,8]", "training.batch=3")
    for part in ("--set", change)
]


def test_federate_compare_and_audit(verb, tmp_path, monkeypatch):
    quick = ("label counts", "key out of the generator")
    monkeypatch.setattr(audits, "ATTACKS", {name: audits.ATTACKS[name] for name in quick})
    monkeypatch.setattr(audits.ATTACKS["key out of the generator"], "steps", 2)
    runs = []
    for method in ("none", "ppidsg"):
        out = tmp_path / method
        code, text = verb(
            "federate",
            "ppidsg-digits",
            "--clients",
            2,
            "--rounds",
            1,
            "--out",
            out,
            *SMALL,
            "--set",
            f"method={method}",
        )
        assert code == 0, text
        assert "round 1: accuracy" in text
        assert (out / "report.html").exists()
        assert (out / "transcript/chain.jsonl").exists()
        runs.append(out)
    code, text = verb("compare", *runs, "--out", tmp_path / "both")
    assert code == 0
    assert "ppidsg" in text
    assert (tmp_path / "both/report.html").exists()
    code, text = verb("audit", runs[1])
    assert code == 0, text
    assert "key out of the generator" in text
    assert "label counts does not apply: the last layer does not travel" in text
    assert (runs[1] / "audit/report.html").exists()
    code, text = verb("audit", runs[0], "--budget", 0, "--out", tmp_path / "nothing")
    assert code == 0, text
    assert "the budget was spent: label counts" in text


def test_a_first_look_compares_three_methods(verb, tmp_path):
    code, text = verb("federate", "--clients", 2, "--rounds", 1, "--out", tmp_path / "look", *SMALL)
    assert code == 0, text
    page = (tmp_path / "look/report.html").read_text()
    for method in ("none", "local", "ppidsg"):
        assert (tmp_path / "look" / method / "report.html").exists()
        assert method in page


def test_an_audit_without_a_run_plays_averaging_alone(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("clients=2", "rounds=1", *SMALL[1::2])
    monkeypatch.setitem(first_look.LOOKS, "classify", replace(first_look.LOOKS["classify"], settings=small))
    code, text = verb("audit", "--budget", 0)
    assert code == 0, text
    assert "no run below runs/" in text
    assert [path.name for path in Path("runs/federate").iterdir() if (path / "summary.json").exists()] == ["none"]
    assert Path("runs/federate/none/audit/report.html").exists()
    # Now there is one.
    code, text = verb("audit", "--budget", 0)
    assert code == 0, text
    assert "no run below" not in text


def test_a_first_look_takes_no_method_and_other_secrets(verb, tmp_path):
    code, text = verb("federate", "--set", "method=fedcg", "--out", tmp_path / "look")
    assert code == 1
    assert "a first look plays the methods none, local, ppidsg" in text
    assert not (tmp_path / "look").exists()
    small = ("--clients", 2, "--rounds", 1, *SMALL)
    code, text = verb("federate", *small, "--out", tmp_path / "look", "--secrets", tmp_path / "mine")
    assert code == 0, text
    assert (tmp_path / "mine/federation.key").exists()
    assert not (tmp_path / "look/secrets").exists()


def test_a_first_look_at_landmarks_is_audited_and_a_detector_goes_home(verb, tmp_path, synthetic_ytf68, monkeypatch):
    monkeypatch.setattr(
        audits,
        "FACE_ATTACKS",
        {name: audits.FACE_ATTACKS[name] for name in ("linking of messages", "owner of a person")},
    )
    small = {
        "data.people": "2",
        "data.frames": "2",
        "data.test_people": "4",
        "data.network": "{size: 32, trunk_stride: 4, map_stride: 2, structure_widths: [16, 16], detail_widths: [16, 16], "
        "painter_width: 16}",
    }
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    look = tmp_path / "look"
    code, text = verb("federate", "--task", "landmarks", "--clients", 2, "--rounds", 2, "--out", look, *settings)
    assert code == 0, text
    for method in ("none", "local", "keyed"):
        assert (look / method / "audit/report.html").exists()
    page = (look / "report.html").read_text()
    assert "What leaked" in page
    assert "Nothing travelled" in page
    code, text = verb("export-client", look / "keyed", "--client", 1, "--out", tmp_path / "weights")
    assert code == 0, text
    write_png(tmp_path / "face.png", render_face(np.random.default_rng(0), 96).image)
    code, text = verb(
        "detect", tmp_path / "face.png", "--weights", tmp_path / "weights", "--finder", "none", "--min-trust", 0,
        "--out", tmp_path / "found",
    )  # fmt: skip
    assert code == 0, text
    for method in ("none", "keyed"):
        weights = tmp_path / f"weights-{method}"
        code, text = verb("export-client", look / method, "--client", 0, "--out", weights)
        assert code == 0, text
        code, text = verb(
            "evaluate", "--data", synthetic_ytf68, "--split", "val", "--weights", weights, "--sizes", "16,32",
            "--out", tmp_path / f"scored-{method}",
        )  # fmt: skip
        assert code == 0, text
        scored = json.loads((tmp_path / f"scored-{method}/metrics.json").read_text())
        assert [row["size"] for row in scored["hallucination"]] == [16]
    code, text = verb("export-client", look / "keyed", "--client", 9)
    assert code == 1
    assert "the run has clients 0 to 1" in text


def test_a_setting_of_the_last_method_is_refused_before_the_first_is_played(verb, tmp_path):
    small = ["data.people=2", "data.frames=2", "data.test_people=2", 'options.keyed.share=["mouth"]']
    settings = [part for setting in small for part in ("--set", setting)]
    code, text = verb("federate", "--task", "landmarks", "--clients", 2, "--out", tmp_path / "look", *settings)
    assert code == 1
    assert "no tensor 'mouth'" in text
    assert not (tmp_path / "look").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["federate", "ppidsg-digits", "--task", "landmarks"], "--task is for the first look"),
        (["export-client", "no-such-run", "--client", "0"], "no-such-run is no run folder"),
        (["federate", "dhln-ytf68"], "no federation but a recipe of veilmark train"),
        (["federate", "ppidsg-mist"], "unknown recipe 'ppidsg-mist'"),
        (["federate", "ppidsg-mnist"], "read from a folder"),
        (["federate", "--data", "mnist"], "--data needs a recipe, e.g. veilmark federate ppidsg-mnist"),
        (["federate", "--task", "landmarks", "--data", "x"], "e.g. veilmark federate landmarks-ytf68 --data x"),
        (["federate", "--task", "landmarks", "--set", "data.layout=ytf68"], "a first look plays synthetic, not ytf68"),
        (["federate", "ppidsg-digits", "--set", "method=fedavg"], "known: none, local"),
        (
            ["federate", "ppidsg-digits", "--set", "task=landmarks"],
            "error: method ppidsg does not learn the task landmarks; these do: none, local, dpsgd",
        ),
        (
            ["federate", "landmarks-synthetic", "--set", "task=classify", "--set", "method=keyed"],
            "error: method keyed does not learn the task classify; these do: none, local, ppidsg, ats",
        ),
        (["compare", "no-such-run"], "no-such-run/summary.json"),
        (["audit", "no-such-run"], "no-such-run/transcript"),
        (["train", "ppidsg-mnist", "--data", "."], "veilmark federate"),
    ],
)
def test_bad_federations_are_refused(verb, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, text = verb(*arguments)
    assert code == 1
    assert words in text
