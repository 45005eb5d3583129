"""Versions of the code behind each stage.

Snakemake sees a rule's script but not the modules it imports. Each rule therefore takes the
fingerprint of its stage as a parameter: a hash of the syntax trees, without docstrings, of the
stage's module and of every module of this package that it imports. A changed formula reruns the
stage; a comment, a docstring or a module of another stage does not.

Each job of a cluster parses the workflow again, and to read every syntax tree takes longer than all
else in it: what was read of a source file is kept in Snakemake's folder, under the file's hash.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sgdphases.storage import write_text

_PACKAGE = "sgdphases"
_ROOT = Path(__file__).parent
_CACHE = Path(".snakemake/sgdphases-sources.json")
# What was read with other rules, or by a Python whose syntax trees differ, is not what is kept.
_READER = f"{sys.version_info[:2]} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
# Modules that carry no numbers: a reworded message must not retrain anything.
_IGNORED = {
    f"{_PACKAGE}.{name}"
    for name in (
        "checkpoints",
        "datasets.progress",
        "devices",
        "errors",
        "fingerprint",
        "interruption",
        "progress",
        "scripting",
        "validation",
    )
}


@cache
def stage_fingerprint(*modules: str) -> str:
    """Hash of the code that a stage runs.

    Args:
        modules: Names of the stage's modules within the package, e.g. "training".

    Returns:
        12 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(frozenset().union(*map(stage_modules, modules))):
        digest.update(f"{name}\n{_source(name).digest}\n".encode())
    return digest.hexdigest()[:12]


@cache
def stage_modules(module: str) -> frozenset[str]:
    """Full names of the package's modules that `module` runs, itself included."""
    pending = [f"{_PACKAGE}.{module}"]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in found or name in _IGNORED or _path(name) is None:
            continue
        found.add(name)
        pending.extend(_source(name).imports)
    return frozenset(found)


def dictionary_keys(module: str, dictionary: str) -> list[str]:
    """The text keys of a dictionary written out in a module, read without importing it.

    Args:
        module: Full name of the module.
        dictionary: Name assigned to at the top level of the module.

    Returns:
        The keys; none where the name is not assigned a dictionary display.
    """
    return _source(module).dictionaries.get(dictionary, [])


class _Source(NamedTuple):
    """What is to be known of a source file.

    Attributes:
        digest: Hash of its syntax tree without docstrings.
        imports: Modules of this package, or names in them, that it imports.
        dictionaries: Text keys of the dictionaries written out at its top level.
    """

    digest: str
    imports: list[str]
    dictionaries: dict[str, list[str]]


def _path(name: str) -> Path | None:
    relative = Path(*name.split(".")[1:])
    candidates = (_ROOT / relative.with_suffix(".py"), _ROOT / relative / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _source(name: str) -> _Source:
    path = _path(name)
    assert path is not None  # stage_modules lists only modules that exist
    text = path.read_bytes()
    key = hashlib.sha256(text).hexdigest()
    known = _kept_sources()
    if key not in known:
        known[key] = _read(text)
    return known[key]


@cache
def _kept_sources() -> dict[str, _Source]:
    """What was read before, by the hash of the file; a damaged or outdated file counts as none."""
    try:
        kept = json.loads(_CACHE.read_text(encoding="utf-8"))
        return {key: _Source(*facts) for key, facts in kept[_READER].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_sources() -> None:
    """Keep what was read of the sources, where the working folder is Snakemake's and writable."""
    if not _CACHE.parent.is_dir():
        return
    kept = json.dumps({_READER: _kept_sources()})
    try:
        if not (_CACHE.is_file() and _CACHE.read_text(encoding="utf-8") == kept):
            write_text(kept, _CACHE)
    except OSError:
        return


def _read(text: bytes) -> _Source:
    tree = ast.parse(text)
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from sgdphases import models` names a module by its alias.
            imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _drop_docstring(node)
    _drop_docstring(tree)
    return _Source(
        digest=hashlib.sha256(ast.dump(tree).encode()).hexdigest(),
        imports=sorted(module for module in imports if module.startswith(f"{_PACKAGE}.")),
        dictionaries={
            name: keys for statement in tree.body for name, keys in _dictionaries(statement)
        },
    )


def _drop_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        # `pass` keeps a body that was nothing but its docstring valid.
        node.body = node.body[1:] or [ast.Pass()]


def _dictionaries(statement: ast.stmt) -> Iterator[tuple[str, list[str]]]:
    """The names that a statement assigns a dictionary display to, with its text keys."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return
    if not isinstance(statement.value, ast.Dict):
        return
    keys = [key.value for key in statement.value.keys if isinstance(key, ast.Constant)]
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id, [key for key in keys if isinstance(key, str)]
