"""Printed figures as what they can stand for: 1.45 is anything from 1.445 to 1.455. And figures in one unit."""

from dataclasses import dataclass
from decimal import Decimal

from optsd.claims.schema import Claim, Value
from optsd.claims.words import UNITS

ABOUT = 0.1
"""How far off a figure may be that its source calls "about" so much."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def meets(self, other: "Interval") -> bool:
        slack = 1e-9 * max(abs(self.low), abs(self.high), 1e-12)
        return self.low <= other.high + slack and other.low <= self.high + slack

    def __truediv__(self, other: "Interval") -> "Interval":
        """Of positive ones."""
        return Interval(self.low / other.high, self.high / other.low) if other.low > 0 else Interval(0, float("inf"))

    def scaled(self, factor: float) -> "Interval":
        return Interval(*sorted((self.low * factor, self.high * factor)))

    def plus(self, shift: float) -> "Interval":
        return Interval(self.low + shift, self.high + shift)

    def inverse(self) -> "Interval":
        return Interval(1 / self.high if self.high else float("inf"), 1 / self.low if self.low > 0 else float("inf"))


def last_place(figure: float) -> float:
    """What one in the last printed place is worth: 0.01 of 1.45, 1 of 12."""
    exponent = Decimal(str(figure)).as_tuple().exponent
    return 10.0**exponent if isinstance(exponent, int) and exponent < 0 else 1.0


def as_printed(figure: float, places: float = 0.5, about: bool = False, step: float | None = None) -> Interval:
    """What a printed figure can stand for: so many of its last place either way; 1 where it may have been cut off.

    `step`: what one in the last place is worth, where that is known better than from the figure itself.
    """
    room = max(places * (step or last_place(figure)), ABOUT * abs(figure) if about else 0.0)
    return Interval(figure - room, figure + room)


def of_value(value: Value, places: float = 0.5, step: float | None = None) -> Interval:
    """The whole range that a value claims."""
    ends = value.numbers if value.figure is None else (value.figure,)
    each = [as_printed(end, places, value.bound == "about", step) for end in ends]
    return Interval(min(one.low for one in each), max(one.high for one in each))


def seconds(claim: Claim) -> Interval | None:
    """A time in seconds of what its metric is `per`, a rate as its inverse; None for what is neither."""
    dimension, factor = UNITS[claim.value.unit]
    if claim.value.figure is None or claim.value.figure <= 0 or claim.value.before is not None:
        return None
    if claim.metric.kind == "time" and dimension == "time":
        return of_value(claim.value).scaled(factor)
    if claim.metric.kind == "rate" and dimension in ("rate", "inverse rate"):
        found = of_value(claim.value)
        return found.inverse() if dimension == "rate" else found
    return None


def per_image(claim: Claim) -> Interval | None:
    """Seconds a picture, of the whole pipeline; None where the batch is needed and not stated."""
    found, batch = seconds(claim), claim.setting.batch.value
    if found is None or claim.metric.scope or claim.metric.per in ("", "step"):
        return None
    if claim.metric.per == "image":
        return found
    if not isinstance(batch, int) or batch < 1:
        return None
    calls = int(claim.metric.per.split()[0]) if claim.metric.per != "call" else 1
    return found.scaled(1 / (batch * calls))


def size(claim: Claim) -> Interval | None:
    """Bytes, as printed."""
    dimension, factor = UNITS[claim.value.unit]
    if claim.metric.kind not in ("memory", "size") or dimension != "bytes" or claim.value.figure is None:
        return None
    return of_value(claim.value).scaled(factor) if claim.value.before is None else None
