"""What an outsider makes of the released share: a detector, from few public faces, without any client's secret."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    Lesson,
    as_array,
    face_network,
    halves,
    landmark_errors,
    people_of,
    trained,
    trained_side_by_side,
)
from veilmark.audit.record import Record, ThreatModel
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors

FACES = 20
"""Public faces that the outsider has landmarks of."""
STEPS, CONTROL_STEPS = 80, 150
"""Steps of its training; of the network whose share must be of use."""


class DetectorFromShare(Attack):
    """How much better a detector gets that is trained behind the released share than one from nothing.

    That is no leak of a face. It says how much of the clients' common work the share holds, for anybody: of a generator
    that was meant to carry the look of faces and nothing else, it should be nothing.
    """

    name = "detector out of the share"
    threat_model = ThreatModel.outsider
    needs = f"the released share; {FACES} public faces with landmarks"
    question = "Can somebody with the finished share and a few faces have a detector without the owners' secrets?"

    def obstacle(self, record: Record) -> str | None:
        """Something must be released."""
        return None if record.declared.tensors else "nothing is released"

    def findings(self, scene: Scene) -> list[Finding]:
        """The share of a network that the attacker trained, the run's, and noise."""
        record = scene.record
        known, others = halves(scene.public)
        rows = [int(row) for row in np.unique(np.linspace(0, len(known) - 1, FACES))]
        few = Data(known.inputs[rows], known.targets[rows], tuple(known.names[row] for row in rows))
        # People whom neither the clients nor the outsider has.
        assert scene.truth.strangers is not None
        asked = scene.truth.strangers
        names = record.declared.tensors
        good = trained(scene, face_network(record, device=scene.device), others, CONTROL_STEPS, 30).state_dict()
        start = {name: value for name, value in face_network(record).state_dict().items() if name in names}
        noise = {
            name: torch.randn(value.shape, generator=torch.Generator().manual_seed(scene.seed * 1000 + place)) * spread
            if (spread := float(value.float().std(correction=0)) if value.is_floating_point() else 0.0)
            else value
            for place, (name, value) in enumerate(sorted(start.items()))
        }
        shares: list[Tensors] = [{}, {name: good[name] for name in names}, record.rounds[-1].broadcast, noise]
        nothing, *behind = self._errors(scene, shares, few, asked)
        saved = [nothing - errors for errors in behind]
        metric, unit = "error saved against a start from nothing", "% of the eyes' distance"
        rung = f"the share of a network that knows {len(set(people_of(others)))} people"
        control = self._finding(scene, rung, metric, unit, saved[0].tolist(), 0.0)
        real = self._finding(scene, REAL, metric, unit, saved[1].tolist(), 0.0)
        return with_controls([control, real], control.value, float(saved[2].mean()))

    def _errors(self, scene: Scene, shares: Sequence[Tensors], few: Data, asked: Data) -> list[NDArray[np.float64]]:
        """NME in percent of each person at the smallest size, by a detector behind each share."""
        lessons = [
            Lesson(face_network(scene.record, share, device=scene.device), few, STEPS, 40, frozenset(share))
            for share in shares
        ]
        found = []
        for network in trained_side_by_side(scene, lessons):
            errors = landmark_errors(scene.record, network, asked)
            found.append(as_array(errors, sorted(errors)))
        return found
