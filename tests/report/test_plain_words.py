"""What a figure of an audit means, in words; and what a reader meets first."""

import ast
from pathlib import Path

import pytest

import veilmark.audit
from veilmark.report.audit import in_short
from veilmark.report.plain_words import _WORDS, in_plain_words, score_words
from veilmark.report.verdicts import REAL, AuditFinding, verdict

VALUES = {
    "attack": "a", "threat_model": "server", "method": "none", "dataset": "digits", "seed": 0, "n": 40, "rung": REAL,
    "metric": "area under the curve", "unit": "%", "value": 78.6, "low": 75.2, "high": 82.0, "chance": 50.0,
    "positive_control": 92.6, "negative_control": 47.8,
}  # fmt: skip


def finding(**changes):
    return AuditFinding(**{**VALUES, **changes})


@pytest.mark.parametrize(
    ("metric", "value", "chance", "said"),
    [
        ("area under the curve", 78.6, 50.0, "the right one in 79 of 100 cases; by tossing a coin in 50."),
        ("area under the curve, by landmarks", 50.4, 50.0, "the right one in 50 of 100 cases"),
        (
            "blocks of the key that are right",
            12.2,
            0.1,
            "Of 100 blocks of the secret the attacker has 12; by guessing, 0.1.",
        ),
        ("members found at 1 % false alarms", 3.0, 1.0, "the attacker finds 3 of 100 that took part; by guessing, 1."),
        ("PSNR of the nearest face", 29.04, 15.0, "the true picture as 29 dB, where 15 dB are had"),
    ],
)
def test_a_figure_is_said_in_cases_of_a_hundred(metric, value, chance, said):
    assert said in in_plain_words(finding(metric=metric, value=value, chance=chance))


def test_an_unknown_measure_speaks_for_itself():
    assert in_plain_words(finding(metric="nobody's")) == ""


def test_no_words_outlive_their_measure():
    """A measure that an attack renames would stand in the report without its sentence."""
    texts = {
        node.value
        for path in Path(veilmark.audit.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert [begins for begins in _WORDS if not any(text.startswith(begins) for text in texts)] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("accuracy", "accuracy on the test pictures"), ("of_classes", "accuracy of each class"), ("nme_16", "nme 16")],
)
def test_scores_are_named_in_words(name, words):
    assert score_words(name) == words


def test_a_reader_meets_leaks_first():
    none = {"value": 50.0, "low": 45.0, "high": 55.0}
    verdicts = [
        verdict([finding(attack=name, threat_model=model, rung=rung, **changes) for rung in ("easy", REAL)])
        for name, model, changes in (
            ("found nothing", "outsider", none),
            ("found nothing either", "server", none),
            ("leaks", "server", {"value": 60.0, "low": 55.0, "high": 65.0}),
            ("leaks more", "server", {}),
        )
    ]
    # An attack that fails on its easiest rung shows nothing; here both do.
    assert [item.kind for item in verdicts] == ["not shown to work", "not shown to work", "leaks", "leaks"]
    short = in_short(verdicts)
    assert list(short) == ["server", "outsider"]
    assert [item.attack for item in short["server"]] == ["leaks more", "leaks", "found nothing either"]


def test_how_far_an_attack_went():
    assert verdict([finding()]).gone == pytest.approx(100 * 28.6 / 42.6)
    # A rate among members has no control: the way leads to all of them.
    rate = finding(metric="members found at 1 % false alarms", value=20.8, chance=1.0, positive_control=None)
    assert verdict([rate]).gone == pytest.approx(20.0)
    assert verdict([finding(positive_control=50.0)]).gone == 0.0
    assert verdict([finding(rung="leaked")]).gone == 0.0
