"""The cipher's attacks: what they must open (positive controls), and what they must not (negative ones)."""

import numpy as np
import pytest
import torch

from veilmark.audit.cipher_attacks import (
    jigsaw,
    known_distribution,
    known_plaintext,
    look_alikes,
    neighbours_kept,
    opened,
)
from veilmark.ppidsg.cipher import STEPS, Cipher, Table
from veilmark.ppidsg.secret import SECRET_BYTES, Secret


def cipher(block=4, steps=STEPS, number=1):
    return Cipher(Secret(bytes([number]) * SECRET_BYTES), block, steps)


def smooth(count, channels=1, side=16, seed=0):
    """Pictures of some slow waves, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    made = np.zeros((count, channels, side, side))
    for _ in range(4):
        wave, phase = rng.normal(0, 2, (2, count, channels, 1, 1)), rng.uniform(0, 6.3, (count, channels, 1, 1))
        made += np.sin(wave[0] * rows * 3 + wave[1] * columns * 3 + phase)
    return torch.from_numpy((made / np.abs(made).max()).astype(np.float32))


def noise(count, channels=1, side=16, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def is_key(table, channels, side):
    return sorted(table.place.tolist()) == list(range(channels * side * side))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [2, 4, 8])
def test_one_textured_pair_opens_the_key(channels, block):
    x = noise(1, channels)
    guess = known_plaintext(x, cipher(block).scramble(x), block)
    true = cipher(block).table(channels, 16, 16)
    assert np.array_equal(guess.place, true.place)
    assert np.array_equal(guess.negated, true.negated)


@pytest.mark.parametrize("without", STEPS)
def test_a_cipher_without_a_step_is_opened_too(without):
    x = noise(2, 3)
    steps = [step for step in STEPS if step != without]
    guess = known_plaintext(x, cipher(steps=steps).scramble(x), 4)
    assert np.array_equal(guess.place, cipher(steps=steps).table(3, 16, 16).place)


def test_nearly_right_pairs_are_snapped_to_the_key():
    x = smooth(16)
    said = cipher().scramble(x) + 0.3 * noise(16, seed=3)
    other = smooth(4, seed=9)
    assert torch.allclose(opened(known_plaintext(x, said, 4), cipher().scramble(other)), other)


def test_pairs_that_do_not_belong_together_open_nothing():
    """Negative control: another key for every pair, as in the scope ``image``."""
    x, other = noise(8), noise(4, seed=9)
    each = cipher().scramble(x, [bytes([row]) for row in range(8)])
    guess = known_plaintext(x, each, 4)
    assert is_key(guess, 1, 16)
    assert float((opened(guess, cipher().scramble(other)) - other).abs().mean()) > 0.4


@pytest.mark.parametrize("channels", [1, 3])
def test_unscrambling_with_the_true_key_is_exact(channels):
    x = noise(3, channels)
    assert torch.equal(opened(cipher().table(channels, 16, 16), cipher().scramble(x)), x)


def test_statistics_of_public_pictures_open_a_key():
    # Pictures of a kind: each place has a brightness and a spread of its own.
    rng = np.random.default_rng(4)
    mean, spread = rng.uniform(-0.6, 0.6, (2, 1, 1, 16, 16))
    kind = [
        torch.from_numpy((mean + 0.4 * np.abs(spread) * rng.normal(size=(600, 1, 16, 16))).astype("f4")) for _ in "ab"
    ]
    guess = known_distribution(kind[0], cipher().scramble(kind[1]), 4)
    assert np.array_equal(guess.place, cipher().table(1, 16, 16).place)


def test_statistics_of_noise_open_nothing():
    guess = known_distribution(noise(300), cipher().scramble(noise(300, seed=1)), 4)
    assert neighbours_kept(guess, cipher().table(1, 16, 16), (1, 16, 16), 4) < 30


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jigsaw_of_smooth_pictures_is_solved(channels):
    x = smooth(24, channels)
    y, true = cipher().scramble(x), cipher().table(channels, 16, 16)
    guess = jigsaw(y, 4)
    assert is_key(guess, channels, 16)
    assert neighbours_kept(guess, true, (channels, 16, 16), 4) == 100
    # Which way up, and negated or not, stays open.
    assert min(float((found - x).abs().max()) for found in look_alikes(opened(guess, y))) < 1e-6


def test_a_jigsaw_of_noise_is_not_solved():
    guess = jigsaw(cipher().scramble(noise(24)), 4)
    assert neighbours_kept(guess, cipher().table(1, 16, 16), (1, 16, 16), 4) < 30


def test_a_jigsaw_of_a_key_each_is_not_solved():
    x = smooth(24)
    each = cipher().scramble(x, [bytes([row]) for row in range(24)])
    assert neighbours_kept(jigsaw(each, 4), cipher().table(1, 16, 16), (1, 16, 16), 4) < 30


def test_neighbours_kept_counts_whatever_way_up():
    plain = Table(np.arange(256), np.zeros(256, dtype=bool))
    turned = Table(np.rot90(np.arange(256).reshape(16, 16)).reshape(-1).copy(), np.ones(256, dtype=bool))
    assert neighbours_kept(plain, plain, (1, 16, 16), 4) == 100
    assert neighbours_kept(turned, plain, (1, 16, 16), 4) == 100
    assert neighbours_kept(cipher().table(1, 16, 16), plain, (1, 16, 16), 4) < 30


def test_look_alikes_are_all_there_and_start_with_the_picture():
    x = noise(2, 3, side=4)
    found = look_alikes(x)
    assert len({some.numpy().tobytes() for some in found}) == 96
    assert torch.equal(found[0], x)


@pytest.mark.parametrize(
    ("pictures", "scrambled", "block"), [((1, 1, 16, 16), (2, 1, 16, 16), 4), ((1, 1, 18, 18), (1, 1, 18, 18), 4),
                                         ((0, 1, 16, 16), (0, 1, 16, 16), 4), ((1, 2, 16, 16), (1, 2, 16, 16), 4)]
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(pictures, scrambled, block):
    with pytest.raises(ValueError, match=r"expected two batches|whole number"):
        known_plaintext(torch.zeros(pictures), torch.zeros(scrambled), block)
    with pytest.raises(ValueError, match="squares"):
        jigsaw(torch.zeros(1, 1, 8, 16), 4)
    with pytest.raises(ValueError, match="two pictures"):
        known_distribution(torch.zeros(1, 1, 8, 8), torch.zeros(2, 1, 8, 8), 4)
