"""What is measured of a run between its steps.

Each measurement is a function of one run that gives named values; `measure_runs` applies it to
those runs of a program that are due. A measurement has a schedule of steps of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sgdphases.alignment import (
    centered_kernel_alignment,
    feature_gram,
    kernel_target_alignment,
    ntk_gram,
)
from sgdphases.curvature import kernel_scale_of, ntk_top_eigenvalue
from sgdphases.errors import InputError
from sgdphases.hessian import top_hessian_eigenvalues
from sgdphases.infinite_width import infinite_width_kernel
from sgdphases.linearization import linearized_apply
from sgdphases.losses import accuracy
from sgdphases.models import Network, Parameters
from sgdphases.movement import weight_movement
from sgdphases.optimizers import AutoL2State
from sgdphases.runs import (
    Rules,
    RunHyperparameters,
    RunState,
    effective_outputs,
    in_chunks,
    map_groups,
    spread,
)
from sgdphases.timescales import (
    early_motion,
    kernel_force,
    loss_scale,
    time_to_change,
    time_to_nonlinearity,
)

# The functions below that make a measurement return the same object for the same arguments:
# compiled programs are kept by it.


class Member(NamedTuple):
    """One run, as its measurements see it.

    Attributes:
        state: What the run carries.
        hyper: Its hyperparameters.
        seed: Seed of its parameters at initialisation.
    """

    state: RunState
    hyper: RunHyperparameters
    seed: jax.Array


class Samples(NamedTuple):
    """Samples that runs are measured on.

    Attributes:
        inputs: (samples, ...) inputs.
        targets: (samples, outputs) targets.
        offsets: (frozen networks, samples, outputs) outputs of the frozen networks, or None.
    """

    inputs: jax.Array
    targets: jax.Array
    offsets: jax.Array | None


Values = dict[str, jax.Array]


@dataclass(frozen=True)
class Measurement:
    """A quantity of each run, and the samples it is measured on.

    Attributes:
        schedule: When: mapping with `dense_until`, `points_per_decade`, `every`, `steps`.
        measure: From a run and the samples to values by column name.
        samples: The samples, by name.
    """

    schedule: Mapping[str, Any]
    measure: Callable[[Member, dict[str, Samples]], Values]
    samples: dict[str, Samples]


@partial(jax.jit, static_argnums=(0, 1, 2))
def measure_runs(
    measure: Callable[[Member, dict[str, Samples]], Values],
    mesh: Mesh,
    group_size: int,
    members: Member,
    wanted: jax.Array,
    samples: dict[str, Samples],
) -> Values:
    """Measure the wanted runs.

    Args:
        measure: From a run and the samples to values by name.
        mesh: The devices.
        group_size: Runs of a device that are measured together.
        members: The runs, with a leading axis over them.
        wanted: (runs,) whether to measure a run; a group without a wanted run costs nothing.
        samples: Samples by name.

    Returns:
        (runs, ...) values by name, NaN where not wanted.
    """

    def measure_group(group: tuple[Member, jax.Array], shared: dict[str, Samples]) -> Values:
        group_members, group_wanted = group

        def one(member: Member) -> Values:
            return measure(member, shared)

        function = one if group_wanted.ndim == 0 else jax.vmap(one)
        shapes = jax.eval_shape(function, group_members)
        nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
        values = jax.lax.cond(jnp.any(group_wanted), function, lambda _: nothing, group_members)

        def keep(value: jax.Array) -> jax.Array:
            mask = group_wanted.reshape(
                group_wanted.shape + (1,) * (value.ndim - group_wanted.ndim)
            )
            return jnp.where(mask, value, jnp.nan)

        return {name: keep(value) for name, value in values.items()}

    def measure_local(local: Member, local_wanted: jax.Array, shared: dict[str, Samples]) -> Values:
        result: Values = map_groups(
            lambda group: measure_group(group, shared), (local, local_wanted), group_size
        )
        return result

    values: Values = spread(measure_local, mesh, 2, 1)(members, wanted, samples)
    return values


def outputs_on(
    network: Network, member: Member, samples: Samples, chunk: int
) -> Callable[[Parameters], jax.Array]:
    """The outputs that a run is trained on, on some samples, as a function of its parameters.

    Its derivatives compute each chunk anew, and so take no more memory than one chunk.
    """
    offset = None if samples.offsets is None else samples.offsets[member.hyper.frozen]

    def outputs(parameters: Parameters) -> jax.Array:
        @jax.checkpoint
        def of_chunk(inputs: jax.Array) -> jax.Array:
            return effective_outputs(network, member.state, member.hyper, inputs, None)(parameters)

        raw = in_chunks(of_chunk, samples.inputs, chunk)
        return raw if offset is None else raw + offset / member.hyper.richness

    return outputs


@cache
def losses(network: Network, rules: Rules, chunk: int) -> Any:
    """Loss and accuracy on the samples `train` and `test`, and the weight decay under AutoL2."""

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        values = {}
        for name, some in samples.items():
            outputs = outputs_on(network, member, some, chunk)(member.state.parameters)
            loss = rules.loss(outputs, some.targets, member.hyper.inverse_temperature)
            values[f"{name}_loss"] = loss
            values[f"{name}_accuracy"] = accuracy(outputs, some.targets).astype(loss.dtype)
        if rules.optimizer.weight_decay_rule == "auto_l2":
            values["weight_decay"] = _auto_l2_state(member.state.optimizer_state).weight_decay
        return values

    return measure


@cache
def logit_norm(network: Network, chunk: int) -> Any:
    r"""Root mean square of the rescaled logits Z = βz on the samples `train`.

    .. math:: \| Z \|_F / \sqrt{M k}

    Reference:
        Temperature paper, section 3.2; catalogue item 40 for the division by √(Mk).
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        outputs = outputs_on(network, member, samples["train"], chunk)(member.state.parameters)
        scaled = member.hyper.inverse_temperature * outputs
        return {"logit_norm": jnp.sqrt(jnp.mean(jnp.square(scaled)))}

    return measure


def _auto_l2_state(optimizer_state: Any) -> AutoL2State:
    states = jax.tree.leaves(optimizer_state, is_leaf=lambda x: isinstance(x, AutoL2State))
    found: AutoL2State = next(state for state in states if isinstance(state, AutoL2State))
    return found


@cache
def top_kernel_eigenvalue(
    network: Network, shape: tuple[tuple[str, Any], ...], num_lanczos_steps: int
) -> Any:
    """The top NTK eigenvalue on the samples `batch`, in inverse units of the learning rate.

    Args:
        network: The network.
        shape: Hyperparameters that the runs of a program share, as pairs.
        num_lanczos_steps: Products per measurement.
    """
    hyperparameters = {**dict(shape), "richness": 1.0, "inverse_temperature": 1.0}

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        inputs, targets = samples["batch"].inputs, samples["batch"].targets
        scale = kernel_scale_of(hyperparameters, targets.shape[1], len(inputs))
        found = ntk_top_eigenvalue(
            _raw_apply(network, member),
            member.state.parameters,
            inputs,
            num_lanczos_steps,
            scale * jnp.square(member.hyper.inverse_temperature / member.hyper.richness),
        )
        return {"ntk_top_eigenvalue": found.value}

    return measure


def _raw_apply(network: Network, member: Member) -> Callable[[Parameters, jax.Array], jax.Array]:
    if member.state.base is None:
        return network.apply
    return partial(linearized_apply(network.apply), member.state.base)


@cache
def hessian(network: Network, rules: Rules, num_eigenvalues: int, num_lanczos_steps: int) -> Any:
    """The largest Hessian eigenvalues of the loss on the samples `batch`.

    The largest is the `sharpness`, the others are `hessian_eigenvalue_2` and so on.

    Reference:
        Richness paper, figs. 3 and 33; catalogue item 1.3.
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        batch = samples["batch"]

        def loss(parameters: Parameters) -> jax.Array:
            outputs = outputs_on(network, member, batch, len(batch.inputs))(parameters)
            return rules.loss(outputs, batch.targets, member.hyper.inverse_temperature)

        eigenvalues = top_hessian_eigenvalues(
            loss, member.state.parameters, num_eigenvalues, num_lanczos_steps
        )
        names = ["sharpness", *(f"hessian_eigenvalue_{i}" for i in range(2, num_eigenvalues + 1))]
        return {name: eigenvalues[i] for i, name in enumerate(names)}

    return measure


@cache
def alignment(network: Network, kernels: tuple[str, ...], samples_interact: bool) -> Any:
    """Alignment of kernels with the targets of the samples `batch`.

    Args:
        network: The network.
        kernels: Any of ntk, last_layer.
        samples_interact: Whether outputs depend on the other samples of a batch.

    Raises:
        InputError: The last layer's inputs are wanted of a network that does not tell them.

    Reference:
        Catalogue item 1.4.
    """
    if "last_layer" in kernels and network.features is None:
        raise InputError(
            "measurements.kernel_alignment.kernels: the model does not tell its last hidden layer; "
            "allowed: ntk"
        )

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        inputs, targets = samples["batch"].inputs, samples["batch"].targets
        parameters = member.state.parameters
        values = {}
        if "ntk" in kernels:
            apply = _raw_apply(network, member)
            gram = ntk_gram(apply, parameters, inputs, samples_interact=samples_interact)
            values["kernel_target_alignment_ntk"] = kernel_target_alignment(gram, targets)
        if "last_layer" in kernels and network.features is not None:
            gram = feature_gram(network.features(parameters, inputs))
            values["kernel_target_alignment_last_layer"] = kernel_target_alignment(gram, targets)
            values["centered_kernel_alignment"] = centered_kernel_alignment(gram, targets)
        return values

    return measure


@cache
def kernel_modes(network: Network, samples_interact: bool) -> Any:
    """Spectrum of the tangent kernel on the samples `batch`, and targets and outputs in its modes.

    The kernel is K(x, x') = Σ_p ∂_p f(x) ∂_p f(x'), not normalised; eigenvalues fall.

    Args:
        network: The network, with a single output.
        samples_interact: Whether outputs depend on the other samples of a batch.

    Reference:
        L2 paper, eq. 3 (a wide network's modes evolve independently).
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        batch = samples["batch"]
        parameters = member.state.parameters
        apply = _raw_apply(network, member)
        gram = ntk_gram(apply, parameters, batch.inputs, samples_interact=samples_interact)
        eigenvalues, modes = jnp.linalg.eigh(gram)
        outputs = outputs_on(network, member, batch, len(batch.inputs))(parameters)
        if outputs.shape[1] != 1:
            raise InputError(
                "measurements.kernel_modes: the network has several outputs; allowed: a dataset "
                "with a single target"
            )
        projections = modes.T @ jnp.concatenate([batch.targets, outputs], axis=1)
        return {
            "kernel_mode_eigenvalues": eigenvalues[::-1],
            "kernel_mode_targets": projections[::-1, 0],
            "kernel_mode_outputs": projections[::-1, 1],
        }

    return measure


@cache
def homogeneity(network: Network) -> Any:
    r"""The degree k in which outputs grow with the parameters, and how far derivatives are from it.

    .. math:: \theta \cdot \partial f = k f, \qquad
        \theta \cdot \partial\, (\partial^m f) = (k - m)\, \partial^m f

    Derivatives of order m = 1, 2 are taken along directions drawn at random.

    Reference:
        L2 paper, lemma 1.
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        inputs, parameters = samples["batch"].inputs, member.state.parameters
        apply = _raw_apply(network, member)
        leaves, structure = jax.tree.flatten(parameters)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(member.seed), 2), 2 * len(leaves))

        def direction(chosen: jax.Array) -> Parameters:
            drawn = [
                jax.random.normal(key, leaf.shape, leaf.dtype)
                for key, leaf in zip(chosen, leaves, strict=True)
            ]
            return jax.tree.unflatten(structure, drawn)

        def along(
            function: Callable[[Parameters], jax.Array], tangent: Parameters
        ) -> Callable[[Parameters], jax.Array]:
            return lambda values: jax.jvp(function, (values,), (tangent,))[1]

        derivatives: list[Callable[[Parameters], jax.Array]] = [lambda p: apply(p, inputs)]
        for chosen in (keys[: len(leaves)], keys[len(leaves) :]):
            derivatives.append(along(derivatives[-1], direction(chosen)))
        values = [derivative(parameters) for derivative in derivatives]
        scaled = [along(derivative, parameters)(parameters) for derivative in derivatives]
        degree = jnp.vdot(scaled[0], values[0]) / jnp.vdot(values[0], values[0])
        deviations = [
            jnp.linalg.norm(change - (degree - order) * value) / jnp.linalg.norm(value)
            for order, (change, value) in enumerate(zip(scaled, values, strict=True))
        ]
        return {
            "measured_degree": degree,
            **{f"homogeneity_deviation_{m}": deviation for m, deviation in enumerate(deviations)},
        }

    return measure


@cache
def movement(network: Network) -> Any:
    """Norms of what each layer's weights have moved since initialisation."""

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        del samples  # the weights say it all
        initial = network.init(jax.random.key(member.seed))
        norms: Values = weight_movement(member.state.parameters, initial)
        return norms

    return measure


@cache
def held_out_outputs(network: Network, chunk: int) -> Any:
    """The outputs on the samples `points`, flattened: sample by sample, output by output."""

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        function = outputs_on(network, member, samples["points"], chunk)
        return {"outputs": function(member.state.parameters).reshape(-1)}

    return measure


@cache
def true_class_outputs(network: Network, chunk: int) -> Any:
    """The output for the true class of each of the samples `points`.

    Reference:
        Richness paper, section 3.4 and fig. 5a.
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        points = samples["points"]
        outputs = outputs_on(network, member, points, chunk)(member.state.parameters)
        return {"true_class_outputs": jnp.sum(outputs * points.targets, axis=1)}

    return measure


@cache
def feature_movement(network: Network, chunk: int) -> Any:
    r"""How far what the last layer reads has moved since initialisation, on the samples `points`.

    .. math:: \Big( \frac{1}{P N} \sum_{\mu i} \left[ \phi_i(x_\mu, \theta_t)
        - \phi_i(x_\mu, \theta_0) \right]^2 \Big)^{1/2}

    over P samples and N features; `feature_size` is the root mean square of the features
    themselves.

    Raises:
        InputError: The network does not tell what its last layer reads.

    Reference:
        Richness paper, appendix B, eq. 18: as N^(-1/2) in NTK, as N^0 in µP.
    """
    features = network.features
    if features is None:
        raise InputError(
            "measurements.feature_movement: the model does not tell its last hidden layer; "
            "allowed: without it"
        )

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        inputs = samples["points"].inputs
        initial = network.init(jax.random.key(member.seed))
        now, before = (
            in_chunks(partial(features, parameters), inputs, chunk)
            for parameters in (member.state.parameters, initial)
        )
        return {
            "feature_movement": jnp.sqrt(jnp.mean(jnp.square(now - before))),
            "feature_size": jnp.sqrt(jnp.mean(jnp.square(now))),
        }

    return measure


@cache
def timescales(
    network: Network,
    rules: Rules,
    shape: tuple[tuple[str, Any], ...],
    infinite_width: bool,
    shuffled_labels: int | None,
    chunk: int,
) -> Any:
    r"""Early-time scales on the samples `train`, in units of the effective learning rate η̃ = ηβ².

    Times are those of the run's own loss, whatever its normalisation, if it were taken over these
    samples. Beside a linearised twin, how far rescaled logits are from those at the start and from
    the twin's give the paper's estimates of the same times.

    Args:
        network: The network.
        rules: What all runs share.
        shape: Hyperparameters that the runs of a program share, as pairs.
        infinite_width: Whether to take the kernel of the infinitely wide network too.
        shuffled_labels: Seed of a permutation of the labels, or None. The speeds at permuted labels
            are then measured too.
        chunk: Samples computed at once.

    Raises:
        InputError: There is no such time, or no such kernel, for the network or its loss.

    Reference:
        Temperature paper, sections 2.3, 2.4 and appendix C; catalogue item 1.8.
    """
    if rules.loss.name != "cross_entropy" or rules.parametrisation in ("mup", "depth_mup"):
        raise InputError(
            f"measurements.timescales: loss {rules.loss.name} in parametrisation "
            f"{rules.parametrisation} is not allowed; allowed: cross_entropy in standard or ntk"
        )

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        train, hyper = samples["train"], member.hyper
        parameters, beta = member.state.parameters, hyper.inverse_temperature
        logits = outputs_on(network, member, train, chunk)
        scaled = beta * logits(parameters)
        num_samples, num_classes = scaled.shape
        scale = loss_scale(rules.loss.normalisation, num_classes, num_samples)
        motion = early_motion(logits, parameters, train.targets, beta)
        probabilities = jax.nn.softmax(scaled)

        def speed(force: jax.Array) -> jax.Array:
            norm: jax.Array = scale * jnp.linalg.norm(force)
            return norm

        small = kernel_force(logits, parameters, train.targets - 1 / num_classes)
        values = {
            "scaled_logit_norm": jnp.linalg.norm(scaled),
            "scaled_logit_size": jnp.sqrt(jnp.mean(jnp.square(scaled))),
            "logit_timescale": time_to_change(scaled, motion.velocity) / scale,
            "nonlinear_timescale": time_to_nonlinearity(motion) / scale,
            "logit_speed": speed(motion.velocity),
            "small_logit_speed": speed(small),
        }
        errors = {"": train.targets - probabilities}
        if shuffled_labels is not None:
            order = np.random.default_rng(shuffled_labels).permutation(num_samples)
            errors["shuffled_"] = train.targets[order] - probabilities
            force = kernel_force(logits, parameters, errors["shuffled_"])
            values["shuffled_logit_speed"] = speed(force)
        if infinite_width:
            kernel = infinite_width_kernel(dict(shape), train.inputs) / jnp.square(hyper.richness)
            for name, error in errors.items():
                values[f"{name}infinite_width_logit_speed"] = speed(kernel @ error)
        twin = member.state.twin
        if twin is not None:
            linear = member._replace(state=member.state._replace(base=twin.base))
            of_twin = outputs_on(network, linear, train, chunk)
            start, now = beta * of_twin(twin.base), beta * of_twin(twin.parameters)
            values["scaled_logit_change"] = jnp.linalg.norm(scaled - start)
            values["scaled_linearized_distance"] = jnp.linalg.norm(scaled - now)
        return values

    return measure


@cache
def twin_distance(network: Network, chunk: int) -> Any:
    r"""Distance of a run's outputs from those of its linearised twin, on the samples `points`.

    .. math:: \left\| f(\theta_t) - f_\mathrm{lin}(\phi_t) \right\|_F

    Both are trained on the same batches by the same optimiser, from the step of linearisation on.

    Reference:
        Temperature paper, section 2 (the deviation behind τ_nl); catapult paper, fig. 6.
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        points, twin = samples["points"], member.state.twin
        assert twin is not None  # the rules ask for one where the distance is measured
        outputs = outputs_on(network, member, points, chunk)(member.state.parameters)
        linear = member._replace(state=member.state._replace(base=twin.base))
        linear_outputs = outputs_on(network, linear, points, chunk)(twin.parameters)
        return {"linearized_distance": jnp.linalg.norm(outputs - linear_outputs)}

    return measure


@cache
def kernel_change(network: Network, samples_interact: bool) -> Any:
    r"""How far the tangent kernel has moved since the step of the twin's linearisation.

    .. math:: \| \Theta_t - \Theta_s \|_F / \| \Theta_s \|_F

    The kernel is that on the samples `train`, summed over outputs. Up to step s it is 0.

    Reference:
        Catapult paper, fig. S13b.
    """

    def measure(member: Member, samples: dict[str, Samples]) -> Values:
        twin = member.state.twin
        assert twin is not None  # the rules ask for one where the change is measured
        apply, inputs = _raw_apply(network, member), samples["train"].inputs
        now, then = (
            ntk_gram(apply, parameters, inputs, samples_interact=samples_interact)
            for parameters in (member.state.parameters, twin.base)
        )
        return {"kernel_change": jnp.linalg.norm(now - then) / jnp.linalg.norm(then)}

    return measure
