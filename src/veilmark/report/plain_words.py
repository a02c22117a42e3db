"""What a figure of an audit means, for a reader who does not know the field."""

from __future__ import annotations

from veilmark.report.verdicts import AuditFinding

_WORDS = {
    "area under the curve": (
        "Shown one that took part and one that did not, the attacker points at the right one in {value} of 100 cases; "
        "by tossing a coin in {chance}."
    ),
    "members found at 1 % false alarms": (
        "Where it accuses one stranger in 100 wrongly, the attacker finds {value} of 100 that took part; "
        "by guessing, {chance}."
    ),
    "blocks of the key that are right": "Of 100 blocks of the secret the attacker has {value}; by guessing, {chance}.",
    "linked to its sender": "Of 100 messages {value} are given to the right client; by guessing, {chance}.",
    "people found with their client": "Of 100 people {value} are found with their client; by guessing, {chance}.",
    "pictures counted in the right class": (
        "Of 100 pictures of a client the attacker counts {value} in the right class; whoever takes its classes to be "
        "even, {chance}."
    ),
    "classes known to be there or not": (
        "Of 100 classes {value} are rightly said to be among a client's pictures or not; without looking, {chance}."
    ),
    "classes counted exactly": (
        "Of 100 classes {value} are counted to the very picture; whoever takes them to be even, {chance}."
    ),
    "pixels of other pictures unscrambled": (
        "Of 100 pixels of other scrambled pictures {value} come out right; by guessing, {chance}."
    ),
    "neighbouring pixels across blocks that are side by side again": (
        "Of 100 seams between the pieces of a picture {value} are mended; by guessing, {chance}."
    ),
    "error saved against a start from nothing": (
        "With what travels a detector of the attacker's errs by {value} % of the distance between the eyes less than "
        "one that it trains from nothing."
    ),
    "PSNR": (
        "What the attacker made is as like the true picture as {value} dB, where {chance} dB are had without seeing "
        "anything; from about 30 dB hardly anybody sees a difference."
    ),
    "SSIM": (
        "What the attacker made is as like the true picture as {value} %, where {chance} % are had without seeing "
        "anything; 100 would be that very picture."
    ),
}
"""By how the name of the measure begins."""

_SCORES = {
    "accuracy": "accuracy on the test pictures",
    "of_classes": "accuracy of each class",
    "labelled": "whether it has labels",
}


def in_plain_words(found: AuditFinding) -> str:
    """A sentence that says what was got, and what is got by luck; empty for a measure that speaks for itself.

    Args:
        found: A figure of an audit.
    """
    for begins, words in _WORDS.items():
        if found.metric.startswith(begins):
            return words.format(value=_count(found.value), chance=_count(found.chance))
    return ""


def score_words(name: str) -> str:
    """What a score is called that clients send: its name, in words."""
    return _SCORES.get(name, name.replace("_", " "))


def _count(value: float) -> str:
    """Whole where that is near enough: of 100 cases nobody wants a tenth, unless there are few."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}".removesuffix(".0")
