"""Was it this picture? Candidates that the server has already, held against an update of PPIDSG's generator.

No search finds the pictures behind G (docs/audit-attacks.md): nothing near a picture has a gradient near its own. The
picture itself has, so that whoever has it can check it, and needs no secret for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from veilmark.audit.attack import REAL, Attack, Finding, Scene, control_where, rows_behind, with_controls
from veilmark.audit.gradient_inversion import GradientOf, cosine_distance, noise_like
from veilmark.audit.membership import alike, drawn_interval, resampled_area
from veilmark.audit.played_client import played_gradient, played_steps
from veilmark.audit.record import Record, ThreatModel, in_noise
from veilmark.federation.engine import side_by_side
from veilmark.federation.methods.ppidsg import PPIDSGOptions
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.networks import Generator
from veilmark.run.seeds import rng_for

CASES = 10
"""Pictures behind the steps that are rehearsed: all six found of six would not be told from noise."""
AGAINST = 20
"""Candidates of the same class beside each, at most."""
GUESSES = 3
"""Sets of networks and secrets that the attacker draws in place of the client's."""
CLIENTS = 2
"""Messages of the first recorded round that are asked about."""
ASKED, STRANGERS = 30, 100
"""Pictures of the steps behind each of them, and strangers, at most."""
_BATCH = 4
_DRAWS = 1000
"""Of the bootstrap."""


class CandidatesOfGenerator(Attack):
    """Which of some pictures was behind a change of G: the one whose own gradient has the larger cosine with it.

    The attacker plays a client on each candidate, with the label that it has. Its D, F, C and key are not the client's,
    and losses so guessed may push G the other way: what counts is the size of the cosine, as a mean over several sets
    of guesses.
    """

    name = "candidates checked on the generator"
    cost = 51.0
    threat_model = ThreatModel.server
    needs = "the changes of the generator; pictures with labels, among them those in question"
    question = "Can the server tell whether a picture that it has from elsewhere was behind an update of the generator?"

    def obstacle(self, record: Record) -> str | None:
        """A generator must travel."""
        options = record.method.options
        return None if isinstance(options, PPIDSGOptions) and options.share else "no generator travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """One picture with all known, then with all guessed; four pictures; the client's own steps; the run."""
        options = scene.record.method.options
        assert isinstance(options, PPIDSGOptions)
        known, *guesses = (played_gradient(scene, number) for number in range(1 + GUESSES))
        half = len(scene.public) // 2
        rows = range(half, min(half + CASES, 2 * half))
        # One after the other: a client draws its networks.
        played = {row: played_steps(scene, row) for row in rows}

        def rehearsed(row: int) -> tuple[float, float, float, float, float]:
            return self._rehearsed(scene, known, guesses, row, played[row])

        cases = [areas for _, areas in side_by_side(rows, rehearsed, scene.device)]
        steps = {1: "one step", 2: "two steps"}.get(options.generator_steps, f"{options.generator_steps} steps")
        rungs = (
            "one picture, one step of SGD; D, F, C and the key known",
            "the same; D, F, C and the key guessed",
            f"{_BATCH} pictures, one step of SGD; D, F, C and the key guessed",
            f"one picture, {steps} of Adam; D, F, C and the key guessed",
        )
        *areas, blind = ([float(area) for area in column] for column in zip(*cases, strict=True))
        found = [
            self._finding(scene, rung, "area under the curve", "%", values, 50.0)
            for rung, values in zip(rungs, areas, strict=True)
        ]
        asked, real, in_vain = self.areas(scene, guesses)
        value, low, high = drawn_interval(real)
        line = self._finding(scene, REAL, "area under the curve", "%", [value], 50.0)
        found = with_controls(
            [*found, replace(line, n=asked, low=low, high=high)], found[0].value, float(np.mean(blind))
        )
        return control_where(found, REAL, drawn_interval(in_vain)[0])

    def run(
        self, scene: Scene, records: Sequence[Record], guesses: Sequence[GradientOf], candidates: Data
    ) -> NDArray[np.float64]:
        """How much the first messages look like steps on each candidate, ``(messages, n)``, from 0 to 1.

        Args:
            scene: What the attacker has.
            records: The messages that are attacked: the scene's, and noise in their place.
            guesses: Gradients of clients that it plays.
            candidates: Pictures with their labels.
        """
        # In the order of the gradients; a message has its own.
        names = list(Generator(scene.record.task.channels).state_dict())
        updates = [
            [(record.rounds[0].broadcast[name] - update.tensors[name]).to(scene.device) for name in names]
            for record in records
            for update in list(record.rounds[0].updates.values())[:CLIENTS]
        ]

        def told(row: int) -> list[float]:
            said = _cosines(scene, guesses, candidates, [row], updates)
            scene.advance()
            return said

        return np.array([said for _, said in side_by_side(range(len(candidates)), told, scene.device)]).T

    def _rehearsed(
        self, scene: Scene, known: GradientOf, guesses: Sequence[GradientOf], row: int, played: Sequence[Tensor]
    ) -> tuple[float, float, float, float, float]:
        """Areas under the curve, in percent, for one public picture: of each rung, and of noise in place of it.

        Args:
            scene: What the attacker has.
            known: The gradient of the client that is played.
            guesses: Those of others.
            row: Of the picture.
            played: What the client's own steps on it change.
        """
        public, half = scene.public, len(scene.public) // 2
        labels = public.targets
        alike = torch.nonzero(labels[:half] == labels[row]).flatten().tolist()[:AGAINST] or list(range(half))[:AGAINST]
        batch = [half + (row - half + place) % half for place in range(_BATCH)]
        single = _gradient(scene, known, public, [row])
        updates = [single, _gradient(scene, known, public, batch), played]
        told: list[list[float]] = []
        for candidate in (row, *alike):
            of_known = _cosines(scene, [known], public, [candidate], [single, noise_like(single, scene.seed + row)])
            of_guesses = _cosines(scene, guesses, public, [candidate], updates)
            told.append([of_known[0], *of_guesses, of_known[1]])
            scene.advance()
        true, *others = np.array(told)
        first, second, third, fourth, noise = (100 * _below(true, np.array(others))).tolist()
        return first, second, third, fourth, noise

    def areas(
        self, scene: Scene, guesses: Sequence[GradientOf]
    ) -> tuple[int, list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """For pictures behind a message, the share of strangers of their class that look less like it, in percent.

        Intervals are over these pictures and over strangers, who are the same for all messages.

        Args:
            scene: What the attacker has, and the truth.
            guesses: Gradients of clients that it plays.

        Returns:
            How many pictures were asked about; for each message the area and that of each draw of a bootstrap,
            ``(1 + draws,)``; and the same for noise in place of the messages.
        """
        apart = scene.truth.strangers or scene.public
        rows = rng_for(scene.seed, 74, 0).permutation(len(apart))[:STRANGERS]
        strangers = _rows(apart, rows)
        records = (scene.record, in_noise(scene.record, scene.seed))
        of_strangers = self.run(scene, records, guesses, strangers)
        rng = np.random.default_rng(scene.seed)
        drawn = rng.integers(len(strangers), size=(_DRAWS, len(strangers)))
        clients = list(scene.record.rounds[0].updates)[:CLIENTS]
        areas: list[list[NDArray[np.float64]]] = [[], []]
        asked = 0
        for place, client in enumerate(clients):
            owner = scene.truth.owners[client]
            behind = np.unique(rows_behind(scene, scene.record.rounds[0].number, client))
            members = _rows(owner, rng_for(scene.seed, 74, 1 + client).permutation(behind)[:ASKED])
            said = self.run(scene, records, guesses, members)
            compared = alike(members.targets.numpy(), strangers.targets.numpy())
            mine = rng.integers(len(members), size=(_DRAWS, len(members)))
            asked += len(members)
            for number, found in enumerate(areas):
                row = place + number * len(clients)
                found.append(100 * resampled_area(said[row], of_strangers[row], mine, drawn, compared))
        return asked, areas[0], areas[1]


def _gradient(scene: Scene, gradient: GradientOf, data: Data, rows: Sequence[int]) -> list[Tensor]:
    """A gradient of some pictures together, without its graph."""
    index = torch.tensor(rows)
    hard = one_hot(data.targets[index], len(scene.record.task.classes)).float()
    x = to_unit(data.inputs[index])
    return [some.detach() for some in gradient(x.to(scene.device), hard.to(scene.device))]


def _cosines(
    scene: Scene, gradients: Sequence[GradientOf], data: Data, rows: Sequence[int], updates: Sequence[Sequence[Tensor]]
) -> list[float]:
    """Of each update, the size of its cosine with the pictures' gradient, as a mean over several clients played."""
    own = [_gradient(scene, gradient, data, rows) for gradient in gradients]
    return [float(np.mean([abs(1 - float(cosine_distance(one, update))) for one in own])) for update in updates]


def _below(true: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the others ``(n, k)`` below the true one ``(k,)``, column by column; a tie is half of one."""
    found: NDArray[np.float64] = (others < true).mean(axis=0) + 0.5 * (others == true).mean(axis=0)
    return found


def _rows(data: Data, rows: NDArray[np.int64]) -> Data:
    index = torch.from_numpy(rows)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[int(row)] for row in rows))
