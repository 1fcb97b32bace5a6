"""Rules of the source: imports point one way, everything public is documented, nothing is unpickled or downloaded."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ard
from ard.errors import MissingExtraError

SOURCE = Path(ard.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# Each row may import the rows above it, and a package its own modules.
ROWS: tuple[set[str], ...] = (
    {"types", "errors"},
    {"extras", "draws", "files", "config", "progress", "processes", "ranks", "seeds", "offline", "stopping"},
    {"devices", "distributed"},
    {"spacing", "vp_table"},
    {"diffusion", "timegrid", "history", "kept", "graphs", "condition", "file_kinds", "marks", "places"},
    {"models", "outputs"},
    {"sharded", "reference"},
    {"teacher", "datasets", "text"},
    {"students", "trajectories", "published", "prompts", "origin"},
    {"losses", "sampling", "pictures", "latents", "decoding", "pipeline_inputs"},
    {"sample_folder"},
    {"fast_sampling"},
    {"training", "evaluation"},
    {"measuring"},
    {"presets", "table", "references", "figures", "model_card"},
    {"report", "analysis", "pipeline", "measured", "exported_text"},
    {"bench", "export"},
    {"stages"},
    {"grids"},
    {"demo", "sweep"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
)
OPTIONAL = {
    "sklearn": "datasets.digits",
    "matplotlib": "figures",
    "transformers": "models.huggingface",
    "diffusers": "models.autoencoder, pipeline",
    "datasets": "datasets.from_disk",
    "huggingface_hub": "published.hub",
    "peft": "models.lora",
}
# Importable only with an optional package, because its classes inherit from the package's.
NEEDING = {"pipeline": "diffusers"}
# What the package itself offers; imported when it is asked for, and not before.
OFFERED = {"pipeline"}
UNPICKLING = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
DOWNLOADING = {"urllib", "requests", "httpx", "http", "socket", "ftplib", "huggingface_hub", "wget", "aiohttp"}
FORBIDDEN_CALLS = {"torch.hub.load", "torch.jit.load", "torch.save", "numpy.fromfile"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """The module's name without the package's, such as models.student; empty for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def place(module: str) -> int:
    """The row of a module such as models.student."""
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


def own_imports(path: Path) -> set[str]:
    """The first parts of the ard modules that a module imports; the package itself has none."""
    names = (name.split(".") for name in imported(parsed(path)))
    return {name[1] for name in names if name[0] == "ard" and len(name) > 1 and not name[1].startswith("__v")}


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    module = dotted(path)
    if not module:
        assert own_imports(path) == OFFERED, "the package offers what it says, and nothing else"
        return
    own = module.split(".")[0]
    wrong = [name for name in own_imports(path) if name != own and place(name) >= place(module)]
    assert not wrong, f"ard.{module} must not import {wrong}"


def test_every_module_stands_in_the_table_once_and_every_entry_is_a_module() -> None:
    there = {dotted(path).split(".")[0] for path in modules()} - {""}
    listed = [name for row in ROWS for name in row]
    assert sorted(listed) == sorted(there)


def test_the_table_would_find_an_import_in_the_wrong_direction() -> None:
    assert place("types") < place("models.student") < place("training.loop") == place("evaluation.metrics")


def test_packages_have_no_cycles() -> None:
    imports = {f"ard.{dotted(path)}".rstrip("."): set(imported(parsed(path))) for path in modules()}
    graph = {
        module: {
            other for other in imports if other != module and any(own_part(name, other, imports) for name in names)
        }
        for module, names in imports.items()
    }
    while graph:
        free = {module for module, needed in graph.items() if not needed & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {module: needed for module, needed in graph.items() if module not in free}


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
    script = "import ard, sys; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)), hasattr(ard, 'other'))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout == "[] False\n", result.stderr


def test_the_package_offers_the_pipeline() -> None:
    assert ard.ARDPipeline.__module__ == "ard.pipeline"


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


def called(tree: ast.Module) -> set[str]:
    """The dotted names that are called, np written as numpy."""
    names = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {name.replace("np.", "numpy.", 1) if name.startswith("np.") else name for name in names}


def unsafe_loads(tree: ast.Module) -> list[str]:
    """Calls of torch.load that might run code: only a literal weights_only=True cannot."""
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    return [ast.unparse(node) for node in loads if "weights_only=True" not in map(ast.unparse, node.keywords)]


def test_the_rule_about_loading_wants_the_literal() -> None:
    safe = "torch.load(path, weights_only=True)"
    for call in (
        safe,
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=yes)",
    ):
        assert unsafe_loads(ast.parse(call)) == ([] if call == safe else [call])


def test_nothing_is_unpickled_or_downloaded() -> None:
    files = python_files()
    assert SOURCE.name == "ard"
    assert len(files) > 30
    for path in files:
        tree = parsed(path)
        packages = {name.split(".")[0] for name in imported(tree)}
        forbidden = UNPICKLING | DOWNLOADING - ({"huggingface_hub"} if path == SOURCE / "published/hub.py" else set())
        assert not packages & forbidden, f"{path} imports {packages & forbidden}"
        assert not unsafe_loads(tree), f"{path} calls {unsafe_loads(tree)}"
        writes_for_a_test = {"torch.save"} if path.is_relative_to(REPOSITORY / "tests") else set()
        forbidden = called(tree) & (FORBIDDEN_CALLS - writes_for_a_test)
        assert not forbidden, f"{path} calls {forbidden}"
        allowed = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
        assert not allowed, f"{path} may unpickle an array"


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
        assert not draws_in_place(parsed(path)), f"{path}: use ard.models.drawing.draw"


def test_nothing_in_the_package_is_evaluated_from_text() -> None:
    for path in modules():
        assert not called(parsed(path)) & {"eval", "exec", "compile", "__import__", "os.system"}, path
