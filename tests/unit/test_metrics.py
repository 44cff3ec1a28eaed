"""Every metric is documented, named by the rules, and counts what it says."""

import re
import runpy
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheagent import __version__
from cacheagent.errors import OriginThrottled, PickleRefused
from cacheagent.kube.metrics import ControllerMetrics
from cacheagent.kube.metrics import table as controller_table
from cacheagent.metrics import MODEL_NAMES, ORIGIN_ERRORS, Metrics, RateSinceLast, Reading, source_kind, table
from cacheagent.progress import JobStatus

REPOSITORY = Path(__file__).parents[2]
LABELS = {"-", "model", "source", "result", "state", "version", "verb", "resource", "condition", "stage"}


def samples(metrics: Metrics, now: Reading | None = None) -> dict[tuple[str, ...], float]:
    """(name, label value, …) in the labels' alphabetical order -> value, of what a scrape reads."""
    found = {}
    for family in text_string_to_metric_families(metrics.render(now or Reading()).decode()):
        for sample in family.samples:
            found[sample.name, *(sample.labels[key] for key in sorted(sample.labels))] = sample.value
    return found


def test_the_documentation_is_what_the_module_says() -> None:
    """docs/metrics.md is generated; this is the comparison."""
    page = runpy.run_path(str(REPOSITORY / "scripts/metrics_table.py"))["document"]()
    assert (REPOSITORY / "docs/metrics.md").read_text() == page, "run python scripts/metrics_table.py"


def test_names_and_labels_follow_the_rules() -> None:
    """One prefix, base units, a meaning for each, and no label that grows with files, pods or URLs."""
    rows = [*table(), *controller_table()]
    assert len(rows) > 60
    for name, kind, _, labels, text in rows:
        assert name.startswith("cacheagent_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|kb|mb|gb|percent|minutes|hours)(_|$)", name), name
        assert set(labels.split(", ")) <= LABELS, name
        assert text[0].isupper() or text[0].isdigit(), name


def test_what_is_documented_is_scraped() -> None:
    """Nothing is only on paper: each name of the table stands in the text, also before anything has happened."""
    scraped = {
        line.split()[2] for line in Metrics().render(Reading()).decode().splitlines() if line.startswith("# TYPE")
    }
    assert scraped == {row[0] for row in table()}
    text = ControllerMetrics().render(leads=True, backlog=0).decode()
    scraped = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert scraped == {row[0] for row in controller_table()}


def series(text: bytes) -> int:
    """How many a scrape makes."""
    return sum(not line.startswith(b"#") for line in text.splitlines())


def test_cardinality_is_bounded() -> None:
    """200 models, each asked for, mounted, waited for and in memory, from every source with every error: less than
    2,500 series, as docs/metrics.md says; and names without end are one label after the first 500."""
    metrics = Metrics()
    names = [f"model-{number}" for number in range(200)]
    now = Reading(
        models_ready=dict.fromkeys(names, True),
        models_by_state={"ready": 200},
        model_sizes=dict.fromkeys(names, 1),
        model_bytes_done=dict.fromkeys(names, 1),
        volumes_waiting=dict.fromkeys(names, 1),
        page_cache_resident=dict.fromkeys(names, 1.0),
    )

    def use(name: str) -> None:
        for hit in (True, False):
            metrics.count_ensure(name, hit=hit)
            metrics.count_mount(name, hit=hit, waited_s=1, size_bytes=1)

    for name in names:
        use(name)
        for uri in ("s3://bucket/x", "hf://org/name", "https://host/x/", "file:///x"):
            for code in ("", *ORIGIN_ERRORS, "no-room"):
                metrics.follow(JobStatus(name=name, uri=uri, phase="failed" if code else "ready", error=code))
            metrics.piece_done(source_kind(uri), 1, 1)
            metrics.retry(source_kind(uri), "reset")
            metrics.hedge(source_kind(uri), won=True)
    two_hundred = series(metrics.render(now))
    assert 200 * 9 < two_hundred < 2500
    for number in range(3 * MODEL_NAMES):
        use(f"on-demand-{number}")
    many = series(metrics.render(now))
    assert many == two_hundred + 4 * (MODEL_NAMES - 200) + 4
    found = samples(metrics, now)
    assert found["cacheagent_volume_mounts_total", "other", "hit"] == 3 * MODEL_NAMES - (MODEL_NAMES - 200)


def test_failures_are_seen_as_an_increase_from_the_first_on() -> None:
    """Prometheus sees no increase in a series that begins at one: whatever alerts look at is there at zero."""
    found = samples(Metrics())
    assert {OriginThrottled.code, PickleRefused.code, "checksum-mismatch", "not-found"} <= set(ORIGIN_ERRORS)
    for source in ("s3", "hf", "https", "posix"):
        for code in (*ORIGIN_ERRORS, "no-room", "ready"):
            assert found["cacheagent_jobs_total", code, source] == 0
    text = ControllerMetrics().render(leads=False, backlog=0).decode()
    for result in ("defect", "malformed", "refused", "patched"):
        assert f'cacheagent_webhook_reviews_total{{result="{result}"}} 0.0' in text


def test_a_configured_model_s_first_mount_is_an_increase() -> None:
    """Its counters stand at zero from the first scrape on."""
    found = samples(Metrics(), Reading(models_ready={"llama": False}))
    assert found["cacheagent_volume_mounts_total", "llama", "hit"] == 0
    assert found["cacheagent_volume_mounts_total", "llama", "miss"] == 0


def test_mounts_are_counted_with_their_bytes_and_waits() -> None:
    """What a hit saved is what would have been fetched."""
    metrics = Metrics()
    metrics.count_mount("llama", hit=True, waited_s=0.2, size_bytes=141)
    metrics.count_mount("llama", hit=False, waited_s=80, size_bytes=141)
    metrics.count_mount("llama", hit=True, waited_s=0.1, size_bytes=141)
    found = samples(metrics)
    assert found["cacheagent_volume_mounts_total", "llama", "hit"] == 2
    assert found["cacheagent_volume_bytes_total", "hit"] == 282
    assert found["cacheagent_volume_bytes_total", "miss"] == 141
    assert found["cacheagent_volume_wait_seconds_sum", "miss"] == 80


def test_readings_are_taken_at_the_scrape() -> None:
    """A gauge is as old as the scrape, never older."""
    now = Reading(
        used_bytes=7,
        floor_bytes=3,
        evictions={"room": 2},
        models_ready={"llama": True, "minilm": False},
        ingress_cap_bytes_per_s=200,
        ingress_bytes_per_s=150.0,
    )
    metrics = Metrics()
    found = samples(metrics, now)
    assert found["cacheagent_store_used_bytes",] == 7
    assert found["cacheagent_store_floor_bytes",] == 3
    assert found["cacheagent_evictions_total", "room"] == 2
    assert found["cacheagent_model_ready", "llama"] == 1
    assert found["cacheagent_model_ready", "minilm"] == 0
    assert found["cacheagent_ingress_cap_utilisation_ratio",] == 0.75
    assert found["cacheagent_build_info", __version__] == 1
    found = samples(metrics, Reading(used_bytes=8))
    assert found["cacheagent_store_used_bytes",] == 8
    assert found["cacheagent_ingress_cap_utilisation_ratio",] == 0


def job(phase: str, *, uri: str = "s3://bucket/llama", error: str = "", **bytes_: int) -> JobStatus:
    """One state of one job."""
    counts = {f"bytes_{name}": count for name, count in bytes_.items()}
    return JobStatus(name="llama", uri=uri, phase=phase, error=error, elapsed_s=42.0, **counts)  # type: ignore[arg-type]


def test_bytes_are_counted_once_however_often_a_job_tells_of_them() -> None:
    """States hold totals; counters take the differences, and a second job starts from nothing."""
    metrics = Metrics()
    for _ in range(2):
        for status in (
            job("resolving"),
            job("fetching", linked=5, kept=2),
            job("fetching", linked=5, kept=2, fetched=10),
            job("fetching", linked=5, kept=2, fetched=10),
            job("ready", linked=5, kept=2, fetched=30),
        ):
            metrics.follow(status)
    found = samples(metrics)
    assert found["cacheagent_model_bytes_total", "fetched", "s3"] == 60
    assert found["cacheagent_model_bytes_total", "kept", "s3"] == 4
    assert found["cacheagent_model_bytes_total", "linked", "s3"] == 10
    assert found["cacheagent_jobs_total", "ready", "s3"] == 2
    assert found["cacheagent_job_duration_seconds_sum", "ready", "s3"] == 84


def test_a_job_that_was_cancelled_does_not_disturb_the_next() -> None:
    """It never tells of its end; the next of that name begins at zero again."""
    metrics = Metrics()
    metrics.follow(job("fetching", fetched=100))
    metrics.follow(job("resolving"))
    metrics.follow(job("ready", fetched=40))
    assert samples(metrics)["cacheagent_model_bytes_total", "fetched", "s3"] == 140


def test_a_failure_is_counted_by_its_code() -> None:
    """And a wrong byte besides, whose counter is there at zero before."""
    metrics = Metrics()
    assert samples(metrics)["cacheagent_verification_failures_total", "checksum-mismatch", "s3"] == 0
    metrics.follow(job("failed", error="checksum-mismatch"))
    metrics.follow(job("failed", error="no-room", uri="hf://org/name"))
    metrics.count_corrupt()
    found = samples(metrics)
    assert found["cacheagent_jobs_total", "checksum-mismatch", "s3"] == 1
    assert found["cacheagent_jobs_total", "no-room", "hf"] == 1
    assert found["cacheagent_verification_failures_total", "checksum-mismatch", "s3"] == 1
    assert found["cacheagent_verification_failures_total", "corrupt", "disk"] == 1
    assert found["cacheagent_job_duration_seconds_count", "failed", "s3"] == 1


def test_the_data_plane_is_counted_as_it_tells() -> None:
    """Each call of the observer moves its own counter."""
    metrics = Metrics()
    metrics.piece_done("s3", 16, 0.5)
    metrics.piece_done("s3", 4, 0)
    metrics.retry("s3", "reset")
    metrics.throttled("s3", 2.5)
    metrics.hedge("s3", won=True)
    metrics.hedge("s3", won=False)
    metrics.worker_lost()
    metrics.worker_abandoned()
    metrics.fallback_buffered(9)
    found = samples(metrics)
    assert found["cacheagent_transfer_bytes_total", "s3"] == 20
    assert found["cacheagent_transfer_piece_duration_seconds_count", "s3"] == 1
    assert found["cacheagent_transfer_retries_total", "reset", "s3"] == 1
    assert found["cacheagent_transfer_throttled_total", "s3"] == 1
    assert found["cacheagent_transfer_throttled_seconds_total", "s3"] == 2.5
    assert found["cacheagent_transfer_hedges_total", "won", "s3"] == 1
    assert found["cacheagent_transfer_hedges_total", "lost", "s3"] == 1
    assert found["cacheagent_transfer_workers_lost_total",] == 1
    assert found["cacheagent_transfer_workers_abandoned_total",] == 1
    assert found["cacheagent_transfer_buffered_bytes_total",] == 9


def test_hits_and_reloads_are_counted() -> None:
    """By model and result, and by result."""
    metrics = Metrics()
    metrics.count_ensure("llama", hit=True)
    metrics.count_ensure("llama", hit=False)
    metrics.count_ensure("llama", hit=True)
    metrics.count_reload("refused")
    found = samples(metrics)
    assert found["cacheagent_ensure_requests_total", "llama", "hit"] == 2
    assert found["cacheagent_ensure_requests_total", "llama", "miss"] == 1
    assert found["cacheagent_config_reloads_total", "refused"] == 1
    assert found["cacheagent_config_reloads_total", "applied"] == 0


def test_a_total_becomes_a_rate() -> None:
    """Over the time since the call before; two scrapes at the same moment see the same."""
    now = 0.0
    rate = RateSinceLast(lambda: now)
    assert rate(0) == 0
    now = 10.0
    assert rate(1000) == 100
    now = 10.5
    assert rate(9999) == 100
    now = 20.0
    assert rate(1000) == 0


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("s3://bucket/prefix", "s3"),
        ("hf://org/name@main", "hf"),
        ("http://host/path/", "https"),
        ("https://host/path/", "https"),
        ("file:///mnt/x", "posix"),
        ("nfs://server/export", "posix"),
        ("secret://token", "other"),
        ("", "other"),
    ],
)
def test_no_uri_invents_a_label(uri: str, kind: str) -> None:
    """A scheme that nobody knows is `other`."""
    assert source_kind(uri) == kind
