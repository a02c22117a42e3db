"""Membership: an overfitted network gives its members away, one that saw nobody gives nobody away."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import cross_entropy

from tiny_federations import config, play
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.completed_share import MembershipByClient
from veilmark.audit.membership import (
    MembershipByLoss,
    attack_network,
    confidence,
    lira,
    loss_threshold,
    membership_score,
    mix_weights,
    resampled_area,
    true_positive_rate,
)
from veilmark.audit.record import read_record
from veilmark.federation.tasks.classify import load_classify, without_owner


def population(count, seed):
    """Pictures of two classes that overlap, with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    return torch.randn(count, 100, generator=generator) + 0.1 * labels[:, None], labels


def overfitted(x, labels, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(x), labels).backward()
        optimizer.step()
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def attacked():
    """A network, 60 pictures that it learned and 60 that it did not; a fresh pool that shadows are made of."""
    x, labels = population(120, 1)
    return overfitted(x[:60], labels[:60]), x, labels


def auc(scores):
    return membership_score([(scores[:60], scores[60:])], draws=50).auc.value


def test_loss_gives_members_away(attacked):
    network, x, labels = attacked
    assert auc(loss_threshold(network(x), labels)) > 0.7


def test_an_attack_network_learns_from_shadows(attacked):
    network, x, _ = attacked
    others, classes = population(120, 2)
    shadow = overfitted(others[:60], classes[:60], seed=5)
    assert auc(attack_network(shadow(others), np.arange(120) < 60, network(x))) > 0.7


def shadows(x, labels, count=16):
    rng = np.random.default_rng(3)
    member = np.stack([rng.permutation(np.arange(len(x)) % 2 == 0) for _ in range(count)])
    said = [overfitted(x[torch.from_numpy(m)], labels[torch.from_numpy(m)], seed=7)(x) for m in member]
    return confidence(torch.stack(said), labels), member


def test_lira_gives_members_away(attacked):
    network, x, labels = attacked
    known, member = shadows(x, labels)
    scores = lira(confidence(network(x), labels), known, member)
    assert auc(scores) > 0.7
    assert auc(scores) > auc(loss_threshold(network(x), labels)) - 0.05


def test_a_network_that_saw_none_of_them_gives_nobody_away(attacked):
    """Negative control."""
    _, x, labels = attacked
    stranger = overfitted(*population(60, 8))
    known, member = shadows(x, labels)
    for scores in (loss_threshold(stranger(x), labels), lira(confidence(stranger(x), labels), known, member)):
        found = membership_score([(scores[:60], scores[60:])], draws=200)
        assert found.auc.low < 0.5 < found.auc.high


def test_lira_is_the_likelihood_ratio():
    shadow = np.array([[1.0, 0.0], [3.0, 1.0], [-1.0, 5.0], [0.0, 6.0]])
    member = np.array([[True, False], [True, False], [False, True], [False, True]])
    inside, outside = np.array([2.0, 5.5]), np.array([-0.5, 0.5])
    # Two shadows a picture: one degree of freedom each, and a mean that is wrong by half of the variance.
    spread_in = np.sqrt(1.5 * (sum([1, 1, 0.25, 0.25]) / 2 + 1e-9))
    spread_out = np.sqrt(1.5 * (sum([0.25, 0.25, 0.25, 0.25]) / 2 + 1e-9))
    asked = np.array([1.5, 0.0])
    expected = norm.logpdf(asked, inside, spread_in) - norm.logpdf(asked, outside, spread_out)
    np.testing.assert_allclose(lira(asked, shadow, member), expected)
    with pytest.raises(ValueError, match="more shadows"):
        lira(asked, shadow, np.ones_like(member))


def test_confidence_is_the_logit():
    logits, labels = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2])
    right = logits.double().softmax(dim=-1).numpy()[:, np.arange(5), labels.numpy()]
    np.testing.assert_allclose(confidence(logits, labels), np.log(right / (1 - right)), rtol=1e-9)


def test_rates_by_hand_and_what_cannot_be_measured():
    strangers, members = np.arange(1000.0), np.array([989.0, 989.5, 990.0, 2000.0])
    # Ten strangers of 1,000 may be accused: 990 to 999 lie above 989.
    assert true_positive_rate(members, strangers, 0.01) == 0.75
    found = membership_score([(members, strangers)], draws=20)
    assert found.at_percent.value == 0.75
    assert found.at_permille.value is None
    assert membership_score([(members, strangers[:999])], draws=20).at_percent.value is None
    assert found.auc.low <= found.auc.value <= found.auc.high


@given(
    arrays(np.float64, st.integers(1, 8), elements=st.integers(0, 5)),
    arrays(np.float64, st.integers(1, 8), elements=st.integers(0, 5)),
    st.integers(0, 99),
)
def test_areas_are_those_of_scikit_learn(members, strangers, seed):
    rng = np.random.default_rng(seed)
    mine, drawn = (rng.integers(len(some), size=(3, len(some))) for some in (members, strangers))
    found = resampled_area(members, strangers, mine, drawn)
    pairs = [(members, strangers), *((members[m], strangers[s]) for m, s in zip(mine, drawn, strict=True))]
    for area, (one, other) in zip(found, pairs, strict=True):
        truth = np.r_[np.ones(len(one)), np.zeros(len(other))]
        assert area == pytest.approx(roc_auc_score(truth, np.r_[one, other]))


def test_an_area_compares_with_some_strangers_only():
    alike = np.array([[True, False], [False, False]])
    rows = np.zeros((1, 2), dtype=np.int64)
    found = resampled_area(np.array([1.0, 1.0]), np.array([0.0, 9.0]), rows, rows, alike)
    # The second is compared with nobody; drawn twice, the first wins both times.
    assert found.tolist() == [1.0, 1.0]
    found = resampled_area(np.array([1.0, 1.0]), np.array([0.0, 9.0]), rows + 1, rows, alike)
    # Drawn alone, it leaves nothing to say.
    assert found.tolist() == [1.0, 0.5]


def test_a_mix_of_classes_is_no_membership():
    """A client of two classes, whose network knows these and none of its pictures."""
    rng = np.random.default_rng(0)
    of_members, of_strangers = rng.integers(2, size=200), rng.integers(10, size=2000)
    members, strangers = (rng.normal(size=len(some)) + 3.0 * (some < 2) for some in (of_members, of_strangers))
    blind = membership_score([(members, strangers)], draws=50)
    assert blind.auc.low > 0.8
    assert blind.at_percent.value > 0.02
    found = membership_score([(members, strangers)], classes=[(of_members, of_strangers)], draws=50)
    assert found.auc.low < 0.5 < found.auc.high
    # Four hundred strangers of these classes are too few for 1 %.
    assert found.at_percent.value is None
    even = membership_score([(members, strangers)], classes=[(of_members, rng.integers(2, size=2000))], draws=50)
    assert even.at_percent.value is not None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=12), st.floats(0, 0.9))
def test_a_weight_is_as_many_strangers(drawn, allowed):
    scores, weights = (np.array(some, dtype=np.float64) for some in zip(*drawn, strict=True))
    members = np.arange(-1.0, 22.0, 0.5)
    # No two strangers alike, or a threshold may lie between them.
    scores += np.arange(len(scores)) / 100
    repeated = np.repeat(scores, weights.astype(int))
    cut = np.sort(repeated)[max(0, len(repeated) - 1 - int(np.floor(len(repeated) * allowed + 1e-9)))]
    assert true_positive_rate(members, scores, allowed, weights) == (members > cut).mean()


def test_weights_give_strangers_the_members_mix():
    weights = mix_weights(np.array([0, 0, 0, 1, 9]), np.array([0, 0, 1, 2]))
    # Three fifths of class 0 for two strangers, a fifth of class 1 for one; class 9 has none: a quarter for each.
    np.testing.assert_allclose(weights, 4 * np.array([0.3 + 0.05, 0.3 + 0.05, 0.2 + 0.05, 0.05]))


def test_where_nothing_is_there_an_interval_seldom_says_so():
    """Four networks are asked about the same strangers: how strange these look is drawn once, not four times."""
    wrong, wide = 0, []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        # What makes a picture hard is alike for all networks.
        strangers = rng.normal(size=100)
        pairs = [(rng.normal(size=50), strangers + 0.1 * rng.normal(size=100)) for _ in range(4)]
        found = membership_score(pairs, trial, common=True, draws=200).auc
        wrong += found.low > 0.5
        apart = membership_score(pairs, trial, draws=200).auc
        wide.append((found.high - found.low) / (apart.high - apart.low))
    assert wrong <= 7
    assert np.median(wide) > 1.2


@pytest.fixture(scope="module")
def learned_by_heart(tmp_path_factory):
    """Runs of the same federation, all of whose rounds are recorded, and the last alone."""
    folder = tmp_path_factory.mktemp("heart")
    scenes = []
    for number, record in enumerate((["first", "last"], ["last"])):
        made = config(
            method="none", rounds=2, record=record, data__per_client=16, data__head_widths=[64, 32],
            training={"batch": 16, "lr": 0.1, "local_steps": 15},
        )  # fmt: skip
        run = play(folder / str(number), made)
        read = read_record(run.path / "transcript")
        task, owners, _, _ = load_classify(read.config.data, None, read.config.clients, read.config.seed)
        strangers = without_owner(read.config.data, None, owners, 200)
        scenes.append(Scene(read, task.test, Truth(owners, strangers=strangers)))
    return scenes


@pytest.mark.parametrize("attack", [MembershipByLoss(), MembershipByClient()])
def test_what_a_run_starts_from_is_public_whatever_was_recorded(learned_by_heart, attack):
    found = []
    for scene in learned_by_heart:
        line = next(line for line in attack.findings(scene) if line.rung == REAL)
        found.append(line)
        # The start knows nobody; the last broadcast, taken for it, would know everybody.
        assert line.low > line.chance
        assert line.value > line.negative_control
    assert found[0].value == pytest.approx(found[1].value)
    assert found[0].negative_control == pytest.approx(found[1].negative_control)


def test_strangers_are_training_pictures_without_an_owner():
    of = config(method="none", data__per_client=20).data
    _, owners, _, _ = load_classify(of, None, 3, 0)
    free = without_owner(of, None, owners, 50)
    assert len(free) == 50
    assert all(name.startswith(b"train/") for name in free.names)
    assert not set(free.names) & {name for owner in owners for name in owner.names}
    everything = of.model_copy(update={"per_client": None})
    _, owners, _, _ = load_classify(everything, None, 2, 0)
    assert without_owner(everything, None, owners, 50) is None


def test_loss_is_asked_of_strangers_like_the_members(tmp_path):
    """Public pictures may be of other people; a network that saw nobody must not tell them apart."""
    run = play(tmp_path / "run", config(method="none", rounds=1, data__per_client=40, data__head_widths=[64, 32]))
    record = read_record(run.path / "transcript")
    task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
    scene = Scene(record, task.test, Truth(owners, strangers=without_owner(record.config.data, None, owners, 1000)))
    found = MembershipByLoss().findings(scene)
    assert [line.metric for line in found] == [
        "area under the curve", "area under the curve", "area under the curve", "members found at 1 % false alarms",
    ]  # fmt: skip
    assert "of the method's own" in found[1].rung
    assert found[1].n == 2 * min(len(owners[0]), len(task.test) // 4)
    assert found[0].positive_control == found[0].value > 70
    assert abs(found[2].negative_control - 50) < 10
    assert found[3].positive_control is None
    assert found[3].negative_control < 8
