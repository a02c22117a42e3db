"""The protocol of an evaluation in words, which stand beside every number."""

from __future__ import annotations

import datetime
from typing import Any

import veilmark
from veilmark.faces.crop import MARGIN
from veilmark.faces.datasets import FaceSet
from veilmark.landmarks.schemes import get_scheme
from veilmark.sht.found import JITTER
from veilmark.sht.landmarker import Landmarker

_IMAGES = (
    "PSNR is the mean of the images' PSNRs; SSIM Gaussian, sigma 1.5; no border crop; Y of BT.601 at full range, "
    "beside RGB"
)


def protocol_of(faces: FaceSet, landmarker: Landmarker, weights: str) -> dict[str, Any]:
    """What is measured, and how.

    Args:
        faces: The data.
        landmarker: The network, how it looks, and the finder.
        weights: What the weights are called.
    """
    scored = faces.labelled or faces.unlabelled
    words: dict[str, Any] = {
        "data": f"{faces.layout}/{faces.split}",
        "faces": len(scored),
        "people": len({face.person for face in scored if face.person is not None}),
        "weights": weights,
    }
    if faces.labelled:
        words |= _landmark_words(faces)
    box = "annotated points" if faces.labelled else "set's own description of the face"
    return words | {
        "crop": f"box of the {box}, margin {MARGIN}, {landmarker.model.size} px reference",
        "degradation": "plain area downsample of the reference crop (annotated box) or of the whole picture (finder)",
        "finder": f"{type(landmarker.finder).__name__}; where it misses the face, the annotated box jittered by "
        f"{JITTER:.0%} in place and size",
        "mirror": landmarker.mirror,
        "looks": {"annotated": 1, "finder": 2 if landmarker.refine else 1},
        "images": _IMAGES,
        "interval": "95 %, bootstrap over people; over pictures where the set names nobody",
        "version": veilmark.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _landmark_words(faces: FaceSet) -> dict[str, str]:
    """What concerns points alone."""
    first, second = get_scheme(faces.scheme).inter_ocular
    words = {"normalisation": f"inter-ocular (points {first} and {second} of {faces.scheme})"}
    if faces.protocol is not None:
        kinds = list(faces.protocol.normalisations.values())
        words = {"normalisation": kinds[0]}
        if kinds[1:]:
            words["normalisation_also"] = "; ".join(kinds[1:])
        words["published_crop"] = faces.protocol.crop
    if faces.converted_from is not None:
        words["points"] = (
            f"the {len(get_scheme(faces.converted_from))} points of {faces.converted_from} turned into the "
            f"{len(get_scheme(faces.scheme))} of {faces.scheme}: a table of other points than papers print"
        )
    if any(face.visible is not None for face in faces.labelled):
        words["points_counted"] = "visible points; the published table counts all of them unless a column says visible"
    return words
