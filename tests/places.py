"""Where test data lie: in the repository, and beside a checkout where there is more of it."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"  # the same and more: whole golden folders, the corpus' large files


def corpus() -> Path:
    """The whole corpus of odd, broken and hostile videos where it is, else the part that travels."""
    return SHARED / "corpus" if (SHARED / "corpus").is_dir() else DATA / "corpus"


def golden(name: str) -> Path | None:
    """A golden folder, whole where it is, else the one that travels, else None."""
    return next((place / name for place in (SHARED / "golden", DATA / "golden") if (place / name).is_dir()), None)


def golden_folders(pattern: str) -> list[Path]:
    """Golden folders of that pattern, in order of their names."""
    names = {path.name for place in (SHARED, DATA) for path in (place / "golden").glob(pattern)}
    return [folder for name in sorted(names) if (folder := golden(name))]
