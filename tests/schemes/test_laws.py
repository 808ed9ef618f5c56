from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.schemes.laws import LARGEST_NORMAL, Law, Rule, evaluate, normal_extreme, pretty

SHAPE = {"d": 768, "L": 12, "l": 0, "fan_in": 768, "fan_out": 3072}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.02 / sqrt(2*L)", 0.02 / math.sqrt(24)), ("2^-0.5", 2**-0.5), ("min(1, d)", 1.0)],
)
def test_formulas_are_arithmetic_over_the_shape(text: str, value: float) -> None:
    assert evaluate(text, SHAPE) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["x", "1/0", "9**9**9", "(0-1)**0.5", "__import__('os')", "d.real", "[1]", "1 if d else 2",
     "sqrt", "sqrt(1, 2)", "'a'", "True", "1 +", "0-1e999", "lambda: 1"],
)  # fmt: skip
def test_a_formula_that_is_not_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        evaluate(text, SHAPE)


@pytest.mark.parametrize(
    "text",
    ["0.02", "gauss(1)", "normal()", "normal(1, 2)", "truncated(1)", "truncated(1, 0-2)",
     "normal(std=1)", "normal(", ""],
)  # fmt: skip
def test_text_that_is_not_a_law_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Rule.parse(text)


def test_a_negative_std_is_refused() -> None:
    with pytest.raises(UserError, match="negative"):
        Rule.parse("normal(1 - 2)").law(SHAPE)


def test_true_std_of_each_kind() -> None:
    assert Law("normal", 0.02).true_std(3, 3) == 0.02
    assert Law("uniform", 0.02).true_std(3, 3) == 0.02
    # Published values of the variance of a truncated normal: 0.97334 at 3 σ, 0.77374 at 2 σ.
    assert Law("truncated", 1.0, 3.0).true_std(3, 3) ** 2 == pytest.approx(0.97334, abs=1e-5)
    assert Law("truncated", 1.0, 2.0).true_std(3, 3) ** 2 == pytest.approx(0.77374, abs=1e-5)
    assert Law("orthogonal", 2.0).true_std(16, 64) == 0.25
    assert Law("constant", 1.0).true_std(3, 3) == 0.0


def test_the_largest_normal_draw_grows_slowly_and_stops_where_float32_does() -> None:
    # Largest of 590k and 2.4M values: 4.91 σ and 5.17 σ.
    assert normal_extreme(589_824) == pytest.approx(4.91, abs=0.03)
    assert normal_extreme(2_359_296) == pytest.approx(5.17, abs=0.03)
    assert Law("normal", 1.0).largest(10**9, 1.0) == LARGEST_NORMAL
    assert Law("truncated", 1.0, 2.0).largest(10**9, 1.0) == 2.0


def test_pretty_formulas_read_like_the_page() -> None:
    assert pretty("0.02 / sqrt(2 * L)") == "0.02/√(2L)"
    assert str(Rule.parse("truncated(1/sqrt(d), 3)")) == "truncated(1/√d, ±3σ)"


NUMBER = st.sampled_from(
    ["1", "0", "0.02", "1e300", "1e-300", "9" * 400, "d", "L", "l", "x", "nan"]
)
OPERATOR = st.sampled_from(["+", "*", "/", "^", "-"])
FUNCTION = st.sampled_from(["sqrt", "ln", "exp", "-", "max", "f"])
FORMULA = st.recursive(
    NUMBER,
    lambda inner: (
        st.builds("{}{}{}".format, inner, OPERATOR, inner)
        | st.builds("{}({})".format, FUNCTION, inner)
    ),
)
LAW = st.builds("{}({})".format, st.sampled_from(["normal", "uniform", "constant"]), FORMULA)
CUT = st.builds("truncated({}, {})".format, FORMULA, FORMULA)
DEEP = st.builds(
    lambda piece, n: f"normal({piece * n}1)",
    st.sampled_from(["-", "1+", "2^", "(", "sqrt("]), st.integers(1, 3000),
)  # fmt: skip


@given(LAW | CUT | DEEP)
@example("uniform(L^L^L^L)")  # a whole number with more digits than there are atoms
@example("normal(d^d^9)")
def test_a_law_is_refused_in_words_or_has_a_size_that_can_be_drawn(text: str) -> None:
    try:
        law = Rule.parse(text).law(SHAPE)
    except UserError:
        return
    assert math.isfinite(law.true_std(8, 8))
    assert 0 <= law.true_std(8, 8) <= 1e30
    if law.kind == "truncated":  # what lies beyond the cut is drawn again and again
        assert math.erf(law.cut / math.sqrt(2)) > 0.05
