"""Fingerprints: a formula changes them, a comment does not."""

import ast

import pytest

from sgdphases import fingerprint
from sgdphases.fingerprint import dictionary_keys, stage_fingerprint, stage_modules

SOURCES = {
    "__init__": '"""Package."""\n',
    "engine": (
        '"""Train."""\n\nimport math\n\nfrom sgdphases import losses\n'
        "from sgdphases.models import build\n\n\n"
        "class Net:\n    '''A network.'''\n\n\n"
        "def run(x: float) -> float:\n    '''Run.'''\n    return losses.loss(build(x)) + math.pi\n"
    ),
    "losses": "def loss(x):\n    return x * x / 2\n",
    "models": "from sgdphases.errors import InputError\n\n\ndef build(x):\n    return x\n",
    "errors": "class InputError(Exception):\n    pass\n",
    "other": "def draw(x):\n    return x\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the real one; gives the fingerprint after an edit."""
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        for cached in ("stage_fingerprint", "stage_modules", "_source"):
            getattr(fingerprint, cached).cache_clear()
        return stage_fingerprint("engine")

    for name, text in SOURCES.items():
        write(name, text)
    yield write
    for cached in ("stage_fingerprint", "stage_modules", "_source"):
        getattr(fingerprint, cached).cache_clear()


def edited(name, old, new):
    assert old in SOURCES[name]
    return name, SOURCES[name].replace(old, new)


def test_a_stage_is_its_module_and_what_it_imports(package):
    package("engine", SOURCES["engine"])
    assert stage_modules("engine") == {f"sgdphases.{m}" for m in ("engine", "losses", "models")}
    assert stage_fingerprint("engine") == package("engine", SOURCES["engine"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        edited("engine", '"""Train."""', '"""Train well."""'),
        edited("engine", "'''Run.'''", "'''Run: \\n\\nmore.'''"),
        edited("engine", "'''A network.'''", "'''A net.'''\n"),
        edited("engine", "'''A network.'''", "pass"),
        edited("engine", "import math\n", "import math  # why\n"),
        edited("losses", "x * x / 2", "(x * x) / 2  # half"),
        edited("errors", "pass", "__slots__ = ()"),
        edited("other", "return x", "return 2 * x"),
    ],
)
def test_words_and_other_stages_do_not_matter(package, name, text):
    before = package("engine", SOURCES["engine"])
    assert package(name, text) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        edited("engine", "math.pi", "math.e"),
        edited("engine", "math.pi", "'text'"),
        edited("losses", "x * x / 2", "x * x"),
        edited("models", "return x", "return x + 1"),
        edited("models", "def build(x)", "def build(x=1)"),
    ],
)
def test_formulas_matter_wherever_they_are(package, name, text):
    before = package("engine", SOURCES["engine"])
    assert package(name, text) != before


def test_what_was_read_is_kept_and_a_damaged_file_is_not_believed(package, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_CACHE", tmp_path / "snakemake" / "sources.json")
    expected = package("engine", SOURCES["engine"])
    fingerprint.keep_sources()
    assert not fingerprint._CACHE.exists()
    fingerprint._CACHE.parent.mkdir()
    fingerprint.keep_sources()
    for damage in (None, "", "{}", "[1]", '{"x": 1}'):
        if damage is not None:
            fingerprint._CACHE.write_text(damage)
        fingerprint._kept_sources.cache_clear()
        assert bool(fingerprint._kept_sources()) == (damage is None)
        assert package("engine", SOURCES["engine"]) == expected
    changed = package("losses", SOURCES["losses"].replace("2", "3"))
    fingerprint.keep_sources()
    fingerprint._kept_sources.cache_clear()
    monkeypatch.setattr(fingerprint, "_read", None)
    assert package("engine", SOURCES["engine"]) == changed != expected


def test_keys_of_a_written_out_dictionary(package):
    package("other", "A = {'x': 1, **B, 3: 4}\nC: dict = {'y': 1}\nD: dict\nE = dict(z=1)\n")
    assert dictionary_keys("sgdphases.other", "A") == ["x"]
    assert dictionary_keys("sgdphases.other", "C") == ["y"]
    assert dictionary_keys("sgdphases.other", "D") == []
    assert dictionary_keys("sgdphases.other", "E") == []


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("training", {"training", "models", "losses", "schedule", "curvature"}, {"planning"}),
        ("curvature", {"curvature", "models"}, {"training", "aggregation"}),
        ("aggregation", {"aggregation", "config", "grid"}, {"training", "curvature"}),
        ("datasets.preparation", {"datasets.preparation", "datasets.sources"}, {"training"}),
        ("figures.draw", {"figures.draw", "figures.style"}, {"training", "figures.catapult"}),
        ("figures.catapult", {"figures.catapult", "selection"}, {"training", "figures.l2"}),
        ("theory.programs", {"theory.programs", "theory.warmup"}, {"training"}),
    ],
)
def test_stages_of_this_package(stage, inside, outside):
    modules = stage_modules(stage)
    assert {f"sgdphases.{name}" for name in inside} <= modules
    assert not {f"sgdphases.{name}" for name in (*outside, "validation", "errors")} & modules
    assert len(stage_fingerprint(stage)) == 12


def test_imports_are_absolute():
    """The fingerprint does not follow `from . import x`."""
    for path in fingerprint._ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
