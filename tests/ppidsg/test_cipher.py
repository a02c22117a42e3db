"""The cipher: an exact bijection, the order of Algorithm 1, subkeys that hang on every bit of the secret."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.ppidsg.cipher import BLOCKS, STEPS, Cipher, key_space
from veilmark.ppidsg.secret import KeyStream, Secret, SecretError
from veilmark.run.errors import ConfigError

FIXED = Secret(bytes(range(32)))
VECTORS = Path(__file__).with_name("cipher_vectors.json")


def picture(n, c, h, w, dtype=torch.uint8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (n, c, h, w), generator=draw, dtype=torch.uint8)
    return values if dtype == torch.uint8 else (values.to(torch.float64) / 127.5 - 1).to(dtype)


def by_algorithm_1(image, keys, block, steps):
    """Independent: one block after the other, as the paper writes it. ``image`` is (c, h, w)."""
    c, h, w = image.shape
    top = 255 if image.dtype == np.uint8 else 0
    done = []
    for number in range((h // block) * (w // block)):
        y, x = divmod(number, w // block)
        piece = [image[k, y * block : (y + 1) * block, x * block : (x + 1) * block] for k in range(c)]
        if "rotate" in steps:
            piece = [np.rot90(layer, keys["rotate"][number]) for layer in piece]
        if "negate" in steps and keys["negate"][number]:
            piece = [top - layer for layer in piece]
        if "flip" in steps and keys["flip"][number]:
            piece = [np.fliplr(layer) if keys["flip"][number] == 1 else np.flipud(layer) for layer in piece]
        if "colour" in steps and c == 3:
            orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
            piece = [piece[k] for k in orders[keys["colour"][number]]]
        done.append(piece)
    if "permute" in steps:
        done = [done[source] for source in keys["permute"]]
    out = np.empty_like(image)
    for number, piece in enumerate(done):
        y, x = divmod(number, w // block)
        for k in range(c):
            out[k, y * block : (y + 1) * block, x * block : (x + 1) * block] = piece[k]
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 3),
    st.sampled_from([1, 3]),
    st.integers(1, 37),
    st.integers(1, 37),
    st.sampled_from(BLOCKS),
    st.sets(st.sampled_from(STEPS)),
    st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_unscrambling_gives_back_every_value(secret, n, c, h, w, block, steps, dtype, per_image):
    cipher, x = Cipher(Secret(secret), block, tuple(steps)), picture(n, c, h, w, dtype)
    names = [str(i).encode() for i in range(n)] if per_image else None
    scrambled = cipher.scramble(x, names)
    assert scrambled.shape == (n, c, *cipher.padded(h, w))
    assert scrambled.dtype == x.dtype
    assert torch.equal(cipher.unscramble(scrambled, (h, w), names), x)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("steps", [STEPS, *((step,) for step in STEPS), ("rotate", "flip"), ("colour", "permute"), ()])
def test_it_is_algorithm_1_step_by_step(block, channels, steps):
    cipher, x = Cipher(FIXED, block, steps), picture(2, channels, 32, 48)
    keys = cipher.subkeys(channels, 32, 48)
    expected = np.stack([by_algorithm_1(image, keys, block, steps) for image in x.numpy()])
    assert np.array_equal(cipher.scramble(x).numpy(), expected)
    if steps and not (steps == ("colour",) and channels == 1):
        assert not torch.equal(cipher.scramble(x), x)


def test_floats_and_bytes_are_scrambled_alike():
    cipher, x = Cipher(FIXED), picture(3, 3, 20, 24)
    as_float = cipher.scramble(x.double() / 127.5 - 1)
    assert torch.equal(((as_float + 1) * 127.5).round().to(torch.uint8), cipher.scramble(x))


def test_every_dtype_goes_the_same_way():
    """bfloat16 goes through torch, the others through numpy."""
    cipher, x = Cipher(FIXED), picture(2, 3, 16, 16, torch.bfloat16)
    assert torch.equal(cipher.scramble(x).float(), cipher.scramble(x.float()))
    names = [b"a", b"b"]
    assert torch.equal(cipher.scramble(x, names).float(), cipher.scramble(x.float(), names))


def test_edges_are_repeated():
    cipher = Cipher(FIXED, 4, ())
    x = picture(1, 1, 5, 6)
    padded = cipher.scramble(x)
    assert padded.shape == (1, 1, 8, 8)
    assert torch.equal(padded[..., :5, :6], x)
    assert torch.equal(padded[..., 4:, :6], x[..., 4:, :].expand(1, 1, 4, 6))
    assert torch.equal(padded[..., :5, 6:], x[..., 5:].expand(1, 1, 5, 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 255))
def test_one_flipped_bit_of_the_secret_changes_every_subkey(bit):
    flipped = bytearray(range(32))
    flipped[bit // 8] ^= 1 << (bit % 8)
    one, other = (Cipher(secret).subkeys(3, 32, 32) for secret in (FIXED, Secret(bytes(flipped))))
    for step in STEPS:
        # 64 blocks: that two independent subkeys agree in 60 places has a chance below 1e-10.
        assert (one[step] == other[step]).sum() < 60, step


def test_pictures_of_another_shape_get_other_subkeys():
    cipher = Cipher(FIXED)
    base = cipher.subkeys(3, 32, 32)
    for other in (cipher.subkeys(1, 32, 32), cipher.subkeys(3, 16, 64), Cipher(FIXED, 8).subkeys(3, 64, 64)):
        assert all((base[step] != other[step]).any() for step in STEPS)


def test_switching_a_step_off_leaves_the_others_as_they_are():
    whole, fewer = Cipher(FIXED).subkeys(3, 32, 32), Cipher(FIXED, steps=("permute",)).subkeys(3, 32, 32)
    assert all(np.array_equal(whole[step], fewer[step]) for step in STEPS)


def test_images_of_the_scope_image_are_scrambled_differently_and_only_their_own_name_opens_them():
    cipher, x = Cipher(FIXED), picture(1, 1, 28, 28).expand(3, 1, 28, 28)
    scrambled = cipher.scramble(x, [b"1", b"2", b"1"])
    assert torch.equal(scrambled[0], scrambled[2])
    assert not torch.equal(scrambled[0], scrambled[1])
    assert not torch.equal(cipher.unscramble(scrambled, images=[b"2", b"2", b"2"])[0], x[0])


def test_committed_vectors():
    """A release that breaks these can no longer open what an older one scrambled."""
    for vector in json.loads(VECTORS.read_text(encoding="utf-8")):
        cipher = Cipher(Secret(bytes.fromhex(vector["secret"])), vector["block"], vector["steps"])
        x = torch.tensor(vector["picture"], dtype=torch.uint8)
        keys = cipher.subkeys(*x.shape)
        assert {step: key.tolist() for step, key in keys.items()} == vector["subkeys"]
        assert cipher.scramble(x[None])[0].tolist() == vector["scrambled"]
        assert cipher.secret.check() == vector["check"]


@pytest.mark.parametrize("bound", [2, 3, 4, 6, 256])
def test_draws_are_uniform(bound):
    counts = np.bincount(KeyStream(bytes(32)).below(bound, 256_000), minlength=bound)
    expected = 256_000 / bound
    # Five standard deviations of each count.
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_permutations_are_uniform():
    stream = KeyStream(bytes(32))
    counts = {}
    for _ in range(6000):
        key = tuple(stream.permutation(3))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(1000)


@pytest.mark.parametrize(
    ("shape", "steps", "bits"),
    [
        ((1, 28, 28), STEPS, 49 * 4 + math.log2(math.factorial(49))),  # gray: 8 orientations, one sign, no colours
        ((3, 32, 32), STEPS, 64 * (4 + math.log2(6)) + math.log2(math.factorial(64))),
        ((3, 8, 8), ("rotate",), 8.0),
        ((3, 8, 8), ("flip",), 4 * math.log2(3)),
        ((3, 8, 8), (), 0.0),
        ((1, 5, 5), ("negate",), 4.0),  # repeated edges make whole blocks
    ],
)
def test_key_space(shape, steps, bits):
    space = key_space(*shape, steps=steps)
    assert space.distinct == pytest.approx(bits)
    assert space.effective == pytest.approx(min(bits, 256))


def test_turns_and_flips_are_eight_orientations():
    block = np.arange(16).reshape(4, 4)
    flips = (lambda a: a, np.fliplr, np.flipud)
    assert len({flip(np.rot90(block, turns)).tobytes() for turns in range(4) for flip in flips}) == 8


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cipher(FIXED, 3), "block is 3; allowed: 2, 4, 8, 16"),
        (lambda: Cipher(FIXED, 4, ("rotate", "shuffle")), "'shuffle' is no step of the cipher"),
    ],
)
def test_bad_settings_are_named(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.scramble(torch.zeros(3, 8, 8)), "expected pictures"),
        (lambda c: c.scramble(torch.zeros(1, 2, 8, 8)), "expected pictures"),
        (lambda c: c.scramble(torch.zeros(1, 1, 8, 8, dtype=torch.int64)), "uint8 or floating point"),
        (lambda c: c.scramble(torch.zeros(2, 1, 8, 8), [b"one"]), "2 pictures, but 1 names"),
        (lambda c: c.unscramble(torch.zeros(1, 1, 9, 8)), "not multiples of the block"),
        (lambda c: c.unscramble(torch.zeros(1, 1, 8, 8), (3, 8)), "3 x 8 is not scrambled to 8 x 8"),
    ],
)
def test_bad_pictures_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(Cipher(FIXED))


def test_a_secret_lives_in_a_private_file_and_is_never_overwritten(tmp_path):
    secret, path = Secret.generate(), tmp_path / "key"
    secret.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Secret.load(path) == secret
    assert Secret.generate() != secret
    with pytest.raises(SecretError, match="exists"):
        Secret.generate().save(path)
    assert Secret.load(path) == secret


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0o600, "no such file; make one with: veilmark keygen"),
        ("veilmark-secret-1 " + "00" * 32, 0o644, r"mode 0644\); run: chmod 600"),
        ("veilmark-secret-1 " + "ab" * 31, 0o600, "not a secret of Veilmark"),
        ("ab" * 32, 0o600, "not a secret of Veilmark"),
    ],
)
def test_bad_secret_files_are_named_and_never_quoted(tmp_path, content, mode, says):
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(SecretError, match=says) as error:
        Secret.load(path)
    assert "abab" not in str(error.value)


def test_a_secret_does_not_show_itself():
    secret = Secret(b"\xab" * 32)
    assert repr(secret) == str(secret) == "Secret(...)"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    with pytest.raises(ValueError, match="32 bytes"):
        Secret(b"short")


def test_derived_secrets_are_unrelated():
    assert FIXED.derive(b"a") != FIXED.derive(b"b")
    assert FIXED.derive(b"a") == FIXED.derive(b"a")
    assert FIXED.derive(b"a") != FIXED
