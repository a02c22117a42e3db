"""A whole audit, from a transcript to audit.json and its report."""

import io
import json
import shutil
from typing import ClassVar

import pytest
from rich.console import Console
from rich.progress import Progress

from tiny_federations import config, play
from veilmark.audit import (
    audits,
    candidates,
    class_mix,
    completed_share,
    feature_inversion,
    inversion_ladder,
    score_mix,
    shadow_membership,
    shadows,
)
from veilmark.audit.audits import ATTACKS, audit_run, newest_run
from veilmark.federation.transcript import TranscriptError
from veilmark.report.audit import audit_table, read_audit, write_audit_report
from veilmark.report.verdicts import AuditFinding, verdict
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import RunError
from veilmark.run.progress import console

KEYS = {
    "attack", "threat_model", "method", "dataset", "seed", "n", "rung", "metric", "unit", "value", "low", "high",
    "chance", "positive_control", "negative_control",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick():
    """How well attacks do is tested with each of them; here they only have to be played."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "_STRANGERS", 20)
        patch.setattr(feature_inversion, "DECODER_STEPS", 3)
        for name, few in (("CASES", 1), ("AGAINST", 2), ("GUESSES", 1), ("ASKED", 1), ("STRANGERS", 2)):
            patch.setattr(candidates, name, few)
        for name, few in (("LEARNED", 2), ("HELD", 1), ("EASY_LEARNED", 2), ("EASY_HELD", 1), ("MOST_STEPS", 1)):
            patch.setattr(class_mix, name, few)
        for name in ("STEPS", "KNOWN_STEPS", "GENERATOR_STEPS"):
            patch.setattr(completed_share, name, 2)
        for name in ("STEPS", "GENERATOR_STEPS", "CONTROL_STEPS", "REHEARSED", "SINGLE", "NOISES"):
            patch.setattr(inversion_ladder, name, 1)
        for name in ("MOST_STEPS", "KNOWN_STEPS"):
            patch.setattr(shadows, name, 2)
        patch.setattr(score_mix, "REHEARSED", 2)
        patch.setattr(
            shadow_membership, "attack_network", lambda said, member, asked, seed: asked[:, 0].double().numpy()
        )
        patch.setattr(ATTACKS["key out of the generator"], "steps", 2)
        patch.setattr(ATTACKS["pictures from generated ones"], "steps", 3)
        for name, attack in ATTACKS.items():
            if isinstance(attack, shadow_membership.MembershipByShadows):
                patch.setattr(ATTACKS[name], "federations", 6)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits")
    return {method: play(folder / method, config(method=method)).path for method in ("none", "ppidsg")}


@pytest.fixture(scope="module")
def audited(runs):
    return {method: audit_run(run, None, run / "audit") for method, run in runs.items()}


def findings(runs, method):
    return json.loads((runs[method] / "audit" / "audit.json").read_text())


@pytest.mark.parametrize("method", ["none", "ppidsg"])
def test_findings_are_whole(runs, audited, method):
    found = findings(runs, method)
    assert found
    for line in found:
        assert set(line) == KEYS
        assert line["method"] == method
        assert line["low"] <= line["value"] <= line["high"]
    played = {line["attack"] for line in found}
    assert played | set(audited[method]["obstacles"]) == set(ATTACKS)
    assert not played & set(audited[method]["obstacles"])


def test_obstacles_name_what_does_not_travel(audited):
    assert "does not travel" in audited["ppidsg"]["obstacles"]["label counts"]
    assert "no generator travels" in audited["none"]["obstacles"]["key out of the generator"]


def test_the_same_seed_gives_the_same_findings(runs, audited, tmp_path):
    audit_run(runs["none"], None, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "audit.json").read_text()) == findings(runs, "none")


def test_what_is_finished_is_not_played_again(runs, audited, tmp_path, monkeypatch):
    out = tmp_path / "stopped"
    first = next(name for name, attack in ATTACKS.items() if name not in audited["none"]["obstacles"])
    attack = type(ATTACKS[first])
    last = "linking by declared figures"
    few = set(ATTACKS) - {first, "pictures from updates", last}
    with monkeypatch.context() as stopped:
        stopped.setattr(type(ATTACKS[last]), "findings", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            audit_run(runs["none"], None, out, without=few)
    with monkeypatch.context() as once:
        once.setattr(attack, "findings", lambda *words: 1 / 0)
        summary = audit_run(runs["none"], None, out, without=few)
    # How long what was played before took is not forgotten.
    assert set(summary["seconds"]) == set(ATTACKS) - few - set(summary["obstacles"])
    found = [line for line in findings(runs, "none") if line["attack"] not in few]
    assert json.loads((out / "audit.json").read_text()) == found


def test_the_bar_of_the_whole_audit_goes_by_what_attacks_cost(runs, tmp_path, monkeypatch):
    class Bar(Progress):
        steps: ClassVar[list[float]] = []

        def advance(self, task_id, advance=1):
            super().advance(task_id, advance)
            if self.tasks[0].id == task_id:
                Bar.steps.append(advance)

    monkeypatch.setattr(audits, "progress_bar", lambda unit: Bar(console=console, disable=True))
    asked = ["linking by declared figures", "label counts", "linking of messages"]
    summary = audit_run(runs["none"], None, tmp_path / "out", without=set(ATTACKS) - set(asked))
    costs = [ATTACKS[name].cost for name in summary["seconds"]]
    assert set(summary["seconds"]) == set(asked)
    assert Bar.steps == pytest.approx([100 * cost / sum(costs) for cost in costs])
    assert sum(Bar.steps) == pytest.approx(100)


def test_a_spent_budget_lists_what_it_skipped(runs, audited, tmp_path):
    summary = audit_run(runs["none"], None, tmp_path / "none left", budget=0)
    assert summary["skipped"] == [name for name in ATTACKS if name not in audited["none"]["obstacles"]]
    write_audit_report(tmp_path / "none left")


def test_attacks_that_are_left_out_are_listed(runs, audited, tmp_path):
    others = {"linking of messages", "linking by declared figures"}
    left = [name for name in ATTACKS if name not in others]
    summary = audit_run(runs["none"], None, tmp_path / "few", without=left)
    assert summary["skipped"] == [name for name in left if name not in audited["none"]["obstacles"]]
    assert {line["attack"] for line in json.loads((tmp_path / "few" / "audit.json").read_text())} == others


def test_every_attack_finds_the_generator_beside_a_discriminator(tmp_path):
    shared = {"options__ppidsg__share": ["generator", "discriminator"]}
    run = play(tmp_path / "run", config(method="ppidsg", **shared)).path
    summary = audit_run(run, None, run / "audit")
    played = {line["attack"] for line in json.loads((run / "audit" / "audit.json").read_text())}
    wanted = {"key out of the generator", "linking of messages", "gradient inversion of the generator"}
    assert wanted | {"pictures from generated ones"} <= played
    assert played | set(summary["obstacles"]) == set(ATTACKS)


@pytest.mark.parametrize("method", ["ppidsg", "etc"])
def test_clients_keys_are_scored_with_the_secret_of_each(method, tmp_path):
    run = play(tmp_path / "run", config(method=method, rounds=1, **{f"options__{method}__scope": "client"})).path
    asked = {"key out of the generator", "key from leaked pairs", "key from scrambled pictures alone"}
    audit_run(run, None, run / "audit", without=set(ATTACKS) - asked)
    found = json.loads((run / "audit" / "audit.json").read_text())
    assert {line["attack"] for line in found} == asked - ({"key out of the generator"} if method == "etc" else set())
    assert {line["threat_model"] for line in found} == {"honest-but-curious server"}
    assert {line["n"] for line in found if line["rung"] == "as it was" or "one client's key" in line["rung"]} == {2}
    opened = [line for line in found if line["rung"] == "4 leaked pairs of one client's key"]
    # Pairs of its own open each client's key: the scorer has both.
    assert opened[0]["value"] > opened[0]["chance"] + 20
    write_audit_report(run / "audit")


def test_a_changed_transcript_is_refused_by_file(runs, tmp_path):
    copy = shutil.copytree(runs["none"], tmp_path / "run")
    sent = copy / "transcript" / "round-0001" / "client-0.safetensors"
    data = bytearray(sent.read_bytes())
    data[-1] ^= 1
    sent.chmod(0o600)
    sent.write_bytes(data)
    with pytest.raises(TranscriptError, match=r"client-0\.safetensors"):
        audit_run(copy, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_or_was_cut_is_refused_before_any_attack(runs, tmp_path):
    copy = shutil.copytree(runs["none"], tmp_path / "run")
    said = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**said, "transcript": "0" * 64}))
    with pytest.raises(TranscriptError, match=r"does not end as .*summary\.json says"):
        audit_run(copy, None, tmp_path / "out")
    (copy / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        audit_run(copy, None, tmp_path / "out")
    (copy / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        audit_run(copy, None, tmp_path / "out")
    with pytest.raises(TranscriptError, match="transcript is not there"):
        audit_run(tmp_path, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_control_on_another_network_does_not_stand_for_the_methods_own():
    real = finding(value=51.0, low=45.0, high=56.0, positive=90.0)
    works, fails = (finding("easy", 60.0, low, 65.0, positive=90.0) for low in (55.0, 45.0))
    assert verdict([works, real]).kind == "not found"
    assert verdict([fails, real]).kind == "not shown to work"
    assert "succeeds in its control (90.0 %, chance 50.0)" in verdict([fails, real]).words


def test_a_key_is_scored_with_the_runs_secrets_only(runs, tmp_path):
    copy = shutil.copytree(runs["ppidsg"], tmp_path / "run")
    with pytest.raises(ConfigError, match="--secrets"):
        audit_run(copy, None, tmp_path / "out")


def test_the_newest_run(runs, tmp_path):
    assert newest_run(tmp_path) is None
    assert newest_run(runs["none"].parent) in runs.values()


@pytest.mark.parametrize("method", ["none", "ppidsg"])
def test_report(runs, audited, method):
    page = write_audit_report(runs[method] / "audit").read_text()
    assert page.count("Who attacks:") == len({line["attack"] for line in findings(runs, method)})
    for why in audited[method]["obstacles"].values():
        assert why.split()[0] in page
    assert 'src="http' not in page
    if method == "none":
        assert page.count("data:image/png") >= 2


@pytest.mark.parametrize(("dataset", "warned"), [("digits", False), ("mnist", True)])
def test_a_page_with_pictures_of_owners_says_where_it_must_stay(runs, audited, tmp_path, dataset, warned):
    folder = shutil.copytree(runs["none"] / "audit", tmp_path / "audit")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"dataset": dataset}))
    assert ("must stay with those who may see them" in write_audit_report(folder).read_text()) == warned


def finding(rung="as it was", value=80.0, low=75.0, high=85.0, chance=50.0, positive=95.0, negative=50.0):
    return AuditFinding(
        attack="a", threat_model="b", method="none", dataset="digits", seed=0, n=4, rung=rung, metric="m", unit="%",
        value=value, low=low, high=high, chance=chance, positive_control=positive, negative_control=negative,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "leaks"),
        ({"value": 51.0, "low": 45.0, "high": 56.0}, "not found"),
        ({"value": 51.0, "low": 45.0, "high": 56.0, "positive": 49.0}, "not shown to work"),
        # Noise does as well: the measure makes the figure.
        ({"negative": 80.0}, "not found"),
    ],
)
def test_verdicts(changes, kind):
    said = verdict([finding("easy", 95.0, 94.0, 96.0, **{k: v for k, v in changes.items() if k == "positive"}),
                    finding(**changes)])  # fmt: skip
    assert said.kind == kind
    assert "private" not in said.words.lower()


@pytest.mark.parametrize(("low", "kind"), [(53.0, "leaks"), (51.0, "not found")])
def test_another_figure_tells_where_the_first_does_not_but_must_be_surer(low, kind):
    """With two figures, an interval that just leaves chance out is one of twice as many tries."""
    easy = finding("easy", 95.0, 94.0, 96.0)
    area = finding(value=51.0, low=45.0, high=56.0)
    rate = finding(value=60.0, low=low, high=70.0).model_copy(update={"metric": "another"})
    said = verdict([easy, area, rate])
    assert said.kind == kind
    assert said.real.metric == ("another" if kind == "leaks" else "m")
    # Alone, or first, it need not be.
    assert verdict([easy, rate]).kind == "leaks"
    assert verdict([easy, rate, area]).kind == "leaks"


@pytest.mark.parametrize(
    ("low", "noise", "kind"),
    [(45.0, 50.0, "not shown to work"), (55.0, 50.0, "not found"), (55.0, 56.0, "not shown to work")],
)
def test_a_control_that_may_be_chance_or_noise_shows_nothing(low, noise, kind):
    found = [
        finding("easy", 60.0, low, 75.0, positive=60.0, negative=noise),
        finding(value=51.0, low=45.0, high=56.0, positive=60.0, negative=noise),
    ]
    said = verdict(found)
    assert said.kind == kind
    assert ("did not succeed where it must" in said.words) == (kind == "not shown to work")


def test_a_control_below_the_easiest_rung_must_succeed_beyond_its_interval():
    """What travels of a network may give nobody away, where all of it does."""
    rungs = [finding("all of it", 95.0, 90.0, 99.0, positive=60.0), finding("what travels", 60.0, 45.0, 75.0)]
    found = [*rungs, finding(value=51.0, low=45.0, high=56.0, positive=60.0)]
    assert verdict(found).kind == "not shown to work"
    rungs[1] = finding("what travels", 60.0, 55.0, 75.0)
    assert verdict([*rungs, found[2]]).kind == "not found"


def test_a_verdict_says_on_which_rung_an_attack_stops():
    """One picture is no evidence of either, and what comes after a rung that fails is luck."""
    alone = finding("one picture", 60.0, 60.0, 60.0).model_copy(update={"n": 1})
    easy, real = finding("easy", 60.0, 55.0, 65.0), finding(value=51.0, low=45.0, high=56.0)
    said = verdict([easy, alone, finding("harder", 60.0, 45.0, 65.0), finding("hardest", 60.0, 55.0, 65.0), real])
    assert (said.works, said.stops, said.rungs) == (("easy",), "harder", 5)
    assert "works up to “easy” and stops at “harder”" in said.words
    assert verdict([easy, real]).stops == "as it was"
    assert verdict([finding("easy", 60.0, 55.0, 65.0, negative=56.0), real]).works == ()
    assert verdict([easy, finding()]).stops is None


def test_all_of_a_few_may_be_luck():
    """Four messages that are all linked to their sender are one draw of 24."""
    linked = finding(value=100.0, low=0.0, high=100.0, positive=100.0)
    said = verdict([finding("easy", 100.0, 90.0, 100.0, positive=100.0), linked])
    assert said.kind == "not shown to work"
    assert "may be luck" in said.words
    # As large a figure that somebody gets who saw nothing is no luck.
    even = finding(value=100.0, low=90.0, high=100.0, chance=100.0, positive=100.0)
    assert verdict([finding("easy", 100.0, 90.0, 100.0, positive=100.0), even]).kind == "not found"


def test_damaged_files_are_named(runs, audited, tmp_path):
    (tmp_path / "audit.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"audit\.json"):
        read_audit(tmp_path)


def test_the_terminal_shows_a_line_an_attack(runs, audited):
    found = read_audit(runs["none"] / "audit")
    output = Console(file=io.StringIO(), width=300)
    output.print(audit_table(found))
    text = output.file.getvalue()
    assert audit_table(found).row_count == len(found)
    for item in found:
        assert item.attack in text
        assert item.kind in text
