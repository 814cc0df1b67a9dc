"""The rules of the packages: who may import whom, how full they may be, who may touch files."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parents[1]


PACKAGE = "geneformer_jax"


# A package imports from packages of the rows above its own, and from nothing beside it. A module
# that stands on a row of its own is used by more of its neighbours than its package is.
LAYERS = (
    ("common",),
    # Imports the commands that it is told to run, by their names, in processes of their own.
    ("cells/counts", "cells/links", "cluster", "interop/restricted_pickle"),
    ("cells/formats",),
    ("cells/tokenization",),
    ("cells/store", "model/attention"),
    ("batches", "model", "interop/dataset_folders", "interop/vocabulary_statement"),
    ("interop/tokenized_datasets",),
    ("reporting",),
    ("inference",),
    ("interop/weights",),
    ("interop",),
    ("training",),
    ("training/dry_run",),
    ("attention_analysis", "embedding"),
    ("finetuning/classification",),
    ("finetuning", "label_transfer", "perturbation/layout"),
    ("perturbation/engine", "perturbation/statistics"),
    ("perturbation/controls",),
    ("perturbation/statistics/report",),
    ("perturbation",),
    ("perturbation/validation/areas", "perturbation/validation/config"),
    ("perturbation/validation/hits", "perturbation/validation/screen"),
    ("perturbation/validation/scoring",),
    ("perturbation/validation",),
    ("scverse",),
    ("explorer",),
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
# Packages that use a trained model, whatever trained it.
WITHOUT_TRAINING = ("attention_analysis", "embedding", "inference", "perturbation")
MAX_MODULES, MAX_FRACTION = 13, 0.20
JAX_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
FILE_LIBRARIES = {"h5py", "io", "os", "pathlib", "pyarrow", "safetensors", "shutil", "zarr"}
PURE = (
    "batches/plan",
    "batches/masking",
    "cells/tokenization/rank_encoding",
    "perturbation/controls/donors",
    "perturbation/controls/matched_null",
    "perturbation/controls/responsiveness",
    "perturbation/controls/within_cells",
    "perturbation/engine/edits",
    "perturbation/statistics/aggregate",
    "perturbation/statistics/combinations",
    "perturbation/statistics/mixture",
    "perturbation/statistics/moments",
    "perturbation/statistics/rank_sums",
    "perturbation/statistics/shifts",
    "perturbation/validation/areas",
    "perturbation/validation/hits/score",
    "perturbation/validation/scoring/calibration",
    "perturbation/validation/scoring/compare",
    "perturbation/validation/screen/expression",
    "perturbation/validation/screen/like_rank",
    "perturbation/validation/scoring/metrics",
)


class Import(NamedTuple):
    """One imported module, with all its dots."""

    file: str
    line: int
    module: str

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def ours(self) -> str:
        """Package or command of ours, '' if it is someone else's."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else ""


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import of a module, also those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by full name"
            for alias in node.names:
                yield Import(file, node.lineno, f"{node.module}.{alias.name}")


def package_of(module: str) -> str:
    """The innermost listed package (or module) that a path such as cells/store/writer is in."""
    parts = module.split("/")
    for end in range(len(parts), 0, -1):
        if "/".join(parts[:end]) in LAYER_OF:
            return "/".join(parts[:end])
    return ""


def upward_imports(file: str, imports: list[Import]) -> list[Import]:
    """Imports of our own modules that the layer of a file does not allow."""
    home = package_of(file.removesuffix(".py"))
    found = []
    for each in imports:
        if not each.module.startswith(f"{PACKAGE}."):
            continue
        package = package_of(each.module.removeprefix(f"{PACKAGE}.").replace(".", "/"))
        if package != home and LAYER_OF.get(package, len(LAYERS)) >= LAYER_OF[home]:
            found.append(each)
    return found


SOURCES = {
    path.relative_to(PROJECT / PACKAGE).as_posix(): path.read_text()
    for path in sorted((PROJECT / PACKAGE).rglob("*.py"))
}
# Modules that make flags, or explain them.
OF_FLAGS = (
    "common/command_line.py",
    "common/command_help.py",
    "common/commands/about.py",
    "common/commands/completion.py",
    "cells/tokenization/flags.py",
    "cluster/__main__.py",
)
FLAG = re.compile(r"(?<![-\w])--[a-z]\w*")
IMPORTS = {file: list(imports_of(source, file)) for file, source in SOURCES.items()}
PACKAGE_FILES = [file for file in SOURCES if "/" in file]
COMMANDS = [Path(file).stem for file in SOURCES if "/" not in file and "__" not in file]
WHOLE_COMMAND = re.compile(rf"\b({'|'.join(COMMANDS)})( --\w+(=\w+)?)+")


def test_every_package_has_a_layer():
    modules = [file.removesuffix(".py") for file in PACKAGE_FILES if "__init__" not in file]
    assert [module for module in modules if not package_of(module)] == []


@pytest.mark.parametrize("file", [file for file in PACKAGE_FILES if "__init__" not in file])
def test_imports_run_downwards(file):
    assert upward_imports(file, IMPORTS[file]) == []


def test_the_rule_of_layers_finds_a_breach():
    source = (
        "import geneformer_jax.common.errors\n"
        "def f():\n"
        "    from geneformer_jax.training import loop\n"
        "    from geneformer_jax import embed\n"
        "    from geneformer_jax.batches import plan\n"
    )
    file = "model/example.py"
    breaches = upward_imports(file, list(imports_of(source, file)))
    assert [each.line for each in breaches] == [3, 4, 5]


@pytest.mark.parametrize("package", WITHOUT_TRAINING)
def test_using_a_model_needs_nothing_of_training(package):
    imports = [each for file in files_of(package) for each in IMPORTS[file]]
    assert [each for each in imports if each.ours in ("training", "finetuning")] == []


def test_no_module_imports_itself_by_a_detour():
    modules = {file.removesuffix(".py").replace("/", "."): file for file in SOURCES}
    uses = {}
    for module, file in modules.items():
        ours = (each.module for each in IMPORTS[file] if each.top == PACKAGE)
        names = {name.removeprefix(f"{PACKAGE}.") for name in ours}
        uses[module] = {name for name in names if name in modules} | {
            name.rpartition(".")[0] for name in names if name.rpartition(".")[0] in modules
        }
    # Whatever imports only what is already sorted comes next; a circle never does.
    while free := {module for module, used in uses.items() if not used}:
        uses = {module: used - free for module, used in uses.items() if module not in free}
    assert uses == {}


def test_no_folder_is_too_full_to_be_read_at_a_glance():
    folders: dict[str, list[str]] = {}
    for file in SOURCES:
        if not file.endswith("__init__.py"):
            folders.setdefault(str(Path(file).parent), []).append(file)
    full = {name: len(files) for name, files in folders.items() if len(files) > MAX_MODULES}
    assert full == {}


def test_no_package_holds_too_much_of_the_code():
    """What has a layer of its own counts by itself: `cells` is four packages on each other."""
    lines: Counter[str] = Counter()
    for file, source in SOURCES.items():
        lines[package_of(file.removesuffix(".py"))] += source.count("\n")
    most = MAX_FRACTION * lines.total()
    assert {name: each for name, each in lines.items() if name and each > most} == {}


def files_of(package: str) -> list[str]:
    """All files of a package and of those within it."""
    return [file for file in PACKAGE_FILES if file.startswith(f"{package}/")]


def test_nothing_imports_a_command():
    assert [each for imports in IMPORTS.values() for each in imports if each.ours in COMMANDS] == []


@pytest.mark.parametrize("package", ["cells", "cluster", "common"])
def test_the_lowest_packages_import_no_jax(package):
    found = [
        each for file in files_of(package) for each in IMPORTS[file] if each.top in JAX_LIBRARIES
    ]
    assert found == []


def test_only_the_restricted_reader_reads_pickles():
    readers = {
        each.file
        for imports in IMPORTS.values()
        for each in imports
        if each.top
        in {"pickle", "pickletools", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
    }
    assert readers <= {"interop/restricted_pickle.py"}
    allowing = [file for file, source in SOURCES.items() if "allow_pickle=True" in source]
    assert allowing == []


def test_the_model_touches_no_files():
    files = [file for file in PACKAGE_FILES if file.startswith("model/")]
    for file in set(files) - {"model/pretrained.py"}:
        assert [each for each in IMPORTS[file] if each.top in FILE_LIBRARIES - {"os"}] == []
        assert calls_of(SOURCES[file], {"open", "print", "read_text", "write_text"}) == []


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_files_and_hold_no_clock(name):
    file = f"{name}.py"
    impure = FILE_LIBRARIES - {"os"} | {"time", "datetime", "random"}
    assert [each for each in IMPORTS[file] if each.top in impure] == []
    assert calls_of(SOURCES[file], {"open", "print", "now"}) == []


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is no docstring; X stands for what is filled in."""
    tree = ast.parse(source)
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            left_out.update(node.values)
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.lineno, node.value


def flags_named(source: str) -> list[str]:
    """Flags in a module's texts, but for those behind their command, as in `convert --source=X`."""
    return [
        f"{line}: {flag}"
        for line, text in texts_of(source)
        for flag in FLAG.findall(WHOLE_COMMAND.sub("", text))
    ]


def test_messages_name_arguments_rather_than_flags():
    """What Python reaches speaks of `arguments`, which a command shows as its flags."""
    files = [file for file in PACKAGE_FILES if file not in OF_FLAGS]
    assert {file: found for file in files if (found := flags_named(SOURCES[file]))} == {}


def test_the_rule_of_messages_finds_a_flag():
    source = (
        '"""Docstrings may name a --flag."""\n'
        'raise InputError(f"{path} has no --seed")\n'
        'raise InputError(f"--config.{name} is {value}")\n'
        'print("convert --source=A --target=B", f"embed --states={x} or --mode")\n'
    )
    assert flags_named(source) == ["2: --seed", "3: --config", "4: --mode"]


def test_every_package_and_module_says_what_it_is_for():
    silent = [file for file, source in SOURCES.items() if not ast.get_docstring(ast.parse(source))]
    assert silent == []


def calls_of(source: str, names: set[str]) -> list[int]:
    """Lines that call a function or method of one of these names."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if getattr(call.func, "id", getattr(call.func, "attr", None)) in names
    ]


def test_no_machine_is_named():
    """Sources name no home folder, no temporary folder and no package index."""
    for file, source in SOURCES.items():
        for word in ("/home/", "/root", "/tmp", "/Users/", "pypi.org", "index-url"):
            assert word not in source, f"{file} names {word}"
