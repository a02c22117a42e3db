"""FPTN: the spline moves pixels exactly, the network starts as the spline, and of B it knows the points alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from veilmark.run.errors import ConfigError, WeightsError
from veilmark.sht import fptn as fptn_module
from veilmark.sht.dhln import DHLN
from veilmark.sht.fptn import FPTN, move_pixels, spline_move
from veilmark.sht.pretrained import load_dhln, load_fptn, packaged_weights, weights_folder

SIZE = 64
SMALL = {"size": SIZE, "channels": 16, "blocks": 2, "painter_width": 16}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n=2, k=68, seed=0, low=12.0, high=52.0, dtype=torch.float32):
    return torch.rand(n, k, 2, generator=generator(seed), dtype=dtype) * (high - low) + low


def smooth(n=2, side=SIZE, seed=0):
    """Pictures without hard edges, as faces are: their resampling is exact to a little."""
    coarse = torch.rand(n, 3, 6, 6, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


def small(**options):
    torch.manual_seed(0)
    return FPTN(**{**SMALL, **options})


def stirred(**options):
    """A small network whose zero-started layers have been moved, so that every path carries something."""
    model = small(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(7)))
    return model.eval()


# The spline


def cell_grid(cells, size):
    centre = (np.arange(cells) + 0.5) * size / cells
    return centre


def test_the_spline_is_exact_at_the_landmarks_where_nothing_smooths_it(monkeypatch):
    """Landmarks that lie on centres of cells can be read off the field."""
    monkeypatch.setattr(fptn_module, "STIFFNESS", 1e-9)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(16)[:9], rng.permutation(16)[:9]
    centre = cell_grid(16, SIZE)
    target = torch.from_numpy(np.stack([centre[columns], centre[rows]], axis=1))[None]
    source = target + torch.from_numpy(rng.uniform(-3, 3, (1, 9, 2)))
    field = spline_move(target, source, 16, SIZE)
    found = target[0] + SIZE * field[0, :, rows, columns].T
    torch.testing.assert_close(found, source[0], atol=1e-4, rtol=0)


def test_its_stiffness_keeps_it_within_half_a_pixel_of_smooth_moves():
    target = points(1, 68, dtype=torch.float64)
    source = target + 2 * torch.sin(target / 20)
    centre = cell_grid(SIZE, SIZE)
    field = spline_move(target, source, SIZE, SIZE)
    moved = np.stack(
        [map_coordinates(field[0, axis].numpy(), target[0].numpy()[:, ::-1].T - centre[0], order=1) for axis in (0, 1)],
        axis=1,
    )
    assert np.linalg.norm(target[0].numpy() + SIZE * moved - source[0].numpy(), axis=1).mean() < 0.5


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_points_that_stay_move_nothing(seed):
    target = points(2, 68, seed, low=-5, high=70)
    assert float(spline_move(target, target, 16, SIZE).abs().max()) == 0


def thin_plate(target, source, places, stiffness):
    """Bookstein's spline, written out in numpy for one set of points, in shares of the side."""
    border = np.array([[x, y] for y in (0, 0.5, 1) for x in (0, 0.5, 1) if (x, y) != (0.5, 0.5)])
    to = np.concatenate([target, border])
    moves = np.concatenate([source - target, np.zeros_like(border)])

    def kernel(a, b):
        r = np.linalg.norm(a[:, None] - b, axis=2)
        return np.where(r > 0, r**2 * np.log(np.maximum(r, 1e-12)), 0)

    m = len(to)
    affine = np.column_stack([np.ones(m), to])
    system = np.block([[kernel(to, to) + stiffness * np.eye(m), affine], [affine.T, np.zeros((3, 3))]])
    solved = np.linalg.solve(system, np.concatenate([moves, np.zeros((3, 2))]))
    return np.column_stack([kernel(places, to), np.ones(len(places)), places]) @ solved


def test_the_spline_is_bookstein_s():
    target = points(1, 20, 3, dtype=torch.float64)
    source = target + torch.randn(target.shape, generator=generator(1), dtype=torch.float64)
    field = spline_move(target, source, 8, SIZE)[0].reshape(2, -1).T
    centre = cell_grid(8, 1)
    places = np.array([[x, y] for y in centre for x in centre])
    expected = thin_plate(target[0].numpy() / SIZE, source[0].numpy() / SIZE, places, fptn_module.STIFFNESS)
    np.testing.assert_allclose(field.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("linear", "shift"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [2.0, -1.0]),  # moved
        ([[1.05, 0.0], [0.0, 1.05]], [0.0, 0.0]),  # scaled
        ([[0.998, -0.07], [0.07, 0.998]], [0.0, 0.0]),  # turned by 4 degrees
        ([[0.95, 0.03], [0.0, 1.02]], [1.0, 1.0]),  # sheared
    ],
)
def test_affine_moves_are_followed_inside_the_face(linear, shift):
    """The border stays; among the landmarks the field is the affine map that they follow."""
    target = points(1, 68, 5, low=16, high=48, dtype=torch.float64)
    matrix, offset = torch.tensor(linear, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
    source = (target - 32) @ matrix.T + 32 + offset
    cells = 16
    field = spline_move(target, source, cells, SIZE)[0] * SIZE
    centre = cell_grid(cells, SIZE)
    inside = np.flatnonzero((centre > 20) & (centre < 44))
    for row in inside:
        for column in inside:
            place = torch.tensor([centre[column], centre[row]])
            wanted = (place - 32) @ matrix.T + 32 + offset - place
            assert float((field[:, row, column] - wanted).norm()) < 0.35


def test_border_pixels_stay_where_they_are():
    target = points(1, 68, 2, low=20, high=44)
    field = spline_move(target, target + 3, 64, SIZE)[0] * SIZE
    for corner in ((0, 0), (0, 63), (63, 0), (63, 63)):
        assert float(field[:, corner[0], corner[1]].norm()) < 0.5


# The pixels


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_pixels_move_as_scipy_moves_them(seed):
    rng = np.random.default_rng(seed)
    picture, move = rng.random((1, 3, 12, 12)), 0.15 * rng.standard_normal((1, 2, 12, 12))
    moved = move_pixels(torch.from_numpy(picture), torch.from_numpy(move))
    rows, columns = np.mgrid[0:12, 0:12].astype(float)
    places = [rows + 12 * move[0, 1], columns + 12 * move[0, 0]]
    expected = np.stack([map_coordinates(channel, places, order=1, mode="nearest") for channel in picture[0]])
    np.testing.assert_allclose(moved[0].numpy(), expected, atol=1e-9)


def test_no_move_leaves_the_picture():
    picture = smooth()
    torch.testing.assert_close(move_pixels(picture, torch.zeros(2, 2, 8, 8)), picture, atol=1e-5, rtol=0)


def test_gradients_of_spline_and_pixels_in_float64():
    target = points(1, 4, 1, low=2, high=6, dtype=torch.float64).requires_grad_()
    source = points(1, 4, 2, low=2, high=6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, s: spline_move(t, s, 3, 8.0), (target, source))
    picture = torch.rand(1, 1, 6, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    # Bilinear sampling has kinks at the centres of pixels; this move ends between them.
    move = (0.03 + 0.01 * torch.rand(1, 2, 6, 6, generator=generator(3), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(move_pixels, (picture, move))


# The network


def test_it_starts_as_the_spline_alone():
    faces, source = smooth(), points()
    target = source + 2
    with torch.no_grad():
        face, moved = small()(faces, source, target)
    torch.testing.assert_close(face, moved)
    torch.testing.assert_close(face, move_pixels(faces, spline_move(target, source, SIZE // 8, SIZE)))
    assert not torch.allclose(face, faces, atol=0.01)


def test_in_the_same_pose_it_starts_by_giving_the_face_back():
    faces, source = smooth(), points()
    torch.testing.assert_close(small()(faces, source, source).face, faces, atol=1e-5, rtol=0)


def test_of_b_only_the_points_are_known():
    """Maps rendered from points say no more than the points: all pixels of all maps follow from 2 numbers each."""
    model, target = stirred(), points(seed=4)
    faces, source = smooth(), points()
    with torch.no_grad():
        first = model(faces, source, target).face
        assert torch.equal(model(faces, source, target.clone()).face, first)
        assert float((model(faces, source, target + 1.5).face - first).abs().max()) > 1e-3
    # A rendered map holds nothing but its centre: its moments give the point back, and each peaks at about 1.
    maps = model.render(points(2, 68, 6, low=20, high=44))
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.full((2, 68), 2 * np.pi), atol=1e-4, rtol=0)
    assert 0.7 < float(maps.amax(dim=(2, 3)).min()) <= float(maps.amax()) < 1.1


def test_every_answer_follows_its_own_row():
    model, faces, source = stirred(), smooth(3), points(3)
    target = source + torch.randn(source.shape, generator=generator(4))
    with torch.no_grad():
        together, alone = model(faces, source, target), model(faces[1:2], source[1:2], target[1:2])
    torch.testing.assert_close(together.face[1:2], alone.face, rtol=0, atol=1e-3)


def test_every_parameter_learns():
    model = stirred()
    model(smooth(), points(), points(seed=4)).face.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("stride", [4, 8])
def test_one_batch_can_be_learned_by_heart(stride):
    model, faces = small(stride=stride), smooth()
    source = points()
    target = source + 2
    with torch.no_grad():
        truth = (move_pixels(faces, spline_move(target, source, 8, SIZE)) * 0.8 + 0.1 * smooth(seed=9)).clamp(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(faces, source, target).face - truth).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 * losses[0]


def test_saved_and_loaded_it_paints_the_same(tmp_path):
    model = stirred()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    again = FPTN.from_pretrained(tmp_path).eval()
    inputs = smooth(), points(), points(seed=4)
    torch.testing.assert_close(again(*inputs).face, model(*inputs).face)


def test_weights_are_checked_as_those_of_dhln_are(tmp_path):
    stirred().half().save_pretrained(tmp_path)
    model = load_fptn(tmp_path)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(WeightsError, match="'blocks' is not an option of DHLN; these weights are of another network"):
        load_dhln(tmp_path)
    broken = small()
    with torch.no_grad():
        broken.correct.bias.fill_(float("inf"))
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(WeightsError, match=r"'correct\.bias' holds a value that is not finite"):
        load_fptn(tmp_path / "broken")
    with pytest.raises(WeightsError, match=r"no weights 'nothing'; packaged: (?!dhln)"):
        load_fptn("nothing")


def test_the_packaged_weights_load_and_are_small():
    assert set(packaged_weights(FPTN)) | set(packaged_weights(DHLN)) == set(packaged_weights())
    for name in packaged_weights(FPTN):
        assert load_fptn(name).size == 128
        assert sum(f.stat().st_size for f in weights_folder(name).glob("*.safetensors")) <= 8_000_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 3}, "stride is 3, size 64; allowed: strides 4 and 8"),
        ({"size": 100}, "stride is 8, size 100"),
        ({"blocks": 0}, "blocks is 0; allowed: 1 or more"),
        ({"scheme": "wflw12"}, "unknown landmark scheme 'wflw12'"),
    ],
)
def test_a_bad_option_is_named(options, words):
    with pytest.raises(ConfigError, match=words):
        FPTN(**{**SMALL, **options})


def test_faces_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected \(n, 3, 64, 64\)"):
        small()(smooth(side=32), points(), points())
