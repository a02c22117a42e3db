"""Class mixes out of scores: sizes that rise with accuracies, and the attack where clients have few classes."""

import json

import numpy as np
import pytest

from tiny_federations import config, play
from veilmark.audit import score_mix, shadows
from veilmark.audit.audits import ATTACKS, audit_run
from veilmark.audit.class_counts import label_score, prior_counts
from veilmark.audit.score_mix import ClassMixOfScores, SizeOfClass
from veilmark.report.verdicts import AuditFinding, verdict

UNLIKE = {"data__partition": "dirichlet", "data__alpha": 0.1, "data__per_client": 60, "data__test": 300}


def clients(count, seed, telling):
    """Accuracies of clients with class shares: soon near 100, or of chance."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(6, 0.3), size=count)
    known = shares if telling else rng.permuted(shares, axis=1)
    return np.clip(100 * (1 - np.exp(-8 * known)) + rng.normal(size=shares.shape), 0, 100), shares


@pytest.mark.parametrize("telling", [True, False])
def test_sizes_are_read_where_accuracies_tell_and_only_there(telling):
    sizes = SizeOfClass(*clients(20, 0, telling))
    ours, chance = [], []
    for said, share in zip(*clients(40, 1, telling), strict=True):
        have = np.random.default_rng(2).multinomial(100, share)
        ours.append(label_score(sizes.counts(said, 100), have).l1)
        chance.append(label_score(prior_counts(100, 6), have).l1)
    assert (np.mean(ours) < 0.4 * np.mean(chance)) == telling
    assert np.mean(ours) < 1.2 * np.mean(chance)


def test_sizes_sum_up_even_where_nothing_is_right():
    sizes = SizeOfClass(np.array([[0.0, 0.0, 100.0], [0.0, 90.0, 0.0]]), np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    assert sizes.counts(np.zeros(3), 10).sum() == 10
    np.testing.assert_array_equal(sizes.counts(np.array([0.0, 0.0, 95.0]), 10), [0, 0, 10])


def found_in(run, out, **options):
    summary = audit_run(run, None, out, without=set(ATTACKS) - {ClassMixOfScores.name}, **options)
    return summary, [AuditFinding(**line) for line in json.loads((out / "audit.json").read_text())]


def test_clients_of_few_classes_give_them_away(tmp_path):
    """Positive control, run and noise: nothing but scores travels, and they tell which classes a client has."""
    made = config(method="local", clients=4, rounds=4, training__batch=10, training__lr=0.1, **UNLIKE)
    _, found = found_in(play(tmp_path / "run", made).path, tmp_path / "out")
    easy, real = (next(line for line in found if line.rung.startswith(rung)) for rung in ("6 clients", "as it was"))
    for line in (easy, real):
        assert line.low > line.chance
        assert line.negative_control < line.value - 10
    assert verdict(found).kind == "leaks"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": "none"}, "all clients answer with one network"),
        ({"method": "local", "data__class_scores": False}, "no accuracy of a class"),
    ],
)
def test_where_scores_are_no_ones_own_nothing_is_asked(tmp_path, changes, why):
    summary, found = found_in(play(tmp_path / "run", config(rounds=1, **changes)).path, tmp_path / "out")
    assert why in summary["obstacles"][ClassMixOfScores.name]
    assert not found


@pytest.mark.parametrize("changes", [{"method": "fedcg"}, {"method": "ppidsg", "options__ppidsg__share": []}])
def test_whoever_keeps_a_network_is_asked(tmp_path, monkeypatch, changes):
    """Whatever the method: its own clients are rehearsed, with all that they keep."""
    monkeypatch.setattr(shadows, "MOST_STEPS", 1)
    monkeypatch.setattr(score_mix, "REHEARSED", 2)
    _, found = found_in(play(tmp_path / "run", config(rounds=1, **changes)).path, tmp_path / "out")
    assert {line.rung for line in found} == {"2 clients of unlike classes, played as the method has them", "as it was"}
