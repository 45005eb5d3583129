"""What a generated dataset's definition asks for at one scale and with one kind of data."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from sgdphases.errors import InputError
from sgdphases.validation import as_declared, check, describe_value, fill_defaults, load_schema

# The parts of a definition that are mappings; a scale overrides them key by key.
_SECTIONS = ("process", "network", "training", "sampling", "quality")


def resolve_definition(
    definition: Mapping[str, Any],
    scale: str,
    data: str,
    sources: Mapping[str, str],
    source: str,
) -> dict[str, Any]:
    """Resolve a valid definition of source diffusion.

    Args:
        definition: What the file holds.
        scale: smoke, quick or paper.
        data: embedded or published.
        sources: The known datasets, and where each comes from.
        source: The file, as the user knows it.

    Returns:
        The definition with the scale's values, every default, and the name of one `base`; without
        `scales`.

    Raises:
        InputError: A value of the scale is not allowed, or values do not go together.
    """
    schema = load_schema("dataset")
    document = copy.deepcopy({k: v for k, v in definition.items() if k != "scales"})
    override = definition.get("scales", {}).get(scale, {})
    for key, value in override.items():
        is_section = key in _SECTIONS and isinstance(value, dict)
        document[key] = {**document.get(key, {}), **value} if is_section else value
    where = f"{source} (scale {scale})" if override else source
    check(document, schema, where)
    if isinstance(document["base"], dict):
        document["base"] = document["base"][data]
    chosen = document.get("sampling", {})
    own = schema["$defs"]["diffusion"]
    document = dict(as_declared(fill_defaults(document, own, schema), own, schema))
    _check_base(document["base"], sources, where)
    if document["process"]["last_beta"] < document["process"]["first_beta"]:
        raise InputError(
            f"{where}: process.last_beta: {document['process']['last_beta']}; allowed: at least "
            f"first_beta, {document['process']['first_beta']}"
        )
    _check_sampling(document, chosen, where)
    if document["num_images"] % document["num_shards"]:
        raise InputError(
            f"{where}: num_images: {document['num_images']}; allowed: a multiple of num_shards, "
            f"{document['num_shards']}"
        )
    return document


def _check_base(base: str, sources: Mapping[str, str], where: str) -> None:
    usable = [name for name, source in sources.items() if source != "diffusion"]
    if base not in usable:
        raise InputError(
            f"{where}: base: {base!r} is no dataset to learn from; allowed: {_names(usable)}"
        )


def _check_sampling(document: Mapping[str, Any], chosen: Mapping[str, Any], where: str) -> None:
    sampling, num_steps = document["sampling"], document["process"]["num_steps"]
    if sampling["sampler"] == "ddpm":
        for key in ("num_steps", "eta"):
            if key in chosen:
                raise InputError(
                    f"{where}: sampling.{key}: {describe_value(chosen[key])} is not allowed; "
                    "allowed: nothing with ddpm, which takes every step of the process"
                )
    elif sampling["num_steps"] > num_steps:
        raise InputError(
            f"{where}: sampling.num_steps: {sampling['num_steps']}; allowed: at most "
            f"process.num_steps, {num_steps}"
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none is defined"
