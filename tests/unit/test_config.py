"""The configuration file: what it means, what it refuses and in which words, and that every key is documented."""

import re
from pathlib import Path

import msgspec
import pytest

from cacheagent.config import (
    Address,
    AgentConfig,
    LogSettings,
    PageCacheSettings,
    PeersSettings,
    StoreSettings,
    TracingSettings,
    TransferSettings,
)
from cacheagent.config_file import load_config, parse_config
from cacheagent.errors import ConfigError
from cacheagent.model import Value
from cacheagent.quantity import Duration, Fraction, Rate, Size
from cacheagent.spec import ModelSpec, Policy, SourceSpec

REPOSITORY = Path(__file__).parents[2]
FILE = Path("/etc/cacheagent/models.yaml")
MINIMAL = "root: /var/lib/cacheagent\n"


def refused(text: str) -> ConfigError:
    """The error of a file with this text; the same file without its mistake is a test of its own."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, FILE)
    return caught.value


def test_the_least_that_is_needed_is_a_root() -> None:
    """Everything else has a default."""
    config = parse_config(MINIMAL, FILE)
    assert config == AgentConfig(root=Path("/var/lib/cacheagent"), socket=Path("/var/lib/cacheagent/agent.sock"))
    assert config.listen == "127.0.0.1:9471"


def test_units_are_gone_after_parsing() -> None:
    """Written with units, held as plain bytes, bytes a second and seconds."""
    config = parse_config(
        MINIMAL
        + "store: {floor: 50GiB, high_watermark: 80%, low_watermark: 0.7, scrub_period: 14d}\n"
        + "transfer: {workers: 3, connections: 16, ingress_cap: 200MB/s, idle_timeout: 5m}\n",
        FILE,
    )
    assert config.store == StoreSettings(
        floor_bytes=Size(50 * 2**30),
        high_watermark=Fraction(0.8),
        low_watermark=Fraction(0.7),
        scrub_period_s=Duration(14 * 86400),
    )
    assert config.transfer == TransferSettings(
        workers=3,
        connections=16,
        ingress_cap_bytes_per_s=Rate(200_000_000),
        idle_timeout_s=Duration(300),
    )


def test_a_model_may_be_one_line_or_many() -> None:
    """A source is a URI, or keys when there is more to say."""
    config = parse_config(
        MINIMAL
        + """
models:
  - {name: short, source: "s3://bucket/prefix"}
  - name: long
    kind: tree
    priority: 7
    pin: true
    keep_warm: false
    policy: {allow_pickle: true}
    source: {uri: "hf://org/name", revision: main, include: ["*.json"], path_style: true}
""",
        FILE,
    )
    assert config.models == (
        ModelSpec(name="short", source=SourceSpec(uri="s3://bucket/prefix")),
        ModelSpec(
            name="long",
            kind="tree",
            priority=7,
            pin=True,
            keep_warm=False,
            policy=Policy(allow_pickle=True),
            source=SourceSpec(uri="hf://org/name", revision="main", include=("*.json",), path_style=True),
        ),
    )
    assert config.model("long") == config.models[1]
    assert config.model("other") is None


def test_defaults_hold_where_a_model_says_nothing() -> None:
    """Keys of `source` one by one; what a model says itself wins."""
    config = parse_config(
        MINIMAL
        + """
defaults:
  priority: 5
  source: {region: eu-central-1, endpoint: "https://minio:9000", ca_bundle: ca.pem}
models:
  - {name: one, source: "s3://bucket/one"}
  - {name: two, priority: 1, source: {uri: "s3://bucket/two", region: us-east-1}}
""",
        FILE,
    )
    one, two = config.models
    assert (one.priority, one.source.region, one.source.endpoint) == (5, "eu-central-1", "https://minio:9000")
    assert (two.priority, two.source.region, two.source.endpoint) == (1, "us-east-1", "https://minio:9000")
    assert one.source.ca_bundle == "/etc/cacheagent/ca.pem"


def test_relative_paths_are_taken_from_the_files_directory(tmp_path: Path) -> None:
    """Wherever the agent was started."""
    file = tmp_path / "models.yaml"
    file.write_text("root: cache\nsocket: run/agent.sock\n")
    config = load_config(file)
    assert config.root == tmp_path / "cache"
    assert config.socket == tmp_path / "run/agent.sock"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen: 127.0.0.1:1\n", "line 1: object missing required field `root`"),
        ("root: 7\n", "line 1, root: expected a path, got 7"),
        (MINIMAL + "listne: 127.0.0.1:1\n", "line 2: object contains unknown field `listne`"),
        (MINIMAL + "listen: localhost\n", "line 2, listen: expected host:port such as 127.0.0.1:9471"),
        (
            MINIMAL + "store:\n  floor: 10Gb\n",
            "line 3, store.floor: expected a size such as 10GiB or 500MB, got '10Gb'",
        ),
        (MINIMAL + "store: {high_watermark: 190%}\n", "line 2, store.high_watermark: expected a part of the whole"),
        (
            MINIMAL + "store: {high_watermark: 50%, low_watermark: 60%}\n",
            "line 2, store: expected low_watermark to be at most high_watermark",
        ),
        (
            MINIMAL + "transfer:\n  ingress_cap: 200MB\n",
            "line 3, transfer.ingress_cap: expected a rate such as 200MB/s",
        ),
        (MINIMAL + "transfer: {idle_timeout: 30}\n", "line 2, transfer.idle_timeout: expected a duration such as 30s"),
        (
            MINIMAL + "transfer: {idle_timeout: 0s}\n",
            "line 2, transfer: expected idle_timeout and give_up_after to be longer than 0",
        ),
        (
            MINIMAL + "transfer: {max_connections: 0}\n",
            "line 2, transfer: expected max_connections to be 1 or more, got 0",
        ),
        (MINIMAL + "transfer: {workers: -1}\n", "line 2, transfer: expected workers to be 0 or more, got -1"),
        (MINIMAL + "logs: {format: xml}\n", "line 2, logs.format: invalid enum value 'xml'"),
        (MINIMAL + "models:\n  - source: s3://b/p\n", "line 3, models[0]: object missing required field `name`"),
        (
            MINIMAL + "models:\n  - name: a\n    source: s3://b/p\n  - name: A b\n    source: s3://b/p\n",
            "line 5, models[1].name: expected `str` matching regex",
        ),
        (
            MINIMAL + "models:\n  - name: a\n    source: {uri: s3://b/p, regoin: x}\n",
            "line 4, models[0].source: object contains unknown field `regoin`",
        ),
        (MINIMAL + "models: [7]\n", "line 2, models[0]: expected `object`, got `int`"),
        (MINIMAL + "models: {name: a}\n", "models: expected a list"),
        (MINIMAL + "defaults: [1]\n", "defaults: expected keys of a model"),
        (MINIMAL + "defaults: {name: a}\n", "defaults: name can't have a default"),
        (MINIMAL + "root: /elsewhere\n", "line 2: the key root is there twice"),
        (
            MINIMAL + "models:\n  - {name: a, source: s3://b/p}\n  - {name: a, source: s3://b/q}\n",
            "2 models are named a",
        ),
        (
            MINIMAL + "models:\n  - {name: a, source: 'https://me:hunter2@host/x/'}\n",
            "the source's uri holds a user, a password or a query",
        ),
        ("- root\n", "expected keys such as root and models at the top level"),
        ("", "expected keys such as root and models at the top level"),
        ("root: [\n", "line 2: not valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_what_was_expected(text: str, message: str) -> None:
    """File, line and key first; then what is wrong; then where to read on."""
    error = refused(text)
    assert error.message.startswith(str(FILE))
    assert message in error.message
    assert error.hint
    assert error.exit_code == 2
    assert "hunter2" not in str(error)


def test_a_node_s_zone_is_that_of_its_entry() -> None:
    """Others go by the list, so another zone beside it is a mistake; none, or the same, is none."""
    members = "members: [{name: n1, address: '10.0.0.1:7411', zone: a, key: " + "A" * 43 + "=}]"
    for zone in ("", "zone: a,"):
        assert (
            parse_config(f"{{root: /cache, peers: {{name: n1, {zone} {members}}}}}", FILE).peers.members[0].zone == "a"
        )
    assert "this node's zone is 'b'" in refused(f"{{root: /cache, peers: {{name: n1, zone: b, {members}}}}}").message


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """With the option to give it."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml can't be read: .*No such file") as caught:
        load_config(tmp_path / "nowhere.yaml")
    assert "--config" in caught.value.hint


def test_aliases_are_followed_once() -> None:
    """YAML's own way to repeat things works, also where it points at itself."""
    config = parse_config(
        MINIMAL + "models:\n  - {name: a, source: &s {uri: s3://b/p}}\n  - {name: b, source: *s}\n", FILE
    )
    assert config.models[0].source == config.models[1].source
    assert "models[0]" in refused(MINIMAL + "models: &m [*m]\n").message


def test_addresses_and_fractions_say_what_they_are() -> None:
    """IPv6 in brackets, percentages and plain fractions."""
    assert (Address.parse("[::1]:80").host, Address.parse("[::1]:80").port) == ("::1", 80)
    assert (Address.parse("0.0.0.0:9471").host, Address.parse("").strip()) == ("0.0.0.0", "")
    assert Fraction.parse("90%") == Fraction.parse(0.9)
    for wrong in ("host:99999", ":80", "::1:80", 80):
        with pytest.raises(ValueError, match="expected host:port"):
            Address.parse(wrong)


def test_the_example_is_valid() -> None:
    """What people copy from works."""
    config = load_config(REPOSITORY / "examples/models.yaml")
    assert [spec.name for spec in config.models] == ["llama-3-70b", "minilm", "triton-ensemble"]
    assert config.models[0].source.region == "eu-central-1"


SECTIONS: dict[str, type[Value]] = {
    "Top level": AgentConfig,
    "`store`": StoreSettings,
    "`transfer`": TransferSettings,
    "`logs`": LogSettings,
    "`tracing`": TracingSettings,
    "`page_cache`": PageCacheSettings,
    "`peers`": PeersSettings,
    "`models[]`": ModelSpec,
    "`models[].source`": SourceSpec,
}


def test_every_key_is_documented_and_no_other() -> None:
    """Section by section, the documentation's tables have exactly the keys that are parsed."""
    text = (REPOSITORY / "docs/configuration.md").read_text()
    sections = {
        title: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for title, body in re.findall(r"^###? (.+?)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    parsed = {
        title: sorted(field.encode_name for field in msgspec.structs.fields(value)) for title, value in SECTIONS.items()
    }
    sections["Top level"].remove("defaults")  # folded into the models before they are parsed
    assert {title: sorted(keys) for title, keys in sections.items()} == parsed


def test_every_key_is_in_its_docstring() -> None:
    """Unit, default and reason are where the field is."""
    for value in SECTIONS.values():
        for field in msgspec.structs.fields(value):
            if value not in {ModelSpec, SourceSpec} or field.name not in {"name", "source", "kind", "policy"}:
                assert f"`{field.name}`" in re.sub(r"\s+", " ", value.__doc__ or ""), (value, field.name)
