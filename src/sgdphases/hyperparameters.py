"""What a trained run's hyperparameters are: those that its file gives, and defaults.

A run has the common hyperparameters, whose defaults are in the schema of experiments, and those of
its model, whose defaults are in the table of models; a model may have its own defaults for common
ones. Nothing here imports JAX.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sgdphases.errors import InputError
from sgdphases.grid import (
    LEARNING_RATE_UNIT,
    RICHNESS_LAW,
    SECOND_HEAD_HYPERPARAMETERS,
    hyperparameter_schemas,
    rounded,
    swept_names,
)
from sgdphases.model_table import is_user_model, model_entry, model_names
from sgdphases.portraits import richness_law, weight_matrices
from sgdphases.validation import describe_value, suggest

# Below it, rounding in float32 is no longer small against the change of the outputs.
FLOAT64_RICHNESS = 1.0e-3
REDUCED_PRECISIONS = ("tensorfloat32", "bfloat16")
MUP_PARAMETRISATIONS = ("mup", "depth_mup")
# A user's own model has these, and of the other hyperparameters of models those that its file
# gives.
_USER_MODEL_DEFAULTS = {"depth": 2, "width": 512, "activation": "relu"}
_LOSS_NORMALISATIONS = {"mean_squared_error": "per_class", "cross_entropy": "per_sample"}
# Hyperparameters that only some choice of another one reads: at any other, only their default is
# allowed.
_READ_ONLY_WITH = {
    "momentum": ("optimizer", ("sgd", "sign_sgd")),
    "first_moment_decay": ("optimizer", ("adam",)),
    "second_moment_decay": ("optimizer", ("adam",)),
    "epsilon": ("optimizer", ("adam",)),
    "auto_l2_interval": ("weight_decay_rule", ("auto_l2",)),
    "inverse_temperature": ("loss", ("cross_entropy",)),
    "initial_logit_norm": ("loss", ("cross_entropy",)),
}
# Depths of the networks that have few, by the function that builds them.
_DEPTHS: dict[str, tuple[Callable[[int], bool], str]] = {
    "resnet": (lambda depth: depth in (18, 34, 50, 101, 152), "18, 34, 50, 101, 152"),
    "wide_resnet": (lambda depth: depth > 4 and depth % 6 == 4, "10, 16, 22, 28, ..., 6 n + 4"),
}


@dataclass(frozen=True)
class Origin:
    """Where a run's hyperparameters come from, for messages.

    Attributes:
        source: The file.
        shared: What its `hyperparameters` give.
        grid: Its grid, as read.
    """

    source: str
    shared: Mapping[str, Any]
    grid: dict[str, Any] | list[Any]

    def gives(self, name: str) -> bool:
        """Whether the file gives the hyperparameter."""
        return name in self.shared or name in swept_names(self.grid)

    def path(self, name: str) -> str:
        """File and key path of a hyperparameter."""
        part = "grid" if name in swept_names(self.grid) else "hyperparameters"
        return f"{self.source}: {part}.{name}"


def common_hyperparameters() -> tuple[str, ...]:
    """Names of the hyperparameters that every trained run has."""
    schemas = hyperparameter_schemas()
    return ("model", "learning_rate", *(name for name, s in schemas.items() if "default" in s))


def complete_run(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A trained run with all its hyperparameters.

    Args:
        setting: What the file gives for the run; its model is a known one.

    Returns:
        The run in the schema's order: the common defaults, over them those of the model, over them
        the setting; precision and loss normalisation chosen where they are null; a learning rate
        in units of the richness law made absolute.
    """
    schemas = hyperparameter_schemas()
    defaults = {name: s["default"] for name, s in schemas.items() if "default" in s}
    run = {**defaults, **model_defaults(setting["model"]), **setting}
    if run["loss_normalisation"] is None:
        run["loss_normalisation"] = _LOSS_NORMALISATIONS[run["loss"]]
    if run["precision"] is None:
        # An inverse temperature is a richness upside down.
        richness = run["richness"] / run["inverse_temperature"]
        run["precision"] = "float64" if richness < FLOAT64_RICHNESS else "float32"
    if run.get(LEARNING_RATE_UNIT) == RICHNESS_LAW:
        depth = weight_matrices(run)
        assert depth is not None  # as check_run has seen to
        law = richness_law(run["richness"], depth, run["optimizer"])
        run["learning_rate"] = rounded(run["learning_rate"] * law)
        run[LEARNING_RATE_UNIT] = "absolute"
    order = [*schemas, LEARNING_RATE_UNIT]
    return {name: run[name] for name in order if name in run}


def model_defaults(model: str) -> dict[str, Any]:
    """The hyperparameters that a model sets, with their defaults."""
    if is_user_model(model):
        return dict(_USER_MODEL_DEFAULTS)
    defaults: dict[str, Any] = model_entry(model)["hyperparameters"]
    return defaults


def check_run(setting: Mapping[str, Any], origin: Origin) -> None:
    """Check what a schema cannot: that a trained run's hyperparameters go together.

    Args:
        setting: What the file gives for the run.
        origin: Where from.

    Raises:
        InputError: A hyperparameter is missing, or is not allowed for the run.
    """
    _check_names(setting, origin)
    in_units_of_law = setting.get(LEARNING_RATE_UNIT) == RICHNESS_LAW
    if in_units_of_law and weight_matrices({**model_defaults(setting["model"]), **setting}) is None:
        raise InputError(
            f"{origin.source}: grid.learning_rate.relative_to: {RICHNESS_LAW!r} needs the depth, "
            f"which the model {setting['model']!r} does not have; allowed: absolute, critical, edge"
        )
    run = complete_run(setting)
    for names, fault in _faults(run):
        # A default may be at fault only together with something that the file gives.
        name = next((name for name in names if origin.gives(name)), names[0])
        raise InputError(f"{origin.path(name)}: {describe_value(run[name])}: {fault}")


def _check_names(setting: Mapping[str, Any], origin: Origin) -> None:
    model = setting["model"]
    common = common_hyperparameters()
    if is_user_model(model):
        own = {name for name in hyperparameter_schemas() if name not in common}
    else:
        if model not in model_names():
            raise InputError(
                f"{origin.path('model')}: {model!r} is no training model; allowed: "
                f"package.module:function, or {suggest(model, model_names())}"
            )
        own = set(model_defaults(model)) - set(common)
    if "learning_rate" not in setting:
        raise InputError(
            f"{origin.source}: grid: key 'learning_rate' is missing, in grid and hyperparameters; "
            "required: model, learning_rate"
        )
    unused = sorted(set(setting) - own - set(common) - {LEARNING_RATE_UNIT})
    if unused:
        raise InputError(
            f"{origin.path(unused[0])}: the model {model!r} does not use it; allowed: "
            f"{', '.join(sorted(own))}, and those that every run has"
        )


def _faults(run: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go together, after the names involved, the one to change first."""
    second_head = next((n for n in SECOND_HEAD_HYPERPARAMETERS if run[n] is not None), None)
    differences = run["centered"] or run["richness"] != 1 or second_head is not None
    if run["precision"] in REDUCED_PRECISIONS and differences:
        yield (
            ("precision", "centered", "richness", *SECOND_HEAD_HYPERPARAMETERS),
            f"precision {run['precision']} would lose the small differences of outputs that are "
            "centered, divided by a richness or have a second head; allowed: precision float32 or "
            "float64 with these",
        )
    if second_head is not None and run["centered"]:
        yield (
            (second_head, "centered"),
            f"a second head and centered outputs exclude each other; allowed: {second_head} null "
            "or centered false",
        )
    if all(run[name] is not None for name in SECOND_HEAD_HYPERPARAMETERS):
        yield (
            ("initial_logit_norm", "head_correlation"),
            "the norm of the logits follows from the correlation of the heads; allowed: one of "
            "initial_logit_norm and head_correlation",
        )
    if run["zero_readout"] and second_head is not None:
        yield (
            ("zero_readout", second_head),
            "a second head has the readout that the first starts with, which would be zero; "
            f"allowed: zero_readout false, or {second_head} null",
        )
    for name, (other, choices) in _READ_ONLY_WITH.items():
        if run[other] not in choices and run[name] != hyperparameter_schemas()[name]["default"]:
            yield (
                (name, other),
                f"{name} is not used with {other} {run[other]}; allowed: with {other} "
                f"{' or '.join(choices)}",
            )
    yield from _faults_of_the_weight_decay(run)
    if is_user_model(run["model"]):
        if run["zero_readout"]:
            yield (
                ("zero_readout", "model"),
                f"{run['model']} does not tell its last layer; allowed: false with one's own model",
            )
        if run["parametrisation"] in MUP_PARAMETRISATIONS:
            yield (
                ("parametrisation", "model"),
                f"{run['parametrisation']} needs to know the layers of {run['model']}; allowed: "
                "standard or ntk with one's own model",
            )
    else:
        yield from _faults_of_the_network(run)


def _faults_of_the_weight_decay(run: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    if run["weight_decay_rule"] == "auto_l2" and run["weight_decay"] == 0:
        yield (
            ("weight_decay_rule", "weight_decay"),
            "auto_l2 lowers the weight_decay it starts from, which is 0; allowed: with a "
            "weight_decay above 0, usually 0.1",
        )
    if run["weight_decay_from"] is None:
        return
    if run["weight_decay"] == 0:
        yield (
            ("weight_decay", "weight_decay_from"),
            "a multiple of a predicted weight decay; allowed: a factor above 0 (weight_decay 0 in "
            "another part of the grid)",
        )
    if run["budget_epochs"] is None:
        yield (
            ("weight_decay_from", "budget_epochs"),
            "a weight decay is predicted for a budget; allowed: with budget_epochs",
        )


def _faults_of_the_network(run: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    function = model_entry(run["model"])["function"]
    if function in _DEPTHS:
        is_allowed, allowed = _DEPTHS[function]
        if not is_allowed(run["depth"]):
            yield ("depth", "model"), f"{run['model']} has no such depth; allowed: {allowed}"
    if "num_heads" in run and run["width"] % run["num_heads"]:
        yield (
            ("num_heads", "width"),
            f"{run['num_heads']} heads do not divide the width {run['width']}; allowed: a divisor "
            "of the width",
        )
