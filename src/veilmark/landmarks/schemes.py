"""Landmark schemes: what each point of a set is called, mirrors to, and is drawn with.

A scheme is data. Code that needs the eyes, the mirror order or the outline of a mouth asks the scheme and
never writes an index of its own.
"""

from __future__ import annotations

from veilmark.landmarks.published_schemes import AFLW19, COFW29, IBUG68, WFLW98
from veilmark.landmarks.scheme import Scheme
from veilmark.run.errors import ConfigError

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (IBUG68, WFLW98, COFW29, AFLW19)}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ConfigError: If there is none; the message lists the names.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown landmark scheme {name!r}; known: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]


__all__ = ["SCHEMES", "Scheme", "get_scheme"]
