"""How modules may import each other: public functions, ops, kernels; one way, and no circles.

An import counts wherever it stands, inside functions too, but for those under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fastclip"
pytestmark = pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs the sources")

# What the modules of a folder may import besides that folder.
ALLOWED = {
    "fastclip.kernels": (),
    "fastclip.ops": ("fastclip.kernels", "fastclip.native"),
    "fastclip.names": (),
    "fastclip.optimizers": (),
    "fastclip.groups": ("fastclip.names", "fastclip.optimizers"),
    "fastclip.norms": ("fastclip.names", "fastclip.ops", "fastclip.optimizers"),
    "fastclip.clipping": ("fastclip.ops", "fastclip.native", "fastclip.optimizers"),
    "fastclip.integrations": ("fastclip.clipping", "fastclip.norms", "fastclip.optimizers"),
    "fastclip.distributed": ("fastclip.clipping", "fastclip.ops"),
    "fastclip.losses": ("fastclip.ops",),
    "fastclip.native": ("fastclip._native",),
    "fastclip.transfuse": ("fastclip",),
    "fastclip.benchmark": ("fastclip",),
}


class Imports(ast.NodeVisitor):
    """The modules that a file imports, and the packages whose faces it takes names from."""

    def __init__(self, modules: frozenset[str]) -> None:
        self.modules, self.found, self.faces = modules, set[str](), set[str]()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            self.found.add(module if module in self.modules else str(node.module))
            if module not in self.modules and f"{node.module}.__init__" in self.modules:
                self.faces.add(str(node.module))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def read(sources: dict[str, str]) -> dict[str, Imports]:
    modules = frozenset({*sources, "fastclip._native"})
    found = {}
    for name, text in sources.items():
        found[name] = Imports(modules)
        found[name].visit(ast.parse(text))
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {module_of(path): path.read_text() for path in PACKAGE.rglob("*.py")}


def circle(graph: dict[str, Imports]) -> list[str]:
    """The modules of a circle of imports, if there is one."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done or name not in graph:
            return []
        for other in sorted(graph[name].found):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (walk(name, []) for name in graph)), [])


def strangers(graph: dict[str, Imports]) -> Iterator[str]:
    """Each import that leaves its folder for one that is not below it."""
    for name, imports in graph.items():
        room = next((r for r in ALLOWED if name == r or name.startswith(f"{r}.")), None)
        for other in sorted(imports.found):
            if room is None or other.partition(".")[0] != "fastclip":
                continue
            homes = (room, *ALLOWED[room])
            deep = [home for home in homes if home != "fastclip"]
            if other not in homes and not other.startswith(tuple(f"{home}." for home in deep)):
                yield f"{name} imports {other}"


def test_there_is_no_circle(sources):
    assert circle(read(sources)) == []


def test_imports_flow_one_way(sources):
    assert list(strangers(read(sources))) == []


def test_modules_are_imported_by_their_own_names(sources):
    for name, imports in read(sources).items():
        users = ("fastclip.transfuse", "fastclip.benchmark")  # of public names, as anyone's code is
        face = {"fastclip"} if name.startswith(users) else set()
        if not name.endswith("__init__"):
            assert imports.faces <= face, f"{name} imports from the face of {imports.faces}"


def test_only_kernels_import_triton(sources):
    for name, imports in read(sources).items():
        if not name.startswith("fastclip.kernels."):
            roots = {other.partition(".")[0] for other in imports.found}
            assert "triton" not in roots, name


def test_a_circle_put_in_by_hand_is_found(sources):
    gpu = "fastclip.ops.grad_norm.gpu.backend"
    late = "def f():\n    from fastclip.ops.grad_norm.gpu import triton\n"
    found = circle(read({**sources, gpu: sources[gpu] + late}))
    assert gpu in found
    assert "fastclip.ops.grad_norm.gpu.triton" in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fastclip.ops.grad_norm.cpu", "from fastclip.clipping import clip"),
        ("fastclip.kernels.grad_norm.tile", "from fastclip import native"),
        ("fastclip.benchmark.step", "from fastclip.ops.grad_norm import reference"),
        ("fastclip.transfuse.training.trainer", "from fastclip.ops.grad_norm import dispatch"),
        ("fastclip.groups.rules", "import fastclip.norms.report"),
        ("fastclip.names", "from fastclip.groups import names"),
    ],
)
def test_an_import_that_goes_up_is_found(sources, module, line):
    assert module in sources
    found = list(strangers(read({**sources, module: f"{sources[module]}\n{line}\n"})))
    assert len(found) == 1
    assert found[0].startswith(module)
