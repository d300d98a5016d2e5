"""Settings of an endpoint: what is predicted, from which columns, and how patients are dealt into folds."""

from typing import Literal

from pydantic import Field, model_validator

from mil.spec import Spec


class EndpointSpec(Spec):
    """What is predicted, from which column, and how patients are split."""

    version: Literal[1] = 1
    kind: Literal["binary", "multiclass", "survival", "regression"] = "binary"
    column: str = "response"
    """Column of the patient table; blank means unknown. Survival: time to the event or to the end of follow-up."""
    positive: tuple[str, ...] = ("1",)
    """Binary: values that mean yes. Survival: values of `event` that mean that it happened."""
    negative: tuple[str, ...] = ("0",)
    """Binary: values that mean no. Survival: values of `event` that mean censored."""
    classes: tuple[str, ...] = ()
    """Multiclass: the values of the column, in the order of the logits."""
    event: str | None = None
    """Survival: column that says whether the event happened."""
    repeats: int = Field(default=1, ge=1, le=100)
    folds: int = Field(default=5, ge=2)
    """Outer folds in every training site, stratified by label; a fold's patients are never seen by its model."""
    inner_folds: int = Field(default=4, ge=2)
    """Inner folds of the training patients, for selection only."""
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self) -> "EndpointSpec":
        if "patient_id" in {self.column, self.event}:
            raise ValueError(
                "column patient_id says who the patient is, so it cannot be predicted; name the column of the label"
            )
        if self.kind == "multiclass" and (
            len(self.classes) < 2 or len(set(map(_value, self.classes))) < len(self.classes)
        ):
            raise ValueError(
                "kind multiclass needs classes: at least two different values of the column (1 and 01 are one)"
            )
        if self.kind == "survival" and self.event is None:
            raise ValueError("kind survival needs event: the column that says whether the event happened")
        if self.kind in {"binary", "survival"}:
            self._check_values()
        return self

    def _check_values(self) -> None:
        """Each value of the column means one thing; a blank means unknown already."""
        for key, values in (("positive", self.positive), ("negative", self.negative)):
            if not values or not all(value.strip() for value in values):
                raise ValueError(f"{key} needs the values of the column that it stands for, none of them blank")
        if both := sorted(set(self.positive) & set(self.negative)):
            raise ValueError(f"'{both[0]}' is both positive and negative; leave it in one of them")


def _value(name: str) -> str | float:
    """A class as a number where it is one."""
    try:
        return float(name)
    except ValueError:
        return name
