"""The chart of an audit: how far each attack came on the run, between chance and where it must succeed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veilmark.report.plots import COLOURS, FLOOR_COLOUR, INK, TEXT, new_axes, new_figure, save_figure
from veilmark.report.verdicts import Verdict

_LOOKS = {"leaks": (COLOURS[1], "o", "full"), "not found": (COLOURS[0], "s", "full")}
"""Colour, marker and filling by verdict; of others the point is hollow and grey, for it says nothing."""
_ENDS = (-30.0, 115.0)
"""Percent of the way that is drawn: an attack far behind chance is as good as one a little behind."""
_ROW = 0.155
"""Of a chart's usual height, for each attack; and what the axis and the title take beside them."""
_REST = 0.34


def plot_verdicts(verdicts: Sequence[Verdict], path: Path) -> Path | None:
    """How much of the way from chance (0 %) to where it must succeed (100 %) each attack went on the run as it was.

    Of the figure that the verdict states, with its interval, and a tick for what it gets from noise. Attacks without a
    way, whose control is no better than chance, and those that had nothing to attack are left out.

    Args:
        verdicts: Of an audit.
        path: PNG to write.

    Returns:
        ``path``; None where no attack can be drawn.
    """
    drawn = [(item, item.real, item.way) for item in verdicts if item.real is not None and item.way is not None]
    if not drawn:
        return None
    figure = new_figure(_REST + _ROW * len(drawn))
    axes = new_axes(figure, 0, 1, "How far attacks came, % of the way", "0: chance, 100: where the attack must succeed")
    axes.grid(axis="y", visible=False)
    axes.set(xlim=_ENDS, ylim=(len(drawn) - 0.35, -0.75), yticks=[])
    for x, style in ((0.0, "-"), (100.0, ":")):
        axes.axvline(x, color="#9a9da3", linewidth=1, linestyle=style, zorder=0)
    for row, (item, real, way) in enumerate(drawn):
        colour, marker, filling = _LOOKS.get(item.kind, (FLOOR_COLOUR, "D", "none"))
        low, place, high = (100 * (some - real.chance) / way for some in (real.low, real.value, real.high))
        ends = [min(max(some, _ENDS[0]), _ENDS[1]) for some in (low, high)]
        if place < _ENDS[0]:
            place, marker = _ENDS[0], "<"
        elif place > _ENDS[1]:
            place, marker = _ENDS[1], ">"
        if real.n > 1:
            axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(
            place, row, marker=marker, color=colour, fillstyle=filling, markersize=8, markeredgewidth=2, clip_on=False
        )
        if real.negative_control is not None:
            noise = 100 * (real.negative_control - real.chance) / way
            if _ENDS[0] <= noise <= _ENDS[1]:
                axes.plot([noise, noise], [row - 0.16, row + 0.16], color=INK, linewidth=1.6)
        label = axes.text(_ENDS[0], row - 0.36, item.attack, fontsize=TEXT - 1, color=INK, va="center")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    return save_figure(figure, path)
