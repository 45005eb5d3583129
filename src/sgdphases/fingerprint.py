"""Versions of the code behind each stage.

Snakemake sees a rule's script but not the modules it imports. Each rule therefore takes the
fingerprint of its stage as a parameter: a hash of the syntax trees, without docstrings, of the
stage's module and of every module of this package that it imports. A changed formula reruns the
stage; a comment, a docstring or a module of another stage does not.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = "sgdphases"
_ROOT = Path(__file__).parent
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
def stage_fingerprint(module: str) -> str:
    """Hash of the code that `module` runs.

    Args:
        module: Name of the stage's module within the package, e.g. "training".

    Returns:
        12 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(stage_modules(module)):
        digest.update(f"{name}\n{_normalised_source(name)}\n".encode())
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
        pending.extend(_imports(name))
    return frozenset(found)


def dictionary_keys(module: str, dictionary: str) -> list[str]:
    """The text keys of a dictionary written out in a module, read without importing it.

    Args:
        module: Full name of the module.
        dictionary: Name assigned to at the top level of the module.

    Returns:
        The keys; none where the name is not assigned a dictionary display.
    """
    for node in _tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(t, ast.Name) and t.id == dictionary for t in targets)
        value = getattr(node, "value", None)
        if named and isinstance(value, ast.Dict):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            return [key for key in keys if isinstance(key, str)]
    return []


def _path(name: str) -> Path | None:
    relative = Path(*name.split(".")[1:])
    candidates = (_ROOT / relative.with_suffix(".py"), _ROOT / relative / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _tree(name: str) -> ast.Module:
    path = _path(name)
    assert path is not None  # stage_modules lists only modules that exist
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(name: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from sgdphases import models` names a module by its alias.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in found if module.startswith(f"{_PACKAGE}.")}


@cache
def _normalised_source(name: str) -> str:
    tree = _tree(name)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if is_text and isinstance(first.value.value, str):  # type: ignore[union-attr]
                # `pass` keeps a body that was nothing but its docstring valid.
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
