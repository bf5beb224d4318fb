"""A claim, as its source states it: plain data and its JSON, schema 2. `expected/schema/claims.schema.json` says the
same for editors.

Two things are kept apart everywhere: what the source *says* (its words, verbatim) and what the words *mean* (a kind, a
unit, a number), which `optsd.claims.words` reads. What a source leaves open is `unstated`, never a guess.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from optsd.errors import BadInput

SCHEMA = 2
UNSTATED = "unstated"


@dataclass(frozen=True)
class Stated:
    """What a source states about one thing. `value` None: it does not.

    `origin`: where the value comes from, if not from where the figure stands ("script", "README command", "default");
    of an unstated one the words that leave it open, if there are any ("not said in the sentence").
    """

    value: Any = None
    origin: str = ""

    @property
    def known(self) -> bool:
        return self.value is not None and self.value != ""

    def __str__(self) -> str:
        return str(self.value) if self.known else UNSTATED


@dataclass(frozen=True)
class Setting:
    """The workload of a claim. Values are as said: names are made alike by `optsd.claims.names`, for comparing."""

    model: Stated = Stated()
    device: Stated = Stated()
    dtype: Stated = Stated()
    steps: Stated = Stated()
    scheduler: Stated = Stated()
    guidance: Stated = Stated()
    size: Stated = Stated()  # pixels: 512, or "512x1024", width × height
    batch: Stated = Stated()

    def missing(self) -> tuple[str, ...]:
        return tuple(each.name for each in fields(self) if not getattr(self, each.name).known)


@dataclass(frozen=True)
class Against:
    """What a ratio is taken of. `said` verbatim; the rest is what the words name, empty where they do not."""

    said: str = ""
    attention: str = ""  # "eager", "sdpa", "xformers", "flash"
    dtype: str = ""
    compiled: bool | None = None
    engine: str = ""  # "tensorrt", "onediff": another program, or this one
    steps: int | None = None
    seconds: float | None = None  # its own time, where it is printed beside the ratio
    row: str = ""  # "first" of the table, or "before": each row adds to the one above
    text_says: str = ""  # where the text names another baseline than the figure was taken of

    @property
    def known(self) -> bool:
        return any(getattr(self, each.name) not in ("", None) for each in fields(self) if each.name != "said")


@dataclass(frozen=True)
class Metric:
    """What was measured. `kind` is one of `optsd.claims.words.KINDS`, or a name of `optsd.metrics`."""

    said: str = ""
    kind: str = "other"
    per: str = ""  # one "call", "image", "step": what a time, memory or number of operations is of
    scope: str = ""  # "unet", "vae", "text encoder": a part of the pipeline; empty: all of it, or unstated
    statistic: str = ""  # "mean", "median of 3", "average"
    when: str = ""  # of memory: "peak", "after loading", "before", "after"
    counted: str = ""  # of memory: "allocated", "reserved"
    network: str = ""  # of CLIP
    reference: str = ""  # of FID: the real pictures; of LPIPS and PSNR: the pictures compared with
    resized: int | None = None  # pixels of the side that pictures are resized to before FID
    count: int | None = None  # pictures that the words of the metric name
    change: bool = False  # a difference from the baseline's figure, not the figure
    over: str = ""  # a baseline that the metric itself names
    device: str = ""  # a device that the metric itself names


@dataclass(frozen=True)
class Value:
    """The figure as said: one number, or a range, or before and after, or an outcome such as "out of memory"."""

    figure: float | None = None
    unit: str = ""  # one of `optsd.claims.words.UNITS`
    unit_said: str = ""  # verbatim, where it is more than the unit
    bound: str = ""  # "about", "up to", "less than", …
    low: float | None = None
    high: float | None = None
    before: float | None = None
    spread: float | None = None  # standard deviation
    readings: tuple[float, ...] = ()
    fails_above: float | None = None  # a test fails above this multiple of the figure
    outcome: str = ""
    said: str = ""  # verbatim, where it is no plain number

    @property
    def numbers(self) -> tuple[float, ...]:
        return tuple(each for each in (self.figure, self.low, self.high) if each is not None)


@dataclass(frozen=True)
class Printed:
    """The same thing said once more, elsewhere or in another unit: "printed +118.1 %", a sister page's "5-300 %"."""

    said: str
    numbers: tuple[float, ...]
    unit: str
    place: str = ""


@dataclass(frozen=True)
class Source:
    """Where a claim is made. `seen`: in the primary text, a figure of it, or a secondary copy."""

    name: str = ""
    repository: str = ""
    commit: str = ""
    document: str = ""
    place: str = ""  # table or sentence of the document
    seen: str = "primary"

    @property
    def page(self) -> str:
        return self._document or self.name

    @property
    def said(self) -> str:
        """Document and place, as they were given."""
        return f"{self._document}, {self.place}" if self.place else self._document

    @property
    def _document(self) -> str:
        return f"{self.repository}@{self.commit} {self.document}" if self.commit else self.document


@dataclass(frozen=True)
class Claim:
    """One published figure. `variant`: the technique in optsd's words, where optsd has it; `source` is its file's."""

    technique: str
    metric: Metric
    value: Value
    source: Source = Source()
    setting: Setting = Setting()
    against: Against = Against()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    images: Stated = Stated()
    prompts: str = ""
    variant: str = ""
    tolerance: Mapping[str, float] = field(default_factory=dict)  # {"relative": 0.1}: where its file's is not meant
    printed: tuple[Printed, ...] = ()
    note: str = ""
    label: str = ""  # "tome 19": the file and the number in it; given when it is read


@dataclass(frozen=True)
class Published:
    """A file of claims: one source. `models` and `tolerance` are for judging a run, where the file says them."""

    file: str
    source: str
    claims: tuple[Claim, ...]
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tolerance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


# --- JSON


def to_json(item: Any) -> Any:
    """Plain data without what has its default. `Stated` is its value, "unstated", or both parts where it has two."""
    if isinstance(item, Stated):
        if not item.origin:
            return UNSTATED if item.value is None else item.value
        return {UNSTATED: item.origin} if item.value is None else {"value": item.value, "from": item.origin}
    if dataclasses.is_dataclass(item):
        return {
            each.name: to_json(getattr(item, each.name))
            for each in fields(item)
            if each.name != "label" and getattr(item, each.name) != _default(each)
        }
    return [to_json(each) for each in item] if isinstance(item, (list, tuple)) else item


def stated_from(data: Any, where: str) -> Stated:
    if data == UNSTATED or data is None:
        return Stated()
    if not isinstance(data, Mapping):
        if isinstance(data, (str, int, float)) and not isinstance(data, bool):
            return Stated(data)
    elif set(data) == {UNSTATED}:
        return Stated(None, str(data[UNSTATED]))
    elif set(data) == {"value", "from"}:
        return Stated(stated_from(data["value"], where).value, str(data["from"]))
    raise BadInput(
        f"{where}: {data!r} states nothing",
        'give a value, "unstated", {"value": …, "from": "script"} or {"unstated": "not said"}',
    )


def from_json(kind: type, data: Any, where: str) -> Any:
    """The dataclass of that plain data. Raises BadInput, naming the place, for an unknown key or a wrong type."""
    if not isinstance(data, Mapping):
        raise BadInput(f"{where}: it is no table", "give keys and values")
    known = {each.name: each for each in fields(kind) if each.name != "label"}
    if unknown := sorted(set(data) - set(known)):
        raise BadInput(f"{where}: unknown key {unknown[0]!r}", f"use {', '.join(known)}")
    missing = [name for name, each in known.items() if name not in data and not _has_default(each)]
    if missing:
        raise BadInput(f"{where}: {missing[0]!r} is missing", "add it")
    return kind(**{name: _part(known[name], value, f"{where} {name}") for name, value in data.items()})


_PARTS = {part.__name__: part for part in (Setting, Against, Metric, Value, Source)}
_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int | None": (int,),
    "bool | None": (bool,),
    "float | None": (int, float),
}


def _part(each: dataclasses.Field, value: Any, where: str) -> Any:
    kind = each.type if isinstance(each.type, str) else getattr(each.type, "__name__", str(each.type))
    if kind == "Stated":
        return stated_from(value, where)
    if kind in _PARTS:
        return from_json(_PARTS[kind], value, where)
    if str(each.type).startswith("tuple"):
        if not isinstance(value, list):
            raise BadInput(f"{where}: it is no list", "give a list")
        if each.name == "printed":
            return tuple(from_json(Printed, one, f"{where} {n}") for n, one in enumerate(value, 1))
        return tuple(_number(one, where) for one in value)
    if "Mapping" in str(each.type):
        if not isinstance(value, Mapping):
            raise BadInput(f"{where}: it is no table", "give keys and values")
        return dict(value)
    wanted = _PLAIN[kind if kind in _PLAIN else str(each.type)]
    if value is None and "None" in str(each.type):
        return None
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise BadInput(f"{where}: {value!r} is no {' or '.join(one.__name__ for one in wanted)}", "correct it")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"{where}: {value!r} is no number", "give numbers")
    return value


def _has_default(each: dataclasses.Field) -> bool:
    return each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING


def _default(each: dataclasses.Field) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return None if each.default is dataclasses.MISSING else each.default
