"""The seconds and stretches a question names, in the ways people name them. English; a time half understood is none.

Numbers in words are read by the text2num package; what is a time, and what only looks like one, is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from text_to_num import alpha2digit  # type: ignore[import-untyped]  # the package has no types

from pipeline.questions.language import is_english

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_FULL = r"hours?|hrs?|minutes?|mins?|seconds?|secs?"
_UNIT = rf"(?:{_FULL}|h|m|s)(?![a-z])"
_NUMBER = r"\d+(?:\.\d+)?"
_CLOCK = (
    r"(?<![\d:.])(?:\d{1,2}:\d\d:\d\d[:;]\d\d|(?:\d{1,2}:[0-5]|\d{1,2}(?=\d?:))?\d{1,2}:[0-5]\d(?:[.,]\d{1,3})?"
    r"|\d+'[0-5]?\d\")(?![\d:])"
)
_LENGTH = (
    rf"(?<![\w.:,]){_NUMBER}[\s-]?{_UNIT}(?:,? ?(?:and )?{_NUMBER} ?{_UNIT})*"
    r"(?:,? (?:and )?\d+\b|(?<=h)\d\d\b|(?<=m)\d\d\b|(?<=min)\d\d\b)?(?! ?[a-z]*%)"
)
_COUNTED = (
    rf"(?<!\d )(?<!\d-)\b(?:minute|min|hour|second|sec) {_NUMBER}"
    r"(?:,? ?(?:and )?(?:minute \d+|\d+ ?(?:minutes?|mins?|m)\b))?"
    r"(?:,? ?(?:and )?(?:second \d+|\d+ ?(?:seconds?|secs?|s)\b))?"
)
_POINT = rf"(?:the )?(?:{_CLOCK}|{_COUNTED}|{_LENGTH})(?: mark)?"
_WHOLE = r"(?:it|this|(?:this|the) (?:video|clip|film|movie|recording))"
_END = rf"(?:the (?:very )?end(?: of {_WHOLE})?|{_WHOLE} (?:ends|ended|finishe[sd]|stops|stopped|(?:i|wa)s over)\b)"
_START = rf"the (?:very )?(?:start|beginning)(?: of {_WHOLE})?"
_OF = r"(?: (?:of|through) (?:it|this|the) ?(?:video|clip|film|whole)?)?"
_MIDDLE = (
    rf"(?:half ?-?way|(?:the )?mid-?(?:way|point)|the middle of the (?:video|clip|film))(?: (?:in|through|point))*{_OF}"
)
_SOFT = r"(?:right|just|shortly|directly|immediately|a bit|a little)"
_NO_TIME = re.compile(
    r"\bscore\b|\bo.?clock\b|\bclock (?:is )?(?:show|say|read)|\bratio\b|\b(?:16:9|4:3|21:9)\b|\b\d+ to \d+ in \d|"
    r"\b(?:room|gate|flight|psalm|verse|chapter|version|channel) \d|\bpast the (?:minute|hour)\b|"
    r"\bthe \d0s\b(?! mark)|\b\d{4}s\b|\biphone\b"
)
_STRANGE = re.compile(rf"\d:\d|(?<!\w):\d\d\b|\bat \d+(?:[.,]\d+| past)\b|{_NUMBER}[\s-]?(?:{_FULL})(?![a-z])")


@dataclass(frozen=True)
class Named:
    """What a question says of time, in seconds of the video. At most one of time, stretch, both and shift is set."""

    rest: str  # the question without it, lower case
    time: float | None = None
    stretch: tuple[float, float] | None = None
    both: tuple[float, float] | None = None  # two moments to be compared
    shift: float | None = None  # so much later (or earlier) than what was last spoken of
    unclear: bool = False  # something that looks like a time and is none


def named(text: str, now: float) -> Named:
    """What `text` says of time when the newest second of the video is `now`."""
    if not is_english(text):
        return Named(text.lower())
    text = in_digits(text)
    if _NO_TIME.search(text):
        return Named(text)
    for pattern, read in _FORMS:
        if (found := pattern.search(text)) and (said := read(found, now)):
            rest = f"{text[: found.start()].rstrip()} {text[found.end() :].lstrip(' ,')}".strip()
            if _STRANGE.search(rest) or _names_more(rest, now):  # partly understood
                return Named(text, unclear=True)
            return Named(rest, **said)
    return Named(text, unclear=bool(re.search(r"\d:\d\d|\bat \d+[.,]\d+\b(?! ?%)", text)))


def _names_more(rest: str, now: float) -> bool:
    """Whether a second time is named, of which only "compare" would know what to make."""
    return any((found := pattern.search(rest)) and read(found, now) for pattern, read in _FORMS)


# ---------------------------------------------------------------- numbers


def in_digits(text: str) -> str:
    """Lower case, with numbers in digits where they may belong to a time: "two and a half min" -> "2.5 min"."""
    text = re.sub(r"[–—]", "-", text.lower())
    text = text.replace("½", " 1/2").replace("″", '"').replace("′", "'")
    text = re.sub(
        rf"\bone\b(?![\s-]+(?:and|hundred|thousand|{_FULL}))(?<!minute one)(?<!second one)(?<!between one)", "«1»", text
    )
    text = text.replace("second", "«2»").replace("first", "«1st»")  # more often a unit or a place in order
    text = alpha2digit(text, "en", threshold=0.0)
    text = text.replace("«1»", "one").replace("«2»", "second").replace("«1st»", "first")
    for pattern, digits in _FRACTIONS:
        text = pattern.sub(digits, text)
    return text


def _plus_half(found: re.Match) -> str:
    return f"{float(found['n']) + 0.5:g} {found['unit']}"


_FRACTIONS: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(rf"(?P<n>\d+) (?:and (?:a half|1/2)|1/2)[ -](?P<unit>{_UNIT})"), _plus_half),
    (re.compile(rf"(?P<n>\d+) (?P<unit>{_UNIT}) and a half\b"), _plus_half),
    (re.compile(r"\b(minute|hour) (\d+) and (?:a half|1/2)"), r"\1 \2.5"),
    (re.compile(r"\ban? (minute|hour) and a half\b"), r"1.5 \1"),
    (re.compile(r"\bhalf (?:an? )?(minute|hour)\b"), r"0.5 \1"),
    (re.compile(r"\b(?:3 quarters|three quarters) of an hour\b"), "0.75 hour"),
    (re.compile(r"\b(?:a )?quarter of an hour\b"), "0.25 hour"),
    (re.compile(rf"\b(\d+),(\d+)(?=[ -]?{_UNIT})"), r"\1.\2"),
    (re.compile(r"\bsecond (?=minute|hour)"), "2nd "),
    (re.compile(r"\b(?:a )?couple (?:of )?(?=minute|second|hour)"), "2 "),
    (re.compile(r"\b(?:a )?few (?=second|minute)"), "10 "),
    (
        re.compile(
            rf"\ban? (minute|hour)(?=,? (?:and )?\d+(?: ?{_UNIT})?"
            r"(?: (?:in|into|mark|ago|later|before|after|from|and)\b|\W*$))"
        ),
        r"1 \1",
    ),
    # "a second" is no time in "a second dog": it counts only where the next words say so
    (
        re.compile(r"\ban? (minute|hour|second)(?= (?:in|into|ago|earlier|later|back|mark|before|after|from)\b)"),
        r"1 \1",
    ),
]


def seconds(text: str) -> float | None:
    """The seconds of one point or length; None where it is none (0:75)."""
    text = re.sub(r"^the | mark$", "", text.strip())
    if ":" in text:
        return _clock(text)
    if quoted := re.fullmatch(r"(\d+)'(\d+)\"", text):
        return int(quoted[1]) * 60.0 + int(quoted[2])
    if re.match("minute|min|hour|second|sec", text):
        pairs = re.findall(rf"([hms])\w* ({_NUMBER})|({_NUMBER}) ?([hms])", text)
        return sum(float(number or before) * _SECONDS[unit or after] for unit, number, before, after in pairs)
    parts = re.findall(rf"({_NUMBER})[\s-]?({_UNIT})?", text)
    total, unit = 0.0, ""
    for number, name in parts:
        unit = name[0] if name else {"h": "m", "m": "s"}.get(unit, "")
        if not unit or (not name and float(number) >= 60):
            return None
        total += float(number) * _SECONDS[unit]
    return total


def _clock(text: str) -> float | None:
    parts = re.split(r"[:;]", text.replace(",", "."))
    if len(parts) == 4:  # hours, minutes, seconds and the number of a picture
        parts = parts[:3]
    hours, minutes, second = (float(part) for part in ["0", *parts][-3:])
    if second >= 60 or (len(parts) == 3 and minutes >= 60):
        return None
    return hours * 3600 + minutes * 60 + second


# ---------------------------------------------------------------- forms, the surest first

Said = dict[str, Any]  # fields of Named: float, or a pair of them
_Reader = Callable[[re.Match, float], Said | None]


def _range(found: re.Match, now: float) -> Said | None:
    """Two ends, of which one may be a bare number that borrows the other's unit."""
    a, b = found["a"].strip(), found["b"].strip()
    if re.fullmatch(_NUMBER, a):
        unit = re.search(_UNIT, b)
        a = f"{a} {unit[0]}" if unit else a
    first, last = seconds(a), seconds(b)
    return None if first is None or last is None else {"stretch": (min(first, last), max(first, last))}


def _minutes(found: re.Match, now: float) -> Said:
    size = _SECONDS[found["unit"][0]]
    return {"stretch": (float(found["a"]) * size, float(found["b"]) * size)}


def _two(found: re.Match, now: float) -> Said | None:
    ends = seconds(found["a"]), seconds(found["b"])
    return None if None in ends else {"both": ends}


def _until(first: float | None, last: float | None) -> _Reader:
    """A stretch whose open end (None) is what is named: `a`."""

    def read(found: re.Match, now: float) -> Said | None:
        point = seconds(found["a"])
        if point is None:
            return None
        return {"stretch": (point if first is None else first, point if last is None else now)}

    return read


def _away(found: re.Match, now: float) -> Said | None:
    """ "10 seconds before 1:00", "5 minutes from the end"."""
    length, point = seconds(found["length"]), _anchor(found["a"], now)
    if length is None or point is None or (point == now and found["way"] == "after"):
        return None
    later = found["way"] == "after" or (found["way"] == "from" and point == 0)
    return {"time": max(0.0, point + length if later else point - length)}


def _anchor(text: str, now: float) -> float | None:
    """The second that a length is counted from: of a point, the start, the end."""
    if re.fullmatch(_START, text):
        return 0.0
    return now if re.fullmatch(_END, text) else seconds(text)


def _shift(found: re.Match, now: float) -> Said | None:
    length = seconds(found["length"])
    return None if length is None else {"shift": -length if found["way"] in ("earlier", "before") else length}


def _ago(found: re.Match, now: float) -> Said | None:
    length = seconds(found["length"])
    return None if length is None else {"time": max(0.0, now - length)}


def _edge(found: re.Match, now: float) -> Said | None:
    """ "the first ten seconds", "after the first minute", "in the last 1:30"."""
    length = seconds(found["length"] if found["length"][0].isdigit() else f"1 {found['length']}")
    if length is None:
        return None
    first = found["edge"] in ("first", "opening", "1st")
    if (found["beyond"] or "") in ("after", "since"):
        return {"stretch": (length, now)} if first else None
    return {"stretch": (0.0, length) if first else (max(0.0, now - length), now)}


_SHARES = {"half": 2, "third": 3, "3rd": 3, "quarter": 4, "4th": 4, "fifth": 5, "5th": 5, "tenth": 10, "10th": 10}
_PLACES = {"first": 0, "1st": 0, "opening": 0, "second": 1, "2nd": 1, "other": 1, "third": 2, "3rd": 2}


def _share(found: re.Match, now: float) -> Said | None:
    size = _SHARES[found["share"]]
    place = size // 2 if found["edge"] == "middle" else _PLACES.get(found["edge"], size - 1)
    return {"stretch": (now * place / size, now * (place + 1) / size)} if place < size else None


def _percent(found: re.Match, now: float) -> Said | None:
    share = float(found["n"]) / 100
    stretch = (0.0, now * share) if found["edge"] in ("first", "1st", "opening") else (now * (1 - share), now)
    return {"stretch": stretch} if share <= 1 else None


def _ordinal(found: re.Match, now: float) -> Said:
    number, size = float(found["n"]), _SECONDS[found["unit"][0]]
    return {"time": number} if size == 1 else {"stretch": (size * (number - 1), size * number)}


def _share_point(found: re.Match, now: float) -> Said | None:
    percent = float(found["n"])
    return {"time": now * percent / 100} if percent <= 100 else None


def _part_way(found: re.Match, now: float) -> Said | None:
    """ "two thirds of the way in"."""
    share = (1 if found["k"] in ("a", "an", "one") else int(found["k"])) / _SHARES[found["share"].removesuffix("s")]
    return {"time": now * share} if share <= 1 else None


def _point(found: re.Match, now: float) -> Said | None:
    point = seconds(found["a"])
    return None if point is None else {"time": point}


_A, _B = rf"(?P<a>{_POINT})", rf"(?P<b>{_POINT})"
_IN_THE = r"(?:\b(?:in|during|within|over|of|for|from) )?(?:\b(?P<beyond>after|since) )?\b(?:the )?(?:very )?"
_JUST = rf"(?<!\w){_SOFT} (?:before|after) "


def _forms() -> Iterator[tuple[str, _Reader]]:
    dash = r"\s*-\s*"
    yield (
        rf"\b(?:compare|difference|differ|versus|vs)\b.*?{_A}.*?(?:with|and|to|or|vs\.?|versus)(?: \w+)*? (?:at )?{_B}",
        _two,
    )
    yield rf"{_A} (?:vs\.?|versus|against|compared (?:to|with)) (?:at )?{_B}", _two
    yield r"\b(?:between|from)(?: the)? minutes (?P<a>\d+) (?:and|to|until) (?P<b>\d+)(?P<unit>\b)", _bare_minutes
    yield rf"\bin (?P<unit>minutes|seconds|hours) (?P<a>\d+)(?: to | and | until |{dash})(?P<b>\d+)\b", _minutes
    yield r"\bbetween (?P<unit>minutes|seconds|hours) (?P<a>\d+) and (?P<b>\d+)\b", _minutes
    yield rf"\b(?:between|from) {_A}(?: and| to| until| till| through|{dash})\s*{_B}", _range
    yield rf"\b(?:between|from) (?P<a>{_NUMBER})(?: and| to| until| till|{dash})\s*(?P<b>{_LENGTH})", _range
    yield rf"(?:\bfrom )?{_A}(?:{dash}| to | until | till | through ){_B}", _range
    yield rf"(?<![\w.:])(?P<a>{_NUMBER}){dash}(?P<b>{_LENGTH})", _range
    yield rf"(?<![\w.:])(?P<a>{_NUMBER}|{_LENGTH}) (?:to|until) (?P<b>{_LENGTH}) (?:in|into)\b", _range
    yield rf"\bafter {_A},? (?:and|but) before {_B}", _range
    yield rf"\b(?:from|starting (?:at|from)) {_A} (?:until|till|to|through) {_END}", _until(None, 1.0)
    yield (
        rf"\b(?:(?:from|as of|starting (?:at|from)) )?{_A},? (?:on(?:wards?)?(?! the| a)|and (?:later|after|beyond))\b",
        _until(None, 1.0),
    )
    yield rf"\bfrom the (?:start|beginning)(?: of the video)? (?:to|until|till|up to) {_A}", _until(0.0, None)
    yield rf"(?P<length>{_LENGTH}) (?P<way>before|after|from) (?P<a>{_POINT}|{_END}|{_START})", _away
    yield rf"(?:^|\bat |\bto )(?P<x>)-(?P<length>{_CLOCK})", _ago
    yield rf"(?P<length>{_LENGTH}) (?P<way>earlier|later)\b", _shift
    yield rf"(?P<length>{_LENGTH}) (?P<way>before|after) (?:that|this|it)\W*$", _shift
    yield rf"(?P<length>{_LENGTH}) (?:ago|back|before now)\b", _ago
    edge = r"(?P<edge>first|1st|second|2nd|middle|last|other|final|third|3rd|opening)"
    parts = edge + r" (?P<share>half|third|3rd|quarter|4th|fifth|5th|tenth|10th)\b"
    yield _IN_THE + parts + _OF, _share
    edge = r"(?P<edge>first|1st|opening|last|past|final|closing|previous)"
    yield _IN_THE + rf"{edge} (?P<length>{_CLOCK}|{_LENGTH}|(?:{_FULL})(?![a-z]))", _edge
    yield _IN_THE + rf"(?P<edge>first|1st|opening|last|final) (?P<n>{_NUMBER}) ?%{_OF}", _percent
    yield r"(?:\b(?:in|during|at|of) )?\bthe (?P<n>\d+)(?:st|nd|rd|th) (?P<unit>hour|minute|second)\b", _ordinal
    yield rf"(?<!\d )\b(?:at )?(?:about )?(?P<n>{_NUMBER}) ?%(?: (?:in|mark)\b)?{_OF}", _share_point
    ways = r"(?:of the (?:way|video|clip|film) ?(?:in|through)?|in|through)\b"
    yield rf"\b(?P<k>an?|one|\d+) (?P<share>third|3rd|quarter|4th|fifth|5th|tenth|10th)s? {ways}{_OF}", _part_way
    yield rf"\b(?:from|after|since) {_MIDDLE}(?: on(?:wards?)?\b)?", lambda found, now: {"stretch": (now / 2, now)}
    yield rf"\b(?:until|before|up to|by) {_MIDDLE}", lambda found, now: {"stretch": (0.0, now / 2)}
    yield rf"\b(?:at )?(?:half ?-?way|mid-?way)(?: (?:in|through|point))*{_OF}", lambda found, now: {"time": now / 2}
    yield r"\bat the (?:mid-?point|middle) of the (?:video|clip|film)", lambda found, now: {"time": now / 2}
    yield rf"{_JUST}{_A}", _point
    yield rf"\bnot before {_A}", _until(None, 1.0)
    yield rf"\b(?:before|prior to|earlier than|until|till|up to|by) {_A}", _until(0.0, None)
    yield rf"\b(?:since|after|past|beyond|later than) {_A}", _until(None, 1.0)
    yield rf"\bt ?= ?(?P<a>{_CLOCK})", _point
    yield rf"\bt ?= ?(?P<n>{_NUMBER})(?: ?s)?\b", lambda found, now: {"time": float(found["n"])}
    yield rf"(?:(?<!\w)(?:at|around|about|near) |[@~]\s*)*(?P<a>{_CLOCK}|{_COUNTED})(?: mark)?", _point
    yield rf"(?:(?<!\w)(?:at|around|about|near) (?:the )?|[@~]\s*)+(?P<a>{_LENGTH})(?: mark| in\b| into\b)?", _point
    yield rf"(?:\bthe )?(?P<a>{_LENGTH}) (?:mark|in|into)\b(?! the (?:air|lead))", _point
    yield rf"^\W*(?:and )?(?P<a>{_LENGTH})\W*$", _point


def _bare_minutes(found: re.Match, now: float) -> Said:
    return {"stretch": (60 * float(found["a"]), 60 * float(found["b"]))}


_FORMS = [(re.compile(pattern), read) for pattern, read in _forms()]
