"""The files behind a user's own model, found without importing it.

A model of the user's is named `package.module:function`. The workflow needs the files while it is
parsed, to train anew where they have changed; importing them would take JAX and seconds.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from sgdphases.errors import InputError


def is_user_model(name: str) -> bool:
    """Whether the name of a model is that of a user's own."""
    return ":" in name


def split_name(name: str) -> tuple[str, str]:
    """The module and the function in `package.module:function`.

    Raises:
        InputError: The name has another form.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise InputError(
            f"model: {name} is not the name of a function; allowed: package.module:function"
        )
    return module, function


def search_path() -> list[str]:
    """Where modules are looked for: sys.path, and first the current directory unless it is there.

    As `python -m` does: a workflow's script would look beside itself only.
    """
    here = str(Path.cwd())
    return sys.path if {"", here} & set(sys.path) else [here, *sys.path]


def user_model_source(name: str) -> Path:
    """The file of a user's model, without importing it.

    Args:
        name: `package.module:function`.

    Returns:
        The file of the module, absolute.

    Raises:
        InputError: The name has another form, or there is no such module in a Python file.
    """
    module, _ = split_name(name)
    importlib.invalidate_caches()  # the file may be younger than Python's listing of its folder
    found = _find(module)
    if found is None:
        raise InputError(
            f"model {name}: there is no module {module} in a Python file; allowed: modules in "
            f"{Path.cwd()}, in a folder of PYTHONPATH, or installed"
        )
    return found


def user_model_sources(name: str) -> list[Path]:
    """The files of a user's model and of the user's modules that it imports, sorted.

    Followed are the imports written in these files, also within functions, of modules from the
    folder in which the model's first package or module lies; where that is Python's own folder of
    installed packages, only of the same package. A package's `__init__.py` counts as imported.

    Args:
        name: `package.module:function`.

    Returns:
        Absolute files; the one of `user_model_source` is among them.

    Raises:
        InputError: As `user_model_source`; or one of the files is not Python.
    """
    source = user_model_source(name)
    module, _ = split_name(name)
    root = _root(module, source)
    top = module.split(".")[0]
    is_installed = root.name in ("site-packages", "dist-packages")
    seen: set[str] = set()
    sources: set[Path] = set()
    pending = [module]
    while pending:
        current = pending.pop()
        first, *_ = current.split(".")
        is_own = first == top or (not is_installed and _holds(root, first))
        if not current or current in seen or not is_own:
            continue
        seen.add(current)
        pending.append(current.rpartition(".")[0])
        path = _find(current)
        if path is not None and _root(current, path) == root:
            sources.add(path)
            pending.extend(_imports(current, path, name))
    return sorted(sources)


def _find(module: str) -> Path | None:
    """The Python file of a module or of a package's `__init__`."""
    locations: Iterable[str] = search_path()
    spec: ModuleSpec | None = None
    for depth, part in enumerate(module.split(".")):
        # Looked up by its last name alone: with dots, Python would ask for the imported parent.
        spec = PathFinder.find_spec(part, list(locations))
        if spec is None and depth == 0:
            spec = next(_specs_of_other_finders(part), None)
        if spec is None:
            return None
        locations = spec.submodule_search_locations or []
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    path = Path(spec.origin).absolute()
    return path if path.suffix == ".py" else None


def _specs_of_other_finders(name: str) -> Iterator[ModuleSpec]:
    """Modules that a hook of an editable installation knows."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None)
        if spec is not None:
            yield spec


def _root(module: str, path: Path) -> Path:
    """The folder on the search path below which a module's file lies."""
    depth = module.count(".") + (path.name == "__init__.py")
    return path.parents[depth]


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


def _imports(module: str, path: Path, name: str) -> Iterator[str]:
    """Full names of everything that a file imports, names within modules among them."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InputError(f"model {name}: {path} is not Python: {error}") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: package.count(".") + 2 - node.level]
                base = ".".join([*above, *([base] if base else [])])
            # `from package import module` names a module by its alias.
            yield from (part for part in (base, *(f"{base}.{a.name}" for a in node.names)) if part)
