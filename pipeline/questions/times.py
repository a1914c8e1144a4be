"""The second or stretch a question names, in the ways people name one. A clock time is certain; the rest is English."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"(?<![\d:])(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d)(?![\d:])")
_UNITS = "hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s"
_UNIT = rf"({_UNITS})(?![a-z])"
_SPOKEN = re.compile(rf"(\d+(?:\.\d+)?)(?:st|nd|rd|th)?[\s-]*{_UNIT}")  # "35 seconds", "2-minute", "35th second"
_NUMBERED = re.compile(r"(?<!\d[ -])\b(hour|minute|min|second|sec) (\d+)\b(?:,? (?:and )?second (\d+)\b)?")
_AGO = re.compile(r"\b(ago|earlier|back|before now)\b")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_WORDS |= {
    "eleven": 11,
    "twelve": 12,
    "fifteen": 15,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "forty-five": 45,
    "fifty": 50,
    "sixty": 60,
}
_IN_DIGITS = [
    (re.compile(pattern), digits)
    for pattern, digits in [
        *((rf"(?<![\w-]){word}(?=[\s-]+(and a half )?{_UNIT})", str(number)) for word, number in _WORDS.items()),
        (r"\ban? (minute|hour) and a half\b", r"1.5 \1"),
        (r"\b(\d+) and a half (?=minutes|hours)", r"\1.5 "),
        (r"\bhalf an? (minute|hour)\b", r"0.5 \1"),
        # "a second" is no time in "a second dog": it counts only where the next word says so
        (r"\ban? (minute|hour|second)(?= (in|into|ago|earlier|back|mark)\b)", r"1 \1"),
    ]
]  # fmt: skip


def named_time(text: str, now: float | None = None) -> float | None:
    """The second a question names, or None.

    "12:40", "1:02:03", "35 seconds in", "at second 35", "the two minute mark", "1 min 5 s", "a minute and a half in".
    now: the newest second; with it "10 seconds ago" counts back from there.
    """
    if found := _CLOCK.search(text):
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return hours * 3600.0 + minutes * 60 + seconds
    text = _in_digits(text)
    if found := _NUMBERED.search(text):
        return float(found[2]) * _SECONDS[found[1][0]] + float(found[3] or 0)
    if not (found := _SPOKEN.findall(text)):
        return None
    second = sum(float(number) * _SECONDS[unit[0]] for number, unit in found)
    return max(0.0, now - second) if now is not None and _AGO.search(text) else second


_SPAN = rf"\d+(?:\.\d+)?[\s-]*(?:{_UNITS})(?![a-z])(?: mark)?"
_POINT = rf"(?:the )?(?:(?:\d+:)?\d+:\d\d|(?:minute|min|second|sec) \d+|{_SPAN})"
_LENGTH = rf"(?:(?P<amount>\d+(?:\.\d+)?|few|couple of) )?(?P<unit>{_UNITS})(?![a-z])"
_IN_THE = r"(?:\b(?:in|during|within|over|of|for|from) )?\b(?:the )?"
_NEAR = r"(?<!right )(?<!just )(?<!shortly )(?<!directly )"  # "right before 0:30" is a moment, not all that came before
_STRETCHES = [
    (re.compile(pattern), ends)
    for pattern, ends in (
        (rf"\b(?:between|from) (?P<a>{_POINT}) (?:and|to|until|till) (?P<b>{_POINT})", ("a", "b")),
        (rf"{_IN_THE}(?:last|past|final|previous) {_LENGTH}", ("back", "now")),
        (rf"{_IN_THE}(?:first|opening) {_LENGTH}", ("start", "length")),
        (rf"{_NEAR}\b(?:before|until|till|up to) (?P<a>{_POINT})", ("start", "a")),
        (rf"{_NEAR}\b(?:since|after) (?P<a>{_POINT})", ("a", "now")),
    )
]
_VAGUE = {"few": 10.0, "couple of": 2.0, None: 1.0}


def named_stretch(text: str, now: float) -> tuple[float, float, str] | None:
    """First and last second of a stretch a question names, and the question without it (lower case); or None.

    "in the last 10 seconds", "during the first minute", "between 0:20 and 0:30", "since 1:00", "before minute 2".
    """
    text = _in_digits(text)
    for pattern, (begin, end) in _STRETCHES:
        if found := pattern.search(text):
            parts = found.groupdict()
            points = [named_time(parts[key]) for key in "ab" if key in parts]
            if None in points:  # 0:75 looks like a time and is none
                continue
            seconds = {"start": 0.0, "now": now} | dict(zip("ab", sorted(points)))
            if "unit" in parts:
                amount = _VAGUE.get(parts["amount"]) or float(parts["amount"])
                length = amount * _SECONDS[parts["unit"][0]]
                seconds |= {"length": length, "back": max(0.0, now - length)}
            rest = f"{text[: found.start()].rstrip()} {text[found.end() :].lstrip(' ,')}"
            return seconds[begin], seconds[end], rest.strip()
    return None


def _in_digits(text: str) -> str:
    text = text.lower()
    for pattern, digits in _IN_DIGITS:
        text = pattern.sub(digits, text)
    return text
