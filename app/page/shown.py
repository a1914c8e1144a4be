"""What every open page shows already, so that only changes travel. By page, not by stream: two tabs may show one."""

from __future__ import annotations

import threading
from collections import OrderedDict

PAGES = 1_000  # remembered; a page that was forgotten is sent everything once more


class Shown:
    """Values by page and name. Pages are Gradio's hashes, which anybody may invent, so their number is bounded."""

    def __init__(self, pages: int = PAGES) -> None:
        self._by_page: OrderedDict[str | None, dict[str, str]] = OrderedDict()
        self._pages = pages
        self._lock = threading.Lock()

    def of(self, page: str | None) -> dict[str, str]:
        """What the page shows, to read and to write."""
        with self._lock:
            shown = self._by_page.setdefault(page, {})
            self._by_page.move_to_end(page)
            while len(self._by_page) > self._pages:
                self._by_page.popitem(last=False)
            return shown

    def forget(self, page: str | None) -> None:
        """The page was closed, or has just been loaded and shows nothing."""
        with self._lock:
            self._by_page.pop(page, None)
