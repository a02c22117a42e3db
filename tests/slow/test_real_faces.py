"""The packaged weights on real faces of people that no training saw: the figures of the model card, again.

Needs the ``ytf68`` data: ``VEILMARK_YTF68=DIR make test-slow``.
"""

import json
import os
from pathlib import Path

import pytest

from veilmark.faces.datasets import load_faces
from veilmark.sht.evaluation import evaluate
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.protocol import prepare_faces

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("VEILMARK_YTF68")
    if not folder:
        pytest.skip("VEILMARK_YTF68 does not name the ytf68 data: the figures of the model card were NOT checked")
    return Path(folder)


def test_the_model_card_can_be_measured_again(data, tmp_path):
    faces = load_faces("ytf68", data, "report")
    cache = prepare_faces(faces.labelled, tmp_path, "report")
    sizes = (16, 32, 128)
    result = evaluate(faces, cache, Landmarker(device="cpu"), "dhln-ytf68", sizes, finder_rows=False)
    published = json.loads((RESULTS / "dhln-ytf68-report.json").read_text())
    hourglass = json.loads((RESULTS / "plain-hourglass-report.json").read_text())
    floor = {row["size"]: row["nme"] for row in hourglass["landmarks"]}
    for size in sizes:
        key = ("dhln", "annotated", size)
        found, said = (
            next(row for row in rows if (row["method"], row["box"], row["size"]) == key)
            for rows in (result.landmarks, published["landmarks"])
        )
        assert found["nme"] == pytest.approx(said["nme"], abs=0.02)
        assert found["fr10"] == pytest.approx(said["fr10"], abs=0.5)
        # The floors of the project: better than the plain hourglass, far better than the mean face.
        assert found["nme"] < floor[size]
        mean = next(r for r in result.landmarks if (r["method"], r["size"]) == ("mean shape", size))
        assert found["nme"] < 0.6 * mean["nme"]
    for row in result.hallucination:
        assert row["psnr_rgb"] > row["bicubic_psnr_rgb"]
