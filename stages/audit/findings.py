"""What a check finds: figures with intervals, the demands of its rule, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from devil_pipe.stages.evaluate.bootstrap import Interval

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited


class Verdict(StrEnum):
    """What a check says, the worst first."""

    FAIL = "fail"
    PASS = "pass"
    SHOWN = "no verdict"
    NOT_RUN = "not run"


class Needs(Exception):
    """A check cannot run on this run; the message says what it needs."""


@dataclass(frozen=True)
class Demand:
    """One demand of a rule, as it stands in the code before anything is measured, and the figure it is held against."""

    text: str
    figure: Interval
    bound: float = 0.0
    side: Literal["above", "below"] = "above"
    digits: int = 2

    @property
    def met(self) -> bool:
        """Whether the whole interval lies on the bound's right side."""
        return self.figure.low > self.bound if self.side == "above" else self.figure.high < self.bound


@dataclass(frozen=True)
class Row:
    """A line of a table: ours, or a control that knows nothing of what is tested."""

    label: str
    cells: tuple[Interval | str | None, ...]
    control: bool = False


@dataclass(frozen=True)
class Table:
    """Figures side by side."""

    caption: str
    first: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    digits: int = 2


@dataclass(frozen=True)
class Series:
    """One line of a curve: a mean with its interval at each place."""

    label: str
    points: tuple[Interval, ...]


@dataclass(frozen=True)
class Curve:
    """Lines over named places."""

    caption: str
    places: tuple[str, ...]
    series: tuple[Series, ...]
    unit: str


@dataclass(frozen=True)
class Shown:
    """A picture beside the page, and what it is."""

    file: str
    label: str


@dataclass(frozen=True)
class Case:
    """One of the worst pictures of a check."""

    key: str
    heading: str
    lines: tuple[str, ...]
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Measured:
    """All that a check found."""

    n: str
    demands: tuple[Demand, ...] = ()
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    cases: tuple[Case, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Fail where one demand is not met; without a demand there is no verdict."""
        if not self.demands:
            return Verdict.SHOWN
        return Verdict.PASS if all(one.met for one in self.demands) else Verdict.FAIL


@dataclass(frozen=True)
class Check:
    """A check: what it asks, why a cheat would be caught, the rule, and the function that measures."""

    name: str
    title: str
    tested: str
    catches: str
    rule: str
    worst: str
    """By which rule the shown pictures are the worst."""

    measure: Callable[[Audited], Measured]
    """Raises Needs where it cannot run."""


@dataclass(frozen=True)
class Finding:
    """A check with what it found, or with why it could not run."""

    check: Check
    seed: int
    seconds: float
    measured: Measured | None = None
    needs: str = field(default="")

    @property
    def verdict(self) -> Verdict:
        """The check's; not run where nothing was measured."""
        return self.measured.verdict if self.measured else Verdict.NOT_RUN
