"""The parts of a synthetic portrait, from back to front: background, body, head, hair, features.

Lengths in the calls below are in units of the head (half a face width) until a camera projects them.
"""

from __future__ import annotations

import cv2
import numpy as np

from veilmark.faces.face_paint import Camera, Canvas, Surface, ellipse, normals, ribbon
from veilmark.faces.face_shape import CHIN, CROWN, Head, smooth_curve
from veilmark.faces.face_traits import Array

_ROWS_PER_RING = 6
_ROWS = np.linspace(CROWN, CHIN, int(CHIN - CROWN) * _ROWS_PER_RING + 1)
_ANGLES = np.radians(np.linspace(-180, 180, 121))

# Where the hair begins: degrees from the front, and for each style the ring there.
_HAIRLINE_DEGREES = (0, 30, 55, 75, 88, 96, 112, 125, 180)
_HAIRLINES = {
    "shaved": (-3.1, -3.2, -2.9, -1.9, -0.6, 0.2, -0.4, 1.5, 4.0),
    "short": (-3.0, -3.1, -2.8, -1.7, -0.4, 0.4, -0.4, 1.5, 4.0),
    "swept": (-3.1, -3.0, -2.6, -1.7, -0.4, 0.5, -0.4, 1.8, 4.2),
    "bob": (-2.7, -2.6, -2.4, -1.6, 0.2, 3.6, 4.2, 4.4, 4.6),
    "long": (-3.1, -2.8, -2.3, -1.4, 0.4, 3.8, 5.2, 5.4, 5.6),
    "bun": (-3.2, -3.1, -2.7, -1.7, -0.5, 0.3, -0.5, 1.5, 3.5),
    "curly": (-2.8, -2.8, -2.6, -1.7, -0.4, 0.5, -0.2, 2.0, 4.2),
}
_VOLUMES = {
    "shaved": 0.012,
    "short": 0.08,
    "swept": 0.13,
    "bob": 0.13,
    "long": 0.12,
    "bun": 0.06,
    "curly": 0.24,
}
_COVERS_EARS = ("bob", "long")


def shade(colour: Array, normal: Array, light: Array, *, ambient: float = 0.5, gloss: float = 0.0) -> Array:
    """Colours ``(..., 3)`` under a light, for outward unit normals ``(..., 3)`` in the viewer's axes."""
    facing = np.clip((normal @ light + 0.25) / 1.25, 0, 1)
    half_way = light + np.array((0.0, 0.0, 1.0))
    shine = np.clip(normal @ (half_way / np.linalg.norm(half_way)), 0, 1) ** 24
    level = (ambient + (1.12 - ambient) * facing)[..., None]
    # Shadows on skin and hair keep more of their red than of their blue.
    return np.asarray(colour * level ** np.array((0.88, 1.0, 1.08)) + 255 * gloss * shine[..., None])


def _hairline(style: str, angle: Array, light: Array) -> Array:
    """The ring at which the hair begins, by angle; swept hair is parted towards the light."""
    line = smooth_curve(np.stack([_HAIRLINE_DEGREES, _HAIRLINES[style]], axis=1).astype(np.float64))
    ring = np.interp(np.degrees(np.abs(angle)), line[:, 0], line[:, 1])
    if style in ("swept", "long"):
        sweep = np.clip(np.cos(angle), 0, 1) * np.tanh(6 * (np.sign(light[0]) * angle - 0.35))
        ring = ring - 0.42 * sweep
    return np.asarray(ring)


def paint_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient of two colours with soft lights and patches, as behind a portrait."""
    side = canvas.pixels.shape[0]

    def muted(low: float, high: float) -> Array:
        colour = rng.uniform(low, high, 3)
        return np.asarray(colour.mean() + 0.55 * (colour - colour.mean()))

    first, second = muted(50, 225), muted(50, 225)
    direction = rng.normal(size=2)
    y, x = np.mgrid[0:1:48j, 0:1:48j]
    slope = (x * direction[0] + y * direction[1]) / np.abs(direction).sum()
    slope = (slope - slope.min()) / np.ptp(slope)
    small = first + (second - first) * slope[..., None]
    for _ in range(int(rng.integers(3, 9))):
        at, spread, paint = rng.uniform(0, 1, 2), rng.uniform(0.03, 0.25), muted(20, 250)
        weight = 0.6 * np.exp(-0.5 * ((x - at[0]) ** 2 + (y - at[1]) ** 2) / spread**2)
        small += weight[..., None] * (paint - small)
    canvas.pixels[:] = cv2.resize(small.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)


def paint_body(canvas: Canvas, camera: Camera, head: Head, light: Array, cloth: Array) -> None:
    """Shoulders with a collar, and the neck up to the head, with the shadow of the chin on it."""
    skin = np.asarray(head.identity.skin)
    wide = 0.52 + 0.25 * (head.identity.jaw_width - 1)
    right = np.array([(wide + 0.02, 1.85), (0.85, 2.05), (1.45, 2.22), (1.9, 2.6), (2.05, 3.3), (2.1, 4.2)])
    side = smooth_curve(right)
    outline = camera.body(np.concatenate([side * (-1, 1), side[::-1]]))
    canvas.fill(outline, cloth)
    lit = np.sign(light[0])
    shadow = camera.body(np.array([(-lit * 0.5, 2.0), (-lit * 2.6, 2.2), (-lit * 2.6, 4.2), (-lit * 1.0, 4.2)]))
    canvas.fill(shadow, cloth * 0.6, alpha=0.6, soft=0.22 * camera.scale, within=outline)
    # The neck hangs on the turned head at its top, and on the body at its bottom.
    top = camera.project(np.array([(-wide, 0.85, -0.62), (wide, 0.85, -0.62)]))
    base = camera.body(np.array([(wide * 1.05, 1.8), (0.62, 2.02), (0.0, 2.26), (-0.62, 2.02), (-wide * 1.05, 1.8)]))
    neck = np.concatenate([top, smooth_curve(base)])
    canvas.fill(neck, skin * 0.90)
    dark = base.mean(axis=0) + camera.scale * np.array((-lit * 0.75, -0.4))
    across = np.array((0.45 * camera.scale, 0.0))
    canvas.fill(ellipse(dark, across, across[::-1] * 2), skin * 0.6, alpha=0.6, soft=0.16 * camera.scale, within=neck)
    chin = camera.project(head.surface(np.full(17, 4.0), np.linspace(-np.pi / 2, np.pi / 2, 17)))
    low = camera.project(head.surface(np.array(7.6), np.array(0.0)))
    cast = np.concatenate([chin, (low + np.array((0.0, 0.20 * camera.scale)))[None]])
    canvas.fill(cast, skin * (0.60, 0.52, 0.50), alpha=0.75, soft=0.08 * camera.scale, within=neck)
    collar = smooth_curve(camera.body(np.array([(0.66, 1.98), (0.4, 2.2), (0.0, 2.3), (-0.4, 2.2), (-0.66, 1.98)])))
    canvas.stroke(collar, 0.09 * camera.scale, cloth * 0.78)


def paint_ear(canvas: Canvas, camera: Camera, head: Head, light: Array, side: int) -> None:
    """The ear on the left (-1) or right (1) of the picture, unless the hair covers it."""
    if head.identity.hair_style in _COVERS_EARS:
        return
    skin = np.asarray(head.identity.skin)
    root = head.surface(np.array(0.9), np.array(side * np.radians(97)))
    back = np.array((side * 0.16, -0.03, -0.20))
    rim = ellipse(root + back * 0.55, back * 0.72, np.array((side * 0.02, 0.30, 0.02)))
    rim[:, 1] -= 0.05
    tone = float(np.clip(0.86 + 0.16 * side * light[0], 0.65, 1.0))
    outline = camera.project(rim)
    canvas.fill(outline, skin * (0.98, 0.88, 0.86) * tone)
    inner = camera.project(root + back * 0.6 + (rim - rim.mean(axis=0)) * 0.58 - (0.0, 0.07, 0.0))
    canvas.fill(inner, skin * (0.78, 0.62, 0.60) * tone, alpha=0.7, soft=0.02 * camera.scale, within=outline)


def skin_surface(camera: Camera, head: Head, light: Array, rng: np.random.Generator) -> Surface:
    """The shaded skin of the whole head, with blush, sockets, beard and the shadow of the hair."""
    who = head.identity
    ring, angle = np.meshgrid(_ROWS, _ANGLES, indexing="ij")
    points = head.surface(ring, angle)
    x, y = np.abs(points[..., 0]), points[..., 1]
    front = np.clip(np.cos(angle) * 4, 0, 1)
    colour = np.broadcast_to(np.asarray(who.skin), points.shape).copy()

    def tint(weight: Array, factor: tuple[float, float, float]) -> None:
        colour[:] *= 1 - weight[..., None] * (1 - np.asarray(factor))

    def spot(at: tuple[float, float], spread: tuple[float, float]) -> Array:
        return np.asarray(front * np.exp(-0.5 * (((x - at[0]) / spread[0]) ** 2 + ((y - at[1]) / spread[1]) ** 2)))

    tint(spot((0.52, 0.42), (0.2, 0.17)), (1.0, 0.88, 0.87))
    tint(spot((0.0, head.nose_y - 0.1), (0.14, 0.1)), (1.0, 0.93, 0.92))
    tint(spot((0.42 * who.eye_distance, -0.03), (0.2, 0.13)), (0.92, 0.86, 0.86))
    tint(spot((0.0, head.nose_y + 0.03), (0.17, 0.045)), (0.82, 0.76, 0.74))
    if who.hair_style != "shaved":
        tint(np.exp(-np.clip(ring - _hairline(who.hair_style, angle, light), 0, 9) / 0.35), (0.72, 0.64, 0.62))
    if who.beard:
        edge = np.interp(
            x, [0, 0.2, 0.36, 0.55, 0.75, 1.0], head.mouth_y + np.array([0.2, 0.17, 0.0, -0.08, -0.22, -0.8])
        )
        weight = 1 / (1 + np.exp(-np.clip((y - edge) / 0.03, -30, 30)))
        lip = head.mouth_y - 0.155 + 0.35 * np.clip(x - 0.2, 0, 1) ** 1.2
        weight = np.maximum(weight, np.exp(-0.5 * (((y - lip) / 0.05) ** 2)) * (x < 0.42))
        weight *= who.beard * rng.uniform(0.86, 1.0, weight.shape)
        colour += weight[..., None] * (np.asarray(who.hair) * 0.95 - colour)
    turned = camera.turned(points)
    colour = shade(colour, normals(turned), light, gloss=0.07)
    return Surface(camera.flat(turned), turned[..., 2], np.clip(colour, 0, 255))


def jaw_points(camera: Camera, head: Head) -> Array:
    """The 17 jaw points in pixels; on the far side they are put on the visible outline, as annotators do."""
    ring, angle = np.meshgrid(_ROWS, np.radians(np.linspace(-90, 90, 121)), indexing="ij")
    turned = camera.turned(head.surface(ring, angle))
    facing = normals(turned)[..., 2]
    flat = camera.flat(turned)
    points = np.empty((17, 2))
    for index in range(17):
        row = int((min(index, 16 - index) - CROWN) * _ROWS_PER_RING)
        inwards = np.arange(0, 61) if index < 8 else np.arange(120, 59, -1)
        away = facing[row, inwards] < 0
        # The first cell, from the side of the head inwards, that faces the viewer.
        seen = int(np.argmin(away))
        points[index] = flat[row, inwards[seen]]
        if seen:
            near, far = facing[row, inwards[seen]], facing[row, inwards[seen - 1]]
            share = near / (near - far)
            points[index] += share * (flat[row, inwards[seen - 1]] - points[index])
    lowest = int(np.argmax(turned[-9:, 60, 1]))
    points[8] = flat[-9 + lowest, 60]
    return points


def paint_hair_behind(canvas: Canvas, camera: Camera, head: Head) -> None:
    """The hair that hangs behind neck and shoulders, for the styles that have it."""
    style = head.identity.hair_style
    if style not in _COVERS_EARS:
        return
    low, wide = (2.55, 1.12) if style == "long" else (1.35, 1.16)
    around = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rings = []
    for y, factor in ((-0.6, 1.0), (0.4, 1.12), (low - 0.5, wide + 0.04), (low, wide - 0.14)):
        x, z = 1.02 * factor * np.sin(around), -0.95 + 0.8 * factor * np.minimum(np.cos(around), 0.2)
        rings.append(np.stack([x, np.full_like(x, y), z], axis=1))
    hull = cv2.convexHull(camera.project(np.concatenate(rings)).astype(np.float32))[:, 0].astype(np.float64)
    hair = np.asarray(head.identity.hair)
    canvas.fill(hull, hair * 0.62)
    for x in np.linspace(-0.95, 0.95, 14):
        lock = camera.project(np.array([(x, 0.0, -1.0), (x * 1.12, 0.9, -1.0), (x * 1.04, low - 0.06, -1.0)]))
        tone = hair * (0.62 + 0.16 * np.cos(x * 23))
        canvas.fill(
            ribbon(smooth_curve(lock), 0.1 * camera.scale),
            tone,
            alpha=0.6,
            soft=0.02 * camera.scale,
            within=hull,
        )


def hair_surface(camera: Camera, head: Head, light: Array, rng: np.random.Generator) -> Surface:
    """The hair on the head: a second surface that grows out of the hairline."""
    who = head.identity
    style, hair = who.hair_style, np.asarray(who.hair)
    down, around = np.meshgrid(np.linspace(0, 1, 49), np.radians(np.linspace(-180, 180, 145)), indexing="ij")
    start = _hairline(style, around, light)
    ring = CROWN + (start - CROWN) * down
    rooted = 1 - np.clip((down - 0.72) / 0.28, 0, 1) ** 2.5 * 0.9
    volume = _VOLUMES[style] * rooted
    strands = np.interp(np.linspace(0, 1, 145), np.linspace(0, 1, 60), rng.normal(size=60))
    if style == "swept":
        parting = np.sign(light[0]) * 0.5
        volume = volume * (1 + 1.5 * np.cos(around - parting) * down * (1 - down))
    if style == "curly":
        knobs = rng.normal(size=(13, 30)).astype(np.float32)
        knobs[:, -1] = knobs[:, 0]
        bumps = cv2.resize(knobs, (145, 49), interpolation=cv2.INTER_CUBIC)
        volume = volume * (1 + 0.22 * bumps * np.clip(down * 5, 0, 1))
    skin = head.surface(ring, around)
    middle = np.array((0.0, -0.2, -0.78))
    points = middle + (skin - middle) * (1 + volume[..., None])
    turned = camera.turned(points)
    tone = 1 + 0.09 * strands[None, :] * np.clip(down * 3, 0, 1)
    if style == "shaved":
        colour = np.asarray(who.skin) * 0.45 + hair * 0.45
        colour = np.broadcast_to(colour, points.shape)
    else:
        colour = hair * tone[..., None]
    shaded = shade(colour, normals(turned), light, ambient=0.42, gloss=0.0 if style == "shaved" else 0.16)
    return Surface(camera.flat(turned), turned[..., 2], np.clip(shaded, 0, 255), both_sides=True)


def paint_bun(canvas: Canvas, camera: Camera, head: Head) -> None:
    """The knot on top of the head, behind it."""
    if head.identity.hair_style != "bun":
        return
    centre, hair = camera.project(np.array((0.0, -1.72, -0.95))), np.asarray(head.identity.hair)
    across, down = np.array((0.42, 0.0)) * camera.scale, np.array((0.0, 0.36)) * camera.scale
    knot = ellipse(centre, across, down)
    canvas.fill(knot, hair * 0.82)
    canvas.fill(
        ellipse(centre - (across + down) * 0.2, across * 0.5, down * 0.45),
        hair * 1.25 + 14,
        alpha=0.6,
        soft=0.1 * camera.scale,
        within=knot,
    )
