"""YAML text -> values, without what YAML 1.1 guesses: a key twice, `010` (8), `1:30` (90), `1_0` (10) are refused with their line."""

import re
from typing import Any

import yaml

from mil.errors import MilError

MOST_VALUES = 100_000  # after aliases are written out; a cohort's settings have some hundreds
MOST_DIGITS = 30
INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
PLAIN_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


def load_yaml(text: str, where: str) -> Any:
    """The values of one YAML document; a `MilError` of one line that names `where`, the line and the way out."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(root, where)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise MilError(f"{where} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise MilError(f"{where} is nested too deep; settings have at most some ten levels") from error
    except ValueError as error:  # a date that is none, e.g. 2024-13-01
        raise MilError(f"{where} is not valid YAML: {str(error)[:200]}; put the value in quotes") from error


def _check(root: yaml.Node, where: str) -> None:
    """Refuse doubled keys, numbers that are read otherwise than they look, and aliases without end."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise MilError(f"{where}{_line(node)}: an alias holds itself; write the values out")
        if id(node) not in sizes:
            children = _children(node, where)
            sizes[id(node)] = 1 + sum(size(child, above | {id(node)}) for child in children)
            if sizes[id(node)] > MOST_VALUES:
                raise MilError(
                    f"{where}{_line(node)}: more than {MOST_VALUES:,} values; write the aliases (`*name`) out"
                )
        return sizes[id(node)]

    size(root, frozenset())


def _children(node: yaml.Node, where: str) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, Any], yaml.Node] = {}
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise MilError(
                    f"{where}{_line(key)}: key '{key.value[:80]}' stands in{_line(seen[name])} already; keep one"
                )
            if name is not None:
                seen[name] = key
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if node.tag in {INTEGER, FLOAT} and not PLAIN_NUMBER.fullmatch(node.value):
        raise MilError(
            f"{where}{_line(node)}: {node.value[:80]} is read by YAML as another number than it looks; write it in decimal "
            "digits alone, or in quotes if it is text"
        )
    if node.tag == INTEGER and len(node.value) > MOST_DIGITS:
        raise MilError(f"{where}{_line(node)}: a number of {len(node.value):,} digits; no setting is so large")
    return []


def _line(node: yaml.Node) -> str:
    return f" line {node.start_mark.line + 1}"
