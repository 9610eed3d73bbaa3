"""The arrows of the package, held by reading its source: who may import whom, who sees a Config."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiera_video.config import Config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hiera_video"

FOUNDATION = (
    *("errors", "files", "spreadsheet"),
    *("registry", "clip_spec", "compat", "labels", "classes", "cli", "web", "progress"),
    "storage",
    "on_first_use",
)
ALLOWED = {
    "on_first_use": (),
    "errors": (),
    "files": ("errors",),
    "spreadsheet": ("errors", "files"),
    "registry": ("errors",),
    "clip_spec": ("errors",),
    "compat": ("errors",),
    "labels": ("errors",),
    "classes": ("errors",),
    "cli": ("errors", "registry"),
    "web": (),
    "progress": ("cli",),
    "storage": ("errors", "files", "progress", "storage"),
    "config": (*FOUNDATION, "config"),
    "video": (*FOUNDATION, "video"),
    "data": (*FOUNDATION, "video", "data"),
    "models": (*FOUNDATION, "models"),
    "scoring": FOUNDATION,
    "batched_scores": (*FOUNDATION, "scoring"),
    "classifier": (*FOUNDATION, "data", "models", "scoring"),
    "runtimes": (*FOUNDATION, "runtimes"),
    "export": (
        *FOUNDATION,
        *("video", "data", "models", "scoring", "classifier", "runtimes", "export"),
    ),
    "prediction": (*FOUNDATION, "explanation"),
    "predict": (
        *FOUNDATION,
        *("video", "data", "models", "scoring", "batched_scores", "classifier", "export"),
        *("explanation", "prediction"),
    ),
    "engine": (
        *FOUNDATION,
        *("config", "video", "data", "models", "scoring", "run_page", "engine"),
    ),
    "pages": (*FOUNDATION, "video", "pages"),
    "run_page": (*FOUNDATION, "video", "pages", "run_page"),
    "features": (
        *FOUNDATION,
        *("video", "data", "models", "scoring", "classifier", "engine", "pages", "features"),
    ),
    "explanation": (*FOUNDATION, "video", "scoring", "explanation"),
    "labelled_video": (*FOUNDATION, "video", "explanation", "labelled_video"),
    "label_page": (
        *FOUNDATION,
        *("video", "explanation", "prediction", "labelled_video", "pages", "label_page"),
    ),
    "map_page": (*FOUNDATION, "video", "features", "pages", "map_page"),
    "streaming": (*FOUNDATION, "video", "predict", "prediction", "streaming"),
    "app": (
        *FOUNDATION,
        *("video", "data", "models", "scoring", "classifier", "predict", "prediction", "runtimes"),
        *("engine", "explanation", "pages", "label_page", "app"),
    ),
    "scale": (
        *FOUNDATION,
        *("video", "data", "models", "scoring", "classifier", "predict", "prediction", "features"),
        "scale",
    ),
    "preparation": (*FOUNDATION, "video", "data", "preparation"),
    "detection": (
        *FOUNDATION,
        *("config", "video", "data", "models", "scoring", "classifier", "engine", "run_page"),
        *("labelled_video", "detection"),
    ),
    "slurm": (*FOUNDATION, "engine", "slurm"),
    "benchmarks": (
        *FOUNDATION,
        *(
            "config",
            "video",
            "data",
            "models",
            "scoring",
            "predict",
            "engine",
            "runtimes",
            "benchmarks",
        ),
    ),
    "doctor": (*FOUNDATION, "video", "models", "export"),
    "commands": (
        *FOUNDATION,
        *("config", "video", "data", "models", "scoring", "classifier", "predict", "engine"),
        *("prediction", "features", "explanation", "labelled_video", "label_page", "preparation"),
        "map_page",
        *("streaming", "runtimes", "export", "app", "scale", "detection"),
        *("benchmarks", "slurm", "commands"),
    ),
    "__main__": ("doctor", "commands", "cli"),
}
"""Part of the package -> parts it may import; a new part must be entered here."""

WHOLE_CONFIG = (
    "engine/train.py",
    "engine/auto_batch.py",
    "engine/build.py",
    "engine/evaluate.py",
    "engine/dry_run.py",
    "engine/parts.py",
    "detection/build.py",
    "benchmarks/gpu_checks.py",
    "commands/audit.py",
    "commands/predict.py",
    "commands/train.py",
    "commands/slurm.py",
    "config/schema.py",
    "config/command_line.py",
)
"""Files of the package in which the name `cfg` may occur."""


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path: Path) -> str:
    """ "data" for hiera_video/video/decode.py, "config" for hiera_video/config/schema.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports, wherever in it, and their lines."""
    package = (
        ["hiera_video", *path.relative_to(PACKAGE).parent.parts] if PACKAGE in path.parents else []
    )
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and _is_import_by_name(node):
            yield node.args[0].value, node.lineno


def _is_import_by_name(call: ast.Call) -> bool:
    """importlib.import_module("literal")."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return (
        name == "import_module"
        and bool(call.args)
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    )


def parts_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Parts of our own package that a file imports."""
    known = {part_of(p) for p in sources(PACKAGE)} - {"__init__"}
    for name, line in imports(path):
        pieces = name.split(".")
        if pieces[0] == "hiera_video" and len(pieces) > 1 and pieces[1] in known:
            yield pieces[1], line


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_arrows_point_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return  # the public names, looked up when used
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    wrong = [f"line {line}: {p}" for p, line in parts_imported(path) if p not in ALLOWED[part]]
    assert not wrong, f"{part} may import {ALLOWED[part]} only"


def test_data_and_models_never_meet():
    """The arrow that everything rests on, said once more without the table."""
    for one, other in (("data", "models"), ("models", "data")):
        for path in sources(PACKAGE / one):
            assert other not in {part for part, _ in parts_imported(path)}, path


def test_nobody_imports_tools_demo_or_tests():
    outside = [p.stem for name in ("tools", "demo", "tests") for p in sources(ROOT / name)]
    for path in sources(PACKAGE):
        for name, line in imports(path):
            first = name.split(".")[0]
            assert first not in ("tools", "demo", "tests", "test", *outside), f"{path}:{line}"


def test_only_the_top_sees_a_whole_config():
    for path in sources(PACKAGE):
        relative = path.relative_to(PACKAGE).as_posix()
        if relative in WHOLE_CONFIG:
            continue
        for node in ast.walk(parse(path)):
            name = getattr(node, "id", getattr(node, "arg", getattr(node, "attr", None)))
            assert name != "cfg", f"{relative}:{node.lineno}: take a section or plain arguments"


def test_parser_of_imports_sees_every_form(tmp_path):
    """The test of the tests: each way to write an import is found."""
    folder = PACKAGE / "engine"
    code = (
        "import hiera_video.data.loader\n"
        "from hiera_video import models\n"
        "from . import optim\n"
        "from ..predict import Predictor\n"
        "def late():\n"
        "    from hiera_video.config import Config\n"
        "    importlib.import_module('hiera_video.scoring')\n"
    )

    class Fake(type(folder)):
        def read_text(self, *args, **kwargs):
            return code

    found = {part for part, _ in parts_imported(Fake(folder / "train.py"))}
    assert found == {"data", "models", "engine", "predict", "config", "scoring"}


# ---- no circles ---------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    """ "hiera_video.video.decode" for hiera_video/video/decode.py; a package for its __init__."""
    pieces = [*path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of this package that it imports: anywhere, for types only or by name."""
    paths = {module_of(path): path for path in sources(PACKAGE)}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        graph[module] = set()
        for name, _ in imports(path):
            # "from package import name": a module of that package, or what its __init__ holds
            target = name if name in paths else name.rpartition(".")[0]
            if target in paths and target != module:
                graph[module].add(target)
    # What the top offers is looked up when it is used: nobody imports it to get at a room.
    graph["hiera_video"] = set()
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path round every circle that a walk of the graph meets."""
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def test_no_import_leads_back():
    """For types only or in a function counts: what needs each other belongs together."""
    assert not circles(import_graph())


def test_the_finder_of_circles_finds_them():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles(graph) == [["a", "b", "c", "a"]]
    graph["c"].remove("a")
    assert not circles(graph)


# ---- sizes --------------------------------------------------------------------------------------

LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 600, 80, 6

MANY_PARAMETERS: dict[tuple[str, str], str] = {
    ("models/hiera.py", "__init__"): "the published constructor's keyword arguments",
    ("models/baselines/create_hiera.py", "create_hiera"): "as PyTorchVideo's builders take them",
    ("predict.py", "load"): "public: each is a choice of its own, with a default",
    ("predict.py", "__init__"): "public: each is a choice of its own, with a default",
}
"""(file, function) that may take more than PARAMETERS, and why."""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All but `self` and `cls`, *args and **kwargs."""
    words = function.args
    listed = [*words.posonlyargs, *words.args, *words.kwonlyargs]
    return [word for word in listed if word.arg not in ("self", "cls")]


def test_files_and_functions_stay_readable():
    """Ruff holds complexity and statements; this holds length and the number of parameters."""
    long, used = [], set()
    for path in sources(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_OF_A_FILE:
            long.append(f"{name}: {lines} lines")
        for function in functions(parse(path)):
            length = function.end_lineno - function.lineno + 1
            if length > LINES_OF_A_FUNCTION:
                long.append(f"{name}:{function.lineno} {function.name}: {length} lines")
            count = len(parameters(function))
            if count > PARAMETERS and (name, function.name) in MANY_PARAMETERS:
                used.add((name, function.name))
            elif count > PARAMETERS:
                long.append(f"{name}:{function.lineno} {function.name}: {count} parameters")
    assert not long, "cut it, or let it take a dataclass"
    assert used == set(MANY_PARAMETERS), "entries that nothing needs any more"


def test_a_config_is_typed_as_one():
    """`cfg: Any` hides which settings are read, from people and from the type checker."""
    for path in sources(PACKAGE):
        for function in functions(parse(path)):
            for word in parameters(function):
                if word.arg == "cfg":
                    typed = ast.unparse(word.annotation).removesuffix(" | None")
                    assert typed == "Config", f"{path}:{function.lineno}"


# ---- one way to write a file --------------------------------------------------------------------

WRITERS = {
    *("write_text", "write_bytes", "savefig", "save_image", "to_csv", "tofile", "imsave"),
    *("rename", "renames", "link", "symlink", "symlink_to", "hardlink_to", "touch"),
    *("copyfile", "copy2", "copytree", "move", "NamedTemporaryFile", "mkstemp"),
    *("savez", "savez_compressed"),
}
"""Calls that make a file, by their last name; besides `open`, `replace` and `save`."""

OTHER_WRITERS = {
    ("hiera_video/engine/run_logger.py", "open"): "logs grow line by line",
    ("hiera_video/features/matrices.py", "open"): "a journal that grows line by line",
    ("hiera_video/scale/blocks.py", "open"): "a count of tries, a byte at a time",
    ("hiera_video/commands/label_dataset.py", "open"): "/dev/null",
    ("hiera_video/engine/run_folder.py", "write_bytes"): "a probe, deleted at once",
    ("hiera_video/engine/dry_run.py", "write_text"): "into a temporary folder",
    ("hiera_video/detection/stand_in.py", "link"): "into a temporary folder",
    ("hiera_video/data/manifests/elsewhere.py", "open"): "into a temporary folder",
    ("hiera_video/data/manifests/elsewhere.py", "touch"): "into a temporary folder",
    ("hiera_video/data/manifests/elsewhere.py", "write_bytes"): "into a temporary folder",
    ("hiera_video/benchmarks/data.py", "write_text"): "into a temporary folder",
    ("hiera_video/benchmarks/growth.py", "write_text"): "into a temporary folder",
    ("hiera_video/benchmarks/growth.py", "touch"): "into a temporary folder",
    ("hiera_video/benchmarks/predict.py", "write_text"): "into a temporary folder",
    ("hiera_video/benchmarks/predict.py", "save"): "into a temporary folder",
    ("hiera_video/benchmarks/videos.py", "open"): "into a temporary folder",
    ("hiera_video/doctor.py", "open"): "into a temporary folder",
    ("hiera_video/benchmarks/memory.py", "write_text"): "a switch of the kernel",
    ("hiera_video/benchmarks/gpu_checks.py", "write_bytes"): "into a temporary folder",
    (
        "hiera_video/preparation/manifest_files.py",
        "write_bytes",
    ): "into a temporary folder",
    ("hiera_video/preparation/transcode.py", "open"): "PyAV writes; put_in_place follows",
    ("hiera_video/labelled_video/encoder.py", "open"): "PyAV writes; put_in_place follows",
    (
        "hiera_video/data/synthetic/mp4.py",
        "open",
    ): "PyAV writes; files.put_in_place follows",
    ("hiera_video/video/decoders.py", "open"): "PyAV writes into memory",
    ("hiera_video/video/readers/remux.py", "open"): "PyAV writes into memory",
    ("hiera_video/preparation/audit/cache.py", "replace"): "a file that is no cache is set aside",
}
"""(file, call) that may write without files.py, and why."""

TARGETS_OF_FILES = {"file", "copy", "out"}
"""What a file of `atomic_write` is called where a library writes into it."""


def writes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(last name of the call, line) of all that makes or moves files, but for calls of files.py."""
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        holder = getattr(getattr(call.func, "value", None), "id", "")
        if holder == "files" or (isinstance(call.func, ast.Name) and name == "write_text"):
            continue  # whatever is imported under this name is of files.py: it has no other home
        into_a_file = any(isinstance(a, ast.Name) and a.id in TARGETS_OF_FILES for a in call.args)
        writing = {
            "open": _has_a_mode_to_write(call),
            "fdopen": _has_a_mode_to_write(call),
            "save": holder in ("torch", "np", "numpy", "image", "picture") and not into_a_file,
            # of a text it takes two; that of dataclasses takes keywords
            "replace": isinstance(call.func, ast.Attribute)
            and (holder == "os" or (len(call.args) == 1 and not call.keywords)),
        }
        if writing.get(name, name in WRITERS and not into_a_file):
            yield name, call.lineno


def _has_a_mode_to_write(call: ast.Call) -> bool:
    words = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    modes = [w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)]
    return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)


def test_files_are_written_one_way():
    """What must last goes through files.py: whole or not at all, and its errors name it."""
    used = set()
    wrong = []
    for folder in (PACKAGE, ROOT / "tools", ROOT / "demo"):
        for path in sources(folder):
            relative = path.relative_to(ROOT).as_posix()
            if relative == "hiera_video/files.py":
                continue
            for name, line in writes(parse(path)):
                if (relative, name) in OTHER_WRITERS:
                    used.add((relative, name))
                else:
                    wrong.append(f"{relative}:{line}: {name}")
    assert not wrong, "use hiera_video/files.py, or say in OTHER_WRITERS why not"
    assert used == set(OTHER_WRITERS), "entries that nothing needs any more"


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('x')",
        "io.open(path, 'r+')",
        "os.replace(a, b)",
        "os.rename(a, b)",
        "path.rename(b)",
        "path.replace(b)",
        "path.write_text(text)",
        "(folder / name).write_bytes(content)",
        "shutil.copyfile(a, b)",
        "figure.savefig(path)",
        "save_image(image, path)",
        "torch.save(state, path)",
        "tempfile.NamedTemporaryFile()",
    ],
)
def test_the_reader_of_writers_sees(code):
    assert list(writes(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "open(path)",
        "open(path, 'rb')",
        "open(path, encoding='utf-8')",
        "text.replace('a', 'b')",
        "replace(manifest, notes=())",
        "dataclasses.replace(manifest, notes=())",
        "files.write_text(path, text)",
        "write_text(path, text)",
        "figure.savefig(file, format='png')",
        "torch.save(state, file)",
    ],
)
def test_the_reader_of_writers_passes(code):
    assert not list(writes(ast.parse(code)))


# ---- dead knobs ---------------------------------------------------------------------------------

SECTION_FILES = [
    PACKAGE / "config" / f"{name}.py" for name in ("schema", "model", "clips", "training")
]

READERS_IN_CONFIG = {"clip_spec", "model_arguments", "fits_probe"}
"""Methods of these files that turn settings into arguments; checks are not readers."""

ALIASES = {"cfg": "", "settings": "synthetic"}
"""What a section is called where its own name is taken."""


def read_settings() -> set[tuple[str, str]]:
    """(section, field) of all that some code reads as `section.field`; top level: ("", field)."""
    found = set()
    files = [*sources(PACKAGE), *sources(ROOT / "tools"), *sources(ROOT / "demo")]
    for path in files:
        tree = parse(path)
        nodes = _readers(tree) if path in SECTION_FILES else [("", tree)]
        for owner, node in nodes:
            for attribute in (n for n in ast.walk(node) if isinstance(n, ast.Attribute)):
                holder = attribute.value
                name = getattr(holder, "attr", getattr(holder, "id", None))
                name = owner if name == "self" else ALIASES.get(name, name)
                found.add((name, attribute.attr))
    return found


def _readers(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            owner = {"Config": "", "DataConfig": "data", "TrainConfig": "train"}.get(node.name)
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in READERS_IN_CONFIG:
                    yield owner, method


def test_every_setting_is_read():
    """A setting nobody reads lies to whoever sets it."""
    read = read_settings()
    dead = []
    for f in dataclasses.fields(Config):
        section = getattr(Config(), f.name)
        if dataclasses.is_dataclass(section):
            names = [inner.name for inner in dataclasses.fields(section)]
            dead += [f"{f.name}.{n}".upper() for n in names if (f.name, n) not in read]
        elif ("", f.name) not in read:
            dead.append(f.name.upper())
    assert not dead
