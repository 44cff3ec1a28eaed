"""The peers, each by its best known way to fetch a whole prefix, with the settings that a sweep may choose from."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.contestant import Contestant, Settings
from benchmarks.measure import Command
from benchmarks.target import BUCKET, REGION, REVISION, Target

MIB = 1 << 20
PROGRAMS = Path(__file__).parent / "programs"
SCRIPTS = Path(sys.executable).parent


def s5cmd() -> Contestant:
    """s5cmd's own binary, without the Python launcher of its package. It checks nothing."""

    def command(target: Target, into: Path, settings: Settings) -> Command:
        copy = ["cp", "--concurrency", str(settings["concurrency"]), "--part-size", str(settings["part_mib"])]
        connection = ["--endpoint-url", target.endpoint, "--numworkers", str(settings["workers"]), "--log", "error"]
        return Command(
            argv=[str(_s5cmd_binary()), *connection, *copy, f"{target.s3_uri}/*", f"{into}/"], env=target.environment()
        )

    return Contestant(
        name="s5cmd",
        version=lambda: _first_line(str(_s5cmd_binary()), "version"),
        command=command,
        grids={
            "shards": (
                {"workers": 256, "concurrency": 5, "part_mib": 50},
                {"workers": 8, "concurrency": 4, "part_mib": 64},
                {"workers": 4, "concurrency": 4, "part_mib": 16},
            ),
            "small": (
                {"workers": 256, "concurrency": 5, "part_mib": 50},
                {"workers": 64, "concurrency": 1, "part_mib": 50},
                {"workers": 16, "concurrency": 1, "part_mib": 50},
            ),
        },
        find=_plainly,
    )


def rclone() -> Contestant:
    """rclone with multi-thread downloads. The ETags here are no MD5, so it has only sizes to compare."""

    def command(target: Target, into: Path, settings: Settings) -> Command:
        remote = (
            f":s3,provider=Other,env_auth=true,region={REGION},force_path_style=true,list_version=2,"
            f"endpoint='{target.endpoint}':{BUCKET}/{target.prefix}"
        )
        flags = ["--config", "", "--transfers", str(settings["transfers"]), "--checkers", str(settings["transfers"])]
        flags += ["--multi-thread-streams", str(settings["streams"]), "--multi-thread-chunk-size", "64M"]
        flags += ["--buffer-size", f"{settings['buffer_mib']}M", "--stats", "0", "--fast-list"]
        if target.ca_bundle:
            flags += ["--ca-cert", str(target.ca_bundle)]
        return Command(argv=[str(SCRIPTS / "rclone"), "copy", remote, str(into), *flags], env=target.environment())

    return Contestant(
        name="rclone",
        version=lambda: _first_line(str(SCRIPTS / "rclone"), "version"),
        command=command,
        grids={
            "shards": (
                {"transfers": 4, "streams": 4, "buffer_mib": 16},
                {"transfers": 8, "streams": 1, "buffer_mib": 16},
                {"transfers": 8, "streams": 0, "buffer_mib": 0},
            ),
            "small": (
                {"transfers": 32, "streams": 0, "buffer_mib": 0},
                {"transfers": 8, "streams": 0, "buffer_mib": 0},
                {"transfers": 128, "streams": 0, "buffer_mib": 0},
            ),
        },
        find=_plainly,
    )


def awscrt() -> Contestant:
    """The AWS common runtime's S3 client with direct I/O: the fastest peer."""
    return _python_peer(
        "awscrt",
        "awscrt_s3.py",
        package="awscrt",
        shards=(
            {"target_gbps": 10, "part_mib": 8, "files": 8},
            {"target_gbps": 10, "part_mib": 16, "files": 8},
            {"target_gbps": 5, "part_mib": 8, "files": 8},
            {"target_gbps": 5, "part_mib": 32, "files": 8},
            {"target_gbps": 2, "part_mib": 16, "files": 2},
        ),
        small=(
            {"target_gbps": 10, "part_mib": 8, "files": 64},
            {"target_gbps": 100, "part_mib": 8, "files": 256},
            {"target_gbps": 5, "part_mib": 8, "files": 16},
        ),
    )


def boto3() -> Contestant:
    """boto3's `download_file`, several files at once."""
    return _python_peer(
        "boto3",
        "boto3_s3.py",
        package="boto3",
        shards=(
            {"concurrency": 10, "part_mib": 8, "files": 1},
            {"concurrency": 4, "part_mib": 64, "files": 1},
            {"concurrency": 2, "part_mib": 64, "files": 4},
        ),
        small=(
            {"concurrency": 1, "part_mib": 8, "files": 8},
            {"concurrency": 1, "part_mib": 8, "files": 2},
        ),
    )


def huggingface_hub() -> Contestant:
    """`snapshot_download` into its cache, from the Hub server."""

    def command(target: Target, into: Path, settings: Settings) -> Command:
        request = {"repo": target.repo_id, "into": str(into), "workers": settings["workers"]}
        env = target.environment() | {"HF_ENDPOINT": target.hub_endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(into / "home")}
        return Command(
            argv=[sys.executable, str(PROGRAMS / "hub_snapshot.py")], env=env | {"REQUEST": json.dumps(request)}
        )

    def find(into: Path, path: str) -> Path:
        (repository,) = into.glob("models--*")
        return repository / "snapshots" / REVISION / path

    return Contestant(
        name="huggingface_hub",
        version=lambda: importlib.metadata.version("huggingface_hub"),
        command=command,
        grids={"shards": ({"workers": 8}, {"workers": 4}, {"workers": 2}, {"workers": 16})},
        find=find,
    )


def _python_peer(
    name: str, program: str, *, package: str, shards: tuple[Settings, ...], small: tuple[Settings, ...]
) -> Contestant:
    def command(target: Target, into: Path, settings: Settings) -> Command:
        # The key list is handed over: neither program's time includes a listing, which favours them a little.
        keys = into.with_name(f"{into.name}.keys.json")
        keys.write_text(json.dumps(target.paths))
        request = {
            "endpoint": target.endpoint,
            "bucket": BUCKET,
            "prefix": target.prefix,
            "region": REGION,
            "ca_bundle": str(target.ca_bundle or ""),
            "keys": str(keys),
            "into": str(into),
            **settings,
        }
        env = target.environment() | {"REQUEST": json.dumps(request)}
        return Command(argv=[sys.executable, str(PROGRAMS / program)], env=env)

    return Contestant(
        name=name,
        version=lambda: importlib.metadata.version(package),
        command=command,
        grids={"shards": shards, "small": small},
        find=_plainly,
    )


def _plainly(into: Path, path: str) -> Path:
    return into / path


def _s5cmd_binary() -> Path:
    files = importlib.metadata.distribution("s5cmd").files or []
    return next(Path(str(file.locate())) for file in files if str(file).endswith("s5cmd/bin/s5cmd"))


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
