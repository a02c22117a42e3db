"""Configs: a packaged recipe, changed by ``--set path.to.key=value``, checked by a pydantic model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from veilmark.run.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    folder = files("veilmark") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The values of a packaged recipe.

    Raises:
        ConfigError: If there is no such recipe; the message lists the names.
    """
    if name not in recipe_names():
        raise ConfigError(f"unknown recipe {name!r}; packaged: {', '.join(recipe_names())}")
    values = yaml.safe_load((files("veilmark") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(values)


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of ``values`` with every ``path.to.key=value`` applied; values are read as YAML.

    Raises:
        ConfigError: If a setting has no ``=``, or its path runs through something that is not a section.
    """
    changed = copy.deepcopy(values)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: expected path.to.key=value, e.g. --set epochs=3")
        *sections, key = path.split(".")
        if "" in (*sections, key):
            raise ConfigError(f"--set {setting}: an empty name between the dots; expected path.to.key=value")
        place = changed
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {setting}: {section!r} is a value, not a section")
        try:
            place[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: {text!r} is not YAML, e.g. 3, 0.5, true, [1, 2], name") from None
    return changed


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their whole key, as ``--set`` has it."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _allowed(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """The keys of the section in which ``path`` ends."""
    for part in path[:-1]:
        if str(part) not in model.model_fields:
            return ""
        annotation = model.model_fields[str(part)].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return ""
        model = inner[0]
    return ", ".join(sorted(model.model_fields))


def resolve(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Checks ``values`` and fills the defaults in.

    Args:
        model: What the config must be.
        values: What the recipe and the settings say.
        source: Where they came from, for the message.

    Raises:
        ConfigError: If a key is unknown or a value is out of range: every one is named, with what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown key {path!r}; allowed here: {_allowed(model, problem['loc'])}")
            else:
                lines.append(f"{path} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def dump(config: BaseModel) -> str:
    """The resolved config as YAML, for the run folder."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
