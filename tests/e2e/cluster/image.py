"""The images of a test cluster: the product's own by its real Dockerfile, and the pause image.

A node doesn't import them (seconds of unpacking each time): they are imported once into a template of containerd's
folder, which is named by a hash of what the image is made of, and a node gets hard links to it. That is safe since
containerd never writes to a blob or to a committed layer again; its databases, which it does write, are copied.

`E2E_IMAGE` in the environment, for people who change things all day and not for `make test`:
`newest` takes the template that was used last, whatever the sources are now; `patched` takes the newest one whose
dependencies are still right and replaces our own code in it (two seconds instead of a minute and a half).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cacheagent
from tests.e2e.cluster.archive import write_pause_archive
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.process import run, spawn
from tests.e2e.cluster.slot import state_folder
from tests.e2e.cluster.waiting import say, wait_until
from tests.privileges import as_root_for_long

PRODUCT_IMAGE = f"localhost/cacheagent:{cacheagent.__version__}"
KEPT_TEMPLATES = 3

_DEPENDENCIES = ("Dockerfile", "requirements/runtime.txt", "scripts/image")
_DESCRIPTION = ("pyproject.toml", "README.md", "LICENSE")
_PACKAGES = ("cacheagent", "csi")
_FORMAT = b"2"
"""Changes when templates are made in another way."""


def images_folder() -> Path:
    return state_folder() / "images"


def _hash_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256(_FORMAT)
    for path in paths:
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def template_name() -> str:
    """One hash of what our code stands on, one of our code and its description."""
    files = [ROOT / name for name in _DESCRIPTION]
    for package in _PACKAGES:
        files += sorted(path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return f"{_hash_of(ROOT / name for name in _DEPENDENCIES)}-{_hash_of(files)}"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    images_folder().mkdir(parents=True, exist_ok=True)
    with (images_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get_template() -> Path:
    """The template for the sources as they are now; made if need be (a minute and more, mostly the image)."""
    template = images_folder() / template_name()
    base, how = None, os.environ.get("E2E_IMAGE", "")
    if how == "newest" and _templates():
        template = _templates()[-1]
    elif how == "patched" and not template.exists():
        base = _newest_with_the_dependencies_of(template)
        template = template.with_name(f"{template.name}-patched") if base else template
    if not template.exists():
        with _alone():
            if not template.exists():
                say(f"making the image and a template of it, {template}" + (f" from {base.name}" if base else ""))
                _make(template, base)
            _forget_old_templates(but=template)
    os.utime(template)  # now that it is in use, nobody forgets it
    return template


def _make(template: Path, base: Path | None) -> None:
    """Beside, and then renamed: a template that is there is whole."""
    beside = template.with_name(f".{template.name}.new")
    run("rm", "-rf", beside)
    if base:
        _patch(base, beside)
    else:
        _build(beside)
    beside.rename(template)


def _build(folder: Path) -> None:
    folder.mkdir()
    log = folder / "image.log"

    def build() -> None:
        with log.open("w") as output:
            subprocess.run(
                [ROOT / "scripts/image"], check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
            )

    try:
        as_root_for_long(build)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"scripts/image failed: {log.read_text()[-2000:]}") from error
    write_pause_archive(folder / "pause.tar")
    _import(folder, [folder / "pause.tar", ROOT / "build/image.tar"])


def _import(folder: Path, archives: list[Path]) -> None:
    """By a containerd of its own, which is stopped before anybody copies what it made."""
    config, socket = folder / "containerd.toml", f"/run/cacheagent-e2e-template-{os.getpid()}"
    config.write_text(
        f'version = 2\nroot = "{folder}/containerd"\nstate = "{socket}"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\n  address = "{socket}/s"\n'
    )
    program = spawn(
        "containerd of the template",
        ["containerd", "--config", config],
        folder / "containerd.log",
        enters=["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child=SIGKILL"],
    )
    ctr = ("ctr", "--address", f"{socket}/s", "-n", "k8s.io")
    try:
        wait_until(lambda: run(*ctr, "version"), "containerd of the template answers")
        for archive in archives:
            run(*ctr, "images", "import", "--snapshotter=overlayfs", archive, limit=300.0)
    finally:
        program.stop()
        run("rm", "-rf", socket)


def _patch(base: Path, folder: Path) -> None:
    """The same image with our packages as they are now: layers are folders, and what is replaced isn't shared."""
    folder.mkdir()
    clone_template(base, folder / "containerd")
    snapshots = folder / "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    found = run("find", snapshots, "-type", "d", "-path", "*/site-packages/cacheagent").stdout.split()
    for place in (Path(each).parent for each in found):
        for package in _PACKAGES:
            run("rm", "-rf", place / package)
            run("cp", "--recursive", "--preserve=mode", ROOT / package, place / package)
            run("find", place / package, "-name", "*.pyc", "-delete")
            run(sys.executable, "-m", "compileall", "-q", "-s", place, place / package)


def _templates() -> list[Path]:
    """The one that was used last comes last."""
    images_folder().mkdir(parents=True, exist_ok=True)
    found = [path for path in images_folder().iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _newest_with_the_dependencies_of(template: Path) -> Path | None:
    dependencies = template.name.partition("-")[0]
    fitting = [path for path in _templates() if path.name.startswith(f"{dependencies}-")]
    return fitting[-1] if fitting else None


def _forget_old_templates(*, but: Path) -> None:
    """Each is a gigabyte. One that somebody is cloning was touched a moment ago."""
    for path in _templates()[:-KEPT_TEMPLATES]:
        if path != but and time.time() - path.stat().st_mtime > 600:
            run("rm", "-rf", path)


def clone_template(template: Path, target: Path) -> None:
    """Give a node its own containerd folder. The target must not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", "--link", template / "containerd", target)
    for path in run("find", target, "-name", "*.db", "-type", "f").stdout.split():
        run("cp", "--preserve=all", path, f"{path}.own")
        run("mv", f"{path}.own", path)
