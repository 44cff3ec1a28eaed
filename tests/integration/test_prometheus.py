"""A real Prometheus scrapes a real agent and a real controller: every expression of every dashboard and alert has an
answer there, faults that are made show, and promtool finds nothing wrong with what is exposed."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.dashboards import Target, has_data, rules, targets
from tests.fakes.monitored import GPUS, Scene, running_scene
from tests.fakes.prometheus import promtool, wait_for

pytestmark = [pytest.mark.kube_api, pytest.mark.slow]

MODELS = "llama|slow|spare|late"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_scene(tmp_path_factory.mktemp("scene")) as running:
        running.play()
        yield running


def test_every_panel_has_data(scene: Scene) -> None:
    """Of every dashboard. None holds a variable that Grafana would have to fill and we forgot."""
    wanted = targets(MODELS)
    assert len(wanted) > 80
    assert not [each for each in wanted if "$" in each.expression]

    def empty() -> list[Target]:
        return [each for each in wanted if not has_data(scene.prometheus, each.expression)]

    wait_for(lambda: not empty(), empty)


def test_every_alert_looks_at_something_that_is_there(scene: Scene) -> None:
    """Each series that an alert or a recording rule names has data: a rule about nothing never fires."""
    for rule in rules():
        selectors = re.findall(r"(?:cacheagent_\w+|cacheagent:[\w:]+|up|DCGM_\w+)(?:\{[^}]*\})?", rule["expr"])
        assert selectors
        for selector in selectors:
            if 'node!=""' not in selector:  # this exporter is one that knows nothing of nodes
                wait_for(lambda: has_data(scene.prometheus, selector), lambda: (rule.get("alert"), selector))  # noqa: B023


def test_alerts_see_the_faults_that_were_made(scene: Scene) -> None:
    """Wrong bytes, missing models, a degraded model and a review that is none; with texts that name what is meant.
    Nothing is said of what is well."""

    def seen() -> set[tuple[str, str]]:
        return {(each["labels"]["alertname"], each["labels"].get("result", "")) for each in scene.prometheus.alerts()}

    made = {
        ("CacheagentVerificationFailure", "checksum-mismatch"),
        ("CacheagentOriginErrors", "not-found"),
        ("CacheagentModelDegraded", ""),
        ("CacheagentWebhookDefects", ""),
        ("CacheagentNodeBehind", ""),
    }
    wait_for(lambda: made <= seen(), seen)
    assert seen() <= made | {("CacheagentOriginErrors", "checksum-mismatch")}  # when it was tried often enough
    (wrong,) = scene.prometheus.alerts("CacheagentVerificationFailure")
    assert wrong["state"] == "firing"
    assert wrong["annotations"]["summary"] == "Wrong bytes (checksum-mismatch, https) on n1; they were not served"
    (degraded,) = scene.prometheus.alerts("CacheagentModelDegraded")
    assert (degraded["state"], degraded["annotations"]["summary"]) == ("pending", "Model gone is degraded")


def test_a_broken_connection_is_counted(scene: Scene) -> None:
    """The origin broke one off in the middle of a file; the model came all the same."""
    resets = 'sum(increase(cacheagent_transfer_retries_total{source="https", result="reset"}[5m]))'
    wait_for(lambda: scene.prometheus.query(resets)[0][1] > 0.5, lambda: scene.prometheus.query(resets))


def test_gpus_are_joined_with_pods_that_wait(scene: Scene) -> None:
    """Two of four GPUs idle on the node where a volume waits; what hits saved is time of GPUs."""
    prometheus = scene.prometheus
    wait_for(
        lambda: [value for _, value in prometheus.query("cacheagent:gpus_idle_while_pods_wait:count")] == [2],
        lambda: prometheus.query("cacheagent:gpus_idle_while_pods_wait:count"),
    )
    assert prometheus.query("cacheagent:gpus:count")[0][0]["node"] == "n1"
    assert prometheus.query("cacheagent:gpus:count")[0][1] == GPUS
    (saved,) = [each.expression for each in targets(MODELS) if each.panel == "GPU time saved"]
    wait_for(lambda: has_data(prometheus, saved), lambda: prometheus.query(saved))
    assert prometheus.query(saved)[0][1] > 0
    held = prometheus.query("cacheagent_pod_gpu_wait_seconds_total")[0][1]
    assert 8 * 41 <= held <= 8 * 43


def test_promtool_finds_nothing_wrong(scene: Scene) -> None:
    """Names, types, units and help of all that is exposed."""
    (agent,) = scene.agents.values()
    for text in (agent.get("/metrics")[1], scene.controller.metrics()):
        assert promtool("check", "metrics", text=text) == ""


def test_no_secret_and_no_address_is_exposed(scene: Scene) -> None:
    """Labels name models, sources and results; URLs, pods and volumes stay out."""
    (agent,) = scene.agents.values()
    text = agent.get("/metrics")[1] + scene.controller.metrics()
    assert "llama" in text
    for word in ("http://", "127.0.0.1", "hit-n1", "waits-n1", "sha256:", str(Path.home())):
        assert word not in text


def test_an_agent_that_is_gone_is_seen(scene: Scene) -> None:
    """Its end is an alert on its way within a scrape, its return ends it. Last, since it takes the agent away."""
    (agent,) = scene.agents.values()
    query = 'up{component="agent"}'
    agent.send(signal.SIGKILL)
    agent.wait()
    wait_for(lambda: len(scene.prometheus.alerts("CacheagentAgentDown")) == 1, lambda: scene.prometheus.query(query))
    agent.start()
    wait_for(lambda: not scene.prometheus.alerts("CacheagentAgentDown"), lambda: scene.prometheus.query(query))
