"""What is wrong with settings, in one line: the first fault that pydantic has found."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mil.errors import nearest
from mil.specs.models import HEAD_SPECS, PRESETS


def first_fault(spec: type[BaseModel], error: ValidationError) -> str:
    """The first fault in one line; unknown keys with the nearest known one."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *parents, key = fault["loc"]
        known = _keys_at(spec.model_json_schema(), [str(part) for part in parents])
        return f"unknown key '{where}'; {nearest(str(key), known)}"
    if unknown := _unknown_name(fault):
        return f"{where}: {unknown}"
    message = fault["msg"].removeprefix("Value error, ")
    for python, yaml_word in {
        "valid tuple": "list, as in [a, b]",
        "valid dictionary": "mapping of keys to values",
    }.items():
        message = message.replace(python, yaml_word)
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
        message += f"; write it in quotes: '{_short(fault['input'])}'"  # YAML takes 1 for a number, and yes for true
    if fault["type"] == "missing":
        return f"key '{where}' is missing"
    if fault["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {_short(fault['input'])} is refused ({message[:1].lower()}{message[1:]})"


def _unknown_name(fault: Any) -> str:
    """Of an unknown name of a head or of a strategy, tissue method, ...: the name and the nearest known one; '' of other faults."""
    given = fault["input"].get("name") if isinstance(fault["input"], dict) else None
    if not isinstance(given, str) or fault["type"] not in {"model", "union_tag_invalid"}:
        return ""
    of_head = fault["type"] == "model"
    known = [*HEAD_SPECS, *PRESETS] if of_head else fault["ctx"]["expected_tags"].strip("'").split("', '")
    near = nearest(given, known)
    return "" if of_head and near.startswith("known") else f"unknown name {_short(given)}; {near}"


def _short(value: Any) -> str:
    """What somebody wrote, at most 80 characters of it."""
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) > 1e15 else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys_at(schema: Mapping[str, Any], path: list[str]) -> list[str]:
    """Known keys of the object at `path` in a JSON schema."""
    definitions = schema.get("$defs", {})

    def resolve(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        options = [*node.get("anyOf", []), *node.get("oneOf", [])]
        return [leaf for option in options for leaf in resolve(option)] or [node]

    nodes = resolve(schema)
    for part in path:
        followed = []
        for node in nodes:
            names = {leaf.get("const"): leaf for leaf in [node.get("properties", {}).get("name", {})]}
            if part in names:  # a tagged union puts its tag into the path
                followed.append(node)
            elif part in node.get("properties", {}):
                followed += resolve(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), Mapping):
                followed += resolve(node["additionalProperties"])
        nodes = followed
    return sorted({key for node in nodes for key in node.get("properties", {})})
