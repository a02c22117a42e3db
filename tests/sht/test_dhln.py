import json

import pytest
import torch
from model_tester import LandmarkNetworkTester

from veilmark.run.errors import ConfigError, WeightsError
from veilmark.sht.dhln import DHLN
from veilmark.sht.layers import FinePainter
from veilmark.sht.pretrained import load_dhln, packaged_weights, weights_folder

SMALL = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}


class TestDHLN(LandmarkNetworkTester):
    network = DHLN
    options = SMALL


def faces(side=64, n=2):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def stirred(**options):
    """A small network whose zero-started layers have been moved, so that every path carries something."""
    torch.manual_seed(0)
    model = DHLN(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_an_untrained_network_hallucinates_the_bicubic_face():
    small = faces(16)
    bicubic = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic", align_corners=False)
    torch.testing.assert_close(DHLN(**SMALL)(small).face, bicubic)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_every_stage_answers(stages):
    output = stirred(stages=stages)(faces())
    assert len(output.stages) == stages
    assert all(stage.face is not None and stage.logits.shape[1] == 68 for stage in output.stages)


@pytest.mark.parametrize("map_stride", [8, 4, 2, 1])
def test_map_stride_sets_the_size_of_the_maps(map_stride):
    output = stirred(map_stride=map_stride)(faces())
    assert output.stages[-1].logits.shape[-2:] == (64 // map_stride, 64 // map_stride)


def test_landmarks_alone_skip_the_painting_and_stay_the_same():
    model = stirred()
    called = []
    for name, painter in [("paint", p) for p in model.paint] + [("finish", model.finish)]:
        painter.register_forward_hook(lambda *args, name=name: called.append(name))
    with torch.no_grad():
        quick = model(faces(), hallucinate=False)
        assert called == []
        assert quick.face is None
        whole = model(faces())
    assert called == ["paint", "finish"]
    torch.testing.assert_close(quick.points, whole.points)


@pytest.mark.parametrize(("stride", "steps"), [(2, 0), (4, 1), (8, 2)])
def test_the_last_painter_looks_at_the_picture_in_every_step(stride, steps):
    torch.manual_seed(0)
    painter = FinePainter(32, stride, 16)
    features, picture = torch.randn(2, 32, 8, 8), torch.randn(2, 3, 8 * stride, 8 * stride)
    assert len(painter.look) == steps
    # It starts by painting nothing.
    assert not painter(features, picture).any()
    with torch.no_grad():
        for parameter in painter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        painted = painter(features, picture)
        assert painted.shape == (2, 3, 8 * stride, 8 * stride)
        assert torch.equal(painter(features, picture + 1), painted) == (steps == 0)
        assert not torch.equal(painter(features + 1, picture), painted)


def test_rows_are_what_it_says_about_some_of_the_faces():
    with torch.no_grad():
        whole = stirred()(faces(n=4))
    part = whole.rows(1, 3)
    for name in ("points", "face", "expected_error", "trust_logit"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:3]), name
    assert [stage.logits.shape[0] for stage in part.stages] == [2, 2]
    assert whole.rows(2, 2).points.shape == (0, 68, 2)


def test_heatmaps_guide_the_detail_stream():
    """A change of the first stage's heatmaps alone must move the painted face, and must not without guidance."""

    def shift(model):
        before = model(faces()).stages[0].face
        with torch.no_grad():
            model.heatmap[0][2].bias.add_(torch.randn_like(model.heatmap[0][2].bias) * 5)
        return float((model(faces()).stages[0].face - before).abs().max())

    assert shift(stirred()) > 1e-4
    assert shift(stirred(heatmap_guidance=False)) == 0


def test_detail_features_enter_the_structure_stream():
    def shift(model):
        before = model(faces()).points
        with torch.no_grad():
            model.detail_stem.place.add_(torch.randn_like(model.detail_stem.place))
        return float((model(faces()).points - before).abs().max())

    assert shift(stirred()) > 1e-4
    assert shift(stirred(detail_guidance=False)) == 0


def test_heatmaps_only():
    output = stirred(detail=False)(faces())
    assert output.face is None
    assert not any("detail" in name for name, _ in stirred(detail=False).named_parameters())


def test_the_claim_does_not_change_what_it_is_a_claim_about():
    model = stirred()
    model(faces()).expected_error.sum().backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"error"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"map_stride": 3}, "map_stride is 3; allowed: 1, 2, 4, 8"),
        ({"map_stride": 8, "trunk_stride": 4}, "at most trunk_stride"),
        ({"trunk_stride": 16}, "trunk_stride is 16; allowed: 2, 4, 8"),
        ({"stages": 0}, "stages is 0"),
        ({"size": 100}, "not divisible by 32 .* use 128"),
        ({"scheme": "wflw12"}, "unknown landmark scheme 'wflw12'"),
    ],
)
def test_a_bad_option_is_named(options, words):
    with pytest.raises(ConfigError, match=words):
        DHLN(**{**SMALL, **options})


# What bad weights get


def saved(tmp_path, **options):
    DHLN(**{**SMALL, **options}).save_pretrained(tmp_path)
    return tmp_path


def test_weights_of_a_folder_are_loaded(tmp_path):
    folder = saved(tmp_path)
    assert load_dhln(folder).size == 64
    assert load_dhln(folder / "model.safetensors").size == 64


def test_half_precision_weights_are_loaded_as_float32(tmp_path):
    DHLN(**SMALL).half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_dhln(tmp_path).parameters()} == {torch.float32}


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_weights_of_another_shape_name_the_tensor(tmp_path):
    folder = saved(tmp_path)
    edit(folder, structure_widths=[32, 32, 32])
    with pytest.raises(WeightsError, match=r"'.*' has shape .* asks for"):
        load_dhln(folder)


def test_weights_of_another_architecture_name_the_key(tmp_path):
    folder = saved(tmp_path)
    edit(folder, stages=3)
    with pytest.raises(WeightsError, match=r"has no tensor '.*another architecture"):
        load_dhln(folder)
    edit(folder, stages=2, resnet_depth=50)
    with pytest.raises(WeightsError, match="'resnet_depth' is not an option of DHLN"):
        load_dhln(folder)


def test_nan_in_weights_is_refused(tmp_path):
    model = DHLN(**SMALL)
    with torch.no_grad():
        model.trust.bias.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"'trust\.bias' holds a value that is not finite"):
        load_dhln(tmp_path)


def test_pickles_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="pickle"):
        load_dhln(tmp_path / "weights.pth")
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin there is a pickle"):
        load_dhln(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_dhln(folder)


def test_missing_weights_list_the_packaged_ones(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights 'nothing'.*packaged: "):
        weights_folder("nothing")
    with pytest.raises(WeightsError, match=r"config\.json does not exist"):
        load_dhln(tmp_path)


def test_the_packaged_weights_fit_and_are_small():
    names = packaged_weights(DHLN)
    assert "dhln-ytf68" in names
    for name in names:
        model = load_dhln(name)
        assert sum(f.stat().st_size for f in weights_folder(name).glob("*.safetensors")) <= 8_000_000
        assert not model.training
