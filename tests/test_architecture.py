"""Rules of the source: imports point one way, everything public is documented, nothing is unpickled or downloaded."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import ard
from ard.core.errors import MissingExtraError

SOURCE = Path(ard.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# Each row may import the rows above it, and a package its own modules.
ROWS: tuple[set[str], ...] = (
    {"core"},
    {"diffusion", "networks"},
    {"images"},
    {"text"},
    {"teacher"},
    {"student"},
    {"trajectories"},
    {"training"},
    {"methods"},
    {"evaluation"},
    {"presets"},
    {"reporting"},
    {"analysis"},
    {"pipeline"},
    {"export", "bench"},
    {"studies"},
    {"cli"},
    {"__main__"},
)
OPTIONAL = {
    "sklearn": "images.digits",
    "matplotlib": "reporting.figures",
    "transformers": "core.huggingface",
    "diffusers": "networks.autoencoder, pipeline",
    "datasets": "images.from_disk",
    "huggingface_hub": "teacher.importers.hub",
    "peft": "student.lora",
}
# Importable only with an optional package, because its classes inherit from the package's.
NEEDING = {"pipeline": "diffusers"}
# What the package itself offers; imported when it is asked for, and not before.
OFFERED = {"diffusion", "networks", "pipeline", "student", "teacher", "text"}
UNPICKLING = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
DOWNLOADING = {"urllib", "requests", "httpx", "http", "socket", "ftplib", "huggingface_hub", "wget", "aiohttp"}
FORBIDDEN_CALLS = {"torch.hub.load", "torch.jit.load", "torch.save", "numpy.fromfile"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """The module's name without the package's, such as student.student; empty for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def place(module: str) -> int:
    """The row of a module such as student.student."""
    part = module.split(".", maxsplit=1)[0]
    found = [number for number, row in enumerate(ROWS) if part in row]
    assert len(found) == 1, f"ard.{module} must stand in exactly one row of the table"
    return found[0]


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, at the top or in a function, with the names that may be modules themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.Module) -> set[str]:
    """The first parts of the ard modules that a module imports; the package itself has none."""
    names = (name.split(".") for name in imported(tree))
    return {name[1] for name in names if name[0] == "ard" and len(name) > 1 and not name[1].startswith("__v")}


def wrong_imports(module: str, tree: ast.Module) -> list[str]:
    """What a module such as student.student imports from its own row or from one below."""
    own = module.split(".", maxsplit=1)[0]
    return sorted(name for name in own_imports(tree) if name != own and place(name) >= place(module))


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    module = dotted(path)
    if not module:
        assert own_imports(parsed(path)) == OFFERED, "the package offers what it says, and nothing else"
        return
    wrong = wrong_imports(module, parsed(path))
    assert not wrong, f"ard.{module} must not import {wrong}"


def test_every_module_stands_in_the_table_once_and_every_entry_is_a_module() -> None:
    there = {dotted(path).split(".")[0] for path in modules()} - {""}
    listed = [name for row in ROWS for name in row]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("student.student", "from ard.training.loop import train", ["training"]),
        ("student.student", "import ard.training.loop", ["training"]),
        ("student.student", "def late():\n    from ard import cli", ["cli"]),
        ("core.types", "import torch\nfrom ard.networks.condition import Prompts", ["networks"]),
        ("export.folder", "from ard.bench.measure import measure", ["bench"]),  # The same row.
        ("evaluation.metrics.frechet", "from ard.presets import find_preset", ["presets"]),
        ("student.student", "from ard.networks.dit_layers import Block\nfrom ard.core.types import Latents", []),
        ("cli.sample", "from ard.student.folder import load_student\nfrom ard.cli.options import print_plan", []),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(module: str, source: str, found: list[str]) -> None:
    assert wrong_imports(module, ast.parse(source)) == found


def test_packages_have_no_cycles() -> None:
    assert cycle_in({f"ard.{dotted(path)}".rstrip("."): set(imported(parsed(path))) for path in modules()}) == []


def test_a_cycle_is_found() -> None:
    imports = {
        "ard.core.types": {"torch.Tensor"},
        "ard.networks": {"ard.student.student.Student"},
        "ard.student.student": {"ard.networks.dit_layers.Block", "ard.core.types.Latents"},
        "ard.networks.dit_layers": {"ard.core.types.Latents"},
    }
    assert cycle_in(imports) == []
    imports["ard.networks.dit_layers"].add("ard.student.student.Student")
    assert {"ard.student.student", "ard.networks.dit_layers"} <= set(cycle_in(imports))
    assert "ard.core.types" not in cycle_in(imports)


def cycle_in(imports: dict[str, set[str]]) -> list[str]:
    """The modules that are in a cycle of imports or import one; none when there is no cycle."""
    graph = {
        module: {
            other for other in imports if other != module and any(own_part(name, other, imports) for name in names)
        }
        for module, names in imports.items()
    }
    while free := {module for module, needed in graph.items() if not needed & graph.keys()}:
        graph = {module: needed for module, needed in graph.items() if module not in free}
    return sorted(graph)


def own_part(name: str, module: str, known: dict[str, set[str]]) -> bool:
    """Whether importing `name` means importing `module`: the module itself or a name in it."""
    return name == module or (name.rpartition(".")[0] == module and name not in known)


def test_modules_say_in_one_line_what_they_are() -> None:
    for path in modules():
        text = ast.get_docstring(parsed(path))
        assert text, f"{path} has no docstring"
        assert text.splitlines()[0].strip(), f"{path}: the first line says it"


def public_definitions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and their methods whose names do not start with an underscore."""
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_everything_public_has_a_docstring_and_annotations(path: Path) -> None:
    for name, node in public_definitions(path):
        assert ast.get_docstring(node), f"{name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{name} does not say what it returns"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [one.arg for one in arguments if one.annotation is None and one.arg not in {"self", "cls"}]
            assert not bare, f"{name}: {bare} have no type"
            assert node.args.kwarg is None, f"{name} takes anything"


def test_every_module_is_imported_without_the_optional_packages(tmp_path: Path) -> None:
    names = [f"ard.{dotted(path)}".rstrip(".") for path in modules() if dotted(path) not in {"__main__", *NEEDING}]
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({list(OPTIONAL)!r}))
for name in {names!r}:
    importlib.import_module(name)
print(len(set({names!r}) & set(sys.modules)))
"""
    words = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(names)


@pytest.mark.parametrize("module", NEEDING)
def test_a_module_that_needs_a_package_says_so_in_one_line(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NEEDING[module], None)
    monkeypatch.delitem(sys.modules, f"ard.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=f"needs the package {NEEDING[module]}"):
        importlib.import_module(f"ard.{module}")


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    """Python's own modules and the package's `__init__`, and no other: no torch, numpy or diffusers."""
    script = """
import sys
before = set(sys.modules)
import ard
dir(ard), ard.__version__, hasattr(ard, "other")
packages = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(packages, [name for name in sys.modules if name.startswith("ard.")])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout == "{'ard'} []\n", result.stderr


@pytest.mark.parametrize("name", sorted(set(ard.__all__) - {"__version__"}))
def test_the_package_offers_a_name_to_programs_and_to_type_checkers_alike(name: str) -> None:
    assert name in dir(ard)
    offered = getattr(ard, name)
    assert f"{offered.__module__}.{offered.__name__}" in set(imported(parsed(SOURCE / "__init__.py")))


def test_a_name_that_the_package_does_not_offer_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_studnet'; it offers .*load_student"):
        _ = ard.load_studnet


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_has_one_home(package: str) -> None:
    """Diffusers has two: one loads autoencoders for every command, the other is a pipeline by inheritance."""
    homes = [dotted(path) for path in modules() if package in {name.split(".")[0] for name in imported(parsed(path))}]
    assert ", ".join(homes) == OPTIONAL[package]


def python_files() -> list[Path]:
    """Every Python file of the repository, environments and caches apart."""
    hidden = {"build", "dist", "runs"}
    return [
        path
        for folder in REPOSITORY.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in hidden
        for path in folder.rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
    ]


def full_names(tree: ast.Module) -> dict[str, str]:
    """What the names of a module stand for that it has from imports, such as np for numpy, load for torch.load."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the full dotted name of what is called."""
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield f"{names.get(first, first)}{dot}{rest}", node


def called(tree: ast.Module) -> set[str]:
    """The dotted names that are called."""
    return {name for name, _ in calls(tree)}


def unsafe_loads(tree: ast.Module) -> list[str]:
    """Calls of torch.load that might run code: only a literal weights_only=True cannot."""
    loads = [node for name, node in calls(tree) if name == "torch.load"]
    return [ast.unparse(node) for node in loads if "weights_only=True" not in map(ast.unparse, node.keywords)]


def dangers(tree: ast.Module, *, may_import: Collection[str] = (), may_call: Collection[str] = ()) -> list[str]:
    """What may unpickle or download: imports, calls and arguments."""
    packages = {name.split(".")[0] for name in imported(tree)} & (UNPICKLING | DOWNLOADING)
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
    forbidden = called(tree) & FORBIDDEN_CALLS
    return [
        *sorted(packages.difference(may_import)),
        *unsafe_loads(tree),
        *sorted(forbidden.difference(may_call)),
        *arguments,
    ]


def test_the_rule_about_loading_wants_the_literal() -> None:
    safe = "torch.load(path, weights_only=True)"
    for call in (
        safe,
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=yes)",
    ):
        assert unsafe_loads(ast.parse(call)) == ([] if call == safe else [call])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def late():\n    import pickle", ["pickle"]),
        ("from urllib.request import urlopen", ["urllib"]),
        ("import huggingface_hub", ["huggingface_hub"]),
        ("import torch\ntorch.load(path)", ["torch.load(path)"]),
        ("from torch import load\nload(path)", ["load(path)"]),
        ("import torch as t\nt.load(path, weights_only=False)", ["t.load(path, weights_only=False)"]),
        ("import torch\ntorch.save(x, path)", ["torch.save"]),
        ("from torch.hub import load\nload('x')", ["torch.hub.load"]),
        ("import numpy as np\nnp.load(path, allow_pickle=False)", ["allow_pickle"]),
        ("import torch\nfrom safetensors.torch import load\nload(data)", []),
    ],
)
def test_what_unpickles_or_downloads_is_found(source: str, found: list[str]) -> None:
    assert dangers(ast.parse(source)) == found


def test_nothing_is_unpickled_or_downloaded() -> None:
    files = python_files()
    assert SOURCE.name == "ard"
    assert len(files) > 30
    for path in files:
        may_import = {"huggingface_hub"} if path == SOURCE / "teacher/importers/hub.py" else set()
        brings_a_teacher = [REPOSITORY / "tests", REPOSITORY / "docs/journeys"]
        may_call = {"torch.save"} if any(map(path.is_relative_to, brings_a_teacher)) else set()
        assert not dangers(parsed(path), may_import=may_import, may_call=may_call), path


def draws_in_place(tree: ast.Module) -> list[str]:
    """Calls that fill a tensor, wherever it is, from a generator, which is on one device: `draw` does it right."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    in_place = (node for node in calls if ast.unparse(node.func).endswith("_"))
    return [ast.unparse(node) for node in in_place if "generator" in {keyword.arg for keyword in node.keywords}]


def test_the_rule_about_draws_finds_them() -> None:
    allowed = "draw(weight, partial(init.normal_, generator=generator)); torch.randn(3, generator=generator)"
    assert draws_in_place(ast.parse(f"init.normal_(weight, generator=generator); {allowed}; zeros_(weight)")) == [
        "init.normal_(weight, generator=generator)"
    ]


def test_a_generator_and_a_parameter_of_another_device_do_not_meet() -> None:
    for path in [*modules(), *(REPOSITORY / "benchmarks").glob("*.py")]:
        assert not draws_in_place(parsed(path)), f"{path}: use ard.networks.drawing.draw"


def test_nothing_in_the_package_is_evaluated_from_text() -> None:
    for path in modules():
        assert not called(parsed(path)) & {"eval", "exec", "compile", "__import__", "os.system"}, path
