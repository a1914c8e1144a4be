"""What the process holds of the computer's memory, and giving back what it no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps what lies between pieces in use, after unpacking weights 0.8 GB,
    after twenty minutes of watching 0.4."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes of the computer's memory that the process holds, read-only pages of files and libraries included; None
    where the system does not tell."""
    try:
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(told["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
