"""YAML without surprises: 1.2 numbers, only true/false are booleans, no aliases, tags, merges or duplicate keys."""

import re
from typing import Any

import yaml

MAX_DEPTH = 20
MAX_LENGTH = 1_000_000


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader with the hazards removed."""

    def __init__(self, stream: Any) -> None:
        text = stream if isinstance(stream, str) else stream.read()
        if len(text) > MAX_LENGTH:
            raise yaml.YAMLError("a recipe is at most one megabyte")
        super().__init__(text)
        self.depth_now = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, tags and deep nesting while reading."""
        event: Any = self.peek_event()
        if self.check_event(yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse("aliases and anchors are not allowed", event)
        if getattr(event, "tag", None):
            self._refuse(f"tags are not allowed: {event.tag}", event)
        self.depth_now += 1
        if self.depth_now > MAX_DEPTH:
            self._refuse("nested too deeply", event)
        node = super().compose_node(parent, index)
        self.depth_now -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, merge keys and keys that are not words."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value
            if name == "<<":
                self._refuse("merge keys are not allowed", key)
            if name in seen:
                self._refuse(f'the key "{name}" stands twice', key)
            seen.add(name)
        return {str(k): v for k, v in super().construct_mapping(node, deep=True).items()}

    @staticmethod
    def _refuse(problem: str, at: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


StrictLoader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """Line (from 1) of a key in a YAML text, or of the closest parent that exists."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line = None
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == part:
                line, node = key.start_mark.line + 1, value
                break
        else:
            break
    return line
