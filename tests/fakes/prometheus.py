"""A real Prometheus and promtool: rules, scrapes, queries.

with running_prometheus(folder, targets, rules=[…]) as prometheus:
    prometheus.query("up")
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from cacheagent.demo.child import on_free_ports, running_child, wait_until_ready
from tests.conftest import require

REASON: Final = "the Debian package prometheus has it"
READY_TIMEOUT_S: Final = 60.0
Sample = tuple[dict[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is scraped. `address`: host and port; `labels`: what a discovery would give it."""

    job: str
    address: str
    labels: dict[str, str]


class PrometheusRefused(Exception):
    """An expression that it does not take, with its words."""


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[Sample]:
        """Its value now: a vector. Raises PrometheusRefused."""
        found = self.ask("query", query=expression)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def range(self, expression: str, *, seconds: float, step_s: float) -> list[tuple[dict[str, str], list[Any]]]:
        """Its values until now. Raises PrometheusRefused."""
        now = time.time()
        found = self.ask("query_range", query=expression, start=str(now - seconds), end=str(now), step=str(step_s))
        return [(each["metric"], each["values"]) for each in found["result"]]

    def alerts(self, name: str = "") -> list[dict[str, Any]]:
        """What fires, or is about to: all, or those of a name."""
        return [alert for alert in self.ask("alerts")["alerts"] if name in {"", alert["labels"]["alertname"]}]

    def ask(self, what: str, **parameters: str) -> Any:
        """One question to its API. Raises PrometheusRefused."""
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        request = urllib.request.Request(f"{self.url}/api/v1/{what}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusRefused(f"{parameters.get('query', what)}: {error.read().decode()[:500]}") from error

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def running_prometheus(
    folder: Path, targets: Sequence[Target], *, rules: Sequence[Path] = (), interval: str = "1s"
) -> Iterator[Prometheus]:
    """Until the block ends; data and log go to `folder`. Skips the test where the program is missing."""
    program = require("prometheus", REASON)
    jobs = {target.job: [each for each in targets if each.job == target.job] for target in targets}
    scrape_configs = [
        {
            "job_name": job,
            "static_configs": [{"targets": [each.address], "labels": each.labels} for each in members],
        }
        for job, members in jobs.items()
    ]
    with running_with(program, folder, scrape_configs, rules=rules, interval=interval) as prometheus:
        yield prometheus


@contextmanager
def running_with(
    program: Path,
    folder: Path,
    scrape_configs: Sequence[Mapping[str, Any]],
    *,
    rules: Sequence[Path] = (),
    interval: str = "1s",
) -> Iterator[Prometheus]:
    """The same for any program, and for jobs as they are in its configuration file."""
    folder.mkdir(exist_ok=True)
    config = folder / "prometheus.yml"
    content = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": list(scrape_configs),
    }
    config.write_text(yaml.safe_dump(content))
    with on_free_ports(1, partial(_started, program, folder, config)) as prometheus:
        yield prometheus


def _started(program: Path, folder: Path, config: Path, ports: list[int]) -> AbstractContextManager[Prometheus]:
    return _running(program, folder, config, ports[0])


@contextmanager
def _running(program: Path, folder: Path, config: Path, port: int) -> Iterator[Prometheus]:
    command: list[str | Path] = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    prometheus = Prometheus(port)
    with running_child(command, log_path=log) as child:
        wait_until_ready(child, prometheus.is_ready, name="prometheus", log_path=log, timeout_s=READY_TIMEOUT_S)
        yield prometheus


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What it says; fails with its words when it finds fault."""
    program = require("promtool", REASON)
    answer = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def wait_for(condition: Callable[[], bool], what: Callable[[], object], limit_s: float = 60.0) -> None:
    """Until it holds; a failure shows `what`."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)
