"""YAML that gives only what JSON has, and refuses what contradicts itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; no two places of it share a mapping or a list, as they do in YAML with anchors.

    A date stays the text that it is, as the Prefect form sends it. Raises `yaml.YAMLError`, also for a key that stands twice.
    """
    try:
        return _unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise yaml.YAMLError("it holds itself, or is nested too deeply; write it out") from None


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unshared(item) for name, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, line in _keys(node):
            if key in lines:
                raise yaml.YAMLError(f"'{key}' stands there twice (lines {lines[key]} and {line}); put both into one")
            lines[key] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _keys(node: yaml.MappingNode) -> Iterator[tuple[str, int]]:
    """The keys of a mapping as written, with their lines; not what it merges in from anchors."""
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            yield key.value, key.start_mark.line + 1
