"""What an outsider makes of the released share: a detector, from few public faces, without any client's secret."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    as_array,
    face_network,
    halves,
    landmark_errors,
    people_of,
    trained,
)
from veilmark.audit.record import Record, ThreatModel, finished_share, not_released
from veilmark.federation.engine import side_by_side
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors

FACES = 20
"""Public faces that the outsider has landmarks of."""
STEPS, CONTROL_STEPS = 80, 150
"""Steps of its training; of the network whose share must be of use."""


class DetectorFromShare(Attack):
    """How much better a detector gets that is trained behind the released share than one from nothing.

    That is no leak of a face. It says how much of the clients' common work the share holds, for anybody: of a generator
    that was meant to carry the look of faces and nothing else, it should be nothing. A share that is a whole detector
    is taken as it is, without the outsider's faces, with which it might be better yet.
    """

    name = "detector out of the share"
    cost = 16.0
    threat_model = ThreatModel.outsider
    needs = f"the released share; {FACES} public faces with landmarks"
    question = "Can somebody with the finished share and a few faces have a detector without the owners' secrets?"

    def obstacle(self, record: Record) -> str | None:
        """Something must be released."""
        return not_released(record)

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
        start = {name: value for name, value in face_network(record).state_dict().items() if name in names}
        noise = {
            name: torch.randn(value.shape, generator=torch.Generator().manual_seed(scene.seed * 1000 + place)) * spread
            if (spread := float(value.float().std(correction=0)) if value.is_floating_point() else 0.0)
            else value
            for place, (name, value) in enumerate(sorted(start.items()))
        }
        teacher = face_network(record, device=scene.device)

        def good() -> Tensors:
            learned = trained(scene, teacher, others, CONTROL_STEPS, 30).state_dict()
            return {name: learned[name] for name in names}

        # The share that must be learned first comes first: the others are tried beside it.
        shares: list[Callable[[], Tensors]] = [good, dict, lambda: finished_share(record), lambda: noise]
        by_good, nothing, by_real, by_noise = self._errors(scene, shares, few, asked)
        metric, unit = "error saved against a start from nothing", "% of the eyes' distance"
        rung = f"the share of a network that knows {len(set(people_of(others)))} people"
        control = self._finding(scene, rung, metric, unit, (nothing - by_good).tolist(), 0.0)
        real = self._finding(scene, REAL, metric, unit, (nothing - by_real).tolist(), 0.0)
        return with_controls([control, real], control.value, float((nothing - by_noise).mean()))

    def _errors(
        self, scene: Scene, shares: Sequence[Callable[[], Tensors]], few: Data, asked: Data
    ) -> list[NDArray[np.float64]]:
        """NME in percent of each person at the smallest size, by a detector behind each share."""
        networks = [face_network(scene.record, device=scene.device) for _ in shares]

        def one(place: int) -> NDArray[np.float64]:
            share, network = shares[place](), networks[place]
            network.load_state_dict(share, strict=False)
            errors = landmark_errors(
                scene.record, trained(scene, network, few, STEPS, 40, frozen=frozenset(share)), asked
            )
            return as_array(errors, sorted(errors))

        return [found for _, found in side_by_side(range(len(shares)), one, scene.device)]
