"""`file:///path` and `nfs://server/export/path`: a directory tree on a mounted filesystem (NFS, Lustre, GPFS, a local
disk).

`nfs://` names a tree the same way on every node; a table says where this node has the export mounted. Identity is
path, size and mtime (ns): all nodes must see the same filesystem. Nothing outside the root is ever followed: a path is
resolved, judged, and then opened by a door that follows no link at all, whatever is put there meanwhile. A
`SHA256SUMS` in the root gives checksums.

Blocking calls run in daemon threads; a file server that hangs (calls in uninterruptible sleep) costs a left-behind
thread, not the agent."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from cacheagent.errors import (
    CacheAgentError,
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginUnavailable,
    OriginWrong,
    PolicyRefused,
    SourceChanged,
    UnsafeContent,
    UsageError,
)
from cacheagent.location import Location, PathLocation
from cacheagent.model import Checksum, RemoteFile, TrustDomain
from cacheagent.nolinks import LinkInTheWay, look_at, open_plainly, opened_plainly
from cacheagent.source.base import Listing
from cacheagent.source.blocking import BlockingCalls
from cacheagent.source.sums import SUMS_LIMIT_BYTES, SUMS_NAME, parse_sums
from cacheagent.spec import SourceSpec

NFS_MOUNTS = "CACHEAGENT_NFS_MOUNTS"
STALL_LIMIT_S = 60.0
"""Without one more directory or file in this time the mount counts as hung: an NFS server that restarts takes 90 s of
grace at most, and the listing is tried again. Chosen, not measured."""

_THREADS = 4
T = TypeVar("T")


class PosixSource:
    """One tree. `mounts`: `server:/export` -> directory on this node, for `nfs://`."""

    kind = "posix"

    def __init__(self, spec: SourceSpec, *, mounts: Mapping[str, str], stall_limit_s: float = STALL_LIMIT_S) -> None:
        self._root, self._name, endpoint, mount = _place(spec.uri, mounts)
        self._roots = (mount,) if mount else spec.roots
        self._plain_path = spec.plain_path
        self._stall_limit_s = stall_limit_s
        self._blocking = BlockingCalls("cacheagent-posix", _THREADS)
        self.trust_domain = TrustDomain(endpoint=endpoint, credential=spec.credential)

    def __repr__(self) -> str:
        return f"PosixSource({self._name!r})"

    async def list(self) -> Listing:
        """See `Source.list`."""
        return await self._watched(self._tree.list)

    async def describe(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source.describe`: every file is looked at again."""
        await self.locate(files)
        return tuple(files)

    async def read(self, file: RemoteFile, limit_bytes: int) -> bytes:
        """See `Source.read`."""
        if file.size_bytes > limit_bytes:
            raise ValueError(f"{file.path} has {file.size_bytes} bytes, more than {limit_bytes}")
        return await self._watched(partial(self._tree.read, file))

    async def locate(self, files: Sequence[RemoteFile]) -> Sequence[Location]:
        """See `Source.locate`: real paths, so that no link is followed later."""
        return await self._watched(partial(self._tree.locate, files))

    async def close(self) -> None:
        """See `Source.close`: nothing is held."""

    @property
    def _tree(self) -> _Tree:
        return _Tree(self._root, self._name, self._roots, plain_path=self._plain_path)

    async def _watched(self, call: Callable[[_Steps], T]) -> T:
        steps = _Steps()
        return await self._blocking.run_watched(
            partial(call, steps), progress=lambda: steps.count, stall_s=self._stall_limit_s, what=self._name
        )


class _Steps:
    """How far a blocking call has come, for the one who watches it."""

    def __init__(self) -> None:
        self.count = 0


class _Tree:
    """The blocking side. `name` stands for `root` in identities and messages. `roots`: of which one must hold it, none
    for anywhere; `plain_path`: see `SourceSpec`."""

    def __init__(self, root: str, name: str, roots: Sequence[str] = (), *, plain_path: bool = False) -> None:
        self._root = root
        self._name = name
        self._roots = roots
        self._plain_path = plain_path

    def list(self, steps: _Steps) -> Listing:
        with _translated(self._name):
            real_root = self._real_root()
            found = dict(self._walk(real_root, steps))
            sums = self._sums(real_root) if SUMS_NAME in found else {}
        if not found:
            raise OriginNotFound(f"{self._name} holds no files", hint="is the filesystem mounted on this node?")
        return Listing(files=tuple(self._file(path, status, sums) for path, status in sorted(found.items())))

    def read(self, file: RemoteFile, steps: _Steps) -> bytes:
        with _translated(self._name):
            real_root = self._real_root()
        location = self._locate_one(real_root, file)
        with _translated(f"{self._name}/{file.path}"), _opened(location.path) as stream:
            self._require_listed(os.fstat(stream.fileno()), file)
            body = stream.read(file.size_bytes + 1)
            self._require_listed(os.fstat(stream.fileno()), file)
        if len(body) != file.size_bytes:
            raise self._changed(file)
        return body

    def locate(self, files: Sequence[RemoteFile], steps: _Steps) -> Sequence[Location]:
        with _translated(self._name):
            real_root = self._real_root()
        locations: list[Location] = []
        for file in files:
            locations.append(self._locate_one(real_root, file))
            steps.count += 1
        return locations

    def _real_root(self) -> str:
        """Without links. Raises PolicyRefused for a tree below none of the roots, or behind a link that may not be."""
        real = os.path.realpath(self._root, strict=True)
        if self._roots and not any(_is_beneath(real, os.path.realpath(root)) for root in self._roots):
            raise PolicyRefused(
                f"{self._name} lies below none of the directories that are permitted on this node",
                hint=f"they are {', '.join(self._roots)}, with links resolved",
            )
        if self._plain_path and real not in {_joined(root, self._root) for root in self._roots or ("/",)}:
            raise PolicyRefused(
                f"{self._name} lies behind a symbolic link, which nobody has permitted",
                hint="name the directory that the link points to, or ask for a ModelCache",
            )
        return real

    def _walk(self, real_root: str, steps: _Steps) -> Iterator[tuple[str, os.stat_result]]:
        pending = [(real_root, "", frozenset((real_root,)))]
        while pending:
            directory, prefix, above = pending.pop()
            with opened_plainly(directory, os.O_RDONLY | os.O_DIRECTORY) as here, os.scandir(here) as entries:
                for entry in entries:
                    steps.count += 1
                    path, real = prefix + entry.name, os.path.join(directory, entry.name)
                    if entry.is_symlink():
                        real = self._beneath(real_root, real, path)
                        status = look_at(real)
                    else:
                        status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        if real in above:
                            raise UnsafeContent(f"{self._name}/{path} is a link to a directory that it is in")
                        pending.append((real, path + "/", above | {real}))
                    elif stat.S_ISREG(status.st_mode):
                        yield path, status
                    else:
                        raise UnsafeContent(f"{self._name}/{path} is neither a file nor a directory", hint="remove it")

    def _beneath(self, real_root: str, place: str, path: str) -> str:
        real = os.path.realpath(place, strict=True)
        if os.path.commonpath([real_root, real]) != real_root:
            raise UnsafeContent(
                f"{self._name}/{path} is a link that leaves the tree",
                hint="copy the file, or name a directory that holds both",
            )
        return real

    def _locate_one(self, real_root: str, file: RemoteFile) -> PathLocation:
        place = os.path.join(real_root, file.path)
        with _translated(f"{self._name}/{file.path}"):
            real = self._beneath(real_root, place, file.path)
            status = look_at(real)
        self._require_listed(status, file)
        return PathLocation(path=real, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)

    def _require_listed(self, status: os.stat_result, file: RemoteFile) -> None:
        if not stat.S_ISREG(status.st_mode) or _pinning(status) != _pinning_of(file):
            raise self._changed(file)

    def _file(self, path: str, status: os.stat_result, sums: Mapping[str, str]) -> RemoteFile:
        size, mtime_ns = _pinning(status)
        identity = {"path": f"{self._name}/{path}", "size": size, "mtime_ns": mtime_ns}
        checksums = (Checksum(algorithm="sha256", value=sums[path]),) if path in sums else ()
        return RemoteFile(path=path, size_bytes=status.st_size, identity=identity, checksums=checksums)

    def _sums(self, real_root: str) -> dict[str, str]:
        where = f"{self._name}/{SUMS_NAME}"
        with _opened(self._beneath(real_root, os.path.join(real_root, SUMS_NAME), SUMS_NAME)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # it was one when the tree was listed
                raise UnsafeContent(f"{where} is neither a file nor a directory", hint="remove it")
            body = stream.read(SUMS_LIMIT_BYTES + 1)
        if len(body) > SUMS_LIMIT_BYTES:
            raise OriginWrong(f"{where} is longer than {SUMS_LIMIT_BYTES} bytes")
        return parse_sums(body, where)

    def _changed(self, file: RemoteFile) -> SourceChanged:
        return SourceChanged(
            f"{self._name}/{file.path} is no longer the file that was listed ({file.size_bytes} bytes)",
            hint="resolve again",
        )


_ERRORS: Mapping[int, tuple[type[CacheAgentError], str, str]] = {
    errno.ENOENT: (OriginNotFound, "does not exist on this node", "is the filesystem mounted, and is the path right?"),
    errno.ENOTDIR: (
        OriginNotFound,
        "is not a directory",
        "a source is a directory; choose files with include patterns",
    ),
    errno.EACCES: (
        OriginForbidden,
        "may not be read by the agent's user",
        "give that user r and x on directories, r on files",
    ),
    errno.EPERM: (
        OriginForbidden,
        "may not be read by the agent's user",
        "give that user r and x on directories, r on files",
    ),
    errno.ELOOP: (UnsafeContent, "has a symbolic link that leads in a circle", "remove the link"),
}
"""What an errno of the mounted filesystem stands for; any other (EIO, ESTALE, ETIMEDOUT, ENOTCONN …) is trouble that
may pass."""


def _translate(error: OSError, name: str) -> CacheAgentError:
    if isinstance(error, LinkInTheWay):
        return SourceChanged(f"{name}: {error.strerror} a moment ago", hint="resolve again")
    code = error.errno or 0
    if code in _ERRORS:
        kind, says, hint = _ERRORS[code]
        return kind(f"{name} {says}", hint=hint)
    reason = errno.errorcode.get(code, type(error).__name__)
    return OriginUnavailable(
        f"{name}: the mounted filesystem answered {reason}", hint="is its server up? look at dmesg on this node"
    )


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translate(error, name) from error


def parse_mounts(text: str) -> dict[str, str]:
    """`server:/export=/mnt/a,other:/x=/mnt/b` as a table. Raises ConfigError."""
    mounts = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        export, separator, directory = item.partition("=")
        if not separator or ":/" not in export or not directory.startswith("/"):
            raise ConfigError(f"{NFS_MOUNTS}: {item!r} is not server:/export=/directory")
        mounts[export.rstrip("/")] = directory.rstrip("/")
    return mounts


def _place(uri: str, mounts: Mapping[str, str]) -> tuple[str, str, str, str]:
    """(root directory, name for identities and messages, trust domain's endpoint, the export's mount or nothing) of a
    URI."""
    parts = urlsplit(uri)
    path = unquote(parts.path).rstrip("/")
    if parts.query or parts.fragment:
        raise UsageError(f"{uri!r} has a query or fragment", hint="write '?' and '#' in names as %3F and %23")
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise UsageError(f"{uri!r} does not name a directory by an absolute path without '..'")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{uri!r} names the host {parts.netloc!r}", hint="file:///path (three slashes), or nfs://")
        return path, f"file://{path}", "file://", ""
    server = parts.netloc
    for depth in range(path.count("/"), 0, -1):
        export = "/".join(path.split("/")[: depth + 1])
        directory = mounts.get(f"{server}:{export}")
        if directory is not None:
            return directory + path[len(export) :], f"nfs://{server}{path}", f"nfs://{server}{export}", directory
    known = ", ".join(sorted(mounts)) or "none"
    raise ConfigError(
        f"{uri!r} is on no known mount (known: {known})", hint=f"set {NFS_MOUNTS}=server:/export=/directory"
    )


def _opened(real: str) -> BinaryIO:
    return open(real, "rb", opener=open_plainly)


def _is_beneath(path: str, root: str) -> bool:
    return os.path.commonpath([root, path]) == root


def _joined(root: str, path: str) -> str:
    """`path` as it is when nothing below `root` is a link; empty for one that is not written below it."""
    root, path = os.path.normpath(root), os.path.normpath(path)
    if not _is_beneath(path, root):
        return ""
    return os.path.normpath(os.path.join(os.path.realpath(root), os.path.relpath(path, root)))


def _pinning(status: os.stat_result) -> tuple[str, str]:
    return str(status.st_size), str(status.st_mtime_ns)


def _pinning_of(file: RemoteFile) -> tuple[str, str]:
    return file.identity.get("size", ""), file.identity.get("mtime_ns", "")
