import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.calibration.budget import Prices
from allaprima.core.cost import Cost
from allaprima.core.errors import SettingError


def test_the_papers_steps():
    assert Prices.from_steps(5, 20).mean(0.5) == 15
    assert Prices.from_steps(5, 20).share_for(15) == 0.5
    assert [Prices.from_steps(5, r).mean(0.5) for r in (10, 20, 40)] == [10, 15, 25]  # the human study's three


def picture(student: float, teacher: float = 0.0) -> Cost:
    cost = Cost()
    cost.add("text", 0, 0.1)
    cost.add("student", 10, student)
    cost.add("decode", 0, 0.2)
    cost.add("oracle", 1, 0.05)
    if teacher:
        cost.add("teacher", 40, teacher)
        cost.add("decode", 0, 0.2)
    return cost


def test_seconds_and_money_of_measured_pictures():
    accepted, escalated = [picture(1.0), picture(2.0), picture(9.0)], [picture(4.0, 8.0), picture(4.0, 8.0)]
    prices = Prices.from_costs(accepted, escalated)
    assert prices.draft == pytest.approx(4.35)
    assert prices.escalation == pytest.approx(8.2)
    assert prices.parts["escalation.decode"] == pytest.approx(0.2)
    assert prices.parts["escalation.teacher"] == pytest.approx(8.0)
    assert Prices.from_costs(accepted, escalated, average="median").draft == pytest.approx(2.35)
    # The prices give back what the pictures cost.
    total = sum(sum(c.seconds.values()) for c in accepted + escalated)
    assert prices.mean(2 / 5) == pytest.approx(total / 5)
    money = prices.in_money(7.2)
    assert money.unit == "money"
    assert money.mean(0.4) == pytest.approx(prices.mean(0.4) * 0.002)
    assert money.share_for(money.mean(0.4)) == pytest.approx(0.4)
    counted = Prices.from_costs(accepted, escalated, unit="evaluations")
    assert (counted.draft, counted.escalation) == (11, 40)
    with pytest.raises(SettingError, match="evaluations"):
        counted.in_money(1)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_share_and_budget_are_inverse(draft, escalation, share):
    prices = Prices("money", draft, escalation)
    assert prices.mean(prices.share_for(prices.mean(share))) == pytest.approx(prices.mean(share))


@pytest.mark.parametrize("budget", [4.9, 25.1, float("nan")])
def test_a_budget_that_cannot_be_spent_is_refused_with_the_range(budget):
    with pytest.raises(SettingError, match=r"steps a picture .* 5 .* to 25 "):
        Prices.from_steps(5, 20).share_for(budget)


@pytest.mark.parametrize(("draft", "escalation"), [(-1, 2), (1, 0), (1, -2), (float("nan"), 1), (1, float("inf"))])
def test_what_is_no_price_is_refused(draft, escalation):
    with pytest.raises(SettingError, match="no prices"):
        Prices("seconds", draft, escalation)


def test_prices_need_both_kinds_of_pictures():
    with pytest.raises(SettingError, match="0 escalated"):
        Prices.from_costs([picture(1)], [])
    with pytest.raises(SettingError, match="price_an_hour"):
        Prices("seconds", 1, 2).in_money(0)
