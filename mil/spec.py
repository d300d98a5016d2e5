"""What every spec is: frozen settings that refuse keys they do not know."""

import json

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Base of all specs: frozen; an unknown key is an error, and so is a number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """The spec as canonical JSON: what `--spec` takes and what files record."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)
