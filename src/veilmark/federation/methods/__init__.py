"""Methods by name. Adding one is adding a file and a line here."""

from __future__ import annotations

from typing import Any

from veilmark.federation.methods.ats import TransformedTraining
from veilmark.federation.methods.dp import UpdateNoise
from veilmark.federation.methods.dpsgd import DPSGD
from veilmark.federation.methods.etc import EncryptThenCompress
from veilmark.federation.methods.fedcg import FedCG
from veilmark.federation.methods.gc import GradientCompression
from veilmark.federation.methods.hallucinator import Hallucinator
from veilmark.federation.methods.keyed import Keyed
from veilmark.federation.methods.local import Local
from veilmark.federation.methods.method import Method
from veilmark.federation.methods.none import NoDefence
from veilmark.federation.methods.ppidsg import PPIDSG
from veilmark.federation.methods.ppidsg_landmarks import PPIDSGLandmarks

METHODS: dict[str, type[Method[Any]]] = {
    "none": NoDefence,
    "local": Local,
    "ppidsg": PPIDSG,
    "ats": TransformedTraining,
    "etc": EncryptThenCompress,
    "dp": UpdateNoise,
    "dpsgd": DPSGD,
    "gc": GradientCompression,
    "fedcg": FedCG,
    "hallucinator": Hallucinator,
    "keyed": Keyed,
    "ppidsg-landmarks": PPIDSGLandmarks,
}
"""Every method."""
