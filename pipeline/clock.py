"""Times of day-to-day use: seconds as people write them (mm:ss), and back. The only code that reads or writes them."""

from __future__ import annotations

import re

from pipeline.stream import UserError


def mmss(seconds: float) -> str:
    """Seconds as the player shows them: 75 -> "1:15", 3723.9 -> "1:02:03"; never rounded up, never negative."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


_CLOCK = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,4}):)?(\d{1,6}(?:\.\d{1,9})?)", re.ASCII)


def parse_mmss(text: str) -> float:
    """Seconds from "1:02:03", "12:40", "75" or "1:15.5"; UserError for anything else."""
    match = _CLOCK.fullmatch(text.strip())
    if match:
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        if (match[2] is None or seconds < 60) and (match[1] is None or minutes < 60):
            return hours * 3600 + minutes * 60 + seconds
    raise UserError("The time could not be read, so it points nowhere; write it like 12:40, 1:02:03 or 75 (seconds).")
