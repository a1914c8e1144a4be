"""The rules of the house, read from the code itself: who may import whom, what every file says, how long it is."""

import ast
import importlib
import re
import subprocess
import sys
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 450
NOT_EVERYWHERE = {"triton", "mamba_ssm", "ray"}  # CUDA builds of torch bring the first; requirements-*.txt the others


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


PIPELINE, APP = modules("pipeline"), modules("app")
PRODUCT = PIPELINE + APP + sorted(ROOT.glob("*.py"))


def imports(source: str) -> set[str]:
    """Dotted names of every module a source imports, wherever in the file; relative ones start with a dot."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
    return found


def reaches(source: str, package: str) -> set[str]:
    return {name for name in imports(source) if name == package or name.startswith(package + ".")}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def per_file(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=name_of)


def test_the_reader_of_imports_sees_them_all():
    """The rules below are only as good as this."""
    source = (
        "import torch.nn as nn\nfrom gradio.themes import Soft\ndef f():\n    from torch import Tensor\n"
        "    importlib.import_module('av')\nfrom .stream import Frame\n"
    )
    assert imports(source) == {"torch.nn", "gradio.themes", "torch", "av", ".stream"}
    assert reaches(source, "torch") == {"torch.nn", "torch"} and not reaches("import torchvision", "torch")


def test_there_is_something_to_read():
    assert len(PIPELINE) >= 10 and len(APP) >= 2


# From the ground up. A room imports from itself and from floors below; rooms of one floor do not know each other.
FLOORS = (
    {"pipeline.stream", "pipeline.gpu", "pipeline.assets", "pipeline.turns", "pipeline.tally", "pipeline.heap"},
    {"pipeline.clock", "pipeline.options", "pipeline.works", "pipeline.memory"},
    {"pipeline.evidence", "pipeline.layers", "pipeline.sources"},
    {"pipeline.engine", "pipeline.towers"},
    {"pipeline.weights", "pipeline.keeping"},
    {"pipeline.senses"},
    {"pipeline.questions"},
    {"pipeline.timeline"},
    {"pipeline.models"},
    {"pipeline.checks", "pipeline.bench"},
    {"pipeline.training"},
    {"pipeline.commands"},
    {"pipeline.__main__"},
    {"app.live"},
    {"app.cluster"},
    {"app.api"},
    {"app.page", "app.operators"},
    {"app.serve"},
)
DOOR = "pipeline"  # resolves its names on first use; whoever is above the engine may use it


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> tuple[int, str] | None:
    """(floor, room) of a module of ours, None for the door and for everybody else's."""
    homes = [(floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms]
    return next((home for home in homes if module == home[1] or module.startswith(home[1] + ".")), None)


def ours_imported(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, wherever in it: in functions and for the types alone, too."""
    here, found = module_of(path), set()
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {name if (name := f"{base}.{alias.name}") in known else base for alias in node.names}
    found |= imports(path.read_text())  # those by name too: import_module("pipeline.gpu.kernels")
    return {name for name in found if name in known} - {here}


def arrows() -> dict[str, set[str]]:
    known = {module_of(path) for path in PIPELINE + APP}
    return {module_of(path): ours_imported(path, known) for path in PIPELINE + APP}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every strongly connected component of more than one module."""
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_every_module_has_a_floor():
    homeless = [module for module in arrows() if module not in (DOOR, "app") and room_of(module) is None]
    assert not homeless, "say in FLOORS where they live"


def test_no_import_runs_in_a_circle():
    graph = arrows()
    graph.pop(DOOR)
    assert circles(graph) == []


def test_imports_run_downwards_only():
    up = [
        f"{module} -> {imported}"
        for module, all_imported in arrows().items()
        for imported in all_imported
        if (here := room_of(module)) and (there := room_of(imported)) and here[1] != there[1] and here[0] <= there[0]
    ]
    assert not up


def test_the_walk_sees_circles_and_arrows_that_run_up():
    """The two rules above are only as good as this."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circles({"a": {"b"}, "b": set()})
    assert room_of("pipeline.gpu.mixer")[0] < room_of("pipeline.layers.mamba2")[0] < room_of("pipeline.models.vamba")[0]
    assert room_of("torch.nn") is None and room_of("pipeline.memory_of_others") is None


def test_kernels_import_nothing_of_ours():
    outside = {
        f"{module} -> {imported}"
        for module, all_imported in arrows().items()
        for imported in all_imported
        if module.startswith("pipeline.gpu") and not imported.startswith("pipeline.gpu")
    }
    assert not outside


@per_file(PIPELINE)
def test_the_engine_knows_no_page(path):
    source = path.read_text()
    assert not reaches(source, "gradio") and not reaches(source, "app")


@per_file(APP)
def test_the_page_enters_by_the_one_door(path):
    """`from pipeline import ...` and nothing deeper; never torch."""
    source = path.read_text()
    assert reaches(source, "pipeline") <= {"pipeline"}, "deeper than the door"
    plain = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    assert not any(alias.name.split(".")[0] == "pipeline" for node in plain for alias in node.names)
    assert not any(reaches(source, package) for package in ("torch", "transformers", "av"))


@per_file(APP)
def test_the_page_uses_only_names_of_the_door(path):
    import pipeline

    used = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline"
        for alias in node.names
    }
    assert used <= set(pipeline.__all__)


def test_the_door_has_one_table_of_names():
    """What tools that read types are told is what the table says, and every name opens."""
    import pipeline

    told = {}
    for node in ast.walk(ast.parse((ROOT / "pipeline" / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pipeline."):
            told |= {alias.asname: node.module.removeprefix("pipeline.") for alias in node.names}
    assert told == pipeline.PLACES and list(told) != [] and pipeline.__all__ == list(pipeline.PLACES)
    assert all(getattr(pipeline, name).__name__ == name for name in pipeline.__all__)


@per_file(PRODUCT)
def test_every_file_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring) >= 20


@per_file(PRODUCT)
def test_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES


@per_file(PRODUCT)
def test_product_code_reads_nothing_outside_the_repository(path):
    """The folder of shared test data lies beside the repository; the product must run without it."""
    strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    outside = re.compile(r"(^|/)\.\./|(^|/)shared(/|$)|^/(work|home|root|mnt)\b")
    assert not [text for text in strings if isinstance(text, str) and outside.search(text) and "\n" not in text]


@per_file(PRODUCT)
def test_no_opencv_capture(path):
    """It crashed on legitimate files and opened other people's; see sources/file.py. Prose about it is welcome."""
    with tokenize.open(path) as file:
        names = {t.string for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.NAME}
    assert "VideoCapture" not in names


@per_file([path for path in PIPELINE + APP if path.name != "__main__.py"])
def test_every_module_imports(path):
    if (path.parent / "__main__.py").exists() and not (path.parent / "__init__.py").exists():
        return imports_in_its_program(path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in NOT_EVERYWHERE:
            raise
        pytest.skip(f"{error.name} is not installed here")


def imports_in_its_program(path: Path) -> None:
    """A folder that is run as a program, not imported: its files import each other by their bare names."""
    run = subprocess.run([sys.executable, "-c", f"import {path.stem}"], cwd=path.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@per_file(PRODUCT)
def test_one_file_alone_knows_ray(path):
    """And only what needs it imports that one."""
    source, here = path.read_text(), module_of(path)
    assert not reaches(source, "ray") or here == "app.cluster.engines"
    assert not reaches(source, "app.cluster.engines") or here == "app.cluster.replicas"


def test_one_process_imports_no_ray():
    """The page, the streams and the faces of several, all but what starts them."""
    source = "import app.serve, app.page.ui, app.live.table, app.cluster.house, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=False).returncode == 0


@per_file(sorted((ROOT / "tests").rglob("test_*.py")))
def test_every_test_file_says_what_it_guards(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
