"""As much of PromQL as our alerts and dashboards are written in: enough to find a slip without promtool.

`parse` is a recursive descent over the whole text; what it does not know is an error. It gives back what tests look at:
which series are read and how.
"""

from __future__ import annotations

import re
from typing import NamedTuple

AGGREGATIONS = frozenset({"sum", "max", "min", "avg", "count", "topk", "bottomk"})
# Functions, and whether they take a range of each series.
FUNCTIONS = {
    "rate": True,
    "increase": True,
    "changes": True,
    "histogram_quantile": False,
    "absent": False,
    "vector": False,
}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+|\$__(?:rate_)?interval"
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<range>\[(?:{_DURATION})\])
    | (?P<duration>{_DURATION})\b
    | (?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){{}},])
    )""",
    re.VERBOSE,
)
_OPERATORS = frozenset({"+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<=", "and", "or", "unless"})


class Selector(NamedTuple):
    """Series that are read: metric, label matchers, the function around it ("" for none), whether it is a range."""

    metric: str
    labels: tuple[str, ...]
    function: str
    ranged: bool


class Parsed(NamedTuple):
    selectors: tuple[Selector, ...]
    groupings: tuple[str, ...]  # labels that something is summed by, or without


class PromQLError(ValueError):
    """The text is no expression, or one of a kind that is not known here."""


def parse(text: str) -> Parsed:
    """What an expression reads. PromQLError with the place if it is wrong."""
    parser = _Parser(text)
    parser.expression("")
    if parser.kind:
        raise PromQLError(f"{parser.text!r} is too much in: {text}")
    return Parsed(tuple(parser.selectors), tuple(parser.groupings))


class _Parser:
    def __init__(self, whole: str) -> None:
        self.selectors: list[Selector] = []
        self.groupings: list[str] = []
        self._whole = whole
        self._place = 0
        self.kind = ""
        self.text = ""
        self._next()

    def expression(self, function: str) -> None:
        self._operand(function)
        while self.text in _OPERATORS:
            self._next()
            self._operand(function)

    def _operand(self, function: str) -> None:
        if self.kind in ("number", "string"):
            self._next()
        elif self._take("("):
            self.expression("")
            self._want(")")
        elif self.kind == "name" and self.text in AGGREGATIONS:
            self._aggregation()
        elif self.kind == "name" and self.text in FUNCTIONS:
            self._call()
        else:
            self._selector(function)

    def _aggregation(self) -> None:
        self._next()
        grouped = self._grouping()
        self._arguments("")
        if not grouped:
            self._grouping()

    def _grouping(self) -> bool:
        if self.text not in ("by", "without"):
            return False
        self._next()
        self._want("(")
        while not self._take(")"):
            self.groupings.append(self._name())
            self._take(",")
        return True

    def _call(self) -> None:
        name = self.text
        self._next()
        self._arguments(name)

    def _arguments(self, function: str) -> None:
        self._want("(")
        self.expression(function)
        while self._take(","):
            self.expression(function)
        self._want(")")

    def _selector(self, function: str) -> None:
        metric = self._name()
        labels = []
        if self._take("{"):
            while not self._take("}"):
                labels.append(self._name())
                if self.text not in ("=", "!=", "=~", "!~"):
                    self._fail("a matcher")
                self._next()
                if self.kind != "string":
                    self._fail("a string")
                self._next()
                self._take(",")
        ranged = self.kind == "range"
        if ranged:
            self._next()
        if self.text == "offset":
            self._next()
            if self.kind != "duration":
                self._fail("a duration")
            self._next()
        if ranged != FUNCTIONS.get(function, False):
            raise PromQLError(
                f"{metric}: {function or 'this'} takes {'no ' if ranged else 'a '}range in: {self._whole}"
            )
        self.selectors.append(Selector(metric, tuple(labels), function, ranged))

    def _name(self) -> str:
        if self.kind != "name":
            self._fail("a name")
        name = self.text
        self._next()
        return name

    def _want(self, sign: str) -> None:
        if not self._take(sign):
            self._fail(sign)

    def _take(self, sign: str) -> bool:
        if self.kind != "sign" or self.text != sign:
            return False
        self._next()
        return True

    def _next(self) -> None:
        rest = self._whole[self._place :]
        if not rest.strip():
            self.kind, self.text = "", ""
            return
        match = _TOKEN.match(rest)
        if match is None or match.lastgroup is None:
            raise PromQLError(f"no word of PromQL at {rest[:20]!r}")
        self.kind, self.text = match.lastgroup, match[match.lastgroup]
        self._place += match.end()

    def _fail(self, wanted: str) -> None:
        raise PromQLError(f"{wanted} was to come, not {self.text or 'the end'!r}, in: {self._whole}")
