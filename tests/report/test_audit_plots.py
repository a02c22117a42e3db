"""The chart of an audit."""

import pytest

from veilmark.report import audit_plots
from veilmark.report.audit_plots import plot_verdicts
from veilmark.report.verdicts import REAL, AuditFinding, verdict


def item(name, positive=90.0, value=60.0, rungs=("easy", REAL), **changes):
    values = {
        "attack": name, "threat_model": "server", "method": "none", "dataset": "digits", "seed": 0, "n": 40,
        "metric": "area", "unit": "%", "low": value - 5, "high": value + 5, "chance": 50.0, "negative_control": 49.0,
        "positive_control": positive, "value": value,
    }  # fmt: skip
    return verdict([AuditFinding(rung=rung, **{**values, **changes}) for rung in rungs])


def test_an_attack_is_drawn_by_its_verdict(tmp_path):
    kinds = [item("leaks"), item("fails", value=51.0), item("far behind", value=-500.0), item("beyond", value=900.0)]
    path = plot_verdicts([*kinds, item("without noise", negative_control=None)], tmp_path / "chart.png")
    assert path is not None
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_figure_is_drawn_on_its_own_way(tmp_path, monkeypatch):
    """Not on that of the attack's first figure, which has another unit."""
    drawn = []
    monkeypatch.setattr(audit_plots, "save_figure", lambda figure, path: drawn.append(figure.axes[0]))
    easy, real = item("a", value=51.0, positive=60.0).findings
    none = {"positive_control": None, "negative_control": 1.0}
    rate = real.model_copy(update={"metric": "rate", "chance": 1.0, "value": 50.5, "low": 40.0, **none})
    plot_verdicts([verdict([easy, real, rate])], tmp_path / "chart.png")
    (place,) = [line.get_xdata()[0] for line in drawn[0].lines if line.get_marker() == "o"]
    assert place == pytest.approx(50.0)


def test_where_no_attack_has_a_way_there_is_no_chart(tmp_path):
    nothing = [
        item("no control", positive=None, unit="dB"),
        item("no way", positive=50.0),
        item("nothing there", rungs=("easy",)),
    ]
    assert plot_verdicts(nothing, tmp_path / "chart.png") is None
    assert not (tmp_path / "chart.png").exists()
