"""What every network of SHT must do; a network's own test file names it and adds what is special."""

from __future__ import annotations

import copy

import pytest
import torch

from veilmark.sht.dhln import DHLNOutput

FACES = torch.Generator().manual_seed(5)


class LandmarkNetworkTester:
    """Subclasses set ``network`` (a class) and ``options`` (a small config of it)."""

    network: type
    options: dict

    def make(self, **changes):
        torch.manual_seed(0)
        return self.network(**{**self.options, **changes})

    def faces(self, n=2, side=32):
        return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(side))

    @pytest.mark.parametrize("side", [8, 16, 25, 64, 100])
    def test_takes_faces_of_any_side(self, side):
        model = self.make()
        output = model(self.faces(2, side))
        k = 68
        assert output.points.shape == (2, k, 2)
        assert output.expected_error.shape == (2, k)
        assert output.trust_logit.shape == (2,)
        assert bool((output.expected_error > 0).all())
        assert bool(((output.points >= 0) & (output.points <= model.size)).all())

    @pytest.mark.parametrize(
        ("shape", "words"),
        [((2, 3, 7, 7), "8 px"), ((2, 3, 16, 20), "expected"), ((2, 1, 16, 16), "expected"), ((3, 16, 16), "expected")],
    )
    def test_refuses_what_is_no_face_crop(self, shape, words):
        with pytest.raises(ValueError, match=words):
            self.make()(torch.rand(shape))

    def test_every_parameter_learns(self):
        model = self.make()
        # Away from the zero starts, behind which nothing learns in the very first step.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        output: DHLNOutput = model(self.faces())
        total = output.expected_error.mean() + output.trust_logit.mean()
        for stage in output.stages:
            total = total + stage.points.square().mean() + (0 if stage.face is None else stage.face.square().mean())
        total.backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    def test_a_face_does_not_depend_on_its_batch(self):
        model, faces = self.make().eval(), self.faces(3)
        with torch.no_grad():
            together, alone = model(faces), model(faces[1:2])
        torch.testing.assert_close(together.points[1:2], alone.points, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.face[1:2], alone.face, rtol=1e-4, atol=1e-4)

    def test_saved_and_loaded_it_says_the_same(self, tmp_path):
        model = self.make().eval()
        model.save_pretrained(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
        again = self.network.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(self.faces()).points, model(self.faces()).points)

    def test_the_copy_and_the_original_agree(self):
        model = self.make().eval()
        other = copy.deepcopy(model)
        with torch.no_grad():
            torch.testing.assert_close(other(self.faces()).points, model(self.faces()).points)

    def test_channels_last_changes_nothing(self):
        model = self.make().eval()
        with torch.no_grad():
            plain = model(self.faces()).points
            torch.testing.assert_close(model.to(memory_format=torch.channels_last)(self.faces()).points, plain)

    def test_exports(self):
        model = self.make().eval()
        exported = torch.export.export(model, (self.faces(2, model.size),))
        with torch.no_grad():
            inputs = self.faces(2, model.size)
            torch.testing.assert_close(exported.module()(inputs).points, model(inputs).points, rtol=1e-4, atol=1e-3)
