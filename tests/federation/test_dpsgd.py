"""DP-SGD: clipped sums against single gradients, the budget against Opacus's own count, the stop, resume."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant, RDPAccountant

from veilmark.federation import engine
from veilmark.federation.messages import Update, check_update
from veilmark.federation.methods import dpsgd
from veilmark.federation.methods.dpsgd import DPSGD, DPSGDOptions, fitted_noise, spent
from veilmark.federation.methods.method import Secrets
from veilmark.federation.tasks.classify import ClassifyConfig
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import Secret
from veilmark.run.errors import ConfigError


@pytest.fixture(scope="module")
def free():
    """Options whose budget is never spent, without an accountant's hundredths of seconds."""
    return DPSGDOptions(epsilon=1e9, noise=0.7, clip=0.5, accountant="rdp")


def silence(monkeypatch):
    """No noise, every example in every step."""
    monkeypatch.setattr(dpsgd, "spent", lambda *_: 0.0)
    return DPSGDOptions(noise=1e-12, clip=0.05)


def test_a_step_is_the_mean_of_clipped_gradients_of_single_examples(bench, monkeypatch):
    options = silence(monkeypatch)
    one = bench(images=20, batch=20, local_steps=1, momentum=0.0, weight_decay=0.0)
    client, broadcast = one.client(DPSGD(options)), one.server(DPSGD(options)).broadcast()
    sent = client.train_round(broadcast, 0).tensors

    network, data = one.task.network(one.seed), one.owners[0]
    network.load_state_dict(broadcast)
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in network.named_parameters()}
    clipped = 0
    for row in range(20):
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            network(to_unit(data.inputs[row : row + 1])), data.targets[row : row + 1]
        )
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in network.parameters()))
        clipped += norm > options.clip
        for name, parameter in network.named_parameters():
            sums[name] += parameter.grad.double() * min(1.0, options.clip / norm)
    assert clipped > 10
    for name, value in sums.items():
        expected = broadcast[name] - one.training.lr * (value / 20).float()
        assert torch.allclose(sent[name], expected, atol=1e-6), name


def test_the_noise_has_the_stated_deviation_and_is_the_clients_own(bench, monkeypatch):
    monkeypatch.setattr(dpsgd, "spent", lambda *_: 0.0)
    one = bench(images=20, batch=20, local_steps=1, momentum=0.0, weight_decay=0.0)
    loud, quiet = (DPSGD(DPSGDOptions(noise=noise, clip=0.5)) for noise in (2.0, 1e-12))
    broadcast = one.server(loud).broadcast()
    plain = one.client(quiet).train_round(broadcast, 0).tensors

    def noise(number, round_number):
        base = (
            plain
            if (number, round_number) == (0, 0)
            else one.client(quiet, number).train_round(broadcast, round_number).tensors
        )
        sent = one.client(loud, number).train_round(broadcast, round_number).tensors
        return torch.cat([(sent[name] - value).flatten() for name, value in base.items()])

    first = noise(0, 0)
    expected = one.training.lr * 2.0 * 0.5 / 20
    assert float(first.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(first.mean())) < 4 * expected / math.sqrt(len(first))
    assert torch.equal(first, noise(0, 0))
    for other in (noise(1, 0), noise(0, 1)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.05


def test_augmentation_is_drawn_from_the_clients_secret(bench, monkeypatch):
    """The server knows the run's seed: what is drawn from it is in no accountant's books."""
    options = silence(monkeypatch)

    def drawn(round_number=0, secret=None):
        one = bench(images=20, batch=10, local_steps=3)
        client = one.client(DPSGD(options))
        if secret is not None:
            client.view = replace(client.view, secrets=Secrets(client.view.secrets.federation, secret))
        seen, loss = [], client.learner.loss

        def noted(rows, rng):
            seen.append(int(rng.integers(2**31)))
            return loss(rows, rng)

        monkeypatch.setattr(client.learner, "loss", noted)
        client.train_round(one.server(DPSGD(options)).broadcast(), round_number)
        return seen

    first = drawn()
    assert len(set(first)) == len(first)
    assert drawn() == first
    assert not set(first) & set(drawn(1))
    assert not set(first) & set(drawn(secret=Secret(b"x" * 32)))


def test_examples_are_drawn_one_by_one(bench, monkeypatch):
    options = silence(monkeypatch)
    one = bench(images=40, batch=10, local_steps=80, lr=1e-6)
    client = one.client(DPSGD(options))
    seen, loss = [], client.learner.loss
    monkeypatch.setattr(dpsgd, "AT_ONCE", 1000)
    monkeypatch.setattr(client.learner, "loss", lambda rows, rng: (seen.append(rows), loss(rows, rng))[1])
    client.train_round(one.server(DPSGD(options)).broadcast(), 0)
    sizes = torch.tensor([float(len(rows)) for rows in seen])
    assert float(sizes.mean()) == pytest.approx(10, abs=1.2)
    assert float(sizes.var()) == pytest.approx(40 * 0.25 * 0.75, rel=0.5)
    counts = torch.bincount(torch.cat(seen), minlength=40)
    assert int(counts.min()) > 5


def test_a_step_in_which_nobody_was_drawn_is_noise(bench, monkeypatch, free):
    monkeypatch.setattr(dpsgd, "spent", lambda *_: 0.0)
    one = bench(images=12, batch=1, local_steps=20)
    client = one.client(DPSGD(free))
    update = client.train_round(one.server(DPSGD(free)).broadcast(), 0)
    assert client.steps == 20
    assert all(torch.isfinite(value).all() for value in update.tensors.values())


@pytest.mark.parametrize(("accountant", "kind"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
def test_epsilon_is_opacus_s(accountant, kind):
    options = DPSGDOptions(delta=1e-5, accountant=accountant)
    other = kind()
    for _ in range(30):
        other.step(noise_multiplier=1.1, sample_rate=0.1)
    assert spent(options, 1.1, 0.1, 30) == pytest.approx(other.get_epsilon(delta=1e-5))
    assert spent(options, 1.1, 0.1, 0) == 0
    assert spent(options, 1.1, 0.1, 60) > spent(options, 1.1, 0.1, 30)


@pytest.mark.parametrize(("accountant", "most"), [("prv", 0.05), ("rdp", 0.01)])
def test_a_noise_that_nobody_names_spends_the_budget_in_all_rounds(accountant, most):
    options = DPSGDOptions(epsilon=4.0, accountant=accountant)
    noise = fitted_noise(options, 0.1, 40)
    assert options.epsilon * (1 - most) < spent(options, noise, 0.1, 40) <= options.epsilon
    assert fitted_noise(options, 0.1, 80) > noise


def test_no_client_stops_before_the_end_where_the_noise_is_fitted(bench):
    one = bench(images=12, batch=3)
    method = DPSGD(DPSGDOptions(accountant="rdp"))
    client = one.client(method)
    broadcast = one.server(method).broadcast()
    figures = [client.train_round(broadcast, number).metrics for number in range(client.view.rounds + 1)]
    assert [each["stopped"] for each in figures] == [0.0] * client.view.rounds + [1.0]
    assert 7.9 < figures[-1]["epsilon"] <= 8
    assert {each["noise"] for each in figures} == {client.noise}


def test_the_epsilon_of_a_round_is_the_largest():
    updates = {
        number: Update({}, {"epsilon": epsilon, "noise": epsilon}, examples)
        for number, (epsilon, examples) in enumerate([(1.0, 1), (4.0, 2)])
    }
    assert engine._together("epsilon", updates) == 4
    assert engine._together("noise", updates) == 3


def test_runs_that_differ_share_no_noise(bench, monkeypatch):
    """With the same secret: noise of one would be taken off by the other."""
    monkeypatch.setattr(dpsgd, "spent", lambda *_: 0.0)

    def noise(multiplier=2.0, rounds=4, move=0.0, images=20):
        sent = []
        for noisy in (multiplier, 1e-12):
            one = bench(images=images, batch=images, local_steps=1, momentum=0.0, weight_decay=0.0, rounds=rounds)
            method = DPSGD(DPSGDOptions(noise=noisy, clip=0.5))
            broadcast = {name: value + move for name, value in one.server(method).broadcast().items()}
            tensors = one.client(method).train_round(broadcast, 0).tensors
            sent.append(torch.cat([value.flatten() for value in tensors.values()]))
        return sent[0] - sent[1]

    first = noise()
    assert torch.equal(first, noise())
    for other in (noise(multiplier=3.0), noise(rounds=5), noise(move=1e-3), noise(images=22)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.05


def test_a_sum_has_noise_of_its_own(bench):
    """What secret and round do not tell apart, such as another release of the code, the hidden sum does."""
    plain = torch.nn.Linear(200, 20)

    def noise(summed, again=1):
        optimizer = dpsgd._noisy(
            torch.optim.SGD(plain.parameters()), Secret(b"s" * 32), noise_multiplier=1.0, max_grad_norm=1.0,
            expected_batch_size=1, generator=torch.Generator(),
        )  # fmt: skip
        for _ in range(again):
            for parameter in plain.parameters():
                parameter.summed_grad = torch.full_like(parameter, summed)
            optimizer.add_noise()
        return torch.cat([(parameter.grad - summed).flatten() for parameter in plain.parameters()])

    first = noise(0.5)
    assert torch.equal(first, noise(0.5))
    assert float(first.std()) == pytest.approx(1.0, rel=0.05)
    for other in (noise(0.5 + 1e-6), noise(0.5, again=2)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.1


def test_a_budget_that_no_noise_fits_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"epsilon = 0\.001.*take a larger epsilon or fewer rounds"):
        fitted_noise(DPSGDOptions(epsilon=0.001), 0.1, 40)
    with pytest.raises(ConfigError, match=r"delta = 1e-30.*take a usual delta"):
        spent(DPSGDOptions(delta=1e-30), 1.0, 0.1, 40)
    with pytest.raises(ValueError, match="name one, e"):
        DPSGDOptions(epsilon=1e6)
    assert DPSGDOptions(epsilon=1e6, noise=1.0).noise == 1.0


def test_a_client_whose_budget_is_spent_sends_back_what_it_got(bench):
    one = bench(images=12, batch=3)
    rdp = {"accountant": "rdp", "noise": 2.0}
    price = spent(DPSGDOptions(**rdp), 2.0, 0.25, 8)
    method = DPSGD(DPSGDOptions(epsilon=price * 1.001, **rdp))
    server, memory, figures = one.server(method), {"steps": torch.tensor(0)}, []
    for round_number in range(3):
        client = one.client(method)
        client.load_state(memory)
        update = check_update(client.train_round(server.broadcast(), round_number), server.declared(), 100)
        memory = client.state()
        figures.append((update.metrics["epsilon"], update.metrics["stopped"]))
        same = all(torch.equal(update.tensors[name], value) for name, value in server.broadcast().items())
        assert same == bool(update.metrics["stopped"])
        server.combine({0: update})
    assert [stopped for _, stopped in figures] == [0, 0, 1]
    assert figures[1][0] == figures[2][0] == pytest.approx(price)
    assert int(memory["steps"]) == 8


def test_it_learns_where_the_noise_is_small(bench, monkeypatch):
    monkeypatch.setattr(dpsgd, "spent", lambda *_: 0.0)
    one = bench(images=24, batch=8, epochs=4)
    method = DPSGD(DPSGDOptions(noise=0.05, clip=1.0))
    server = one.server(method)
    for round_number in range(4):
        server.combine({n: one.client(method, n).train_round(server.broadcast(), round_number) for n in range(2)})
    answers = one.client(method).predict(server.broadcast(), one.task.test_inputs)
    assert one.task.score(answers, one.owners[0])["accuracy"][0] > 90


def test_noisy_gradients_go_to_adamw_where_it_is_wanted(bench, monkeypatch):
    options = silence(monkeypatch)
    one = bench(images=20, batch=20, local_steps=1, weight_decay=0.0, optimizer="adamw", lr=0.01)
    client, broadcast = one.client(DPSGD(options)), one.server(DPSGD(options)).broadcast()
    first = client.train_round(broadcast, 0).tensors
    # The first step of Adam is as long as its rate wherever there is a gradient.
    for name in ("classifier.layers.5.weight", "classifier.layers.5.bias"):
        assert float((first[name] - broadcast[name]).abs().max()) == pytest.approx(0.01, rel=1e-3)
    memory = {name: value.clone() for name, value in client.state().items()}
    second = client.train_round(first, 1).tensors
    again = one.client(DPSGD(options))
    again.load_state(memory)
    resumed = again.train_round(first, 1).tensors
    for name, value in second.items():
        assert torch.equal(resumed[name], value), name
    forgetful = one.client(DPSGD(options)).train_round(first, 1).tensors
    assert any(not torch.equal(forgetful[name], value) for name, value in second.items())


def test_a_network_too_large_is_refused_with_the_remedy(bench):
    one = bench(head_widths=(4096, 1024))
    with pytest.raises(ConfigError, match=r"data\.head_widths=\[128, 64\]"):
        one.server(DPSGD(DPSGDOptions()))
    widths = ClassifyConfig(head_widths=(128, 64)).head_widths
    bench(head_widths=widths).server(DPSGD(DPSGDOptions()))


def test_without_opacus_the_remedy_is_named(bench, monkeypatch):
    monkeypatch.setattr(dpsgd, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'veilmark\[federation\]'"):
        bench().server(DPSGD(DPSGDOptions()))
