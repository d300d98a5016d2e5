"""What every spec is: frozen settings that refuse keys they do not know."""

import json
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

LARGEST = 2**31 - 1
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")  # Python reads '1_0' as 10, '010' as 10


class Spec(BaseModel):
    """Base of all specs: frozen; an unknown key is an error, and so is a number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _numbers_as_written(cls, values: Any, parse: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse `yes` and text such as '1_0' where a number is wanted, which would become 1 and 10, and numbers beyond all use."""
        parsed = parse(values)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            _refuse_guessed(key, value, getattr(parsed, str(key), None))
        return parsed

    def to_json(self) -> str:
        """The spec as canonical JSON: what `--spec` takes and what files record."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def _refuse_guessed(key: object, written: Any, parsed: Any) -> None:
    """Raise ValueError for a number that was made of a boolean, or of text that is not a plain decimal number."""
    if isinstance(written, Mapping) and isinstance(parsed, Mapping):
        for inner in written.keys() & parsed.keys():
            _refuse_guessed(f"{key}.{inner}", written[inner], parsed[inner])
    elif isinstance(written, list | tuple) and isinstance(parsed, list | tuple):
        for pair in zip(written, parsed, strict=False):
            _refuse_guessed(key, *pair)
    elif isinstance(parsed, int | float) and not isinstance(parsed, bool):
        if isinstance(written, bool):
            raise ValueError(f"{key}: {'yes' if written else 'no'} is no number; write the number")
        if isinstance(written, str) and not NUMBER.fullmatch(written):
            raise ValueError(f"{key}: '{written[:80]}' is no number in plain decimal digits, as 0.5 or 1e-4")
        if isinstance(parsed, int) and abs(parsed) > LARGEST:
            raise ValueError(f"{key}: {parsed:.3e} is too large; the largest whole number is {LARGEST}")
    elif isinstance(parsed, str) and "\0" in parsed:
        raise ValueError(f"{key}: the text holds a NUL character (\\0); remove it")
