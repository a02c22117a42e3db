"""The chart of an audit."""

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


def test_where_no_attack_has_a_way_there_is_no_chart(tmp_path):
    nothing = [item("no control", positive=None), item("no way", positive=50.0), item("nothing there", rungs=("easy",))]
    assert plot_verdicts(nothing, tmp_path / "chart.png") is None
    assert not (tmp_path / "chart.png").exists()
