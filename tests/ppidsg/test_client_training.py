"""A client of PPIDSG: what it trains, what it restarts, that it resumes to the same bits, that it learns."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from veilmark.ppidsg import client_training
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import ClientConfig, PPIDSGClient
from veilmark.ppidsg.history import History
from veilmark.ppidsg.networks import Generator
from veilmark.ppidsg.secret import Secret
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training

KEY, SECRET = Secret(b"k" * 32), Secret(b"s" * 32)


def bars(n, side=16, seed=0):
    """Pictures of two classes, which a look tells apart: an upright and a lying bar."""
    rng = np.random.default_rng(seed)
    pictures, labels = rng.integers(0, 60, (n, 1, side, side), dtype=np.uint8), rng.integers(0, 2, n)
    for picture, label in zip(pictures, labels, strict=True):
        at = int(rng.integers(2, side - 4))
        if label:
            picture[0, at : at + 3] = 230
        else:
            picture[0, :, at : at + 3] = 230
    return torch.from_numpy(pictures), torch.from_numpy(labels)


def client(n=8, number=0, rounds=50, **changes):
    own = {name: changes.pop(name) for name in list(changes) if name in ClientConfig.model_fields}
    training = Training(**({"batch": 4} | changes))
    return PPIDSGClient(
        *bars(n),
        2,
        Cipher(SECRET),
        KEY,
        ClientConfig(**own),
        training=training,
        rounds=rounds,
        head_widths=(48, 32),
        number=number,
    )


def start():
    torch.manual_seed(0)
    return {name: value.clone() for name, value in Generator(1).state_dict().items()}


def flat(tensors):
    return torch.cat([value.flatten().float() for value in tensors.values()])


@pytest.mark.parametrize("extractor", ["separate", "joint", "key", "fixed", "none"])
@pytest.mark.parametrize("head", ["key", "kept", "fixed"])
def test_every_option_trains_what_it_says(head, extractor):
    one = client(head=head, extractor=extractor)
    networks = {
        name: getattr(one, name).state_dict() for name in ("generator", "discriminator", "classifier", "extractor")
    }
    copies = {name: {k: v.clone() for k, v in state.items()} for name, state in networks.items()}
    found = one.train_round(start(), 0)
    assert all(np.isfinite(value) for value in found.values())
    moved = {
        name: any(not torch.equal(v, copies[name][k]) for k, v in getattr(one, name).state_dict().items())
        for name in networks
    }
    assert moved == {
        "generator": True,
        "discriminator": True,
        "classifier": head != "fixed",
        "extractor": extractor in ("separate", "joint", "key"),
    }


@pytest.mark.parametrize("head", ["key", "fixed"])
def test_labels_reach_the_extractor_only_where_it_is_trained_jointly(head):
    moved = {}
    for extractor in ("separate", "joint"):
        one = client(extractor=extractor, head=head)
        one.extractor.decoder.requires_grad_(False)
        with torch.no_grad():
            pictures = one.generator(one.pictures.float() / 127.5 - 1)
        labels = one.labels
        one._extractor_step(pictures)
        one._classifier_step(pictures, labels)
        first = flat(one.extractor.encoder.state_dict())
        one = client(extractor=extractor, head=head)
        one.extractor.decoder.requires_grad_(False)
        one._extractor_step(pictures)
        one._classifier_step(pictures, 1 - labels)
        moved[extractor] = not torch.equal(first, flat(one.extractor.encoder.state_dict()))
    assert moved == {"separate": False, "joint": True}


def test_the_key_head_restarts_every_round_and_the_kept_one_goes_on():
    for head, same in (("key", True), ("kept", False)):
        one = client(head=head, generator_lr=1e-9, lr=1e-9)
        begun = one.classifier.layers[1].weight.clone()
        one.classifier.layers[1].weight.data += 1.0
        one.train_round(start(), 0)
        assert torch.allclose(one.classifier.layers[1].weight, begun, atol=1e-4) == same


def test_a_fixed_head_is_that_of_every_client_at_all_times():
    one, other = client(number=0, head="fixed"), client(number=1, head="key")
    one.train_round(start(), 0)
    assert torch.equal(flat(one.classifier.state_dict()), flat(other.classifier.state_dict()))
    assert not any(name.startswith("optimizer.classifier") for name in one.state())


def test_with_adjusted_logits_nothing_is_learned_of_a_class_that_never_occurs():
    """A client with one class only: its class loss is zero whatever the logits, and moves neither G nor C."""
    for adjustment, still in ((True, True), (False, False)):
        one = client(logit_adjustment=adjustment, semantic=0.0, weight_decay=0.0)
        one.labels.zero_()
        one.shares = one.shares if one.shares is None else torch.tensor([1.0, 0.0])
        begun = flat(one.classifier.state_dict())
        figures = one.train_round(start(), 0)
        assert torch.equal(flat(one.classifier.state_dict()), begun) == still
        assert (figures["class"] == figures["head"] == 0) == still


def test_shares_are_counted():
    one = client(n=8, logit_adjustment=True)
    assert one.shares.tolist() == [float((one.labels == k).float().mean()) for k in range(2)]
    assert client().shares is None


def test_all_clients_share_the_key_and_nothing_else():
    one, other = client(number=0), client(number=1)
    assert torch.equal(flat(one.classifier.state_dict()), flat(other.classifier.state_dict()))
    assert not torch.equal(flat(one.discriminator.state_dict()), flat(other.discriminator.state_dict()))


@pytest.mark.parametrize(("where", "same"), [("key", True), ("own", False)])
def test_the_extractor_may_start_at_the_common_secret_and_then_goes_its_own_way(where, same):
    one, other = (client(number=number, extractor_start=where) for number in (0, 1))
    begun = flat(one.extractor.state_dict())
    assert torch.equal(begun, flat(other.extractor.state_dict())) == same
    one.train_round(start(), 0)
    trained = flat(one.extractor.state_dict())
    assert not torch.equal(trained, begun)
    again = client(extractor_start=where)
    again.load_state(one.state())
    again.train_round(start(), 1)
    assert not torch.allclose(flat(again.extractor.state_dict()), begun, atol=1e-6)


def test_what_restarts_keeps_no_momentum_in_memory():
    one = client(head="key", extractor="key", keep_adam=False)
    one.train_round(start(), 0)
    held = {name: len(optimizer.state) for name, optimizer in one.optimizers.items()}
    assert held["discriminator"] > 0
    assert held["generator"] == held["classifier"] == held["extractor"] == 0
    assert all(p.grad is None for p in one.classifier.parameters())


def test_generator_steps_leave_no_gradients_in_the_other_networks():
    one = client()
    seen = {}
    step_of = one._step_of

    def watch(name):
        if name == "generator":
            others = (one.discriminator, one.extractor, one.classifier)
            seen[len(seen)] = [p.grad is None or not p.grad.any() for network in others for p in network.parameters()]
        step_of(name)

    one._step_of = watch
    one.train_round(start(), 0)
    assert len(seen) == 2 * 2
    assert all(all(some) for some in seen.values())
    assert all(p.requires_grad for p in one.discriminator.parameters())


def test_a_few_pictures_at_a_time_are_the_batch(monkeypatch):
    moved = []
    for at_once in (1, 3 * 16 * 16, 10**6):
        monkeypatch.setattr(client_training, "AT_ONCE", at_once)
        one = client()
        for name in ("generator", "discriminator"):
            # Adam's steps are as long for rounding errors as for other gradients; not so with a large eps.
            one.optimizers[name].param_groups[0]["eps"] = 1.0
        figures = one.train_round(start(), 0)
        moved.append((flat(one.generator.state_dict()), flat(one.extractor.state_dict()), figures))
    for generator, extractor, figures in moved[:2]:
        torch.testing.assert_close(generator, moved[2][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(extractor, moved[2][1], atol=1e-4, rtol=1e-4)
        assert figures == pytest.approx(moved[2][2], rel=1e-3)


@pytest.mark.parametrize(
    ("count", "side", "expected"), [(64, 28, 2), (64, 32, 3), (128, 32, 6), (1, 28, 1), (3, 400, 3), (0, 28, 0)]
)
def test_pieces_of_a_batch(count, side, expected):
    assert client_training.pieces(torch.empty(count, 1, side, side, device="meta")) == expected


def test_pieces_are_twice_as_large_where_numbers_are_half_as_long():
    assert client_training.pieces(torch.empty(128, 1, 32, 32, device="meta"), halved=True) == 3


@pytest.mark.parametrize("extractor", ["separate", "joint", "fixed", "none"])
def test_bfloat16_computes_the_same_gradients_to_its_digits_and_keeps_float32_weights(extractor):
    gradients, figures, answers = [], [], []
    for precision in ("32-true", "bf16-mixed"):
        one = client(local_steps=1, generator_steps=1, extractor=extractor, precision=precision)
        of_networks = {}

        def kept(name, one=one, of_networks=of_networks):
            network = getattr(one, name)
            of_networks.setdefault(name, [p.grad.clone() for p in network.parameters() if p.grad is not None])
            PPIDSGClient._step_of(one, name)

        one._step_of = kept
        figures.append(one.train_round(start(), 0))
        gradients.append(of_networks)
        assert all(value.dtype != torch.bfloat16 for value in one.state().values())
        assert all(value.dtype == torch.float32 for value in one.generator.state_dict().values())
        answers.append(one.predict(one.pictures))
    assert figures[1] == pytest.approx(figures[0], rel=0.05, abs=0.02)
    for name, exact in gradients[0].items():
        exact, near = (torch.cat([value.flatten() for value in some]) for some in (exact, gradients[1][name]))
        assert torch.cosine_similarity(exact, near, dim=0) > 0.9
        assert not torch.equal(exact, near)
    assert (answers[0] == answers[1]).float().mean() >= 0.75


def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert client(precision="auto").halved == native
    assert not client().halved


def test_a_resumed_client_ends_with_the_same_bits():
    unbroken = client(history=3)
    shared = start()
    unbroken.train_round(shared, 0)
    middle = {k: v.clone() for k, v in unbroken.generator.state_dict().items()}
    kept = {k: v.clone() for k, v in unbroken.state().items()}
    unbroken.train_round(middle, 1)
    again = client(history=3)
    again.load_state(kept)
    again.train_round(middle, 1)
    assert torch.equal(flat(again.generator.state_dict()), flat(unbroken.generator.state_dict()))
    mine, other = again.state(), unbroken.state()
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


def test_learning_rates_fall_with_the_rounds():
    one = client(decay_after=1, rounds=3, head="kept")
    one.train_round(start(), 2)
    assert one.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(1e-4)
    assert one.optimizers["classifier"].param_groups[0]["lr"] == pytest.approx(5e-3)


def test_what_restarts_learns_at_the_full_rate_to_the_end():
    one = client(decay_after=1, rounds=3, head="key", extractor="key")
    one.train_round(start(), 2)
    fresh = {name: optimizer.param_groups[0]["lr"] for name, optimizer in one.optimizers.items()}
    assert fresh["discriminator"] == pytest.approx(1e-4)
    # Those of the next round, which begins anew, are made already.
    assert fresh["classifier"] == fresh["extractor"] == pytest.approx(1e-2)
    assert one._restarts("classifier")
    assert not one._restarts("generator")


def test_the_class_loss_joins_after_its_warmup():
    assert client(warmup=1).train_round(start(), 0)["class"] == 0
    assert client(warmup=1).train_round(start(), 1)["class"] > 0


def test_a_proximal_term_holds_the_generator_back():
    far, near = client(local_steps=6), client(local_steps=6, proximal=100.0)
    shared = start()
    moved = []
    for one in (far, near):
        one.train_round(shared, 0)
        moved.append(float((flat(one.generator.state_dict()) - flat(shared)).norm()))
    assert moved[1] < 0.8 * moved[0]


def test_a_fresh_adam_forgets_the_rounds_before():
    for keep, steps in ((True, {8}), (False, set())):
        one = client(keep_adam=keep)
        for round_number in range(2):
            one.train_round(start(), round_number)
        assert {int(entry["step"]) for entry in one.optimizers["generator"].state.values()} == steps
        assert any(name.startswith("optimizer.generator") for name in one.state()) == keep


def test_the_history_hands_out_older_pictures_with_their_own_labels():
    rng = np.random.default_rng(0)
    ours, published = History(10), History(10, published=True)
    wrong = {"ours": 0, "published": 0}
    for _ in range(20):
        values = torch.from_numpy(rng.integers(0, 5, 8))
        pictures = values.float().view(8, 1, 1, 1).expand(8, 1, 2, 2)
        for name, pool in (("ours", ours), ("published", published)):
            out, said = pool.exchange(pictures, values, np.random.default_rng(1))
            wrong[name] += int((out[:, 0, 0, 0] != said).sum())
            assert len(pool.pictures) <= 10
    assert wrong["ours"] == 0
    # Half of the pictures are exchanged, four fifths of them for one of another class.
    assert 0.25 < wrong["published"] / 160 < 0.5


@pytest.mark.parametrize(
    ("published", "skips", "labels_follow"),
    [
        (False, True, True),
        (True, False, False),
        (("generator",), False, True),
        (("pool",), True, False),
        ((), True, True),
    ],
)
def test_each_part_of_the_published_code_is_asked_for_by_itself(published, skips, labels_follow):
    one = client(published=published)
    x = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    with_skips = Generator(1)
    with_skips.load_state_dict(one.generator.state_dict())
    with torch.no_grad():
        assert torch.equal(one.generator(x), with_skips(x)) == skips
    assert one.history.published != labels_follow


def test_an_unknown_part_of_the_published_code_is_refused():
    with pytest.raises(ValidationError, match="'generator' or 'pool'"):
        ClientConfig(published=("discriminator",))


def test_a_history_of_none_hands_back_what_it_gets():
    pictures, labels = torch.zeros(3, 1, 2, 2), torch.arange(3)
    out, said = History(0).exchange(pictures, labels, np.random.default_rng(0))
    assert out is pictures
    assert said is labels


def test_one_batch_is_overfitted():
    one = client(
        8,
        batch=8,
        generator_lr=1e-3,
        extractor="joint",
        head="kept",
        history=0,
        local_steps=12,
        decay_after=99,
        rounds=100,
    )
    shared = start()
    for round_number in range(7):
        found = one.train_round(shared, round_number)
        shared = {k: v.clone() for k, v in one.generator.state_dict().items()}
    assert (one.predict(one.pictures) == one.labels).all()
    # Chance is log 2, about 0.69.
    assert found["class"] < 0.4
    assert found["semantic"] < 0.75


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="client 3 has no picture"):
        PPIDSGClient(
            torch.zeros(0, 1, 16, 16, dtype=torch.uint8),
            torch.zeros(0),
            2,
            Cipher(SECRET),
            KEY,
            ClientConfig(),
            number=3,
        )
    with pytest.raises(ConfigError, match="no whole number of blocks of 16"):
        PPIDSGClient(
            torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1), 2, Cipher(SECRET, 16), KEY, ClientConfig()
        )
    with pytest.raises(ValidationError):
        ClientConfig(head="new")
