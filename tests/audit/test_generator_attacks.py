from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cipher_attacks import cipher, noise, smooth

from veilmark.audit.attack import REAL, Scene
from veilmark.audit.client_inference import LinkingByFigures, by_luck, link, linked_percent, moved
from veilmark.audit.generator_attacks import (
    InverseNetwork,
    blocks_by_chance,
    blocks_right,
    encryption_oracle,
    train_inverse,
)
from veilmark.audit.gradient_inversion import psnr
from veilmark.audit.record import RecordedRound
from veilmark.federation.messages import Update
from veilmark.ppidsg.cipher import STEPS, Cipher, Table
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
