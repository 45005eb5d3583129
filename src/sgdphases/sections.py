"""What a schema cannot check of an experiment's sections; nothing here imports JAX."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sgdphases.datasets.views import Facts, check_view, read_view
from sgdphases.errors import InputError
from sgdphases.grid import LEARNING_RATE_UNIT, RICHNESS_LAW
from sgdphases.model_table import model_entry, model_names
from sgdphases.schedule import BUDGETS
from sgdphases.validation import describe_value

# Sections that only trained networks have.
_TRAINING_SECTIONS = (
    "curvature",
    "edge_search",
    "schedule",
    "augmentation",
    "lowering",
    "prediction",
    "temperature_tuning",
)
# Stopping criteria that only trained networks have, and that only theory has.
_TRAINING_CRITERIA = ("epochs", "decay_time", "train_accuracy")
_THEORY_CRITERIA = ("converged_output",)
# Learning rates of which one lies between others.
_FEWEST_RATES = 3
_MEASUREMENT_STEPS = ("dense_until", "points_per_decade", "every", "steps")
_SCHEDULE_KEYS = {
    "constant": (),
    "piecewise": ("boundaries", "factors"),
    "warmup_cosine": ("warmup",),
    "final_rate": ("learning_rate", "num_steps"),
}


def refuse_sections_of_training(document: Mapping[str, Any], source: str) -> None:
    """Refuse what only trained networks have, in a theory experiment.

    Args:
        document: The experiment as read, without defaults.
        source: The file, for messages.

    Raises:
        InputError: It has a section that it cannot have.
    """
    for name in _TRAINING_SECTIONS:
        if name in document:
            given = describe_value(document[name])
            raise InputError(f"{source}: {name}: {given}: a theory experiment has none")
    for name in document.get("measurements", {}):
        if name not in _MEASUREMENT_STEPS:
            raise InputError(
                f"{source}: measurements.{name}: a theory experiment measures what its program "
                f"does; allowed: {', '.join(_MEASUREMENT_STEPS)}"
            )


def check_sections(document: Mapping[str, Any], source: str) -> None:
    """Check what a schema cannot: that an experiment's sections go together.

    Args:
        document: The experiment with its defaults.
        source: The file, for messages.

    Raises:
        InputError: A section is not allowed, or lacks something.
    """
    stopping, measurements = document["stopping"], document["measurements"]
    theory = document["kind"] == "theory"
    for name in _TRAINING_CRITERIA if theory else _THEORY_CRITERIA:
        if name in stopping:
            other = "training" if theory else "theory"
            raise InputError(f"{source}: stopping.{name}: only a {other} experiment may stop by it")
    if "min_steps" in stopping and not {"physical_time", "decay_time"} & set(stopping):
        raise InputError(
            f"{source}: stopping.min_steps: only a budget of time may be over too soon; allowed: "
            "with physical_time or decay_time"
        )
    if "ntk_top_eigenvalue" in measurements and "curvature" not in document:
        raise InputError(
            f"{source}: measurements.ntk_top_eigenvalue: needs a curvature section, whose batch is "
            "used"
        )
    _check_twin(document, source)
    hessian = measurements.get("hessian")
    if hessian is not None and hessian["num_lanczos_steps"] < hessian["num_eigenvalues"]:
        raise InputError(
            f"{source}: measurements.hessian.num_lanczos_steps: {hessian['num_lanczos_steps']} "
            f"products do not give {hessian['num_eigenvalues']} eigenvalues; allowed: at least as "
            "many, better twice"
        )
    _check_schedule(document["schedule"], source)


def _check_twin(document: Mapping[str, Any], source: str) -> None:
    """Check that measurements compare with the network at one step, and runs reach it."""
    measurements = document["measurements"]
    last = document["stopping"].get("num_steps", math.inf)
    last += document["schedule"].get("num_steps", 0)
    given = {
        name: measurements[name]["from_step"]
        for name in ("linearized_distance", "kernel_change")
        if name in measurements
    }
    for name, step in given.items():
        where = f"{source}: measurements.{name}.from_step: {step}"
        if measurements.get("timescales", {}).get("linearized") and step:
            raise InputError(
                f"{where}: timescales compare with the network linearised at the start; allowed: 0"
            )
        # A run has one twin.
        first = next(iter(given.values()))
        if step != first:
            raise InputError(f"{where}: differs from that of linearized_distance; allowed: {first}")
        if step >= last:
            raise InputError(f"{where}: runs end after {last} steps; allowed: below {last}")


def _check_schedule(schedule: Mapping[str, Any], source: str) -> None:
    needed = _SCHEDULE_KEYS[schedule["kind"]]
    if set(schedule) != {"kind", *needed}:
        wrong = sorted(set(schedule) ^ {"kind", *needed})[0]
        fault = "is not used by" if wrong in schedule else "is missing, for"
        raise InputError(
            f"{source}: schedule: key {wrong!r} {fault} kind {schedule['kind']}; required: "
            f"{', '.join(('kind', *needed))}"
        )
    if schedule["kind"] == "piecewise":
        boundaries, factors = schedule["boundaries"], schedule["factors"]
        if boundaries != sorted(set(boundaries)):
            raise InputError(
                f"{source}: schedule.boundaries: {describe_value(boundaries)} is not allowed; "
                "allowed: increasing fractions of the budget"
            )
        if len(factors) != len(boundaries):
            raise InputError(
                f"{source}: schedule.factors: {describe_value(factors)} is not allowed; allowed: "
                f"as many as boundaries, {len(boundaries)}"
            )


def check_budgets(
    runs: Iterable[Mapping[str, Any]], stopping: Mapping[str, Any], source: str
) -> None:
    """Check that every run ends: a time of decay alone ends none that does not decay.

    Args:
        runs: The trained runs of an experiment.
        stopping: Its section `stopping`.
        source: The file, for messages.

    Raises:
        InputError: A run would never end.
    """
    budgets = {"num_steps", "epochs", "physical_time", "decay_time"} & set(stopping)
    endless = (
        run
        for run in runs
        if run["weight_decay"] == 0 and all(run[budget] is None for budget in BUDGETS)
    )
    if budgets == {"decay_time"} and any(endless):
        raise InputError(
            f"{source}: stopping.decay_time: a run with weight_decay 0 would never end; allowed: "
            "with num_steps, epochs or physical_time besides, or a weight_decay above 0"
        )


def check_final_rates(
    runs: Iterable[Mapping[str, Any]], schedule: Mapping[str, Any], source: str
) -> None:
    """Check that runs with a final rate or final steps of their own have such a phase.

    Args:
        runs: The trained runs of an experiment.
        schedule: Its section `schedule`.
        source: The file, for messages.

    Raises:
        InputError: They have none.
    """
    if schedule["kind"] == "final_rate":
        return
    for run in runs:
        for name in ("final_learning_rate", "final_steps"):
            if run[name] is not None:
                raise InputError(
                    f"{source}: {name}: {run[name]!r}: a schedule of kind {schedule['kind']} has "
                    "no final phase; allowed: with schedule.kind final_rate"
                )


def check_timescales(
    runs: Iterable[Mapping[str, Any]], measurements: Mapping[str, Any], source: str
) -> None:
    """Check that the timescales that an experiment measures are there.

    Args:
        runs: The trained runs of an experiment.
        measurements: Its section `measurements`.
        source: The file, for messages.

    Raises:
        InputError: A run's loss or network has no such times, or no kernel in closed form.
    """
    options = measurements.get("timescales")
    if options is None:
        return
    where = f"{source}: measurements.timescales"
    for run in runs:
        if run["loss"] != "cross_entropy":
            raise InputError(f"{where}: loss {run['loss']!r}; allowed: with loss cross_entropy")
        if run["parametrisation"] in ("mup", "depth_mup"):
            raise InputError(
                f"{where}: parametrisation {run['parametrisation']!r}: its rates differ from the "
                "flow that times are defined for; allowed: standard, ntk"
            )
        has_closed_form = (
            run["model"] in model_names()
            and model_entry(run["model"])["function"] == "fully_connected"
            and run["activation"] in ("relu", "erf")
            and run["parametrisation"] == "ntk"
        )
        if options["infinite_width"] and not has_closed_form:
            raise InputError(
                f"{where}.infinite_width: no closed form for {run['model']} with activation "
                f"{run.get('activation')!r} in parametrisation {run['parametrisation']!r}; "
                "allowed: a fully connected network of relu or erf in parametrisation ntk"
            )


def check_data(
    spec: Mapping[str, Any], runs: Iterable[Mapping[str, Any]], facts: Facts, source: str
) -> None:
    """Check that an experiment suits its data, as far as these are known before they are prepared.

    Args:
        spec: The resolved experiment.
        runs: Its runs.
        facts: What is known of its dataset.
        source: The file, for messages.

    Raises:
        InputError: The view does not suit the dataset; or a loss or a stopping criterion does not.
    """
    view, name = read_view(spec["dataset"]), spec["dataset"]["name"]
    check_view(view, facts, f"{source}: dataset.")
    unknown = [f"stopping.{key}" for key in ("epochs", "train_accuracy") if key in spec["stopping"]]
    unknown += ["prediction"] if spec.get("prediction") is not None else []
    unknown += ["budget_epochs"] if any(run["budget_epochs"] is not None for run in runs) else []
    if facts.is_stream and unknown:
        raise InputError(
            f"{source}: {unknown[0]}: the samples of the dataset {name!r} are drawn afresh at "
            "every step, without end and without classes; allowed: stopping.num_steps, "
            "physical_time, decay_time"
        )
    is_regression = facts.task == "regression" or view.labels == "parity"
    shift = next((run["label_shift"] for run in runs if run["label_shift"] != 0), 0)
    if is_regression and shift:
        raise InputError(
            f"{source}: hyperparameters.label_shift: {shift!r}: the dataset {name!r} has no "
            "classes whose targets could be shifted; allowed: 0"
        )
    if is_regression and "true_class_outputs" in spec["measurements"]:
        raise InputError(
            f"{source}: measurements.true_class_outputs: the dataset {name!r} has no classes as "
            "targets; allowed: outputs"
        )
    if is_regression and any(run["loss"] == "cross_entropy" for run in runs):
        targets = "targets of +1 and -1" if view.labels == "parity" else "targets, and no classes"
        raise InputError(
            f"{source}: hyperparameters.loss: 'cross_entropy' is not allowed: the dataset {name!r} "
            f"has {targets}; allowed: mean_squared_error"
        )


def check_units(
    settings: Iterable[Mapping[str, Any]], document: Mapping[str, Any], source: str
) -> None:
    """Check that what learning rates are relative to is measured.

    Args:
        settings: The runs as the file gives them.
        document: The experiment.
        source: The file, for messages.

    Raises:
        InputError: It is not.
    """
    units = {setting.get(LEARNING_RATE_UNIT) for setting in settings}
    where, theory = f"{source}: grid.learning_rate.relative_to", document["kind"] == "theory"
    if "critical" in units and not theory and "curvature" not in document:
        raise InputError(
            f"{where}: 'critical' needs the top NTK eigenvalue; allowed: with a curvature section "
            "(curvature: {batch_size: 512}), or absolute rates"
        )
    if RICHNESS_LAW in units and theory:
        raise InputError(f"{where}: {RICHNESS_LAW!r} is for trained networks; allowed: critical")
    if "edge" in units and "edge_search" not in document:
        allowed = "absolute or critical" if theory else "with a section edge_search"
        raise InputError(f"{where}: 'edge' needs an edge that is searched; allowed: {allowed}")


def check_edge_search(
    runs: Iterable[Mapping[str, Any]], document: Mapping[str, Any], source: str
) -> None:
    """Check that the edges of an experiment's runs can be searched.

    Args:
        runs: The trained runs of an experiment.
        document: The experiment; without a section `edge_search` there is nothing to check.
        source: The file, for messages.

    Raises:
        InputError: They cannot.
    """
    if document.get("edge_search") is None:
        return
    for run in runs:
        if run["weight_decay_from"] is not None:
            raise InputError(
                f"{source}: edge_search: weight_decay from {run['weight_decay_from']!r}: edges are "
                "searched before any weight decay is predicted; allowed: absolute weight decays"
            )


def check_prediction(
    runs: Iterable[Mapping[str, Any]], document: Mapping[str, Any], source: str
) -> None:
    """Check that an experiment measures one time to peak, at a constant rate and weight decay.

    Args:
        runs: The trained runs of an experiment.
        document: The experiment; without a section `prediction` there is nothing to check.
        source: The file, for messages.

    Raises:
        InputError: No weight decay can be predicted from its runs.
    """
    if document.get("prediction") is None:
        return
    first, *others = runs
    for name, value in first.items():
        if name != "seed" and any(other[name] != value for other in others):
            values = list(dict.fromkeys([value, *(other[name] for other in others)]))
            raise InputError(
                f"{source}: grid.{name}: {describe_value(values)}: a prediction comes from one "
                "setting; allowed: runs that differ in their seed alone"
            )
    decay = first["weight_decay"]
    if first["weight_decay_from"] is not None or first["weight_decay_rule"] != "constant":
        fault = "a prediction comes from a constant, absolute weight decay"
    elif decay == 0:
        fault = "without a weight decay there is no time to peak to predict from"
    else:
        fault = ""
    if fault:
        raise InputError(
            f"{source}: prediction: {describe_value(decay)} as weight_decay: {fault}; allowed: "
            "a number above 0, usually a large one such as 0.01"
        )
    kind = document["schedule"]["kind"]
    if kind != "constant":
        raise InputError(
            f"{source}: schedule.kind: {kind!r} is not allowed; allowed: constant, with a "
            "prediction (the schedule belongs to the runs that use it)"
        )


def check_tuning(
    runs: Iterable[Mapping[str, Any]], document: Mapping[str, Any], source: str
) -> None:
    """Check that an experiment tunes learning rates at inverse temperature 1.

    Args:
        runs: The trained runs of an experiment.
        document: The experiment; without a section `temperature_tuning` there is nothing to check.
        source: The file, for messages.

    Raises:
        InputError: No inverse temperature can be tuned from its runs.
    """
    options = document.get("temperature_tuning")
    if options is None:
        return
    where = f"{source}: temperature_tuning"
    if options["start"] == options["stop"]:
        raise InputError(f"{where}.stop: {options['stop']!r}: a sweep of nothing; allowed: above 1")
    needed = {"loss": "cross_entropy", "inverse_temperature": 1.0, LEARNING_RATE_UNIT: "absolute"}
    everything = list(runs)
    for name, allowed in needed.items():
        for run in everything:
            if run[name] != allowed:
                raise InputError(
                    f"{where}: {name} {run[name]!r}: all else is tuned at inverse temperature 1 "
                    f"and at absolute learning rates; allowed: {allowed}"
                )
    for run in everything:
        if run["weight_decay_from"] is not None:
            raise InputError(
                f"{where}: weight_decay from {run['weight_decay_from']!r}: the sweep trains at the "
                "weight decays of the file; allowed: absolute weight decays"
            )
    rates = {run["learning_rate"] for run in everything}
    if len(rates) < _FEWEST_RATES:
        raise InputError(
            f"{source}: grid.learning_rate: {describe_value(sorted(rates))}: the best rate must "
            f"lie between others; allowed: {_FEWEST_RATES} or more, with temperature_tuning"
        )


def momenta_of(spec: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> list[float]:
    """The momentum coefficients of an experiment whose learning rates are predicted.

    Args:
        spec: The resolved experiment.
        runs: Its runs.

    Returns:
        The distinct ones, increasing.

    Raises:
        InputError: The experiment measures no curvature, or 2/λ₀ does not limit a run's rates.
    """
    name = spec["experiment"]
    if spec.get("curvature") is None:
        raise InputError(
            f"{name}: has no section curvature, which learning rates are predicted from; allowed: "
            "for example curvature: {batch_size: 512, num_batches: 4}"
        )
    momenta = set()
    for run in runs:
        if run["optimizer"] != "sgd":
            raise InputError(
                f"{name}: optimizer {run['optimizer']!r}: 2/λ₀ limits the learning rates of "
                "gradient descent alone; allowed: sgd"
            )
        momenta.add(float(run["momentum"]))
    return sorted(momenta)
