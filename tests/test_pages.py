"""The pages for people: what they link to exists, what they show runs, and their tables are those of the records."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline.assets import ASSETS
from pipeline.models import systems
from pipeline.models.system import readme_table

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ("app", "pipeline") for page in (ROOT / room).rglob("*.md"))])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def without_front_matter(text: str) -> str:
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_something(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(without_front_matter((ROOT / "README.md").read_text()).split()) <= 1_800


def test_the_readme_has_the_table_of_the_systems() -> None:
    assert "\n".join(readme_table(systems())) in (ROOT / "README.md").read_text()


def test_the_rooms_of_the_readme_exist() -> None:
    """Names at the left of the README's tree, with the folder they are indented under."""
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    folder, named = "", []
    for indent, name in re.findall(r"^( *)(\S+)", tree, flags=re.MULTILINE):
        folder = folder if indent else (name if name.endswith("/") else "")
        named.append(ROOT / folder / name if indent else ROOT / name)
    assert len(named) > 15 and not [str(path) for path in named if not path.exists()]


def test_the_example_for_python_users_runs() -> None:
    """As a stranger runs it: in a process of its own, from the root of a checkout."""
    if not (ASSETS / "embedded.safetensors").is_file():
        pytest.skip("the weights of the embedded model are not here")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "pipeline" / "README.md").read_text(), flags=re.DOTALL)
    run = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    said, *moments = run.stdout.splitlines()
    assert said and moments and all(re.fullmatch(r"\d+:\d\d \d+%", moment) for moment in moments)


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_name_of_the_door_says_what_it_is(name: str) -> None:
    value = getattr(pipeline, name)
    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert own and len(own) >= 40 and not own.startswith(f"{name}("), "a dataclass's made-up signature says nothing"


@pytest.mark.parametrize("package", ["app", "pipeline"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_newest_release_of_the_changelog_is_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+) — (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest and newest[1] == version
