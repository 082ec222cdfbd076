"""Checks of the values of a config against types: of constructor arguments, and of the schema."""

import inspect
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig

from latentfaces.config.overrides import leaves_of
from latentfaces.errors import UserError


def check_types(node: Any, key: str = "", shared: Container[str] = ()) -> None:
    """Compare each value of each `_target_` in the config with the type of the constructor's argument.

    Args:
        node: the config.
        key: its own key.
        shared: arguments that messages name without `key`, as the user gives them.

    Raises:
        UserError: naming key, value and what is expected.
    """
    if isinstance(node, Mapping):
        hints = type_hints(node["_target_"]) if "_target_" in node else {}
        for name, value in node.items():
            path = f"{key}.{name}" if key and name not in shared else str(name)
            if name in hints and not isinstance(value, Mapping):
                check_value(path, value, hints[name])
            else:
                check_types(value, path)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, value in enumerate(node):
            check_types(value, f"{key}[{index}]")


def check_value(key: str, value: Any, valid: Any) -> None:
    """Check one value against a pydantic type.

    Raises:
        UserError: naming key, value and what is expected.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        # In a tuple, since pydantic takes no config for a dataclass itself.
        TypeAdapter(tuple[valid], config=ConfigDict(arbitrary_types_allowed=True)).validate_python((value,))
    except ValidationError as error:
        if any(problem["type"] == "sequence_str" for problem in error.errors()):
            raise UserError(f"{key}={value} is not a list. Write '{key}=[{value}]'.") from None
        first, *others = dict.fromkeys(problem["msg"] for problem in error.errors())
        expected = ", or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
        raise UserError(f"{key}={value} is invalid: {expected[0].lower()}{expected[1:]}.") from None


def check_keys(cfg: DictConfig, schema: Any) -> None:
    """Check the top-level and `trainer.*` keys against the valid values that the schema states.

    Raises:
        UserError: naming key, value and what is expected; or a key that was added with a plus; or a number that is
            not finite.
    """
    check_fields(cfg, schema)
    for key, value in leaves_of(cfg):
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{key}={value} is invalid: a number must be finite.")


def check_fields(cfg: DictConfig, schema: Any, prefix: str = "") -> None:
    """Check the fields of a schema, and those of the schemas within it."""
    fields = schema.__dataclass_fields__
    for name in map(str, cfg):
        if name not in fields and name != "hydra":
            raise UserError(f"Unknown key {prefix}{name}.")
    for name, field in fields.items():
        if is_dataclass(field.default_factory):
            check_fields(cfg[name], field.default_factory, f"{name}.")
        elif "valid" in field.metadata:
            check_value(prefix + name, cfg[name], field.metadata["valid"])


def type_hints(target: str) -> dict[str, Any]:
    """Return the types of the arguments of one of our classes or class methods; of others, none."""
    if not target.startswith("latentfaces."):
        return {}
    made = get_object(target)
    factory: Any = made.__self__ if inspect.ismethod(made) else made  # **options of a class method go to __init__
    hints = get_type_hints(factory.__init__, include_extras=True)
    return hints | get_type_hints(made, include_extras=True) if inspect.ismethod(made) else hints
