"""The agent's configuration file, `models.yaml`: parsed once, strictly, into frozen values.

Keys in the file have no units because their values carry them (`floor: 10GiB`); the fields here have them because
plain numbers don't. An unknown key, a repeated key or a wrong value is refused with file, line, key and what was
expected: a typing error that is silently a default costs somebody a night.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
import yaml

from cacheagent.errors import ConfigError, UsageError
from cacheagent.model import Value
from cacheagent.quantity import Duration, Rate, Size
from cacheagent.spec import ModelSpec

DOCUMENTED_IN: Final = "docs/configuration.md"
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})")
_TAKES_DEFAULTS: Final = ("source", "policy")
"""Keys of a model whose own keys take defaults one by one."""


class Address(str):
    """`host:port` to listen on, or empty for none."""

    __slots__ = ()

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `127.0.0.1:9471`, `[::1]:9471` or an empty string. Raises ValueError that says what is expected."""
        if isinstance(written, str) and (not written or cls._valid(written)):
            return cls(written)
        raise ValueError(f"expected host:port such as 127.0.0.1:9471, or '' for none, got {written!r}")

    @staticmethod
    def _valid(written: str) -> bool:
        match = _ADDRESS.fullmatch(written)
        return match is not None and int(match[1]) <= 65535

    @property
    def host(self) -> str:
        """Name or address, without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP port; 0 lets the system choose."""
        return int(self.rpartition(":")[2])


class Fraction(float):
    """A part of a whole, between 0 and 1."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read `90%` or `0.9`. Raises ValueError that says what is expected."""
        if isinstance(written, str) and re.fullmatch(r"\d+(\.\d+)?%", written):
            written = float(written[:-1]) / 100
        if isinstance(written, int | float) and not isinstance(written, bool) and 0 <= written <= 1:
            return cls(written)
        raise ValueError(f"expected a part of the whole such as 90% or 0.9, got {written!r}")


class StoreSettings(Value):
    """How much of the disk is used.

    `floor_bytes` (`floor`, bytes, default 10GiB): free space of the filesystem that is never used. Where the cache
    shares a filesystem with the kubelet it must be above the kubelet's own eviction thresholds (10 % of the node's
    filesystem, 15 % of the image filesystem by default). Chosen: enough for logs and images on a disk of its own.

    `high_watermark` (part of what may be used, default 95%): when the cache is fuller than this, it is brought down
    to `low_watermark` (default 90%) in the background, so that the next model need not wait for an eviction. Chosen.

    `scrub_period_s` (`scrub_period`, seconds, default 7d, 0 = never): how long one re-reading of everything at rest
    takes. Disks lose bits silently; a week bounds how long a lost bit stays unseen. Chosen.

    `boot_grace_s` (`boot_grace`, seconds, default 10m): how long after a boot nothing is evicted to make room: nobody
    knows yet what is mounted. The kubelet takes at most 5 minutes between two calls for a volume.

    `quarantine_bytes` (`quarantine`, bytes, default 10GiB): how much is kept, for the operator, of files that rotted
    beyond repair; the oldest go first. Chosen: a few shards.
    """

    floor_bytes: Size = msgspec.field(default=Size(10 * 2**30), name="floor")
    high_watermark: Fraction = Fraction(0.95)
    low_watermark: Fraction = Fraction(0.90)
    scrub_period_s: Duration = msgspec.field(default=Duration(7 * 86400), name="scrub_period")
    boot_grace_s: Duration = msgspec.field(default=Duration(600), name="boot_grace")
    quarantine_bytes: Size = msgspec.field(default=Size(10 * 2**30), name="quarantine")

    def __post_init__(self) -> None:
        if self.low_watermark > self.high_watermark:
            raise ValueError("expected low_watermark to be at most high_watermark")


class TransferSettings(Value):
    """How bytes travel.

    `workers` (processes, default 0 = one for each CPU, at most 8): more CPUs than one are only used by more workers.

    `connections` (to one origin, default 0 = adapted to the measured goodput): a fixed number, for experiments.

    `max_connections` (to one origin, default 64): the most that adapting goes up to. Each costs about 4 MB of kernel
    memory and 2 MiB of buffer. Chosen.

    `ingress_cap_bytes_per_s` (`ingress_cap`, bytes a second, default 0 = none): the most that all downloads together
    read from the network, for nodes that share their link with traffic that matters more.

    `idle_timeout_s` (`idle_timeout`, seconds, default 30s): a connection that brings nothing for so long is given up
    and its piece asked for again. Longer than any healthy origin pauses. Chosen.

    `give_up_after_s` (`give_up_after`, seconds, default 5m): a job fails when its origin brings nothing at all for so
    long; a configured model is tried again later by itself. Longer than a rolling restart of a store. Chosen.
    """

    workers: int = 0
    connections: int = 0
    max_connections: int = 64
    ingress_cap_bytes_per_s: Rate = msgspec.field(default=Rate(0), name="ingress_cap")
    idle_timeout_s: Duration = msgspec.field(default=Duration(30), name="idle_timeout")
    give_up_after_s: Duration = msgspec.field(default=Duration(300), name="give_up_after")

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("connections", 0), ("max_connections", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"expected {key} to be {least} or more, got {getattr(self, key)}")
        if self.idle_timeout_s <= 0 or self.give_up_after_s <= 0:
            raise ValueError("expected idle_timeout and give_up_after to be longer than 0")


class LogSettings(Value):
    """What is written to standard error.

    `format` (default `auto`: `human` on a terminal, else `json`): one event a line in both.

    `level` (default `info`): the least important events that are written.
    """

    format: Literal["auto", "human", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class AgentConfig(Value):
    """One node's agent.

    `root` (required): the cache directory, on one filesystem; made if it is not there. A relative path here, for
    `socket` and for a model's `ca_bundle` is taken from the directory of the file.

    `socket` (default `<root>/agent.sock`): the unix socket of the API, mode 0660. Not longer than 107 bytes, which is
    what Linux allows.

    `listen` (default 127.0.0.1:9471, empty = none): TCP address of `/healthz`, `/readyz` and `/metrics`, and of
    nothing else. Loopback unless somebody says otherwise, because it has no authentication. The port is chosen.

    `store`, `transfer`, `logs`: see StoreSettings, TransferSettings, LogSettings.

    `models` (default none): what to keep warm, in any order; `priority` decides who goes first. See ModelSpec.
    """

    root: Path
    socket: Path
    listen: Address = Address("127.0.0.1:9471")
    store: StoreSettings = StoreSettings()
    transfer: TransferSettings = TransferSettings()
    logs: LogSettings = LogSettings()
    models: tuple[ModelSpec, ...] = ()

    def model(self, name: str) -> ModelSpec | None:
        """The configured model of that name."""
        return next((spec for spec in self.models if spec.name == name), None)


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
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or error
        raise ConfigError(f"{at}: not valid YAML: {what}", hint="check indentation and quotes there") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys such as root and models at the top level", hint=_see_documentation())
    _refuse_repeated_keys(tree, path)
    try:
        config = msgspec.convert(_with_defaults(written, path), AgentConfig, dec_hook=_decode_hook(path.parent))
    except msgspec.ValidationError as error:
        raise _explained(error, path, tree) from error
    except UsageError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    _refuse_repeated_names(config, path)
    return config


def _with_defaults(written: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same with `defaults` under every model, a short `source` written out, relative paths made absolute."""
    written = dict(written)
    defaults = written.pop("defaults", None) or {}
    models = written.get("models") or []
    if not isinstance(defaults, dict) or not isinstance(models, list):
        wrong = "models: expected a list" if isinstance(defaults, dict) else "defaults: expected keys of a model"
        raise ConfigError(f"{path}: {wrong}", hint=_see_documentation())
    if names := {"name", "pin"} & defaults.keys():
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
