"""Weekdays, months and leap years by rule; no calendar is looked up."""

from __future__ import annotations

from random import Random

from baton.builtin.kinds import MONTHS, WEEKDAYS, Fields, Kind

_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _walk(names: tuple[str, ...], start: str, steps: int) -> str:
    """'From Tuesday 2, Wednesday 1, Thursday 0.' and the answer line: counts down what is left."""
    at = names.index(start)
    walked = [f"{names[(at + i) % len(names)]} {steps - i}" for i in range(steps + 1)]
    return f"From {', '.join(walked)}.\nThe answer is {names[(at + steps) % len(names)]}."


def day_after(fields: Fields) -> str:
    """The weekday some days later: whole weeks are dropped, the rest is walked."""
    days = int(fields["n"])
    if days > 30:
        raise ValueError("more days than the model was taught")
    return f"{days} days: {days // 7} x 7 + {days % 7}.\n{_walk(WEEKDAYS, fields['day'], days % 7)}"


def day_of_month(fields: Fields) -> str:
    """The weekday of a date, given the weekday of the 1st."""
    date = int(fields["nth"][:-2])
    if not 2 <= date <= 31:
        raise ValueError("no such date, or the 1st itself")
    return f"{date} - 1 = {date - 1} days.\n" + day_after({"n": str(date - 1), "day": fields["day"]})


def month_after(fields: Fields) -> str:
    """The month some months later, walked."""
    months = int(fields["n"])
    if not 1 <= months <= 12:
        raise ValueError("more months than the model was taught")
    return _walk(MONTHS, fields["month"], months)


def next_month(fields: Fields) -> str:
    """The month after, or before, directly."""
    return f"After {fields['month']} comes {MONTHS[(MONTHS.index(fields['month']) + 1) % 12]}."


def _leap(year: int) -> tuple[bool, str]:
    if not 1000 <= year <= 2999:
        raise ValueError("years of other lengths were not taught")
    century, rest = divmod(year, 100)
    looked_at = rest or century
    why = f"{year} ends in {rest:02d}" + ("" if rest else f", so look at {century}")
    return looked_at % 4 == 0, f"{why}. {looked_at} = 4 x ... + {looked_at % 4}."


def leap_year(fields: Fields) -> str:
    """Divisible by four; a century only when its hundreds are."""
    is_leap, work = _leap(int(fields["year"]))
    if is_leap:
        return f"{work}\nYes, {fields['year']} is a leap year."
    return f"{work}\nNo, {fields['year']} is not a leap year."


def month_length(fields: Fields) -> str:
    """Days in a month of a year; only February needs the leap rule."""
    month, year = fields["month"], int(fields["year"])
    is_leap, work = _leap(year)
    if month != "February":
        return f"{month} has {_LENGTHS[MONTHS.index(month)]} days."
    return f"{work}\n{month} has {29 if is_leap else 28} days."


def ordinal(number: int) -> str:
    """17 -> '17th'."""
    if number // 10 == 1:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _year(rng: Random) -> str:
    if rng.random() < 0.25:
        return str(100 * rng.randint(10, 29))
    return str(rng.randint(1600, 2399))


def _draw_days(rng: Random) -> Fields:
    return {"n": str(rng.randint(1, 30)), "day": rng.choice(WEEKDAYS)}


def _draw_date(rng: Random) -> Fields:
    return {"nth": ordinal(rng.randint(2, 31)), "day": rng.choice(WEEKDAYS)}


def _draw_months(rng: Random) -> Fields:
    return {"n": str(rng.randint(1, 12)), "month": rng.choice(MONTHS)}


def _draw_month(rng: Random) -> Fields:
    return {"month": rng.choice(MONTHS)}


def _draw_month_of_year(rng: Random) -> Fields:
    return {"month": rng.choice(("February", rng.choice(MONTHS))), "year": _year(rng)}


KINDS = (
    Kind(
        "dates",
        "days after",
        (
            "What day is {n} days after {day}?",
            "Today is {day}. What day is it in {n} days?",
            "Which weekday comes {n} days after {day}?",
            "If today is {day}, what day is it {n} days later?",
        ),
        _draw_days,
        day_after,
        1.2,
    ),
    Kind(
        "dates",
        "day of a month",
        (
            "If the 1st of a month is a {day}, what day is the {nth}?",
            "The 1st is a {day}. What day is the {nth}?",
            "A month begins on a {day}. What weekday is the {nth}?",
        ),
        _draw_date,
        day_of_month,
        1.2,
    ),
    Kind(
        "dates",
        "months after",
        (
            "Which month is {n} months after {month}?",
            "What month comes {n} months after {month}?",
            "It is {month}. What month is it in {n} months?",
        ),
        _draw_months,
        month_after,
        0.7,
    ),
    Kind(
        "dates",
        "next month",
        (
            "Which month comes after {month}?",
            "What month is after {month}?",
            "What comes after {month}?",
            "What is the month after {month}?",
        ),
        _draw_month,
        next_month,
        0.3,
    ),
    Kind(
        "dates",
        "leap year",
        ("Is {year} a leap year?", "Was {year} a leap year?", "Is the year {year} a leap year?"),
        lambda rng: {"year": _year(rng)},
        leap_year,
        0.8,
    ),
    Kind(
        "dates",
        "days in a month",
        (
            "How many days are in {month} {year}?",
            "How many days does {month} {year} have?",
            "How long is {month} {year}?",
        ),
        _draw_month_of_year,
        month_length,
        0.7,
    ),
)
