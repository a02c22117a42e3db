"""Does trust tell faces from other things: scikit-image's 100 face patches and 100 other patches of 25 px.

python benchmarks/trust.py
"""

from __future__ import annotations

import numpy as np
import skimage.data
import typer
from sklearn.metrics import roc_auc_score

from veilmark.sht.inference import predict
from veilmark.sht.pretrained import load_dhln


def main(weights: str = "dhln-ytf68") -> None:
    """Prints the area under the ROC curve and the shares on the right side of 0.5."""
    gray = np.round(np.asarray(skimage.data.lfw_subset()) * 255).astype(np.uint8)
    trust = predict(load_dhln(weights), np.repeat(gray[..., None], 3, axis=3)).trust
    is_face = np.arange(len(gray)) < 100
    typer.echo(f"ROC AUC {roc_auc_score(is_face, trust):.3f}")
    typer.echo(f"faces trusted above 0.5: {100 * (trust[is_face] > 0.5).mean():.0f} %")
    typer.echo(f"other patches trusted above 0.5: {100 * (trust[~is_face] > 0.5).mean():.0f} %")


if __name__ == "__main__":
    typer.run(main)
