"""What PPIDSG's clients send besides G, and what they do to it before: D, a bound, noise, and its epsilon."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from veilmark.federation.config import FederationConfig
from veilmark.federation.methods import ppidsg
from veilmark.federation.methods.ppidsg import PPIDSG, PPIDSGOptions, generator_of
from veilmark.federation.methods.release import DELTA, client_epsilon
from veilmark.run.errors import ConfigError

BOTH = ("generator", "discriminator")


def method(**options):
    return PPIDSG(PPIDSGOptions(**options))


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def sent(one, how, number=0, round_number=0):
    """What a client adds to the broadcast."""
    broadcast = one.server(how).broadcast()
    update = one.client(how, number).train_round(broadcast, round_number)
    return flat(update.tensors) - flat(broadcast)


def test_a_discriminator_travels_beside_the_same_generator(bench):
    one = bench()
    alone, both = (one.server(method(share=share)).broadcast() for share in (("generator",), BOTH))
    assert list(alone) == list(generator_of(both))
    assert all(torch.equal(value, both[name]) for name, value in alone.items())
    extra = set(both) - set(alone)
    assert extra
    assert all(name.startswith("discriminator.layers.") for name in extra)
    assert generator_of(alone) == alone


def test_clients_train_the_discriminator_that_they_were_sent_and_it_is_averaged(bench):
    one, how = bench(), method(share=BOTH)
    server = one.server(how)
    broadcast = {name: value.clone() for name, value in server.broadcast().items()}
    changed = {n: v + 1 if n.startswith("discriminator.") else v for n, v in broadcast.items()}
    clients = [one.client(how, number) for number in range(2)]
    weights = [client.client.discriminator.state_dict() for client in clients]
    assert not torch.equal(weights[0]["layers.0.weight"], weights[1]["layers.0.weight"])
    updates = {number: client.train_round(changed, 0) for number, client in enumerate(clients)}
    name = "discriminator.layers.0.weight"
    for update in updates.values():
        moved = float((update.tensors[name] - changed[name]).abs().max())
        assert 0 < moved < 0.1
    server.combine(updates)
    mean = torch.stack([update.tensors[name] for update in updates.values()]).mean(dim=0)
    assert torch.allclose(server.broadcast()[name], mean)


def test_the_optimiser_of_a_travelling_discriminator_stays(bench):
    one, how = bench(), method(share=BOTH)
    client = one.client(how)
    update = client.train_round(one.server(how).broadcast(), 0)
    assert not any("optimizer" in name for name in update.tensors)
    assert any(name.startswith("optimizer.discriminator.") for name in client.state())


def test_the_bound_is_on_all_that_is_sent_together(bench):
    one = bench()
    free = sent(one, method(share=BOTH))
    assert float(free.norm()) > 0.2
    bounded = sent(one, method(share=BOTH, clip=0.1))
    assert float(bounded.norm()) == pytest.approx(0.1, rel=1e-3)
    assert float(torch.nn.functional.cosine_similarity(free, bounded, dim=0)) > 0.999
    wide = sent(one, method(share=BOTH, clip=1e3))
    assert torch.allclose(wide, free, atol=1e-6)


def test_noise_has_its_deviation_and_is_the_clients_own(bench):
    one = bench()
    quiet = method(clip=0.1)
    loud = method(clip=0.1, noise=2.0)

    def noise(number, round_number):
        return (sent(one, loud, number, round_number) - sent(one, quiet, number, round_number)).numpy()

    first = noise(0, 0)
    assert first.std() == pytest.approx(0.2, rel=0.01)
    assert abs(first.mean()) < 5 * 0.2 / math.sqrt(len(first))
    assert np.array_equal(first, noise(0, 0))
    for other in (noise(1, 0), noise(0, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.01


def test_with_noise_a_client_says_nothing_but_its_epsilon(bench):
    one, how = bench(), method(clip=1.0, noise=1.0)
    server = one.server(how)
    assert server.declared().metrics == ("epsilon",)
    for round_number in (0, 2):
        update = one.client(how).train_round(server.broadcast(), round_number)
        assert update.metrics == {"epsilon": client_epsilon(1.0, round_number + 1)}


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 10.0, 100.0])
def test_epsilon_is_a_tight_bound_of_the_exact_one(noise):
    """Rounds of Gaussian noise are one Gaussian mechanism, whose delta is known in closed form (Balle and Wang 2018)."""
    rounds = 5
    apart = math.sqrt(rounds) * 2 / noise

    def excess(epsilon):
        return (
            norm.cdf(apart / 2 - epsilon / apart) - np.exp(epsilon + norm.logcdf(-apart / 2 - epsilon / apart)) - DELTA
        )

    exact = brentq(excess, 0, apart**2 / 2 + 40 * apart + 10)
    assert exact <= client_epsilon(noise, rounds) < 1.15 * exact


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    assert client_epsilon(1.0, 1) < client_epsilon(1.0, 2) < client_epsilon(0.5, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": 1.0}, r"options\.ppidsg\.noise = 1\.0: .*set clip too"),
        ({"noise": 1.0, "clip": 1.0, "share": []}, "nothing travels"),
        ({"noise": -1.0, "clip": 1.0}, r"options\.ppidsg\.noise = -1\.0"),
        ({"clip": 0.0}, r"options\.ppidsg\.clip = 0\.0"),
        ({"share": ["discriminator"]}, r"only one of \[\], \[generator\], \[generator, discriminator\]"),
        ({"share": ["classifier"]}, r"\['classifier'\] may not travel"),
    ],
)
def test_options_that_promise_nothing_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        FederationConfig(options={"ppidsg": options}).made_method()


def test_noise_without_an_accountant_is_refused_before_the_run(bench, monkeypatch):
    monkeypatch.setattr(ppidsg, "find_spec", lambda name: None)
    one = bench()
    with pytest.raises(ConfigError, match=r"Opacus is not installed"):
        one.server(method(clip=1.0, noise=1.0))
    assert one.server(method(clip=1.0)).broadcast()
