"""The shape of a synthetic head: its skin, and where the points on it are in space.

Head coordinates have x to the right of the picture, y down and z towards the viewer. Half the width of an
average face is 1, the eyes lie at y = 0, and the nose points along +z.
"""

from __future__ import annotations

import numpy as np

from veilmark.faces.face_traits import Array, Expression, Identity

# One row per ring of the head, from the crown (-7) to the chin (8); rings 0 to 8 pass through the jaw points.
# Columns: y, half width, z where the ring is widest, z at its front, z at its back.
_RINGS = np.array(
    [
        (-1.50, 0.01, -0.76, -0.755, -0.77),
        (-1.477, 0.25, -0.76, -0.57, -0.98),
        (-1.41, 0.48, -0.76, -0.40, -1.20),
        (-1.19, 0.76, -0.76, -0.16, -1.50),
        (-0.92, 0.91, -0.75, -0.02, -1.64),
        (-0.62, 0.98, -0.74, 0.05, -1.70),
        (-0.30, 1.01, -0.74, 0.07, -1.70),
        (0.00, 1.00, -0.74, 0.05, -1.64),
        (0.25, 0.985, -0.73, 0.06, -1.52),
        (0.49, 0.955, -0.70, 0.08, -1.36),
        (0.72, 0.905, -0.64, 0.10, -1.15),
        (0.94, 0.82, -0.54, 0.11, -0.95),
        (1.13, 0.68, -0.41, 0.12, -0.75),
        (1.28, 0.49, -0.26, 0.12, -0.50),
        (1.385, 0.26, -0.13, 0.09, -0.30),
        (1.43, 0.02, -0.05, 0.01, -0.10),
    ]
)
CROWN, CHIN = -7.0, 8.0
_MOUTH_Y = 0.93


def smooth_curve(knots: Array, steps: int = 8) -> Array:
    """A Catmull-Rom curve through every knot: ``(n, d)`` to ``((n - 1) * steps + 1, d)``, knots included."""
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    before, start, end, after = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    slope_in, slope_out = (end - before) / 2, (after - start) / 2
    piece = (
        start * (2 * t**3 - 3 * t**2 + 1)
        + slope_in * (t**3 - 2 * t**2 + t)
        + end * (3 * t**2 - 2 * t**3)
        + slope_out * (t**3 - t**2)
    )
    return np.concatenate([piece.reshape(-1, knots.shape[1]), knots[-1:]])


def _bump(x: Array, y: Array, at: tuple[float, float], spread: tuple[float, float]) -> Array:
    return np.asarray(np.exp(-0.5 * (((x - at[0]) / spread[0]) ** 2 + ((y - at[1]) / spread[1]) ** 2)))


class Head:
    """The skin of one person with one expression, as a surface, and the features on its front.

    Rings of the surface are numbered from the crown (-7) over the eyes (0) to the chin (8); an angle of 0 is
    the front, 90 degrees the right-hand silhouette of the frontal view.
    """

    def __init__(self, identity: Identity, expression: Expression) -> None:
        self.identity, self.expression = identity, expression
        self.nose_y = 0.62 * identity.nose_length
        self.mouth_y = self.nose_y + (_MOUTH_Y - 0.62)
        drop = 0.2 * expression.mouth_open
        chin_y = self.mouth_y + 0.5 * identity.chin_length + drop
        rings = _RINGS.copy()
        below = rings[:, 0] > 0
        rings[below, 0] *= chin_y / _RINGS[-1, 0]
        number = np.arange(CROWN, CHIN + 1)
        jaw = np.interp(number, [1, 4.5, 7, 8], [0, 1, 0.8, 0.8])
        rings[:, 1] *= identity.face_width * (1 + jaw * (identity.jaw_width - 1))
        fine = smooth_curve(rings, steps=12)
        self._ring = np.linspace(CROWN, CHIN, len(fine))
        self._fine = fine

    def relief(self, x: Array, y: Array) -> Array:
        """How far the features stand out of the smooth front of the head, in z."""
        who, nose = self.identity, self.nose_y
        x = np.abs(x)
        eye_x = 0.445 * who.eye_distance
        along = np.clip((y + 0.12) / (nose - 0.08 + 0.12), 0, 1)
        below = np.clip((y - (nose - 0.10)) / 0.13, 0, 1)
        ridge = (0.05 + 0.31 * along**1.2) * (1 - below**2) * np.clip((y + 0.3) / 0.2, 0, 1)
        width = (0.085 + 0.05 * along) * who.nose_width
        raised = who.nose_height * ridge * np.exp(-0.5 * (x / width) ** 2)
        raised += 0.10 * _bump(x, y, (0.155 * who.nose_width, nose - 0.09), (0.06, 0.065))
        raised -= 0.10 * _bump(x, y, (eye_x, -0.01), (0.21, 0.12))
        raised += 0.05 * _bump(x, y, (eye_x, 0.0), (0.13, 0.06))
        raised += 0.05 * _bump(x, y, (0.38, -0.27), (0.28, 0.09))
        lift = max(0.0, self.expression.smile)
        raised += (0.04 + 0.05 * lift) * _bump(x, y, (0.52, 0.42 - 0.05 * lift), (0.17, 0.16))
        raised += 0.06 * _bump(x, y, (0.0, self.mouth_y), (0.24, 0.13))
        chin = self._fine[-1, 0]
        return np.asarray(raised + 0.05 * _bump(x, y, (0.0, chin - 0.17), (0.16, 0.11)))

    def surface(self, ring: Array, angle: Array) -> Array:
        """Points of the skin.

        Args:
            ring: Ring numbers, -7 to 8.
            angle: Radians, of the same shape.

        Returns:
            ``(..., 3)``.
        """
        y, half, widest, front, back = (np.interp(ring, self._ring, column) for column in self._fine.T)
        x, forward = half * np.sin(angle), np.cos(angle)
        z = widest + np.where(forward > 0, front - widest, widest - back) * forward
        z += self.relief(x, y) * np.clip(forward * 3, 0, 1)
        return np.stack([x, y, z], axis=-1)

    def ring_at(self, y: Array) -> Array:
        """The number of the ring at height ``y``."""
        return np.interp(y, self._fine[:, 0], self._ring)

    def on_front(self, flat: Array) -> Array:
        """Lays frontal positions ``(..., 2)`` on the front of the skin, ``(..., 3)``."""
        ring = self.ring_at(flat[..., 1])
        half = np.interp(ring, self._ring, self._fine[:, 1])
        points = self.surface(ring, np.arcsin(np.clip(flat[..., 0] / half, -1, 1)))
        points[..., :2] = flat
        return points

    def features(self) -> Array:
        """Points 17 to 67 of iBUG on the skin, ``(51, 3)``."""
        left_brow, left_eye = self._left_brow(), self._left_eye()
        mirror = np.array([-1.0, 1.0])
        nose, wing = self.nose_y, 0.195 * self.identity.nose_width
        bridge = np.stack([np.zeros(4), np.linspace(0.0, nose - 0.10, 4)], axis=1)
        lift = np.array([-0.045, -0.01, 0.015, -0.01, -0.045])
        base = np.stack([np.linspace(-wing, wing, 5), nose + lift], axis=1)
        flat = [left_brow, left_brow[::-1] * mirror, bridge, base]
        flat += [left_eye, left_eye[[3, 2, 1, 0, 5, 4]] * mirror, self._lips()]
        return self.on_front(np.concatenate(flat))

    def _left_brow(self) -> Array:
        who, raised = self.identity, self.expression.brow_raise
        x = np.array([-0.80, -0.67, -0.52, -0.35, -0.19]) * who.eye_distance
        y = np.array([-0.215, -0.315, -0.36, -0.345, -0.305]) * who.brow_height
        y -= raised * np.array([0.02, 0.04, 0.05, 0.05, 0.05])
        return np.stack([x, y], axis=1)

    def _left_eye(self) -> Array:
        who, shut = self.identity, self.expression.blink
        x = np.array([-0.205, -0.08, 0.075, 0.190, 0.08, -0.08]) * (0.6 + 0.4 * who.eye_size)
        upper = np.array([-0.094, -0.098]) * who.eye_size
        lower = np.array([0.064, 0.066]) * who.eye_size * (1 - 0.3 * max(0.0, self.expression.smile))
        upper = upper + shut * (lower[::-1] - 0.006 - upper)
        y = np.array([0.0, upper[0], upper[1], 0.022, lower[0], lower[1]])
        return np.stack([x - 0.445 * who.eye_distance, y + who.eye_tilt * x / 0.18], axis=1)

    def _lips(self) -> Array:
        who, smile, gap = self.identity, self.expression.smile, self.expression.mouth_open
        half = 0.345 * who.mouth_width * (1 + 0.2 * smile - 0.14 * gap)
        full = who.lip_thickness * (1 - 0.22 * max(0.0, smile))
        corner = self.mouth_y - 0.015 + 0.06 * gap - 0.075 * smile
        upper, lower = self.mouth_y - 0.02 * gap, self.mouth_y + 0.27 * gap + 0.015 * max(0.0, smile)
        fractions = np.array([0.58, 0.24, 0.0])

        def arc(middle: float, thick: Array, inner: float = 1.0) -> Array:
            """Half a lip edge, from the corner inwards."""
            x = -fractions * half * inner
            return np.stack([x, middle + (corner - middle) * (fractions * 1.05) ** 1.7 + thick], axis=1)

        top = arc(upper, -np.array([0.066, 0.094, 0.080]) * full)
        bottom = arc(lower, np.array([0.066, 0.106, 0.116]) * full)
        inner_top, inner_bottom = arc(upper, np.zeros(3), 1.6)[1:], arc(lower, np.zeros(3), 1.6)[1:]
        flip = np.array([-1.0, 1.0])
        left, inside = np.array([[-half, corner]]), np.array([[-0.86 * half, corner]])
        outer = [left, top, top[1::-1] * flip, left * flip, bottom * flip, bottom[1::-1]]
        inner = [
            inside,
            inner_top,
            inner_top[:1] * flip,
            inside * flip,
            inner_bottom * flip,
            inner_bottom[:1],
        ]
        return np.concatenate(outer + inner)
