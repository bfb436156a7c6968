"""Numbers and images -> PNG pictures. Only this module uses matplotlib.

Axes: S source classes, K kept classes, T target classes, n rows of a comparison. A colour belongs
to a strategy: it has the same one in all pictures of a page.
"""

from __future__ import annotations

import io
import logging
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.analysis.statistics import Interval
from uotft.core.records import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
NAMED = 60  # most names along a side of a heat map


@dataclass(frozen=True)
class Point:
    """One variation of an experiment: the value measured, and the paper's if it has one.

    ``line`` and ``x`` place it in a plot against a setting; without ``x`` it is a horizontal line.
    """

    label: str
    value: Interval
    paper: float | None = None
    line: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Panel:
    """The points of one target; ``label`` names their metric."""

    title: str
    label: str
    points: list[Point]


def comparison_picture(
    title: str, top1: dict[str, Interval], against_none: dict[str, Interval]
) -> bytes:
    """Accuracy of each strategy, and its paired difference from none, with 95 % intervals."""
    figure = _figure(9, 0.6 + 0.42 * len(top1))
    left, right = figure.subplots(1, 2, sharey=True)
    order = list(top1)[::-1]
    _dots(left, order, top1)
    left.set(title=_plain(f"{title}: test top-1, %"))
    left.set(yticks=range(len(order)), yticklabels=[*map(_plain, order)])
    _dots(right, order, against_none)
    right.axvline(0, color="grey", linewidth=1)
    right.set(title="paired difference from none, points")
    return _png(figure)


def curves_picture(
    title: str, top1: dict[str, dict[int, Interval]], against_none: dict[str, dict[int, Interval]]
) -> bytes:
    """Validation accuracy by step, and its paired difference from none with a 95 % band."""
    figure = _figure(11, 3.6)
    left, right = figure.subplots(1, 2)
    for number, (strategy, curve) in enumerate(top1.items()):
        color = f"C{number}"
        means, dot = [v.mean for v in curve.values()], "o" if len(curve) == 1 else ""
        left.plot(list(curve), means, marker=dot, color=color, label=_plain(strategy))
        if strategy in against_none:
            _band(right, against_none[strategy], color)
    left.set(title=_plain(f"{title}: validation top-1, %, mean over seeds"), xlabel="step")
    left.legend(frameon=False)
    right.axhline(0, color="grey", linewidth=1)
    right.set(title="paired difference from none, points", xlabel="step")
    return _png(figure)


def forecast_picture(
    title: str,
    strategies: list[str],
    curves: dict[str, dict[str, dict[int, Interval]]],
    selected: dict[str, dict[str, tuple[float, float]]],
) -> bytes:
    """Measures of the forecast against K, mean over seeds with a 95 % band; a panel a measure.

    ``curves`` is {measure: {strategy: {K: interval}}}. ``selected`` {measure: {strategy: (K,
    value)}} puts a dot at the strategy's own K. ``strategies`` are all of the comparison, in order:
    they decide the colours.
    """
    figure = _figure(11, 3.6)
    for axes, (measure, lines) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for strategy, curve in lines.items():
            color = f"C{strategies.index(strategy)}"
            _band(axes, curve, color, strategy)
            axes.plot(*selected[measure][strategy], "o", color=color)
        axes.set(title=_plain(f"{title}: {measure}"), xlabel="K, source classes kept", xscale="log")
    axes.axhline(0, color="grey", linewidth=1)
    figure.axes[0].legend(frameon=False)
    return _png(figure)


def classes_picture(
    title: str, sheets: dict[str, list[tuple[str, NDArray[np.uint8]]]], columns: int = 20
) -> bytes:
    """A contact sheet: a line per strategy, its first ``columns`` classes, one image each.

    ``sheets`` is {strategy: [(caption, uint8 image (H, W) or (H, W, 3))]}. A caption with a line
    break is shown as it is; of any other, the last two words.
    """
    figure = _figure(1.6 + 0.66 * columns, 0.5 + 1.05 * len(sheets))
    axes = figure.subplots()  # one for all images: axes for each would take ten times as long
    axes.set_axis_off()
    for line, (strategy, classes) in enumerate(sheets.items()):
        axes.text(-0.2, line + 0.68, _plain(strategy), ha="right", va="center")
        for column, (name, image) in enumerate(classes[:columns]):
            axes.imshow(
                image, cmap="gray_r", extent=(column, column + 0.9, line + 0.95, line + 0.4)
            )
            caption = name if "\n" in name else "\n".join(name.split()[-2:])[:18]
            place = column + 0.45, line + 0.38
            axes.text(*place, _plain(caption), fontsize=6, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(len(sheets), 0), aspect="auto")
    axes.set_title(_plain(title), fontsize=10)
    return _png(figure)


def plan_picture(plan_KT: Floats, kept: tuple[str, ...], target: tuple[str, ...]) -> bytes:
    """The plan (K, T) as a heat map: kept source classes down, target classes across.

    The colour is the mass. A side with more than 60 classes names only every few of them.
    """
    height, width = (max(2, min(0.17 * n, 12)) for n in plan_KT.shape)
    figure = _figure(3.2 + 1.6 * width, 1 + height)
    axes = figure.subplots()
    picture = axes.imshow(plan_KT, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set(xlabel="target class", ylabel="source class, best first")
    _name_ticks(axes, kept, target, 6)
    figure.colorbar(picture, label="mass")
    return _png(figure)


def wide_plan_picture(
    title: str, plan_KT: Floats, kept: tuple[str, ...], target: tuple[str, ...]
) -> bytes:
    """The plan (K, T) for a page: target classes down, kept source classes across."""
    width, height = (max(2, min(0.17 * n, 10)) for n in plan_KT.shape)
    figure = _figure(2 + width, 1.8 + height)
    axes = figure.subplots()
    picture = axes.imshow(plan_KT.T, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set(title=_plain(title), ylabel="target class", xlabel="source class, best first")
    _name_ticks(axes, target, kept, 6)
    figure.colorbar(picture, label="mass")
    return _png(figure)


def square_picture(title: str, values: Floats, texts: list[list[str]], names: list[str]) -> bytes:
    """A table of rows against rows, (n, n): red below zero, white at zero, blue above.

    Each cell shows its entry of ``texts`` (n x n), up to 20 rows; more would not be readable.
    """
    largest = float(np.nanmax(np.abs(values), initial=1e-9))
    size = max(3, 0.75 * len(names)) if len(names) <= 20 else 12
    figure = _figure(2 + size, 1.4 + 0.7 * size)
    axes = figure.subplots()
    # 1.5: the strongest colours stay light enough for black text
    axes.imshow(values, aspect="auto", cmap="RdBu", vmin=-1.5 * largest, vmax=1.5 * largest)
    axes.set(title=_plain(title))
    _name_ticks(axes, tuple(names), tuple(names), 8)
    for row, line in enumerate(texts if len(names) <= 20 else []):
        for column, text in enumerate(line):
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    return _png(figure)


def setting_picture(title: str, name: str, lines: dict[str, dict[float, Interval]]) -> bytes:
    """Accuracy against a setting: mean over seeds with a 95 % band.

    ``lines`` is {label: {value of the setting: interval}}. A label with a single value, which may
    be NaN for "not set", is a dashed horizontal line.
    """
    figure = _figure(8, 3.8)
    axes = figure.subplots()
    for number, (label, line) in enumerate(lines.items()):
        if len(line) == 1:
            [value] = line.values()
            axes.axhline(value.mean, color=f"C{number}", linestyle="--", label=_plain(label))
        else:
            _band(axes, line, f"C{number}", label, marker="o")
    values = [x for line in lines.values() for x in line if np.isfinite(x)]
    wide = min(values) > 0 and max(values) >= 20 * min(values)
    axes.set(title=_plain(title), xlabel=_plain(name), xscale="log" if wide else "linear")
    axes.legend(frameon=False)
    return _png(figure)


def similarity_picture(
    scores_S: Floats,
    kept: NDArray[np.int64],
    names: tuple[str, ...],
    *,
    mass: bool = False,
    expected: NDArray[np.int64] | None = None,
    most: int = 100,
) -> bytes:
    """The sorted similarity vector (figure 2b of the paper), and its best ``most`` by name.

    ``scores_S`` (S,) are the scores, ``kept`` (K,) the kept rows, best first. Classes that are
    never kept (-inf) are not plotted. With ``mass`` the scores are log P1, the log of the mass that
    each class sends, and the bars show P1. With ``expected`` rows, names of other classes are
    orange.
    """
    figure = _figure(12, 5.4)
    upper, lower = figure.subplots(2, 1)
    ranked = np.sort(scores_S[scores_S > -np.inf])[::-1]
    upper.plot(np.arange(1, len(ranked) + 1), ranked, color="lightgrey")
    upper.plot(np.arange(1, len(kept) + 1), scores_S[kept], color="C0", linewidth=2)
    upper.axvline(len(kept), color="grey", linewidth=0.8, linestyle=":")
    label = "log of the mass sent" if mass else "score"
    upper.set(xlabel="rank", ylabel=label, title=f"{len(kept)} of {len(scores_S)} kept")
    best = kept[:most]
    lower.bar(range(len(best)), np.exp(scores_S[best]) if mass else scores_S[best], color="C0")
    labels = [_plain(names[row][:20]) for row in best]
    lower.set_xticks(range(len(best)), labels, rotation=90, fontsize=6)
    lower.set(xlim=(-1, max(len(best), 1)), ylabel="mass sent" if mass else "score")
    if expected is not None:
        lower.set_title("orange names: not among the expected", fontsize=9)
        for label, row in zip(lower.get_xticklabels(), best, strict=True):
            label.set_color("black" if row in expected else "C1")
    return _png(figure)


def recall_picture(curve: dict[float, float], top_k: int, used: float) -> bytes:
    """Recall of the expected classes among the best K, in %, against eps_c (figure 4a)."""
    figure = _figure(6, 3.6)
    axes = figure.subplots()
    axes.plot(list(curve), list(curve.values()), marker="o")
    axes.axvline(used, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log", ylim=(0, 103), xlabel="eps_c, the cost scale (dotted: the one used)",
        ylabel=f"recall in the best {top_k}, %",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    return _png(figure)


def search_picture(means: dict[int, tuple[float, bool]], importance: dict[str, float]) -> bytes:
    """Validation top-1 of each trial and the best so far; beside it the importance of settings.

    ``means`` is {trial: (mean over its seeds, whether it has all of them)}. ``importance`` is
    {setting: share of the variance}; without it there is one panel.
    """
    figure = _figure(11 if importance else 6.6, 3.6)
    axes = figure.subplots(1, 2 if importance else 1, squeeze=False)[0]
    whole = {number: mean for number, (mean, complete) in means.items() if complete}
    part = {number: mean for number, (mean, complete) in means.items() if not complete}
    axes[0].plot(list(whole), np.maximum.accumulate(list(whole.values())), color="C1", label="best")
    axes[0].plot(list(whole), list(whole.values()), "o", color="C0", label="trial")
    if part:
        axes[0].plot(list(part), list(part.values()), "x", color="grey", label="pruned, failed")
    axes[0].set(title="validation top-1, %, mean over seeds", xlabel="trial (0: params.yaml)")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    if importance:
        axes[1].barh([*map(_plain, importance)][::-1], list(importance.values())[::-1], color="C0")
        axes[1].set(title="share of the variance explained (fANOVA)", xlim=(0, 1))
    return _png(figure)


def experiment_picture(panels: list[Panel], axis: str = "", *, log: bool = False) -> bytes:
    """A panel per target; crosses are the paper's numbers.

    Without an ``axis``: dots with intervals. With one, the name of a setting: lines with bands
    against it, on a logarithmic scale if ``log``.
    """
    height = 3.6 if axis else 1 + 0.34 * max(len(panel.points) for panel in panels)
    figure = _figure(1.5 + 5 * len(panels), height)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if axis:
            _paper_lines(axes, panel.points)
            axes.set(xlabel=_plain(axis), ylabel=panel.label, title=_plain(panel.title))
            axes.set_xscale("log" if log else "linear")
            axes.legend(frameon=False, fontsize=8)
        else:
            _paper_dots(axes, panel.points)
            axes.set(xlabel=panel.label, title=_plain(panel.title))
        axes.grid(alpha=0.3)
    return _png(figure)


def _paper_dots(axes: Axes, points: list[Point]) -> None:
    """One point a line, the first on top."""
    for y, point in enumerate(reversed(points)):
        color = f"C{(len(points) - 1 - y) % 10}"
        axes.errorbar(point.value.mean, y, xerr=point.value.half, fmt="o", capsize=3, color=color)
        if point.paper is not None:
            axes.plot(point.paper, y, "x", color=color)
    axes.set_yticks(range(len(points)), [_plain(point.label) for point in reversed(points)])


def _paper_lines(axes: Axes, points: list[Point]) -> None:
    """A line with a band for each ``line`` of the points; horizontal for points without ``x``."""
    for number, point in enumerate(p for p in points if p.x is None):
        value, color = point.value, f"C{number + 7}"
        axes.axhline(value.mean, color=color, linestyle="--", label=_plain(point.label))
        if value.n > 1:
            axes.axhspan(value.mean - value.half, value.mean + value.half, color=color, alpha=0.12)
    placed = [point for point in points if point.x is not None]
    for number, line in enumerate(dict.fromkeys(point.line for point in placed)):
        own, color = [point for point in placed if point.line == line], f"C{number}"
        x = np.array([point.x for point in own], float)
        mean, half = np.array([(point.value.mean, point.value.half) for point in own]).T
        axes.plot(x, mean, "o-", color=color, label=_plain(line))
        axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.12)
        known = [np.nan if point.paper is None else point.paper for point in own]
        axes.plot(x, known, "x", color=color)


def _dots(axes: Axes, order: list[str], values: dict[str, Interval]) -> None:
    """One interval a line; colours follow the order of the table, as in the curves."""
    for y, name in enumerate(order):
        if name in values:
            color = f"C{len(order) - 1 - y}"
            half = values[name].half
            axes.errorbar(values[name].mean, y, xerr=half, fmt="o", capsize=3, color=color)
    axes.grid(axis="x", alpha=0.3)


def _band(
    axes: Axes, values: Mapping[Any, Interval], color: str, label: str = "", marker: str = ""
) -> None:
    """A line of means with its intervals as a band."""
    mean, half = np.array([(v.mean, v.half) for v in values.values()]).T
    axes.plot(list(values), mean, color=color, label=_plain(label), marker=marker)
    axes.fill_between(list(values), mean - half, mean + half, color=color, alpha=0.1)


def _name_ticks(axes: Axes, down: tuple[str, ...], across: tuple[str, ...], size: int) -> None:
    """Put names along both sides of a heat map; at most NAMED a side."""
    for axis, names in ((axes.yaxis, down), (axes.xaxis, across)):
        step = -(-len(names) // NAMED)  # rounded up
        labels = [_plain(n[:24]) for n in names[::step]]
        axis.set_ticks(range(0, len(names), step), labels, fontsize=size)
    axes.tick_params(axis="x", rotation=90)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _png(figure: Figure) -> bytes:
    """The picture as PNG, in installed fonts that have the letters of all its texts."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    fonts = _fonts(frozenset("".join(text.get_text() for text in texts)))
    for text in texts if fonts else []:
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    file = io.BytesIO()
    with warnings.catch_warnings():  # `_fonts` warns once about letters that no font has
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is; between two dollar signs it would read TeX."""
    return text.replace("$", r"\$")


@cache
def _fonts(letters: frozenset[str]) -> tuple[str, ...]:
    """Names of installed fonts for those of ``letters`` that matplotlib's own font lacks.

    Greedy: each next font is the one that has most of the letters still missing.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    codes = {ord(letter) for letter in letters if letter.isprintable()}
    missing = codes - _charmap(findfont(FontProperties()))
    # Last Resort, which comes with matplotlib, claims every letter and shows a box
    fonts = [f for f in fontManager.ttflist if (f.style, f.weight) == ("normal", 400)]
    fonts = [f for f in fonts if not f.name.startswith("Last Resort")] if missing else []
    installed = {font.name: font.fname for font in sorted(fonts, key=lambda f: f.fname)}
    found = []
    while missing:
        has = {name: missing & _charmap(file) for name, file in installed.items()}
        best = max(has, key=lambda name: len(has[name]), default="")
        if not best or not has[best]:
            break
        found.append(best)
        missing -= has[best]
    if missing:
        _warn(unicodedata.name(chr(min(missing)), "").split(" ")[0])
    return tuple(found)


@cache
def _warn(script: str) -> None:
    """Warn, once a process and script, that pictures show boxes in place of letters."""
    logger.warning(
        f"pictures show boxes for names in {script or 'unknown'} letters, since no installed font "
        "has them; install a font of that script, such as Noto, in ~/.local/share/fonts"
    )


@cache
def _charmap(file: str) -> frozenset[int]:
    """The code points that a font file has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
