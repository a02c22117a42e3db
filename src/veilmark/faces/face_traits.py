"""What makes one synthetic face differ from another: who it is, what it does, and how it is turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

HAIR_STYLES = ("shaved", "short", "swept", "bob", "long", "bun", "curly")

_SKINS = ((246, 214, 190), (233, 190, 160), (214, 164, 128), (184, 132, 96), (141, 94, 66), (101, 66, 48))
_HAIRS = (
    (28, 24, 24),
    (58, 38, 28),
    (96, 62, 38),
    (146, 98, 54),
    (204, 164, 100),
    (146, 62, 34),
    (168, 166, 164),
)
_IRISES = ((72, 44, 26), (104, 68, 36), (88, 112, 70), (70, 112, 152), (104, 124, 136))


@dataclass(frozen=True)
class Identity:
    """What stays the same in every picture of one person.

    Shape fields are factors on the average face (1 = average) unless they say otherwise; colours are RGB in
    0..255.
    """

    face_width: float = 1.0
    jaw_width: float = 1.0
    chin_length: float = 1.0
    eye_distance: float = 1.0
    eye_size: float = 1.0
    eye_tilt: float = 0.0
    nose_length: float = 1.0
    nose_width: float = 1.0
    nose_height: float = 1.0
    mouth_width: float = 1.0
    lip_thickness: float = 1.0
    brow_height: float = 1.0
    brow_thickness: float = 1.0
    skin: Colour = (233.0, 190.0, 160.0)
    hair: Colour = (58.0, 38.0, 28.0)
    iris: Colour = (104.0, 68.0, 36.0)
    lips: Colour = (190.0, 106.0, 100.0)
    hair_style: str = "short"
    beard: float = 0.0
    glasses: bool = False

    def __post_init__(self) -> None:
        if self.hair_style not in HAIR_STYLES:
            raise ValueError(f"unknown hair_style {self.hair_style!r}; known: {', '.join(HAIR_STYLES)}")


@dataclass(frozen=True)
class Expression:
    """What the face does in one picture.

    Attributes:
        mouth_open: 0 (closed) to 1.
        smile: -0.4 (sad) to 1.
        blink: 0 (open eyes) to 1 (closed).
        brow_raise: -1 (frown) to 1.
        gaze: Where the eyes look, right and down, each -1 to 1.
    """

    mouth_open: float = 0.0
    smile: float = 0.0
    blink: float = 0.0
    brow_raise: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Pose:
    """How the head is turned, in degrees.

    Attributes:
        yaw: Above 0, the nose points to the right of the picture.
        pitch: Above 0, the face looks up.
        roll: Above 0, the head is tilted clockwise on screen.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    @property
    def rotation(self) -> Array:
        """The turn without its roll, ``(3, 3)``, for column vectors; the roll is left to the picture."""
        yaw, pitch = np.radians([self.yaw, self.pitch])
        turn: Array = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod: Array = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        return np.asarray(nod @ turn, dtype=np.float64)


def draw_identity(rng: np.random.Generator) -> Identity:
    """A person drawn at random: shape, colours, hair, and sometimes a beard or glasses."""

    def around_one(spread: float) -> float:
        return float(np.clip(rng.normal(1, spread), 1 - 2 * spread, 1 + 2 * spread))

    def mixed(palette: tuple[Colour, ...], at: float) -> Array:
        low = int(at)
        share = at - low
        table = np.asarray(palette, dtype=np.float64)
        return np.asarray(table[low] * (1 - share) + table[min(low + 1, len(palette) - 1)] * share)

    tone = rng.uniform(0, len(_SKINS) - 1)
    skin = mixed(_SKINS, tone) * rng.uniform(0.96, 1.03, 3)
    # Light hair goes with light skin, as it mostly does.
    hair = np.asarray(_HAIRS[int(rng.integers(len(_HAIRS) if tone < 2.5 else 2))]) * rng.uniform(0.85, 1.15)
    iris = np.asarray(_IRISES[int(rng.integers(len(_IRISES) if tone < 2.5 else 2))]) * rng.uniform(0.9, 1.15)
    lips = skin * (0.86, 0.60, 0.62) + np.array((20.0, 2.0, 6.0)) * rng.uniform(0.4, 1.2)
    masculine = rng.random() < 0.5
    style = str(rng.choice(["shaved", "short", "short", "swept", "swept", "curly"] if masculine else HAIR_STYLES[2:]))

    def colour(value: Array) -> Colour:
        r, g, b = np.clip(value, 8, 252)
        return float(r), float(g), float(b)

    return Identity(
        face_width=around_one(0.05),
        jaw_width=around_one(0.06) + (0.05 if masculine else -0.03),
        chin_length=around_one(0.06),
        eye_distance=around_one(0.04),
        eye_size=around_one(0.08) + (0.0 if masculine else 0.08),
        eye_tilt=float(rng.uniform(-0.02, 0.05)),
        nose_length=around_one(0.06),
        nose_width=around_one(0.08),
        nose_height=around_one(0.12),
        mouth_width=around_one(0.06),
        lip_thickness=around_one(0.13) + (-0.08 if masculine else 0.12),
        brow_height=around_one(0.07),
        brow_thickness=around_one(0.15) + (0.15 if masculine else -0.1),
        skin=colour(skin),
        hair=colour(hair),
        iris=colour(iris),
        lips=colour(lips),
        hair_style=style,
        beard=float(rng.choice([0.0, 0.0, 0.3, 0.85])) if masculine else 0.0,
        glasses=bool(rng.random() < 0.22),
    )


def draw_expression(rng: np.random.Generator) -> Expression:
    """An expression drawn at random: mostly calm or friendly, at times a blink or an open mouth."""
    gaze_x, gaze_y = np.clip(rng.normal(0, 0.35, 2), -1, 1)
    return Expression(
        mouth_open=float(rng.choice([0.0, rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.9)], p=[0.5, 0.35, 0.15])),
        smile=float(np.clip(rng.normal(0.4, 0.38), -0.3, 1)),
        blink=float(rng.choice([rng.uniform(0, 0.25), rng.uniform(0.5, 0.95)], p=[0.93, 0.07])),
        brow_raise=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        gaze=(float(gaze_x), float(gaze_y)),
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    """A pose drawn at random: yaw within 45 degrees, pitch and roll within 15."""
    return Pose(
        yaw=float(rng.uniform(-45, 45)),
        pitch=float(np.clip(rng.normal(0, 6), -15, 15)),
        roll=float(np.clip(rng.normal(0, 6), -15, 15)),
    )
