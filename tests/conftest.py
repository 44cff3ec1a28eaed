"""What every test may rely on: a clean environment, how a missing tool is treated, and which tiers must have run."""

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from tests.privileges import keep_a_root_thread, make_removable, obey_file_modes

pytest_plugins = ["tests.fakes.fixtures"]

IN_CI = os.environ.get("CI") == "true"

REQUIRED_TIERS = {
    "s3_real": "a real S3 server (SeaweedFS)",
    "kube": "a real Kubernetes cluster",
    "kube_api": "a real Kubernetes API server",
}
"""Marker and what it stands for: a run under CI=true that was to run one, and in which no test of it passed, fails."""

_passed_of_tier: Counter[str] = Counter()

_NOT_THE_DEVELOPERS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9",  # the discard port: refused at once
    "HF_HOME": "/nonexistent",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "*",
}

hypothesis.settings.register_profile("developer", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if IN_CI else "developer")


def _forget_the_developers_settings() -> None:
    """No test, and no process that one starts, sees the developer's credentials, mirrors or proxies."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "HUGGING", "CACHEAGENT_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(_NOT_THE_DEVELOPERS)


keep_a_root_thread()
obey_file_modes()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background begins with it ignored
_forget_the_developers_settings()  # now, since some libraries read their variables when they are imported


def missing(what: str, reason: str) -> NoReturn:
    """Ends the test that can't run here: a skip on a developer's machine, a failure under CI=true."""
    sentence = f"{what} is missing: {reason}"
    if IN_CI:
        pytest.fail(f"{sentence} (CI=true, so this is a failure and not a skip)", pytrace=False)
    pytest.skip(sentence)


def require(tool: str, reason: str) -> Path:
    """The path of a command, or `missing`.

    Looked for beside the running Python (packages bring some), on PATH, and in /usr/sbin (Debian's servers).
    """
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    found = shutil.which(tool, path=os.pathsep.join(places))
    if found is None:
        missing(f"the command {tool!r}", reason)
    return Path(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need Kubernetes' programs come last: these are built while the others run.

    The time-out of such a test doesn't count how long the build and the start of a cluster take, which have limits of
    their own.
    """
    items.sort(key=lambda item: [item.get_closest_marker(tier) is not None for tier in ("kube", "kube_api")])
    for item in items:
        needs_build = item.get_closest_marker("kube") or item.get_closest_marker("kube_api")
        if needs_build and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Counts what passed in each required tier."""
    report = yield
    if report.when == "call" and report.passed:
        _passed_of_tier.update(tier for tier in REQUIRED_TIERS if item.get_closest_marker(tier))
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` names the tiers of each of its runs."""
    says = "under CI=true fail when no test of this tier passed (may be given several times)"
    parser.addoption("--require-tier", action="append", default=[], choices=sorted(REQUIRED_TIERS), help=says)


def _tiers_that_did_not_run(config: pytest.Config) -> list[str]:
    return [tier for tier in config.getoption("--require-tier") if IN_CI and not _passed_of_tier[tier]]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """pytest's own, which removes the folder of a test that passed: whole, since published models are read-only.

    All tests together write 20 GB there.
    """
    yield tmp_path
    make_removable(tmp_path)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A green run that left out a required tier is not green."""
    if exitstatus == pytest.ExitCode.OK and _tiers_that_did_not_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says how many tests of each required tier passed; `.ci/run` reads these lines."""
    for tier, meaning in REQUIRED_TIERS.items():
        terminalreporter.write_line(f"required tier {tier}: {_passed_of_tier[tier]} passed ({meaning})")
    for tier in _tiers_that_did_not_run(config):
        terminalreporter.write_line(f"ERROR: no test of the required tier {tier} passed, and CI=true", red=True)
