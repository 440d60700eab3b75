"""Names at the ends of lines."""

from typing import Any

from matplotlib.axes import Axes

APART = 0.055  # of a panel's height, between two names


def name_lines(axes: Axes, ends: dict[str, tuple[float, float]], colors: dict[str, Any]) -> None:
    """Each name right of its line's end (x, y), pushed apart where they are close together; once the limits are set."""
    place, data = axes.transAxes.inverted(), axes.transData
    found = {name: place.transform(data.transform(end)) for name, end in ends.items()}
    ordered, height = sorted(found.items(), key=lambda item: item[1][1]), -1.0
    for left, (name, (x, y)) in zip(reversed(range(len(ordered))), ordered, strict=True):
        height = min(max(y, height + APART), 0.97 - APART * left)
        thin = {"arrowstyle": "-", "color": colors[name], "linewidth": 0.5}
        look = {"ha": "left", "va": "center", "fontsize": 8.5, "color": colors[name], "arrowprops": thin}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(name, (x, y), (x + 0.04, height), xycoords="axes fraction", textcoords="axes fraction", **look)
