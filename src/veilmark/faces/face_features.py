"""The features of a synthetic face, painted exactly through its landmark points."""

from __future__ import annotations

import numpy as np

from veilmark.faces.face_paint import Camera, Canvas, closed_contour, ellipse, ribbon
from veilmark.faces.face_shape import Head, smooth_curve
from veilmark.faces.face_traits import Array

_WHITE = np.array((246.0, 242.0, 238.0))
_INK = np.array((36.0, 24.0, 24.0))


def paint_features(canvas: Canvas, camera: Camera, head: Head, points: Array) -> None:
    """Paints nose, eyes, brows, mouth and glasses.

    Args:
        canvas: Where to paint.
        camera: Projects what lies between the points (irises, glasses).
        head: The face.
        points: All 68 points in picture pixels, ``(68, 2)``.
    """
    _paint_nose(canvas, camera, head, points)
    for first, side in ((36, -1), (42, 1)):
        _paint_eye(canvas, camera, head, points[first : first + 6], side)
    for first, side in ((17, -1), (22, 1)):
        _paint_brow(canvas, camera, head, points[first : first + 5], side)
    _paint_mouth(canvas, camera, head, points)
    if head.identity.glasses:
        _paint_glasses(canvas, camera, head)


def _ink(head: Head) -> Array:
    """A soft dark line colour that suits the skin."""
    return np.asarray(head.identity.skin) * 0.25 + _INK * 0.45


def _paint_nose(canvas: Canvas, camera: Camera, head: Head, points: Array) -> None:
    unit, skin = camera.scale, np.asarray(head.identity.skin)
    dark = skin * (0.52, 0.40, 0.38)
    base = smooth_curve(points[31:36])
    canvas.stroke(base, 0.045 * unit, dark, alpha=0.55, soft=0.014 * unit)
    for at, towards in ((32, 31), (34, 35)):
        along = (points[towards] - points[at]) * 0.55
        lifted = points[at] + along * 0.3 + (points[30] - points[33]) * 0.12
        nostril = ellipse(lifted, along * 0.85, (points[30] - points[33]) * 0.16)
        canvas.fill(nostril, dark * 0.6, alpha=0.8, soft=0.014 * unit)
    for corner, side in ((31, -1), (35, 1)):
        y, x = head.nose_y, 0.195 * head.identity.nose_width * side
        wing = head.on_front(np.array([(x * 0.92, y - 0.19), (x * 1.16, y - 0.13), (x * 1.18, y - 0.08)]))
        line = smooth_curve(np.concatenate([camera.project(wing), points[corner][None]]))
        canvas.stroke(line, np.linspace(0.008, 0.04, len(line)) * unit, dark, alpha=0.45, soft=0.014 * unit)
    shine = camera.project(head.on_front(np.array((0.0, head.nose_y - 0.15))))
    canvas.fill(
        ellipse(shine, np.array((0.045 * unit, 0)), np.array((0, 0.045 * unit))),
        (255, 250, 245),
        alpha=0.35,
        soft=0.025 * unit,
    )


def _paint_eye(canvas: Canvas, camera: Camera, head: Head, eye: Array, side: int) -> None:
    who, unit, skin = head.identity, camera.scale, np.asarray(head.identity.skin)
    upper, lower = smooth_curve(eye[:4]), smooth_curve(eye[[3, 4, 5, 0]])
    outline = closed_contour(eye[:4], eye[[3, 4, 5, 0]])
    canvas.fill(outline, _WHITE * (0.72 + 0.28 * skin.max() / 255))
    gaze = np.asarray(head.expression.gaze)
    place = np.array((side * 0.445 * who.eye_distance, -0.015)) + gaze * (0.065, 0.03)
    middle = head.on_front(place)
    radius = 0.108 * (0.5 + 0.5 * who.eye_size)
    # The eyeball is rounder than the socket it lies in, so the iris turns further than the skin around it.
    tilt = 0.35 * (place[0] - side * 0.445 * who.eye_distance) / 0.065 + side * 0.12
    across, down = np.array((np.cos(tilt), 0.0, -np.sin(tilt))), np.array((0.0, 1.0, 0.0))

    def disc(share: float) -> Array:
        return camera.project(ellipse(middle, across * radius * share, down * radius * share))

    iris = np.asarray(who.iris)
    canvas.fill(disc(1.0), iris * 0.42, within=outline)
    canvas.fill(disc(0.86), iris, within=outline)
    glow = camera.project(
        ellipse(middle + np.array((0.0, radius * 0.35, 0.0)), across * radius * 0.6, down * radius * 0.4)
    )
    canvas.fill(glow, np.minimum(iris * 1.5 + 12, 255), alpha=0.7, soft=0.02 * unit, within=outline)
    canvas.fill(disc(0.46), (14, 11, 12), within=outline)
    # The lid and its lashes cast a shadow on the eyeball.
    canvas.fill(ribbon(upper, 0.085 * unit), (50, 36, 38), alpha=0.45, soft=0.016 * unit, within=outline)
    spark = camera.project(middle + np.array((-0.034, -0.036, 0.0)))
    dot = np.array((0.024 * unit, 0.0))
    canvas.fill(ellipse(spark, dot, dot[::-1]), (255, 255, 255), alpha=0.95, within=outline)
    thick = np.interp(np.linspace(0, 1, len(upper)), [0, 0.4, 1], [0.036, 0.034, 0.014])
    canvas.stroke(upper, (thick if side < 0 else thick[::-1]) * unit, _ink(head) * 0.7, soft=0.004 * unit)
    canvas.stroke(lower, 0.016 * unit, _ink(head) * 0.6 + skin * 0.25, alpha=0.6, soft=0.006 * unit)
    rise = camera.project(np.array((0.0, -0.055, 0.0))) - camera.project(np.zeros(3))
    crease = smooth_curve(eye[:4] + rise * np.array([0.35, 1.0, 1.0, 0.55])[:, None])
    canvas.stroke(crease, 0.02 * unit, skin * (0.55, 0.43, 0.42), alpha=0.6, soft=0.009 * unit)


def _paint_brow(canvas: Canvas, camera: Camera, head: Head, brow: Array, side: int) -> None:
    who = head.identity
    line = smooth_curve(brow)
    taper = np.interp(np.linspace(0, 1, len(line)), [0, 0.3, 0.75, 1], [0.02, 0.062, 0.085, 0.06])
    width = (taper if side < 0 else taper[::-1]) * who.brow_thickness * camera.scale
    # Light hair still has brows that show: they are drawn towards a darker skin.
    colour = np.minimum(np.asarray(who.hair) * 0.85, np.asarray(who.skin) * 0.62)
    canvas.stroke(line, width, colour, alpha=0.92, soft=0.008 * camera.scale)


def _paint_mouth(canvas: Canvas, camera: Camera, head: Head, points: Array) -> None:
    unit, lips = camera.scale, np.asarray(head.identity.lips)
    outer = closed_contour(points[48:55], points[[54, 55, 56, 57, 58, 59, 48]])
    inner = closed_contour(points[60:65], points[[64, 65, 66, 67, 60]])
    seam = smooth_curve(points[60:65])
    under = smooth_curve(points[[54, 55, 56, 57, 58, 59, 48]])[10:-10]
    down = camera.project(np.array((0.0, 0.05, 0.0))) - camera.project(np.zeros(3))
    skin = np.asarray(head.identity.skin)
    canvas.stroke(under + down, 0.07 * unit, skin * (0.6, 0.5, 0.48), alpha=0.45, soft=0.03 * unit)
    canvas.fill(outer, lips)
    upper_lip = np.concatenate([smooth_curve(points[48:55]), seam[::-1]])
    canvas.fill(upper_lip, lips * 0.84, alpha=0.9, soft=0.008 * unit, within=outer)
    low = np.concatenate([smooth_curve(points[[55, 56, 57, 58, 59]]), smooth_curve(points[[67, 66, 65]])])
    centre, half = (points[57] + points[66]) / 2, (points[65] - points[67]) * 0.42
    canvas.fill(
        ellipse(centre, half, (points[57] - points[66]) * 0.22),
        np.minimum(lips * 1.25 + 22, 255),
        alpha=0.5,
        soft=0.022 * unit,
        within=low,
    )
    gap = float(np.linalg.norm(points[62] - points[66]))
    if gap > 0.02 * unit:
        canvas.fill(inner, (62, 20, 24))
        tongue = ellipse(points[66] + (points[66] - points[62]) * 0.1, half * 1.3, (points[66] - points[62]) * 0.38)
        canvas.fill(tongue, (178, 82, 84), alpha=0.9, soft=0.012 * unit, within=inner)
        drop = down * min(0.1 * unit, 0.75 * gap) / np.linalg.norm(down)
        narrow = points[62] + (seam - points[62]) * 0.9
        teeth = np.concatenate([narrow, (narrow + drop)[::-1]])
        canvas.fill(teeth, (246, 243, 236), soft=0.006 * unit, within=inner)
        canvas.fill(ribbon(seam, 0.05 * unit), (62, 20, 24), alpha=0.35, soft=0.012 * unit, within=inner)
    canvas.stroke(seam, 0.018 * unit, lips * 0.45, alpha=0.75, soft=0.004 * unit)
    for corner in (48, 54):
        dot = np.array((0.02 * unit, 0.0))
        canvas.fill(ellipse(points[corner], dot, dot[::-1]), lips * 0.5, alpha=0.6, soft=0.012 * unit)


def _paint_glasses(canvas: Canvas, camera: Camera, head: Head) -> None:
    unit, frame = camera.scale, np.array((44.0, 38.0, 42.0))
    x = 0.445 * head.identity.eye_distance
    turn = np.linspace(0, 2 * np.pi, 49)
    for side in (-1, 1):
        # The rims curve around the face, but less than the face does.
        rim = np.stack([np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.8 * 0.31, 0.235 * np.sin(turn)], axis=1)
        flat = rim + np.array((side * (x + 0.01), 0.04))
        ring = np.concatenate([flat, 0.16 - 0.22 * flat[:, :1] ** 2], axis=1)
        lens = camera.project(ring)
        canvas.fill(lens, (235, 242, 255), alpha=0.10)
        canvas.stroke(lens, 0.042 * unit, frame)
        hinge, ear = ring[0 if side > 0 else 24], head.surface(np.array(0.0), np.array(side * np.radians(98)))
        if camera.turned(ear * (1.03, 1, 1))[0] * side > camera.turned(hinge)[0] * side:
            canvas.stroke(camera.project(np.stack([hinge, ear * (1.03, 1, 1)])), 0.04 * unit, frame)
    bridge = np.array([(-x + 0.31, -0.0, 0.16), (0.0, -0.05, 0.21), (x - 0.31, 0.0, 0.16)])
    canvas.stroke(smooth_curve(camera.project(bridge)), 0.04 * unit, frame)
