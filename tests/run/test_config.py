"""Configs: every unknown key and bad value is named, and a resolved config survives its file."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from veilmark.run.config import dump, load_recipe, override, recipe_names, resolve
from veilmark.run.errors import ConfigError


class Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(3, ge=1, le=100)
    lr: float = Field(0.01, gt=0)


class Noise(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sigma: float = Field(1.0, ge=0)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = "a"
    sizes: tuple[int, int] = (16, 128)
    schedule: Schedule = Field(default_factory=Schedule)
    noise: Noise | None = None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epoch": 3}, ["'epoch'", "allowed here: name, noise, schedule, sizes"]),  # unknown at the top
        ({"schedule": {"rate": 1}}, ["'schedule.rate'", "allowed here: epochs, lr"]),  # unknown in a section
        ({"noise": {"mu": 0}}, ["'noise.mu'", "allowed here: sigma"]),  # unknown in an optional section
        ({"schedule": {"epochs": 0}}, ["schedule.epochs = 0", "greater than or equal to 1"]),  # too small
        ({"schedule": {"epochs": 101}}, ["schedule.epochs = 101", "less than or equal to 100"]),  # too large
        ({"schedule": {"lr": "fast"}}, ["schedule.lr = 'fast'", "number"]),  # of another kind
        ({"sizes": [16]}, ["sizes.1"]),  # too short
        ({"epoch": 3, "schedule": {"lr": -1}}, ["'epoch'", "schedule.lr = -1"]),  # every fault, not the first
    ],
)
def test_faults_are_named(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Config, values, "recipe.yaml")
    message = str(caught.value)
    assert message.startswith("recipe.yaml: ")
    for text in named:
        assert text in message


def test_defaults_are_filled_in() -> None:
    assert resolve(Config, {"schedule": {"epochs": 5}}, "x") == Config(schedule=Schedule(epochs=5, lr=0.01))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("epochs=3", {"epochs": 3}),  # a whole number
        ("lr=0.5", {"lr": 0.5}),  # a number
        ("mirror=false", {"mirror": False}),  # a truth value
        ("sizes=[16, 24]", {"sizes": [16, 24]}),  # a list
        ("noise=null", {"noise": None}),  # nothing
        ("name=id=7", {"name": "id=7"}),  # only the first = separates
        ("name='3'", {"name": "3"}),  # quotes make it text
        ("name=", {"name": None}),  # empty, as in a YAML file
        ("schedule.epochs=9", {"schedule": {"epochs": 9, "lr": 1}}),  # neighbours stay
        ("new.deep.key=1", {"new": {"deep": {"key": 1}}}),  # sections are made
    ],
)
def test_set_reads_yaml(setting: str, expected: dict[str, Any]) -> None:
    values = {"schedule": {"epochs": 3, "lr": 1}}
    assert override(values, [setting]) == values | expected


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("epochs", "path.to.key=value"),  # no =
        ("", "path.to.key=value"),  # nothing
        ("=3", "path.to.key=value"),  # no key
        ("name.first=3", "'name' is a value"),  # through a value
    ],
)
def test_broken_settings_are_refused(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        override({"name": "a"}, [setting])
    assert f"--set {setting}" in str(caught.value)


def test_override_leaves_its_input_alone_and_the_last_setting_wins() -> None:
    values = {"schedule": {"epochs": 3}}
    assert override(values, ["schedule.epochs=4", "schedule.epochs=5"]) == {"schedule": {"epochs": 5}}
    assert values == {"schedule": {"epochs": 3}}


def test_scientific_notation_reaches_a_float() -> None:
    # YAML 1.1 reads 1e-3 as text; the model must turn it into a number all the same.
    assert resolve(Config, override({}, ["schedule.lr=1e-3"]), "x").schedule.lr == 0.001


@given(
    st.builds(
        Config,
        name=st.text(st.characters(blacklist_categories=["Cs", "Cc"])),
        sizes=st.tuples(st.integers(), st.integers()),
        schedule=st.builds(
            Schedule, epochs=st.integers(1, 100), lr=st.floats(1e-12, 1e12, allow_nan=False, exclude_min=True)
        ),
        noise=st.none() | st.builds(Noise, sigma=st.floats(0, 1e9)),
    )
)
@settings(deadline=None)
def test_a_dumped_config_resolves_to_itself(config: Config) -> None:
    assert resolve(Config, yaml.safe_load(dump(config)), "config.yaml") == config


def test_every_packaged_recipe_loads() -> None:
    assert recipe_names()
    for name in recipe_names():
        assert load_recipe(name)["kind"]


def test_an_unknown_recipe_lists_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match="'none-such'") as caught:
        load_recipe("none-such")
    for name in recipe_names():
        assert name in str(caught.value)
