from dataclasses import replace
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cipher_attacks import cipher, noise, smooth

from tiny_federations import config, play
from veilmark.audit import generator_attacks
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.client_inference import LinkingByFigures, by_luck, link, linked_percent, moved
from veilmark.audit.generator_attacks import (
    InverseNetwork,
    KeyOracle,
    blocks_by_chance,
    blocks_right,
    encryption_oracle,
    generator_in,
    last_sent,
    teach_key,
    train_inverse,
)
from veilmark.audit.gradient_inversion import psnr
from veilmark.audit.record import RecordedRound, read_record
from veilmark.federation.client_side import SecretFolder
from veilmark.federation.messages import Update
from veilmark.federation.methods.ppidsg import cipher_of
from veilmark.federation.tasks.classify import load_classify
from veilmark.ppidsg.cipher import STEPS, Cipher, Table
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret


def test_an_inverse_network_learns_the_way_back():
    """Positive control: the cipher itself in place of G. Negative: a generator that forgets the picture."""
    public, unseen = smooth(600, seed=1), smooth(20, seed=2)
    network = train_inverse(cipher().scramble, public, steps=150)
    back = float(psnr(network(cipher().scramble(unseen)).detach(), unseen).mean())

    def forgets(x):
        return noise(1).expand_as(x)

    blind = train_inverse(forgets, public, steps=150)
    mean = float(psnr(public.mean(dim=0, keepdim=True).expand_as(unseen), unseen).mean())
    assert back > mean + 4
    assert float(psnr(blind(forgets(unseen)).detach(), unseen).mean()) < mean + 1


def test_an_inverse_network_overfits_one_batch():
    x = smooth(4)
    network = train_inverse(torch.neg, x, steps=300, batch=4)
    assert float((network(-x).detach() - x).abs().mean()) < 0.1
    assert InverseNetwork(3, 16)(noise(2, 3)).shape == (2, 3, 16, 16)


def test_a_generator_that_imitates_the_cipher_is_an_oracle():
    public, true = smooth(16), cipher().table(1, 16, 16)
    guess = encryption_oracle(lambda x: 0.7 * cipher().scramble(x) + 0.2, public, 4)
    assert np.array_equal(guess.place, true.place)
    assert np.array_equal(guess.negated, true.negated)
    blind = encryption_oracle(lambda x: noise(len(x), seed=4), public, 4)
    assert np.mean(blind.place == true.place) < 0.3


def test_a_block_is_right_if_its_place_turns_colours_and_sign_are():
    shape, true = (3, 16, 16), cipher().table(3, 16, 16)
    assert blocks_right(true, true, shape, 4) == [100.0] * 16
    assert blocks_right(Table(true.place, ~true.negated), true, shape, 4) == [0.0] * 16


@pytest.mark.parametrize(("channels", "without"), [(1, ()), (3, ("permute",)), (3, ("rotate", "flip", "permute"))])
def test_chance_is_what_another_secret_has_right(channels, without):
    steps = [step for step in STEPS if step not in without]
    tables = [Cipher(Secret(bytes([n]) * SECRET_BYTES), 4, steps).table(channels, 16, 16) for n in range(250)]
    right = [blocks_right(one, other, (channels, 16, 16), 4) for one, other in pairwise(tables)]
    chance = blocks_by_chance(channels, 16, 4, without)
    # Blocks of one key are nearly independent of each other: four standard deviations.
    assert abs(np.mean(right) - chance) < 4 * np.sqrt(chance * (100 - chance) / np.size(right)) + 1e-9


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """By scope: a federation as it was played, and the same whose clients sent generators that know their keys."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_attacks, "BATCH", 8)
        for scope in ("federation", "client"):
            settings = config(rounds=1, data__test=60, training__local_steps=1, options__ppidsg__scope=scope)
            run = play(tmp_path_factory.mktemp(scope) / "run", settings).path
            record = read_record(run / "transcript")
            task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
            known = [SecretFolder(run.with_name("run.secrets")).of_client(number) for number in (0, 1)]
            ciphers = [cipher_of(record.method.options, some.federation, some.own) for some in known]
            tables = [cipher.table(1, task.side, task.side) for cipher in ciphers]
            key, keys = (tables[0], ()) if scope == "federation" else (None, tables)
            scene = Scene(record, task.test, Truth(owners, key, keys=keys))
            sent = []
            for cipher in ciphers if scope == "client" else ciphers[:1]:
                sent.append(generator_in(record, record.start))
                teach_key(sent[-1], to_unit(task.test.inputs), cipher, steps=15)
            updates = {
                client: replace(update, tensors=sent[client % len(sent)].state_dict())
                for client, update in record.rounds[-1].updates.items()
            }
            taught = replace(record, rounds=(replace(record.rounds[-1], updates=updates),))
            made[scope] = scene, replace(scene, record=taught)
    return made


@pytest.mark.parametrize("scope", ["federation", "client"])
def test_the_oracle_reads_the_key_of_a_generator_that_learned_it(scenes, scope):
    scene, taught = scenes[scope]
    attack, pieces = KeyOracle(steps=1), []
    assert attack.obstacle(scene.record) is None
    found = attack.findings(replace(taught, advance=lambda: pieces.append(1)))
    barely, real = found
    assert real.rung == REAL
    assert real.value > real.chance + 20
    assert real.positive_control == 100
    # One step teaches little: what is read comes from the run's generators, not from the attacker's.
    assert barely.value < real.value - 20
    assert barely.n == 49
    assert real.negative_control < 5
    assert {line.metric for line in found} == {real.metric}
    if scope == "client":
        assert (real.n, real.threat_model) == (2, "honest-but-curious server")
        assert len(pieces) == 1 + 1 + 1 + 2 + 2
    else:
        assert (real.n, real.threat_model, real.low > real.chance) == (49, "outsider", True)
        assert len(pieces) == 1 + 1 + 1 + 1 + 1


@pytest.mark.parametrize("scope", ["federation", "client"])
def test_the_attackers_own_generator_is_read_where_the_runs_gives_nothing(scenes, scope, monkeypatch):
    """The run's clients took two steps with rates of the paper: nothing is learned. The control rests on the same G."""
    monkeypatch.setattr(generator_attacks, "BATCH", 8)
    own, real = KeyOracle(steps=15).findings(scenes[scope][0])
    assert own.low > max(own.chance, own.negative_control) + 5
    assert own.value < 100
    assert real.value < 10


def test_a_key_of_another_client_is_not_matched(scenes):
    _, taught = scenes["client"]
    swapped = replace(taught, truth=replace(taught.truth, keys=taught.truth.keys[::-1]))
    assert KeyOracle(steps=1).findings(swapped)[-1].value < 5


def test_a_clients_last_message_is_asked(scenes, monkeypatch):
    scene, taught = scenes["client"]
    first, last = scene.record.rounds[-1], taught.record.rounds[-1]
    only_one = replace(last, number=2, updates={1: last.updates[1]})
    both = last_sent(replace(scene.record, rounds=(first, only_one)))
    assert both[0] is first.updates[0].tensors
    assert both[1] is last.updates[1].tensors
    monkeypatch.setattr(generator_attacks, "CLIENTS", 1)
    assert list(last_sent(scene.record)) == [0]


def test_obstacles_say_which_key_there_is_not(scenes):
    attack, record = KeyOracle(), scenes["client"][0].record

    def with_options(**changes):
        return replace(record, method=type(record.method)(record.method.options.model_copy(update=changes)))

    assert "each picture has a key of its own" in attack.obstacle(with_options(scope="image"))
    assert attack.obstacle(with_options(share=())) == "no generator travels"
    silent = replace(record, rounds=(replace(record.rounds[0], updates={}),))
    assert "no client's key" in attack.obstacle(silent)
    early = replace(record, config=record.config.model_copy(update={"rounds": 9}))
    # What a client sent is there, whatever was released in the end.
    assert attack.obstacle(early) is None


@pytest.mark.parametrize("clients", [2, 4, 6])
def test_luck_is_counted(clients):
    hits = [sum(a == b for a, b in enumerate(order)) for order in permutations(range(clients))]
    for least in range(clients + 1):
        assert by_luck(least, clients) == pytest.approx(np.mean(np.array(hits) >= least))


def test_messages_of_one_sender_are_linked():
    generator = torch.Generator().manual_seed(0)
    habits = torch.randn(6, 50, generator=generator)
    order = [3, 0, 5, 1, 4, 2]
    rounds = [habits + 0.5 * torch.randn(6, 50, generator=generator) for _ in range(2)]
    guess = link(list(rounds[0]), [rounds[1][sender] for sender in order])
    assert linked_percent(guess, [order.index(client) for client in range(6)]) == 100
    strangers = torch.randn(2, 300, 50, generator=generator)
    assert linked_percent(link(list(strangers[0]), list(strangers[1])), range(300)) < 5
    with pytest.raises(ValueError, match="at least two"):
        link([habits[0]], [habits[0]])


def test_what_is_declared_links_unlike_clients_and_not_alike_ones():
    """Six clients of unlike sizes are told apart by their sizes alone; of like ones nothing is there to compare."""

    def record(sizes, losses):
        rounds = [
            RecordedRound(
                number,
                {"w": torch.zeros(2)},
                {
                    client: Update({"w": torch.ones(2)}, {"loss": loss + number}, size)
                    for client, (size, loss) in enumerate(zip(sizes, losses, strict=True))
                },
            )
            for number in (1, 5)
        ]
        config = SimpleNamespace(method="none", data=SimpleNamespace(layout="digits"))
        return SimpleNamespace(rounds=rounds, config=config)

    attack = LinkingByFigures()
    unlike = record([10, 30, 100, 300, 900, 2000], [3.0, 1.0, 2.5, 0.5, 2.0, 1.5])
    assert attack.obstacle(unlike) is None
    found = attack.findings(Scene(unlike, None, None))
    assert [line.rung == REAL for line in found] == [False, True]
    assert (found[1].value, found[1].low) == (100, 100)
    assert found[0].low > found[0].chance
    assert found[1].negative_control < 50
    assert attack.obstacle(record([10] * 6, [1.0] * 6)) == "all clients declare the same"


def test_movement_is_what_was_learned():
    broadcast = {"b": torch.ones(2), "a": torch.zeros(2, 1), "count": torch.tensor(3)}
    sent = {"a": torch.full((2, 1), 2.0), "b": torch.zeros(2), "count": torch.tensor(4)}
    assert moved(broadcast, sent).tolist() == [2, 2, -1, -1]
