"""Charts as SVG: the picture says what the numbers say, in valid XML, byte for byte the same."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli import charts
from nanogpt_cli.charts import Figure, Mark, Panel

SPACE = "{http://www.w3.org/2000/svg}"
LINE = f"{SPACE}path[@stroke-width='1.6']"


def drawn(*marks: Mark, **keys: object) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(Figure("", [Panel("", marks, **keys)])))  # type: ignore[arg-type]


def points(
    root: ElementTree.Element, place: str = f"{SPACE}g/{LINE}"
) -> list[list[tuple[float, float]]]:
    """The points of every line inside the plot, in pixels."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+),([-\d.]+)", path.attrib["d"])]
        for path in root.findall(place)
    ]


def axis(root: ElementTree.Element, name: str) -> dict[float, float]:
    """Value -> pixel of the labels of an axis; those of the x axis stand below all others."""
    texts = root.findall(f"{SPACE}text")
    below = max((text.attrib["y"] for text in texts), key=float)
    row = [text for text in texts if (text.attrib["y"] == below) == (name == "x")]
    shift = 4 if name == "y" else 0
    units = {"k": 1e3, "E": 1e18, "Z": 1e21}
    numbers = [(text.text or "").rstrip("kEZ") for text in row]
    scales = [units.get((text.text or " ")[-1], 1.0) for text in row]
    return {
        float(number) * scale: float(text.attrib[name]) - shift
        for number, scale, text in zip(numbers, scales, row, strict=True)
        if text.attrib.get("text-anchor") == "middle" or name == "y"
    }


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_the_axes_say(log: bool) -> None:
    x, y = [1.0, 10.0, 50.0, 100.0], [0.5, 20.0, 3.0, 90.0]
    root = drawn(Mark("", x, y), log_x=log, log_y=log)
    (line,) = points(root)
    for values, name, index in ((x, "x", 0), (y, "y", 1)):
        ticks = sorted(axis(root, name).items())
        (v0, p0), (v1, p1) = ticks[0], ticks[-1]
        if log:
            v0, v1 = math.log10(v0), math.log10(v1)
        for value, point in zip(values, line, strict=True):
            part = ((math.log10(value) if log else value) - v0) / (v1 - v0)
            assert point[index] == pytest.approx(p0 + part * (p1 - p0), abs=0.4)


def test_a_gap_is_a_gap() -> None:
    root = drawn(Mark("", range(6), [1, 2, math.nan, math.inf, 3, 4]))
    assert [len(line) for line in points(root)] == [2, 2]
    assert [len(line) for line in points(drawn(Mark("", range(3), [0, 1, 2]), log_y=True))] == [2]


def test_a_long_line_is_thinned_and_keeps_its_spike() -> None:
    values = [math.sin(i / 500) for i in range(100_000)]
    values[54_321] = 40.0
    root = drawn(Mark("", range(len(values)), values))
    (line,) = points(root)
    assert len(line) <= 4 * 720
    (whole,) = points(drawn(Mark("", [0, 54_321, 99_999], [0.0, 40.0, values[-1]])))
    assert min(y for _, y in line) == pytest.approx(whole[1][1], abs=1.0)


def test_what_does_not_fit_is_cut_off_and_does_not_stretch_the_axis() -> None:
    sound, wild = Mark("", [0, 1], [2.0, 3.0]), Mark("", [0, 1], [2.0, 1e300], fits=False)
    assert axis(drawn(sound, wild), "y") == axis(drawn(sound), "y")
    assert max(axis(drawn(wild), "y")) > 1e299  # alone it has the axis


def test_a_band_has_both_edges() -> None:
    band = Mark("", [0, 1, 2], [1, 1, 1], "band", high=[2, 3, 2])
    root = drawn(band, Mark("", [0, 1, 2], [1, 3, 2]))
    (line,) = points(root)
    (edge,) = points(root, f"{SPACE}g/{SPACE}path[@fill-opacity]")
    assert len(edge) == 6
    assert min(y for _, y in edge) == line[1][1]
    assert max(y for _, y in edge) == line[0][1]


@given(
    st.text(st.characters(codec=None)), st.lists(st.floats(), min_size=1, max_size=5), st.booleans()
)
def test_any_name_and_any_number_give_valid_xml(name: str, values: list[float], log: bool) -> None:
    marks = [Mark(name, range(len(values)), values, kind) for kind in ("line", "dash", "dots")]
    marks.append(Mark(name, range(len(values)), values, "band", high=values))
    panel = Panel(name, marks, name, name, log_x=log, log_y=log)
    text = charts.svg(Figure(name, [panel, panel], 2, [name]))
    text.encode("utf-8")
    root = ElementTree.fromstring(text)
    assert text == charts.svg(Figure(name, [panel, panel], 2, [name]))
    places = [
        v for e in root.iter() for k, v in e.attrib.items() if k in ("x", "y", "cx", "cy", "d")
    ]
    assert not [place for place in places if "nan" in place or "inf" in place]


def test_names_are_escaped_and_nothing_is_fetched() -> None:
    name = '<script>alert("1")</script> & \x1b[31m'
    text = charts.svg(Figure(name, [Panel(name, [Mark(name, [0, 1], [0, 1])])]))
    root = ElementTree.fromstring(text)
    assert not list(root.iter(f"{SPACE}script"))
    assert "\x1b" not in text
    assert text.count("http") == 1
    assert any('<script>alert("1")' in (e.text or "") for e in root.iter(f"{SPACE}text"))


def test_every_colour_is_distinct_and_dashes_follow() -> None:
    marks = [Mark(str(n), [0, 1], [n, n], colour=n) for n in range(2 * len(charts.COLOURS))]
    found = [
        (e.get("stroke"), e.get("stroke-dasharray"))
        for e in drawn(*marks).findall(f"{SPACE}g/{LINE}")
    ]
    assert len(set(found)) == len(marks)


def test_a_legend_wraps_within_the_picture() -> None:
    marks = [Mark(f"a run with a rather long name, number {n}", [0, 1], [n, n]) for n in range(9)]
    root = drawn(*marks)
    for text in root.findall(f"{SPACE}text"):
        if "long name" in (text.text or ""):
            right = float(text.attrib["x"]) + charts.text_width(text.text or "", 11.5)
            assert right <= float(root.attrib["width"])
