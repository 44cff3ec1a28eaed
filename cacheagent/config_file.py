"""Reads the agent's configuration file, `models.yaml`: once, strictly.

An unknown key, a repeated key or a wrong value is refused with file, line, key and what was expected: a typing error
that is silently a default costs somebody a night.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from cacheagent.config import AgentConfig
from cacheagent.errors import ConfigError, UsageError
from cacheagent.model import Value

T = TypeVar("T", bound=Value)

DOCUMENTED_IN: Final = "docs/configuration.md"
_TAKES_DEFAULTS: Final = ("source", "policy")
"""Keys of a model whose own keys take defaults one by one."""


def load_config(path: Path) -> AgentConfig:
    """Read and judge the file. Raises ConfigError naming file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read: {error}", hint="give the configuration file with --config; see examples/models.yaml"
        ) from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> AgentConfig:
    """The configuration in `text`; `path` is where it came from, for messages and relative paths."""
    tree, written = compose(text, path, such_as="root and models")
    config = convert(_with_defaults(written, path), tree, path, AgentConfig)
    _refuse_repeated_names(config, path)
    return config


def compose(text: str, path: Path, *, such_as: str) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """The keys of a YAML file, and the tree that knows their lines. Raises ConfigError, also for a repeated key."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or error
        raise ConfigError(f"{at}: not valid YAML: {what}", hint="check indentation and quotes there") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys such as {such_as} at the top level", hint=_see_documentation())
    _refuse_repeated_keys(tree, path)
    return tree, written


def convert(written: dict[str, Any], tree: yaml.MappingNode, path: Path, kind: type[T]) -> T:
    """The same as a value, strictly. Raises ConfigError naming line and key."""
    try:
        return msgspec.convert(written, kind, dec_hook=_decode_hook(path.parent))
    except msgspec.ValidationError as error:
        raise _explained(error, path, tree) from error
    except UsageError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def _with_defaults(written: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same with `defaults` under every model, a short `source` written out, relative paths made absolute."""
    written = dict(written)
    defaults = written.pop("defaults", None) or {}
    models = written.get("models") or []
    if not isinstance(defaults, dict) or not isinstance(models, list):
        wrong = "models: expected a list" if isinstance(defaults, dict) else "defaults: expected keys of a model"
        raise ConfigError(f"{path}: {wrong}", hint=_see_documentation())
    if names := {"name", "pin", "digest", "content_digest"} & defaults.keys():
        raise ConfigError(
            f"{path}: defaults: {names.pop()} can't have a default", hint="write it at each model that it is meant for"
        )
    written["models"] = [_with_model_defaults(model, defaults, path.parent) for model in models]
    if isinstance(written.get("root"), str):
        written.setdefault("socket", str(Path(written["root"]) / "agent.sock"))
    return written


def _with_model_defaults(model: Any, defaults: Mapping[str, Any], base: Path) -> Any:
    if not isinstance(model, dict):
        return model  # refused later, with its place
    merged = {**defaults, **model}
    for key in _TAKES_DEFAULTS:
        own, default = model.get(key), defaults.get(key)
        if key == "source" and isinstance(own, str):
            own = merged[key] = {"uri": own}
        if isinstance(own, dict) and isinstance(default, dict):
            merged[key] = {**default, **own}
    source = merged.get("source")
    if isinstance(source, dict) and isinstance(source.get("ca_bundle"), str) and source["ca_bundle"]:
        merged["source"] = {**source, "ca_bundle": str(base / source["ca_bundle"])}
    return merged


def _decode_hook(base: Path) -> Any:
    def decode(wanted: type, written: Any) -> Any:
        if wanted is Path:
            if not isinstance(written, str) or not written:
                raise ValueError(f"expected a path, got {written!r}")
            return (base / Path(written).expanduser()).absolute()
        return wanted.parse(written)  # type: ignore[attr-defined]  # Size, Rate, Duration, Fraction, Address

    return decode


def _explained(error: msgspec.ValidationError, path: Path, tree: yaml.Node) -> ConfigError:
    """msgspec says `<what> - at `$.models[0].priority``; a person wants file, line and key first."""
    what, _, place = str(error).partition(" - at `$")
    steps = re.findall(r"[^.\[\]`]+", place)
    unknown = re.search(r"unknown field `(.+?)`", what)
    line = _line(tree, [*steps, unknown[1]] if unknown else steps)
    key = place.rstrip("`").lstrip(".")
    at = f"{path}, line {line}" + (f", {key}" if key else "")
    return ConfigError(f"{at}: {what[:1].lower()}{what[1:]}", hint=_see_documentation())


def _line(node: yaml.Node, steps: list[str]) -> int:
    """Line (from 1) of the deepest node on the way; what a default brought in is found at its model."""
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == step), None)
            if found is None:
                break
            node = found[1] if step != steps[-1] else found[0]
        elif isinstance(node, yaml.SequenceNode) and step.isdigit():
            node = node.value[int(step)]
    return int(node.start_mark.line) + 1


def _refuse_repeated_keys(tree: yaml.Node, path: Path) -> None:
    """YAML lets the last of two equal keys win in silence."""
    for mapping in _mappings(tree, seen=set()):
        counted = Counter(key.value for key, _ in mapping.value if isinstance(key, yaml.ScalarNode))
        for key, _ in reversed(mapping.value):
            if isinstance(key, yaml.ScalarNode) and counted[key.value] > 1:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}, line {line}: the key {key.value} is there twice", hint="keep one of them")


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _mappings(part, seen)


def _refuse_repeated_names(config: AgentConfig, path: Path) -> None:
    for name, count in Counter(spec.name for spec in config.models).items():
        if count > 1:
            raise ConfigError(f"{path}: {count} models are named {name}", hint="names are what people ask by: one each")


def _see_documentation() -> str:
    return f"{DOCUMENTED_IN} lists every key"
