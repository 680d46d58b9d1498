"""The rules of the house, as code: layers, sizes, names, and what may be imported where."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "internvl2"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

MAY_IMPORT = {
    "facts": {"facts"},
    "processing": {"facts", "processing"},
    "synthetic": {"synthetic"},
    "model": {"facts", "model"},
    "checkpoint": {"facts", "processing", "model", "checkpoint"},
    "engine": {"facts", "processing", "model", "checkpoint", "engine"},
    "train": {"facts", "processing", "model", "checkpoint", "train", "synthetic"},
    "eval": {"facts", "processing", "model", "checkpoint", "engine", "eval", "synthetic"},
    "bench": {
        *("facts", "processing", "model", "checkpoint", "engine", "train", "synthetic"),
        "bench",
    },
    "cli": {
        *("facts", "processing", "model", "checkpoint", "engine", "train", "eval", "synthetic"),
        *("bench", "cli"),
    },
}
FACTS = {"config", "family", "device", "cores", "console"}
SCHEDULING = {"engine.sequence", "engine.kv_cache", "engine.scheduler"}
PREPARING = (
    *("line_index", "records", "formats", "order", "packing", "dataset", "workers"),
    *("tile_store", "known_tiles"),
)
LOOKING = {"train.doctor.findings", "train.doctor.inspection"}
PLANNING = {"train.recipe"} | {f"train.data.{name}" for name in PREPARING} | LOOKING
"""Worker processes start faster without torch."""
SCORING = {"eval", "eval.metrics", "eval.vqa_words", "eval.questions"}
TORCH_FREE = SCHEDULING | SCORING | PLANNING
BROAD_EXCEPT_ALLOWED = {"engine.step_loop", "engine.worker", "model.kernel_choice"}
"""A step and the thread that runs it report whatever stops them to the callers concerned; a kernel
that cannot be compiled, which ends in errors of any kind, is passed over with a warning."""

MODULE_OF = {"pillow": "PIL", "pyyaml": "yaml", "tensorboard": "torch"}
"""torch.utils.tensorboard imports tensorboard."""
COMES_WITH_TORCH = {"triton"}
"""Builds of PyTorch for CUDA bring it; it is imported only where a kernel is about to run."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)
NESTS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def layer(module: str) -> str | None:
    """The layer of a module; None for the top of the package, which re-exports names."""
    head = module.split(".")[0]
    if head in FACTS:
        return "facts"
    return {"": None, "__main__": "cli"}.get(head, head)


def imported_modules(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def nesting(node: ast.AST) -> int:
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        own = 1 if isinstance(child, NESTS) and not is_elif else 0
        deepest = max(deepest, own + nesting(child))
    return deepest


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, Function) and not member.name.startswith("_"):
                        yield member


def is_exempt_from_docstring(node: Function | ast.ClassDef) -> bool:
    """Properties are named like what they give, and `forward` is described by its class."""
    if isinstance(node, ast.ClassDef):
        return False
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    return node.name == "forward" or bool(decorators & {"property", "cached_property", "overload"})


def in_every_file(find: str) -> list[str]:
    pattern = re.compile(find)
    return [
        f"{module_name(path)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_layers_import_only_what_lies_below_them():
    faults = []
    for path, tree in TREES.items():
        own = layer(module_name(path))
        if own is None:
            continue
        assert own in MAY_IMPORT, f"{path.name} belongs to no known layer"
        for name in imported_modules(tree):
            if name.startswith("internvl2."):
                target = layer(name.removeprefix("internvl2."))
                if target in MAY_IMPORT and target not in MAY_IMPORT[own]:
                    faults.append(f"{module_name(path)} imports {name}")
    assert faults == []


def test_modules_are_at_most_400_lines():
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lengths.items() if count > 400} == {}


def test_functions_are_short_flat_and_have_few_branches():
    faults = []
    for path, tree in TREES.items():
        for function in functions(tree):
            place = f"{module_name(path)}.{function.name}"
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            branches = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
            if length > 60 or branches > 15 or nesting(function) > 4:
                faults.append(
                    f"{place}: {length} lines, {branches} branches, {nesting(function)} deep"
                )
    assert faults == []


def test_no_two_functions_have_the_same_body():
    seen: dict[str, str] = {}
    faults = []
    for path, tree in TREES.items():
        for function in functions(tree):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            text = "\n".join(ast.dump(statement) for statement in body)
            place = f"{module_name(path)}.{function.name}"
            if len(body) > 1 and text in seen:
                faults.append(f"{place} repeats {seen[text]}")
            seen[text] = place
    assert faults == []


def test_modules_and_public_names_have_docstrings():
    faults = [module_name(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        for node in public_definitions(tree):
            if not ast.get_docstring(node) and not is_exempt_from_docstring(node):
                faults.append(f"{module_name(path)}.{node.name}")
    assert faults == []


def test_every_argument_and_result_is_annotated():
    faults = []
    for path, tree in TREES.items():
        for function in functions(tree):
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            extra = [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
            bare = [
                item.arg
                for item in [*named, *extra]
                if item.annotation is None and item.arg not in ("self", "cls")
            ]
            if bare or (function.returns is None and function.name != "__init__"):
                faults.append(f"{module_name(path)}.{function.name}: {bare or 'result'}")
    assert faults == []


def test_only_the_command_line_prints():
    faults = []
    for path, tree in TREES.items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        prints = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
        if prints and layer(module_name(path)) != "cli":
            faults.append(module_name(path))
    assert faults == []


def test_no_module_state_is_rebound():
    bound = [
        path
        for path, tree in TREES.items()
        if any(isinstance(n, ast.Global) for n in ast.walk(tree))
    ]
    assert bound == []


def test_exceptions_are_caught_by_name():
    faults = []
    for path, tree in TREES.items():
        for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
            caught = "everything" if handler.type is None else ast.unparse(handler.type)
            is_broad = handler.type is None or re.search(r"\b(Base)?Exception\b", caught)
            if is_broad and module_name(path) not in BROAD_EXCEPT_ALLOWED:
                faults.append(f"{module_name(path)}:{handler.lineno} catches {caught}")
    assert faults == []


def test_nothing_is_left_for_later():
    assert in_every_file(r"\b(TODO|FIXME|XXX)\b(?!.*#\d+)|raise NotImplementedError") == []


def test_torch_npu_is_imported_where_devices_are_picked_and_nowhere_else():
    def imports(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return ast.unparse(node) in ("import_module('torch_npu')", "__import__('torch_npu')")
        if isinstance(node, ast.Import | ast.ImportFrom):
            return any(name.startswith("torch_npu") for name in imported_modules(node))
        return False

    importing = {
        module_name(path) for path, tree in TREES.items() if any(map(imports, ast.walk(tree)))
    }
    assert importing == {"device"}


def test_transformers_is_never_imported():
    faults = [
        module_name(path)
        for path, tree in TREES.items()
        if any(name.split(".")[0] in ("transformers", "peft") for name in imported_modules(tree))
    ]
    assert faults == []


def test_dependencies_are_those_that_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = ("dev", "npu")  # torch_npu is imported by name, where a machine has it
    extras = [
        items for extra, items in project["optional-dependencies"].items() if extra not in others
    ]
    items = chain(project["dependencies"], *extras)
    names = (re.split(r"[^\w-]", item)[0] for item in items)
    declared = {MODULE_OF.get(name, name.replace("-", "_")) for name in names}
    imported = {name.split(".")[0] for tree in TREES.values() for name in imported_modules(tree)}
    ours = sys.stdlib_module_names | COMES_WITH_TORCH | {"internvl2"}
    assert imported - ours == declared


def test_triton_is_imported_by_modules_of_kernels_alone():
    importing = {
        module_name(path)
        for path, tree in TREES.items()
        if any(name.split(".")[0] == "triton" for name in imported_modules(tree))
    }
    assert {name.rpartition(".")[0] for name in importing} <= {"model.triton_kernels"}


def test_modules_of_kernels_are_imported_within_functions_alone():
    faults = []
    for path, tree in TREES.items():
        if not module_name(path).startswith("model.triton_kernels"):
            at_top = ast.Module(
                [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], []
            )
            if any("triton_kernels" in name for name in imported_modules(at_top)):
                faults.append(module_name(path))
    assert faults == []


def test_no_module_is_called_utils():
    assert [path.name for path in FILES if re.search(r"util|helper|misc|common", path.stem)] == []


def torch_free_modules() -> list[str]:
    names = [module_name(path) for path in FILES if path.name != "__main__.py"]
    return [
        name
        for name in names
        if layer(name) in ("facts", "processing", "synthetic", "cli")
        or name in TORCH_FREE
        or not name
    ]


@pytest.mark.slow
def test_the_torch_free_modules_do_not_import_torch():
    modules = ["internvl2" + ("." + name if name else "") for name in torch_free_modules()]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "src")


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"]])
def test_help_does_not_import_torch(arguments: list[str]):
    code = (
        "import sys\n"
        "from internvl2.cli import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'huggingface_hub', 'httpx'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "src", capture_output=True)
