"""The three lists of packages agree."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(\[[^]]*\])?(==[^ ;#]+)?")


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(requirement):
    name, _, version = REQUIREMENT.match(requirement).groups()
    return normalise(name), version.removeprefix("==") if version else None


def marker(requirement):
    return requirement.partition(";")[2].strip()


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(parse(line) for line in lines if line and not line.startswith("#"))


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def environment_packages():
    document = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    return next(entry["pip"] for entry in document["dependencies"] if isinstance(entry, dict))


def test_every_direct_dependency_is_pinned():
    extras = project()["optional-dependencies"]
    direct = [*project()["dependencies"]]
    direct += [*extras["datasets"], *extras["test"], *extras["peers"]]
    unpinned = [name for name, _ in map(parse, direct) if name not in constraints()]
    assert unpinned == []


def test_constraints_are_exact_and_name_no_host():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(version for version in constraints().values())
    assert "://" not in text
    assert "@" not in text


def test_environment_has_the_same_packages_and_versions():
    wanted = [*project()["dependencies"], *project()["optional-dependencies"]["datasets"]]
    assert {(parse(r)[0], marker(r)) for r in environment_packages()} == {
        (parse(r)[0], marker(r)) for r in wanted
    }
    assert dict(map(parse, environment_packages())) == {
        parse(r)[0]: constraints()[parse(r)[0]] for r in wanted
    }


def test_tensorflow_is_needed_for_datasets_alone():
    extras = project()["optional-dependencies"]
    elsewhere = [*project()["dependencies"], *extras["test"], *extras["cuda"], *extras["tpu"]]
    assert not [r for r in elsewhere if "tensorflow" in r]
    assert [r for r in extras["datasets"] if "tensorflow" in r]


def test_accelerator_extras_follow_jax():
    extras = project()["optional-dependencies"]
    assert [parse(r)[0] for r in (*extras["cuda"], *extras["tpu"])] == ["jax", "jax"]


def test_documents_link_to_files_that_exist():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "config/README.md"]:
        text = document.read_text(encoding="utf-8")
        assert "@@" not in text
        links = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
        missing = [link for link in links if not (document.parent / link).exists()]
        assert missing == [], document
