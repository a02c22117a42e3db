"""LiRA where no whole classifier travels: shadow federations, and a missing part that the server makes for itself."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock

import numpy as np
import torch
from torch import nn

from veilmark.audit.attack import Scene
from veilmark.audit.completed_share import front_of, knowing_share, makes_features, strange_secrets, with_linear_head
from veilmark.audit.record import Record
from veilmark.audit.shadow_membership import MembershipByLiRA
from veilmark.audit.shadows import Classifiers, Questions, federation_of, questions, taken, whole_classifiers
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

HEAD = 300
"""Public pictures that a head learns from, at most: each message needs a head of its own."""
_FEDERATION = 300
"""The number of the server's federation whose clients' own parts it takes; shadows have the first numbers."""


class MembershipByLiRABehindShare(MembershipByLiRA):
    """LiRA (Carlini et al. 2022), online, on classifiers that the server completes.

    It plays federations of the run's method, which behind a generator have secrets of their own. Where a generator or
    an extractor travels, it learns the same kind of head behind what their clients send and behind what the run's
    clients sent: a logistic regression on public pictures that no shadow learned. Where a head travels, it plays one
    federation more, on those pictures, and what its clients keep, averaged, stands in front of every message: clients'
    own extractors begin at the public start, and go the same way in part.
    """

    name = "membership behind the share, with shadow federations (LiRA)"
    cost = 600.0
    needs = (
        "a part of a classifier, or a generator, from each client; the picture in question, labelled; public pictures"
    )
    question = "Can the server tell whether a client trained on a picture, by playing federations of its own?"
    easiest = "a share of the server's is the target, and knows its pictures by heart"

    def obstacle(self, record: Record) -> str | None:
        """A part of a classifier must travel, or what makes features of pictures."""
        whole, travels = set(record.task.network(0).state_dict()), set(record.declared.tensors)
        if not whole - travels:
            return "a whole classifier travels: it is asked as it is"
        return None if makes_features(record) or whole & travels else "nothing of a classifier travels"

    def asked(self, scene: Scene) -> tuple[Questions, Classifiers]:
        """The public pictures are divided: shadows learn one half, the missing part the other."""
        whole = questions(scene)
        halves = np.array_split(rng_for(scene.seed, 93).permutation(len(whole.public)), 2)
        shown, other = replace(whole, public=taken(whole.public, halves[0])), taken(whole.public, halves[1])
        if not makes_features(scene.record):
            return shown, whole_classifiers(scene, self._kept(scene, replace(whole, public=other)))
        own = taken(whole.public, halves[1][:HEAD])
        # A client draws its networks, which no two may do at once.
        building = Lock()

        def classifier(share: Tensors) -> nn.Module:
            return with_linear_head(scene, front_of(scene, share), own)

        def knowing(data: Data, number: int) -> nn.Module:
            with building:
                begun = knowing_share(scene, scene.record.start, data, strange_secrets(scene), 10 + number)
            return classifier(begun())

        return shown, Classifiers(classifier, knowing)

    def _kept(self, scene: Scene, whole: Questions) -> Tensors:
        """What stays with the clients of a federation of the server's own, on public pictures, averaged."""
        record, public = scene.record, whole.public
        parts = np.array_split(rng_for(scene.seed, 98).permutation(len(public)), whole.clients)
        # No more than the run's clients have: else a pass over them would be longer than theirs.
        owners = [taken(public, rows[: whole.examples]) for rows in parts]
        played = federation_of(scene, owners, _FEDERATION, record.config.seed)
        own = [client.state() for client in played.clients]
        # What a method's clients do not keep by its name stands as it starts.
        begun = record.task.network(record.config.seed).state_dict()
        missing = sorted(begun.keys() - record.declared.tensors.keys())
        return {name: torch.stack([some.get(name, begun[name]).cpu() for some in own]).mean(dim=0) for name in missing}
