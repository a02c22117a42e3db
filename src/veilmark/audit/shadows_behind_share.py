"""LiRA where no whole classifier travels: shadow federations, and a head that the server learns behind each message."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock

import numpy as np
from torch import nn

from veilmark.audit.attack import Scene
from veilmark.audit.completed_share import front_of, knowing_share, makes_features, strange_secrets, with_linear_head
from veilmark.audit.record import Record
from veilmark.audit.shadow_membership import MembershipByLiRA
from veilmark.audit.shadows import Classifiers, Questions, questions, taken
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

HEAD = 300
"""Public pictures that a head learns from, at most: each message needs a head of its own."""


class MembershipByLiRABehindShare(MembershipByLiRA):
    """LiRA (Carlini et al. 2022), online, on classifiers that the server completes.

    It plays federations of the run's method, which behind a generator have secrets of their own, and learns the same
    kind of head behind what their clients send and behind what the run's clients sent: a logistic regression on public
    pictures that no shadow learned.
    """

    name = "membership behind the share, with shadow federations (LiRA)"
    cost = 600.0
    needs = "a generator or an extractor from each client; the picture in question, with its label; public pictures"
    question = "Can the server tell whether a client trained on a picture, by playing federations of its own?"
    easiest = "a share of the server's is the target, and knows its pictures by heart"

    def obstacle(self, record: Record) -> str | None:
        """A part of a classifier must travel, and make features."""
        if not set(record.task.network(0).state_dict()) - set(record.declared.tensors):
            return "a whole classifier travels: it is asked as it is"
        return None if makes_features(record) else "nothing travels that makes features of a picture"

    def asked(self, scene: Scene) -> tuple[Questions, Classifiers]:
        """The public pictures are divided: shadows learn one half, heads the other."""
        whole = questions(scene)
        halves = np.array_split(rng_for(scene.seed, 93).permutation(len(whole.public)), 2)
        shown, own = taken(whole.public, halves[0]), taken(whole.public, halves[1][:HEAD])
        # A client draws its networks, which no two may do at once.
        building = Lock()

        def classifier(share: Tensors) -> nn.Module:
            return with_linear_head(scene, front_of(scene, share), own)

        def knowing(data: Data, number: int) -> nn.Module:
            with building:
                begun = knowing_share(scene, scene.record.start, data, strange_secrets(scene), 10 + number)
            return classifier(begun())

        return replace(whole, public=shown), Classifiers(classifier, knowing)
