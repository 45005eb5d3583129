"""What a user gives and cannot work: one clear line, no traceback, nothing half-done.

Most cases must end while the workflow is parsed, before any job; what only the data can tell,
before any training. The former are given to what the Snakefile calls; the first of each kind, and
all others, to the real Snakefile in a copy of the project.
"""

import gzip
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sgdphases.errors import InputError
from sgdphases.workflow import make_plan

PROJECT = Path(__file__).parents[1]
REAL_DATA = os.environ.get("SGDPHASES_REAL_DATA")
MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Nothing listens there: a missing official file must not be downloaded by a test.
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
FILE = "config/experiments/catapult/tiny.yaml"
TARGET = "results/experiments/catapult/tiny/runs.parquet"
GOOD = """\
description: A tiny grid
dataset: digits
hyperparameters: {model: fully_connected, width: 8, batch_size: 16}
grid:
  learning_rate: [0.1, 0.2]
  seed: [0]
stopping: {num_steps: 2}
measurements: {every: 1}
evaluation: {num_train: 8, num_test: 8}
figures: {}
scales: {}
"""
RATES = "learning_rate: [0.1, 0.2]"


@dataclass
class Case:
    """Something broken, and what the one line must say about it.

    Attributes:
        says: Parts of the line.
        edit: Text of the good experiment, and what stands there instead; or a whole new text.
        files: Further files of the workspace, or functions that make them.
        config: Arguments of --config.
        job: The job that finds the fault; None where the parse must.
    """

    says: list[str]
    edit: tuple[str, str] | str | None = None
    files: dict = field(default_factory=dict)
    config: list[str] = field(default_factory=list)
    job: str | None = None
    marks: tuple = ()


def config(argument, *says):
    return Case(["config/config.yaml or --config", *says], config=[argument])


def config_file(text, *says):
    return Case(["config/config.yaml", *says], files={"config/config.yaml": text})


def edit(old, new, *says):
    assert old in GOOD
    return Case([FILE, *says], edit=(old, new))


def text(new, *says):
    return Case([FILE, *says], edit=new)


def rates(new, *says):
    return edit(RATES, f"learning_rate: {new}", *says)


def setting(new, *says):
    return edit("width: 8", new, *says)


def definition(new, *says, files=None, job=None):
    """A broken definition of a dataset, or broken data behind a good one."""
    return Case(
        says,
        edit=("dataset: digits", "dataset: own"),
        files={"config/datasets/own.yaml": new, **(files or {})},
        job=job,
    )


def own_data(make, *says):
    own = "source: npz\npath: own.npz\nnum_classes: 3\n"
    return definition(own, "own.npz", *says, files={"own.npz": make}, job="dataset")


def own_view(view, *says, job):
    """A view of good data that only the data show to be broken."""
    own = "source: npz\npath: own.npz\nnum_classes: 3\n"
    return Case(
        ["dataset own: ", *says],
        edit=("dataset: digits", f"dataset: {{name: own, {view}}}"),
        files={"config/datasets/own.yaml": own, "own.npz": npz()},
        job=job,
    )


def npz(**changes):
    """A writer of an .npz file, good but for the changes; None leaves an array out."""
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.normal(size=(32, 4)),
        "y_train": np.arange(32) % 3,
        "x_test": generator.normal(size=(8, 4)),
        "y_test": np.arange(8) % 3,
    }
    arrays.update(changes)
    kept = {name: array for name, array in arrays.items() if array is not None}
    return lambda path: np.savez(path, **kept)


def truncated_npz(path):
    npz()(path)
    path.write_bytes(path.read_bytes()[:-100])


def with_nan():
    inputs = np.zeros((32, 4))
    inputs[3, 1] = np.nan
    return inputs


def mnist(change, *says):
    """The four official files, but for a change to the labels of the training images."""

    def lay_out(folder):
        folder.mkdir()
        for name in MNIST_FILES:
            (folder / name).symlink_to(Path(REAL_DATA) / "mnist" / name)
        labels = folder / MNIST_FILES[1]
        content = labels.read_bytes()
        labels.unlink()
        if change(content) is not None:
            labels.write_bytes(change(content))

    return Case(
        ["train-labels-idx1-ubyte.gz", *says],
        edit=("dataset: digits", "dataset: mnist"),
        files={"official": lay_out},
        config=["manual_dir=official"],
        job="dataset",
        marks=(
            pytest.mark.real_data,
            pytest.mark.skipif(REAL_DATA is None, reason="SGDPHASES_REAL_DATA is not set"),
        ),
    )


def wrong_labels(content):
    labels = bytearray(gzip.decompress(content))
    labels[-1] ^= 1
    changed = gzip.compress(bytes(labels), mtime=0)
    return (changed + bytes(len(content)))[: len(content)]


CASES = {
    # --- configuration ---
    "config-unknown-key": config("scael=smoke", "unknown key 'scael'", "did you mean 'scale'"),
    "config-scale": config("scale=big", "scale: 'big'", "smoke, quick, paper"),
    "config-data": config("data=real", "data: 'real'", "embedded or published"),
    "config-pattern": config(
        "experiments=catapult/tinny", "experiments[0]: 'catapult/tinny'", "catapult/tiny"
    ),
    "config-experiments-type": config("experiments=3", "experiments: 3", "a list of"),
    "config-experiments-empty": config("experiments=[]", "experiments: []", "a list of"),
    "config-manual-dir": config("manual_dir=/no/such/folder", "manual_dir: '/no/such/folder'"),
    "config-file-yaml": config_file("scale: [quick\n", "not valid YAML at line 2"),
    "config-file-key-twice": config_file("scale: quick\nscale: smoke\n", "'scale' is given twice"),
    "config-file-empty": config_file("", "holds NoneType", "a mapping"),
    # --- experiment files as text ---
    "yaml-invalid": edit("seed: [0]", "seed: [0", "not valid YAML at line 7"),
    "yaml-key-twice": edit("seed: [0]", "seed: [0]\n  seed: [1]", "line 7", "'seed'", "twice"),
    "yaml-list": text("- description: x\n", "holds list", "a mapping"),
    "yaml-empty": text("", "holds NoneType", "a mapping"),
    "yaml-template": setting("width: {{width}}", "not valid YAML at line 3"),
    "yaml-number-key": edit("seed: [0]", "3: [0]", "grid.3: key 3", "text"),
    "file-name": Case(
        ["config/experiments/catapult/Fc-1.yaml", "<paper>/<experiment>.yaml"],
        files={"config/experiments/catapult/Fc-1.yaml": GOOD},
    ),
    "file-suffix": Case(
        ["config/experiments/catapult/fc.yml", "<paper>/<experiment>.yaml"],
        files={"config/experiments/catapult/fc.yml": GOOD},
    ),
    # --- keys ---
    "key-unknown": edit("figures: {}", "figurs: {}", "'figurs'", "did you mean 'figures'"),
    "key-unknown-nested": edit("num_steps: 2", "num_step: 2", "stopping", "num_step"),
    "key-unknown-in-scales": edit("scales: {}", "scales: {tiny: {}}", "scales: unknown key 'tiny'"),
    "key-unknown-in-a-scale": edit(
        "scales: {}",
        "scales: {smoke: {hyperparameters: {widht: 4}}}",
        "scale smoke",
        "hyperparameters: unknown key 'widht'",
        "did you mean 'width'",
    ),
    "scale-is-no-mapping": edit("scales: {}", "scales: {smoke: 3}", "scales.smoke: 3"),
    "key-missing": edit("stopping: {num_steps: 2}\n", "", "key 'stopping' is missing"),
    "key-missing-model": edit("model: fully_connected, ", "", "hyperparameters: key 'model'"),
    "key-missing-dataset": edit("dataset: digits\n", "", "key 'dataset' is missing"),
    "key-missing-rate": edit(f"  {RATES}\n", "", "key 'learning_rate' is missing"),
    "key-missing-caption": edit("figures: {}", "figures: {fig3a: {}}", "figures.fig3a", "caption"),
    # --- values ---
    "type-description": edit("A tiny grid", "[3]", "description: [3]", "text"),
    "type-figures": edit("figures: {}", "figures: [fig3a]", "figures: ['fig3a']", "a mapping"),
    "number-as-text": setting("width: 8, weight_scale: 1e-3", "weight_scale: '1e-3'", "1.0e-3"),
    "number-as-text-in-grid": rates("[0.1, 1e-3]", "learning_rate[1]: '1e-3'", "1.0e-3"),
    "boolean": setting("width: 8, momentum: true", "hyperparameters.momentum: True", "below 1"),
    "momentum-1": setting("width: 8, momentum: 1", "hyperparameters.momentum: 1", "below 1"),
    "width-0": setting("width: 0", "hyperparameters.width: 0", "at least 1"),
    "width-real": setting("width: 8.0", "hyperparameters.width: 8.0", "an integer"),
    "nan": rates("[.nan]", "grid.learning_rate[0]: nan", "a finite number"),
    "infinity": rates("[0.1, .inf]", "grid.learning_rate[1]: inf", "a finite number"),
    "infinity-by-exponent": setting("width: 8, weight_scale: 1.0e+999", "weight_scale: inf"),
    "nan-outside-the-grid": edit("num_steps: 2", "physical_time: .nan", "stopping.physical_time"),
    "huge-integer": edit("num_steps: 2", "num_steps: 99999999999", "stopping.num_steps", "2^31"),
    "stopping-without-budget": edit(
        "num_steps: 2", "train_accuracy: 1.0", "stopping: {'train_accuracy': 1.0}", "physical_time"
    ),
    "hyperparameters-together": setting(
        "width: 8, optimizer: adam, momentum: 0.9", "hyperparameters.momentum: 0.9", "sgd"
    ),
    "schedule-without-warmup": edit(
        "figures: {}", "schedule: {kind: warmup_cosine}", "schedule: key 'warmup' is missing"
    ),
    "curvature-batch-0": edit(
        "figures: {}", "curvature: {batch_size: 0}", "curvature.batch_size: 0", "at least 1"
    ),
    # --- names ---
    "dataset-unknown": edit("dataset: digits", "dataset: digit", "'digit'", "'digits'"),
    "dataset-unknown-embedded": edit(
        "dataset: digits",
        "dataset: {published: mnist, embedded: nist}",
        "dataset.embedded: 'nist'",
        "did you mean 'mnist'",
    ),
    "model-unknown": edit(
        "fully_connected", "fully_conected", "hyperparameters.model: 'fully_conected'", "did you"
    ),
    "model-of-ones-own": edit(
        "fully_connected", "my_models:net", "hyperparameters.model", "no module my_models"
    ),
    "model-of-theory": edit("fully_connected", "warmup", "'warmup' is no training model"),
    "figure-unknown": edit(
        "figures: {}", "figures: {fig3z: {caption: x}}", "figures.fig3z", "fig3a"
    ),
    "figure-name": edit("figures: {}", "figures: {fig 3: {caption: x}}", "'fig 3'", "letters"),
    "figure-fed-twice": Case(
        ["config/experiments/catapult/twin.yaml", "figures.fig3a", "catapult/tiny feeds"],
        edit=("figures: {}", "figures: {fig3a: {caption: x}}"),
        files={
            "config/experiments/catapult/twin.yaml": GOOD.replace(
                "figures: {}", "figures: {fig3a: {caption: x}}"
            )
        },
    ),
    # --- the grid ---
    "axis-unknown": edit("seed: [0]", "seeds: [0]", "grid.seeds", "did you mean 'seed'"),
    "axis-not-used": edit("seed: [0]", "input_dim: [3]", "grid.input_dim", "does not use it"),
    "grid-empty-list": edit(f"\n  {RATES}\n  seed: [0]", " []", "grid: []", "a mapping"),
    "axis-empty": rates("[]", "grid.learning_rate: []", "at least one value"),
    "axis-no-list": rates("0.1", "grid.learning_rate: 0.1", "a list, or a mapping"),
    "rate-negative": rates("[0.1, -0.1]", "grid.learning_rate[1]: -0.1", "above 0"),
    "rate-zero": rates("{values: [0.0]}", "grid.learning_rate.values[0]: 0.0", "above 0"),
    "relative-without-curvature": rates(
        "{relative_to: critical, values: [0.5]}", "relative_to: 'critical'", "curvature"
    ),
    "relative-to-unknown": rates(
        "{relative_to: maximal, values: [0.5]}", "relative_to: 'maximal'", "absolute, critical"
    ),
    "logspace-negative-start": rates(
        "{logspace: {start: -1, stop: 1, num: 3}}", "logspace.start: -1", "above 0"
    ),
    "logspace-without-num": rates("{logspace: {start: 1, stop: 2}}", "logspace", "num"),
    "logspace-text": rates(
        "{logspace: {start: 1e-3, stop: 2, num: 2}}", "logspace.start: '1e-3'", "1.0e-3"
    ),
    "two-generators": rates("{values: [1], linspace: {start: 1}}", "learning_rate", "exactly one"),
    "run-twice": rates("[0.1, 0.2, 0.1]", "'learning_rate': 0.1", "twice"),
    "points-no-list": edit("seed: [0]", "points: {seed: 1}", "grid.points: {'seed': 1}", "a list"),
    "points-list-of-values": edit("seed: [0]", "points: [{seed: [1]}]", "grid.points[0].seed"),
    "points-and-axis": edit("seed: [0]", "points: [{learning_rate: 1}]", "grid.points[0]", "axis"),
    "kernel-without-curvature": edit(
        "{every: 1}", "{ntk_top_eigenvalue: {}}", "measurements.ntk_top_eigenvalue", "curvature"
    ),
    # --- theory ---
    "theory-with-data": text(f"kind: theory\n{GOOD}", "dataset: 'digits'", "no data"),
    "theory-without-width": text(
        "kind: theory\n"
        + GOOD.replace("dataset: digits\n", "").replace(
            "{model: fully_connected, width: 8, batch_size: 16}", "{model: warmup}"
        ),
        "key 'width' is missing",
    ),
    # --- datasets ---
    "definition-source": definition("source: web\n", "own.yaml", "source: 'web'", "digits, tfds"),
    "definition-key": definition("source: digits\nnormalise: 1\n", "own.yaml", "'normalise'"),
    "definition-yaml": definition("source: [\n", "own.yaml", "not valid YAML"),
    "definition-nan": definition(
        "source: points\ninputs: [[.nan]]\ntargets: [[1.0]]\n", "own.yaml", "inputs", "nan"
    ),
    "npz-missing": definition("source: npz\npath: a.npz\n", "own.yaml: path: 'a.npz'", "no such"),
    "folder-missing": definition(
        "source: folder\npath: images\n", "own.yaml: path: 'images'", "no such"
    ),
    "dataset-name": Case(
        ["config/datasets/my data.yaml", "letters"],
        edit=("dataset: digits", "dataset: my data"),
        files={"config/datasets/my data.yaml": "source: digits\n"},
    ),
    "view-key": edit(
        "dataset: digits",
        "dataset: {name: digits, clases: [0, 1]}",
        "dataset: unknown key 'clases'",
        "did you mean 'classes'",
    ),
    "stream-epochs": text(
        GOOD.replace("digits", "single_index_cubic").replace("num_steps: 2", "epochs: 2"),
        "stopping.epochs",
        "num_steps",
    ),
    "folder-braces": definition(
        "source: folder\npath: own\n",
        "own.yaml: path: 'own/train/{a}' is not allowed",
        files={f"own/{split}/{{a}}/0.png": "" for split in ("train", "test")},
    ),
    # --- data: only the job that prepares them can tell ---
    "npz-truncated": own_data(truncated_npz, "truncated"),
    "npz-no-zip": own_data(lambda path: path.write_text("x,y\n1,2\n"), "not an .npz file"),
    "npz-objects": own_data(npz(x_train=np.array([{}] * 32, dtype=object)), "x_train", "objects"),
    "npz-label": own_data(npz(y_test=np.full(8, 3)), "y_test has label 3", "0 to 2"),
    "npz-key": own_data(npz(y_test=None), "missing y_test", "x_train, y_train"),
    "folder-image": definition(
        "source: folder\npath: own\n",
        "own/train/a/0.png: not an image",
        files={
            f"own/{split}/{name}/0.png": "" for split in ("train", "test") for name in ("a", "b")
        },
        job="dataset",
    ),
    "npz-nan": own_data(npz(x_train=with_nan()), "x_train[3, 1] is nan"),
    "num-train": own_view("num_train: 5000", "num_train: 5000", "1 to 32", job="training_shard"),
    "num-train-with-curvature": own_view(
        "num_train: 5000}\ncurvature: {batch_size: 8",
        "num_train: 5000",
        "1 to 32",
        job="curvature_shard",
    ),
    "mnist-file-missing": mnist(lambda content: None, "missing", "no network"),
    "mnist-file-truncated": mnist(lambda content: content[:-1000], "truncated"),
    "mnist-file-wrong": mnist(wrong_labels, "wrong content"),
}


# The first of each kind.
BY_SNAKEFILE = {
    "yaml-invalid",
    "file-name",
    "key-unknown",
    "theory-with-data",
    "definition-source",
    "npz-missing",
    "view-key",
}


assert set(CASES) >= BY_SNAKEFILE


def is_of_the_plan(name):
    """Whether the case needs nothing of Snakemake."""
    case = CASES[name]
    of_snakemake = case.job or case.config or "config/config.yaml" in case.files
    return not of_snakemake and name not in BY_SNAKEFILE


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_text(content, encoding="utf-8")


def lay_out(case, folder):
    """Write what the case describes."""
    experiment = case.edit if isinstance(case.edit, str) else GOOD.replace(*(case.edit or ("", "")))
    write(folder / FILE, experiment)
    for name, content in case.files.items():
        write(folder / name, content)


def run_case(case, workspace):
    """Lay out what the case describes, and run the workflow."""
    for path in (workspace.path / "config/experiments").rglob("*.yaml"):
        path.unlink()
    lay_out(case, workspace.path)
    scale = [] if "config/config.yaml" in case.files else ["scale=smoke"]
    arguments = ["--config", *scale, *case.config] if scale or case.config else []
    return workspace.path, workspace.snakemake(TARGET, *arguments, **NO_NETWORK)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory, make_workspace):
    """The chosen cases by name, run two at a time."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.originalname == test_one_line_and_nothing_done.__name__
    ]
    if REAL_DATA is None:
        chosen = [name for name in chosen if not CASES[name].marks]
    folder = tmp_path_factory.mktemp("bad_input")

    def run(name):
        return run_case(CASES[name], make_workspace(folder / name))

    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(run, name) for name in chosen}
    pool.shutdown(cancel_futures=True)


def found(folder, pattern):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(pattern))


@pytest.mark.parametrize("name", [name for name in CASES if is_of_the_plan(name)])
def test_the_plan_refuses_it_in_one_line(name, tmp_path, monkeypatch):
    shutil.copytree(PROJECT / "config/datasets", tmp_path / "config/datasets")
    lay_out(CASES[name], tmp_path)
    monkeypatch.chdir(tmp_path)
    before = found(tmp_path, "*")
    with pytest.raises(InputError) as refusal:
        make_plan({"scale": "smoke"})
    line = str(refusal.value)
    assert "\n" not in line
    for part in CASES[name].says:
        assert part in line
    assert found(tmp_path, "*") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=case.marks)
        for name, case in CASES.items()
        if not is_of_the_plan(name)
    ],
)
def test_one_line_and_nothing_done(name, outcomes):
    case = CASES[name]
    folder, result = outcomes[name].result()
    assert result.returncode != 0, result.output
    assert "Traceback" not in result.output
    assert len(result.error_lines) == 1, result.output
    for part in case.says:
        assert part in result.error_lines[0]

    results = folder / "results"
    if case.job is None:
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1:] == result.error_lines, "it had gone on to say more"
        assert not results.exists()
        return
    assert f"rule {case.job}:" in result.stdout + result.stderr
    assert found(results, "*.parquet") == []
    assert found(results, "shard.json") == []
    if case.job == "dataset":
        assert found(results, "manifest.json") == []
        assert found(results, "*.npy") == []
        assert found(results / "datasets", ".*") == []


@pytest.mark.slow
def test_the_good_experiment_is_good(workspace):
    """Otherwise a case could fail for another reason than its own."""
    _, result = run_case(Case([]), workspace)
    assert result.returncode == 0, result.output
    assert result.error_lines == []
    assert (workspace.path / TARGET).exists()
