"""The drawing of quality: what counts as far off, and is drawn at the edge."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from legw_hpc.figures import quality
from legw_hpc.places import Spread

# means -> what is within the axes
NEAR: dict[str, tuple[list[float], tuple[float, float]]] = {
    "one that collapsed": ([98.9, 98.8, 98.7, 98.4, 10.0], (98.4, 98.9)),
    "an explosion": ([114.5, 118.0, 142.4, 700.0], (114.5, 142.4)),
    "two worlds are both shown": ([20.0, 21.0, 80.0, 81.0], (20.0, 81.0)),
    "all equal": ([5.0, 5.0, 5.0], (5.0, 5.0)),
    "nothing": ([], (0.0, 0.0)),
}


@pytest.mark.parametrize("name", NEAR)
def test_near(name: str) -> None:
    means, expected = NEAR[name]
    assert quality._near(means) == expected


def test_every_line_can_be_told_and_the_legend_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine lines with long names, two of them far off at one place."""
    drawn: list[Figure] = []
    monkeypatch.setattr(quality.plt, "close", drawn.append)
    values = [98.9, 98.8, 98.7, 98.6, 98.5, 98.4, 98.3, 10.0, 11.0]
    lines = [quality.Line(f"{'a long name ' * 6}{i}", [(8192.0, Spread((value,)))]) for i, value in enumerate(values)]
    quality.draw(lines, "batch", "accuracy", tmp_path / "x.png", "t")
    (figure,) = drawn
    axes, (legend,) = figure.axes[0], figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert figure.bbox.containsx(legend.get_window_extent().x0)
    looks = {(box[0].get_color(), box[0].get_marker(), box[0].get_linestyle()) for box in axes.containers}
    assert len(looks) == len(lines)
    first, second = (text for text in axes.texts if text.get_text() in ("10", "11"))
    assert first.xyann != second.xyann
    plt.close(figure)


def test_a_drawing_with_every_kind_of_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(quality.plt, "close", drawn.append)
    points = [(128.0, Spread((98.9, 98.8))), (256.0, Spread((98.7,), 2)), (512.0, Spread((10.0,))), (1024.0, Spread((), 2))]
    points.append((2048.0, Spread((98.5, 98.6), unlearnt=1)))
    quality.draw([quality.Line("legw", points)], "batch", "accuracy", tmp_path / "x.png", "t", ("paper", 98.8))
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [
        "2 of 3 diverged",
        "10",
        "2 of 2 diverged",
        "1 of 3 not learnt",
    ]
    plt.close(drawn[0])
