"""`kill -9` at random instants of a pull: nothing is lost but the pieces in flight, and nobody has to help."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cacheagent.model import MIB, PIECE_SIZE_BYTES, piece_range
from tests.fakes.exchange import Request
from tests.fakes.origin import Origin
from tests.fakes.transfer import random_bytes
from tests.faults.scene import Listing, claims, look, put_model, tree_of

KILLS = 15
"""For each of the two ways to fetch: thirty in all."""
CONNECTIONS = 3
BYTES_PER_S = 160e6
"""Slow enough that a pull lasts longer than its process takes to start."""
FILES = {
    "model-1.bin": random_bytes(3 * PIECE_SIZE_BYTES + 5000, 1),
    "model-2.bin": random_bytes(5 * PIECE_SIZE_BYTES + 7000, 2),
    "config.json": b"{}",
    **{f"small/{number}.txt": b"%d" % number * 1000 for number in range(20)},
}
SIZE_BYTES = sum(map(len, FILES.values()))
SMALL_BYTES = sum(len(content) for content in FILES.values() if len(content) < MIB)
PATIENCE_S = 60.0


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(bytes_per_s=BYTES_PER_S) as server:
        yield server


class Pull:
    """`cacheagent pull` as a process, and what it asked of the origin."""

    def __init__(self, origin: Origin, root: Path, name: str) -> None:
        self._origin = origin
        self._asked_before = len(origin.requests)
        self._sent_before = origin.body_bytes_sent()
        command = [sys.executable, "-m", "cacheagent", "pull", f"{origin.url}/{name}/", "--kind", "tree"]
        self._process = subprocess.Popen(
            [*command, "--root", str(root), "--connections", str(CONNECTIONS)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "HOME": str(root.parent)},
        )

    @property
    def asked(self) -> list[Request]:
        """So far, for the model's large files."""
        return [each for each in self._origin.requests[self._asked_before :] if each.method == "GET" and each.range]

    def kill_at(self, instant: Instant, missing_bytes: int) -> bool:
        """False when it was done before."""
        deadline = time.monotonic() + PATIENCE_S
        wanted = self._sent_before + instant.of_what_is_missing * missing_bytes
        while self._origin.body_bytes_sent() < wanted and self._process.poll() is None:
            assert time.monotonic() < deadline, "nothing came any more"
            time.sleep(0.002)
        time.sleep(instant.and_s)
        workers = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.kill()  # the parent alone
        killed = self._wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(workers, PATIENCE_S)
        assert not alive, "workers outlived the process that started them"
        return killed

    def finish(self) -> None:
        """To its end, by itself."""
        assert self._wait() == 0

    def _wait(self) -> int:
        _, said = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode in {0, -signal.SIGKILL}, said.decode()
        return self._process.returncode


@dataclass(frozen=True)
class Instant:
    """When this part of what was missing at the start has been sent, and then so many seconds later."""

    of_what_is_missing: float
    and_s: float


def random_instants(seed: int) -> Iterator[Instant]:
    """Anywhere from the start of the interpreter to the moment after the publish, mostly in mid-transfer."""
    chance = random.Random(seed)
    while True:
        yield chance.choice(
            [
                Instant(0, chance.uniform(0, 1.0)),
                Instant(chance.uniform(0, 0.8), chance.uniform(0, 0.1)),
                Instant(chance.uniform(0, 0.8), chance.uniform(0, 0.1)),
                Instant(1.0, chance.uniform(0, 0.1)),
            ]
        )


def journalled(root: Path) -> set[tuple[int, int]]:
    """(size of the file, piece) of all that is on disk and claimed."""
    staged = [path.parent for path in (root / "staging").glob("*/data")]
    return {((path / "data").stat().st_size, index) for path in staged for index in claims(path)}


def assert_visible_is_whole(root: Path) -> None:
    """I1, at any instant."""
    for tree in (root / "models").glob("*"):
        assert tree_of(root, tree.name) == FILES


def asked_twice_bytes(requests: list[Request]) -> int:
    """Of pieces that one process asked for a second time, because they were late: hedges are no loss by a kill."""
    times = Counter((each.path, each.range) for each in requests)
    return sum(each.body_bytes_sent for each in requests if times[each.path, each.range] > 1)


def settle(origin: Origin) -> None:
    """Until nothing is sent any more. (A connection whose client was killed may stay for a minute, silent.)"""
    before = -1
    while before != (before := origin.body_bytes_sent()):
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("listing", "seed"), [("sums", 20250101), ("index", 20250202)])
def test_kill_at_random_instants(tmp_path: Path, origin: Origin, listing: Listing, seed: int) -> None:
    """What a journal claims is never asked for again; a kill costs the pieces in flight at most; trees are equal."""
    root, instants = tmp_path / "cache", random_instants(seed)
    sizes = {path: len(content) for path, content in FILES.items()}
    kills = models = hedged = 0
    where: Counter[str] = Counter()
    done: set[tuple[int, int]] = set()

    def check_asked(pull: Pull) -> None:
        for request in pull.asked:
            size = sizes[request.path.partition("/")[2].partition("/")[2]]
            assert request.range is not None
            first, stop = request.range
            wanted = {
                (size, index) for index in range(first // PIECE_SIZE_BYTES, -(-(stop or size) // PIECE_SIZE_BYTES))
            }
            assert not wanted & done, f"{request.path} {request.range} was on disk: {sorted(done)}"

    def account(pull: Pull) -> None:
        nonlocal hedged
        settle(origin)
        check_asked(pull)
        hedged += asked_twice_bytes(pull.asked)

    while kills < KILLS:
        models += 1
        name = f"model-{models}"
        put_model(origin, name, FILES, listing)
        finished, done = False, set()
        while not finished and kills < KILLS:
            pull = Pull(origin, root, name)
            missing_bytes = SIZE_BYTES - sum(piece_range(size, index)[1] for size, index in done)
            finished = not pull.kill_at(next(instants), missing_bytes)
            kills += not finished
            account(pull)
            if root.exists():
                assert_visible_is_whole(root)
                before, done = done, journalled(root)
                assert before <= done or len(look(root).models) == models, "what was proved is lost"
                where["started" if not pull.asked else "nothing new" if done <= before else "pieces"] += 1
        if not finished:
            last = Pull(origin, root, name)
            last.finish()
            account(last)

    found = look(root)
    assert len(found.models) == len(found.records) == models
    assert_visible_is_whole(root)
    assert (found.staged, found.small, found.trees, found.scratch) == ({}, (), 0, 0)
    assert {path.stat().st_mode & 0o777 for path in (root / "models").rglob("*") if path.is_file()} == {0o444}
    sent = sum(origin.body_bytes_sent(f"model-{number}/{path}") for number in range(1, models + 1) for path in FILES)
    lost_bytes = sent - models * SIZE_BYTES - hedged
    assert lost_bytes <= kills * (CONNECTIONS * PIECE_SIZE_BYTES + SMALL_BYTES)
    assert where["pieces"] >= 3, f"these kills came at the wrong moments: {where}"
