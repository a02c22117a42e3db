"""A name that users import may be added, never lost without a word."""

import importlib
import inspect

import pytest

import veilmark

PUBLIC = {
    "veilmark": ["Landmarker", "Landmarks", "__version__"],
    "veilmark.faces.crop": ["MARGIN", "REFERENCE_SIZE", "BoxError", "Crop", "check_box", "points_box"],
    "veilmark.faces.datasets": ["LAYOUTS", "Face", "FaceSet", "load_faces"],
    "veilmark.faces.degrade": ["SIZES", "degrade", "shrink"],
    "veilmark.faces.finders": ["FINDERS", "Faces", "Finder", "create_finder"],
    "veilmark.faces.images": ["ImageError", "list_images", "picture_size", "read_image", "write_png"],
    "veilmark.faces.synthetic": ["SyntheticFace", "render_face", "write_dataset"],
    "veilmark.faces.video": ["Frame", "VideoError", "VideoWriter", "read_frames"],
    "veilmark.landmarks.draw": ["draw_landmarks"],
    "veilmark.landmarks.formats": ["FORMATS", "Record", "write_csv", "write_json", "write_pts"],
    "veilmark.landmarks.heatmaps": ["decode", "gaussian_maps"],
    "veilmark.landmarks.metrics": ["ImageMetrics", "LandmarkMetrics", "bootstrap_interval", "face_nme", "psnr"],
    "veilmark.landmarks.reading": ["read_json", "read_points_csv", "read_predictions", "read_pts"],
    "veilmark.landmarks.result": ["Landmarks"],
    "veilmark.landmarks.schemes": ["SCHEMES", "Scheme", "get_scheme"],
    "veilmark.landmarks.smoothing": ["OneEuroFilter", "jitter"],
    "veilmark.sht.dhln": ["DHLN", "DHLNOutput", "Stage"],
    "veilmark.sht.fptn": ["FPTN", "Transfer"],
    "veilmark.sht.inference": ["Prediction", "predict"],
    "veilmark.sht.landmarker": ["Detection", "Landmarker"],
    "veilmark.sht.pretrained": ["DEFAULT_TRANSFER", "DEFAULT_WEIGHTS", "load_dhln", "load_fptn", "packaged_weights"],
    "veilmark.sht.transfer": ["Painted", "paint_transfer", "transfer_pictures", "write_painted"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there_and_documented(module):
    loaded = importlib.import_module(module)
    for name in PUBLIC[module]:
        thing = getattr(loaded, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Landmarkr'"):
        _ = veilmark.Landmarkr
