"""Ladders of gradient inversion: they reach pictures where everything is known, and find nothing in noise."""

import pytest
import torch
from torch.nn.functional import one_hot

from tiny_federations import config, play
from veilmark.audit import inversion_ladder
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.gradient_inversion import classifier_gradient, cosine_distance, psnr, sgd_gradient
from veilmark.audit.inversion_ladder import InversionOfClassifier, InversionOfGenerator
from veilmark.audit.inversion_search import SmallSigmoidNetwork, compact_gradient, scrambled, search, stepped_gradient
from veilmark.audit.played_client import played_gradient, played_steps
from veilmark.audit.record import network_of, read_record
from veilmark.federation.tasks.classify import load_classify
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.local_training import sgd_weight


@pytest.fixture(scope="module")
def scene_of(tmp_path_factory):
    """What an attacker of a tiny federation has: the method and its options to a scene."""
    folder, scenes = tmp_path_factory.mktemp("ladders"), {}

    def made(method, **options):
        name = f"{method} {options}"
        if name not in scenes:
            made = config(method=method, rounds=1, data__test=120, options={method: options})
            run = play(folder / str(len(scenes)), made)
            record = read_record(run.path / "transcript")
            task, owners, _, _ = load_classify(record.config.data, None, 2, record.config.seed)
            scenes[name] = Scene(record, task.test, Truth(owners))
        return scenes[name]

    return made


@pytest.fixture
def quick(monkeypatch):
    """How near searches come is tested below; here they only have to be played."""
    counts = {
        "STEPS": 2,
        "GENERATOR_STEPS": 1,
        "CONTROL_STEPS": 1,
        "REHEARSED": 1,
        "SINGLE": 1,
        "CLIENTS": 1,
        "NOISES": 1,
    }
    for name, value in counts.items():
        monkeypatch.setattr(inversion_ladder, name, value)


def first_picture(scene):
    """A public picture that is no stranger to a rung, and its label."""
    half = len(scene.public) // 2
    return to_unit(scene.public.inputs[half : half + 1]), scene.public.targets[half : half + 1]


def gradients_of(network, x, labels):
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(class_loss(network(x), labels), list(named.values())), strict=True))


def test_compact_gradients_have_the_same_cosine(scene_of):
    scene = scene_of("none")
    network = network_of(scene.record, scene.record.rounds[0].broadcast)
    inputs, labels = to_unit(scene.public.inputs[:6]), scene.public.targets[:3]
    seen = gradients_of(network, inputs[:3], labels)
    gradient, aim = compact_gradient(network, seen)
    hard = one_hot(labels, 10).float()
    compact = cosine_distance(gradient(inputs[3:], hard), aim)
    plain = cosine_distance(classifier_gradient(network)(inputs[3:], hard), list(seen.values()))
    assert float(compact.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)
    assert float(cosine_distance(gradient(inputs[:3], hard), aim).detach()) < 1e-4


def test_compact_gradients_are_those_of_what_was_seen(scene_of):
    scene = scene_of("none")
    network = network_of(scene.record, scene.record.rounds[0].broadcast)
    x, labels = first_picture(scene)
    seen = {k: v for k, v in gradients_of(network, x, labels).items() if k.startswith("classifier.layers.5")}
    gradient, aim = compact_gradient(network, seen)
    assert [tuple(some.shape) for some in gradient(x, one_hot(labels, 10).float())] == [(10,), (2,)]
    assert torch.equal(aim[0], seen["classifier.layers.5.bias"])


@pytest.mark.parametrize("channels", [1, 3])
def test_scrambling_keeps_its_graph(channels):
    cipher = Cipher(Secret(b"k" * SECRET_BYTES), 4)
    x = (torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    made = scrambled(cipher.table(channels, 16, 16), x)
    assert torch.equal(made.detach(), cipher.scramble(x.detach()))
    made.abs().sum().backward()
    assert torch.equal(x.grad, x.detach().sign())


def test_a_search_finds_a_picture_and_nothing_in_noise(scene_of):
    scene = scene_of("none")
    network = network_of(scene.record, scene.record.rounds[0].broadcast)
    x, labels = first_picture(scene)
    public = to_unit(scene.public.inputs[: len(scene.public) // 2])
    chance = float(psnr(public, x.expand_as(public)).max())
    seen = gradients_of(network, x, labels)
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(some.shape, generator=generator) * some.std() for name, some in seen.items()}
    found = [
        float(psnr(search(*compact_gradient(network, some), labels, 10, public, steps=steps), x)[0])
        for some, steps in ((seen, 40), (noise, 15))
    ]
    assert found[0] > chance + 1
    assert found[1] < chance


def test_a_classifiers_picture_is_found_whatever_size_its_gradient_has(scene_of):
    scene = scene_of("none")
    network = network_of(scene.record, scene.record.rounds[0].broadcast)
    x, labels = first_picture(scene)
    strangers = inversion_ladder._strangers(scene)
    chance = float(psnr(strangers, x.expand_as(strangers)).max())
    seen = gradients_of(network, x, labels)
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(some.shape, generator=generator) * some.std() for name, some in seen.items()}
    larger = {name: 7 * some for name, some in seen.items()}
    true, sized, blind = (
        InversionOfClassifier()._searched(scene, *compact_gradient(network, some), labels, 0)
        for some in (seen, larger, noise)
    )
    assert float(psnr(true, x)[0]) > chance + 5
    assert float(psnr(sized, x)[0]) > chance + 5
    assert float(psnr(blind, x)[0]) < chance


def test_the_control_must_succeed(scene_of, monkeypatch):
    monkeypatch.setattr(inversion_ladder, "CONTROL_STEPS", 15)
    near, alike = InversionOfClassifier()._control(scene_of("none"))
    assert near > 25
    assert 80 < alike <= 100


def test_a_search_plays_the_steps_that_a_client_takes(scene_of):
    scene = scene_of("none")
    record, few = scene.record, scene.public
    first = record.rounds[0].broadcast
    network = network_of(record, first)
    training = record.config.training.model_copy(update={"batch": 2, "weight_decay": 0.01})
    optimizer = torch.optim.SGD(network.parameters(), training.lr, training.momentum, weight_decay=0.01)
    for rows in (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        class_loss(network(to_unit(few.inputs[rows])), few.targets[rows]).backward()
        optimizer.step()
    scale = training.lr * sgd_weight(2, training.momentum)
    wanted = sgd_gradient(first, dict(network.named_parameters()), scale, 0.01)
    names = ["extractor.0.weight", "classifier.layers.5.bias"]
    gradient = stepped_gradient(network_of(record, first), names, training, training.lr)
    x = to_unit(few.inputs[:4]).requires_grad_()
    made = gradient(x, one_hot(few.targets[:4], 10).float())
    for name, some in zip(names, made, strict=True):
        torch.testing.assert_close(some, wanted[name], rtol=1e-3, atol=1e-4)
    # Both steps' pictures are behind it.
    (slope,) = torch.autograd.grad(made[0].square().sum(), x)
    assert bool((slope.flatten(1).abs().sum(dim=1) > 0).all())


def test_rungs_of_a_classifier(scene_of, quick):
    scene = scene_of("none")
    found = InversionOfClassifier().findings(scene)
    assert [some.rung[:12] for some in found] == 2 * ["one picture,", "four picture", "four picture", REAL]
    assert [some.n for some in found] == 2 * [1, 4, 4, 1]
    assert [some.unit for some in found] == 4 * ["dB"] + 4 * ["%"]
    assert {some.positive_control for some in found[4:]} == {InversionOfClassifier()._control(scene)[1]}
    assert all(some.low <= some.value <= some.high for some in found)


def test_the_rungs_of_a_pruned_classifier_are_pruned_and_so_is_their_noise(scene_of, quick, monkeypatch):
    asked = []

    def remembered(self, scene, network, seen, labels, number):
        asked.append(seen)
        return torch.zeros(len(labels), 1, 28, 28)

    monkeypatch.setattr(InversionOfClassifier, "_of_network", remembered)
    scene = scene_of("gc", keep=0.1)
    InversionOfClassifier().findings(scene)
    # One picture, noise in its place, four pictures; noise in place of the run's message, and that.
    assert len(asked) == 5
    for seen in asked[:3]:
        for some in seen.values():
            assert 0 < int((some != 0).sum()) <= max(1, round(0.1 * some.numel()))


def test_whoever_answers_with_strangers_has_what_chance_has(scene_of):
    """By both figures: who may choose among all of a client's pictures must be held against the same choice."""
    scene = scene_of("none")
    strangers = inversion_ladder._strangers(scene)
    found = InversionOfClassifier()._real(scene, {0: strangers, 1: strangers})
    assert [some.unit for some in found] == ["dB", "%"]
    for some in found:
        assert some.value == pytest.approx(some.chance)
    fewer = InversionOfClassifier()._real(scene, {0: strangers[:1], 1: strangers[:1]})
    assert fewer[0].value < fewer[0].chance


def test_a_part_of_a_classifier_is_enough(scene_of, quick):
    scene = scene_of("none", share=["extractor"])
    assert InversionOfClassifier().obstacle(scene.record) is None
    made = InversionOfClassifier().run(scene, scene.record, 1)
    assert {client: tuple(some.shape) for client, some in made.items()} == {0: (8, 1, 28, 28)}


def test_rungs_of_a_generator(scene_of, quick):
    scene = scene_of("ppidsg")
    shown = []
    again = Scene(scene.record, scene.public, scene.truth, show=lambda rung, true, made: shown.append(rung))
    found = InversionOfGenerator().findings(again)
    assert shown == [some.rung for some in found[:4]] == [some.rung for some in found[4:]]
    assert "known" in shown[0]
    assert "guessed" in shown[1]
    assert shown[2].startswith("two steps of Adam")
    assert shown[3] == REAL
    assert ({some.positive_control for some in found[:4]}, {some.positive_control for some in found[4:]}) == tuple(
        {value} for value in InversionOfGenerator()._control(scene)
    )


def test_the_control_of_a_generator_gives_its_picture_away(scene_of):
    """By PPIDSG's own three losses, on small smooth networks: which shows that the attack works at all."""
    scene = scene_of("ppidsg")
    alike, structure = InversionOfGenerator()._control(scene)
    picture, _ = first_picture(scene)
    strangers = inversion_ladder._strangers(scene)
    assert alike > 5 + float(psnr(strangers, picture.expand_as(strangers)).max())
    assert structure > 90


def test_the_rehearsed_gradient_is_that_of_its_client(scene_of):
    """One step of Adam from nothing goes by the gradient's signs."""
    scene = scene_of("ppidsg", generator_steps=1)
    x, labels = first_picture(scene)
    expected = played_gradient(scene, 0)(x, one_hot(labels, 10).float())
    moved = played_steps(scene, len(scene.public) // 2)
    for slope, change in zip(expected, moved, strict=True):
        clear = slope.abs() > 1e-3
        assert (slope.sign() == change.sign())[clear].float().mean() > 0.99 or not clear.any()


def test_obstacles_say_what_does_not_travel(scene_of):
    classifier, generator = InversionOfClassifier(), InversionOfGenerator()
    none, ppidsg = scene_of("none").record, scene_of("ppidsg").record
    assert classifier.obstacle(none) is None
    assert generator.obstacle(ppidsg) is None
    assert "extractor.0.weight does not travel" in classifier.obstacle(ppidsg)
    assert generator.obstacle(none) == "no generator travels"
    assert generator.obstacle(scene_of("ppidsg", share=[]).record) == "no generator travels"


def test_the_small_network_is_the_same_for_a_seed():
    one, other = (SmallSigmoidNetwork(1, 16, 10, 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
