"""Network namespaces of one run: a hub with a bridge, an origin and N nodes, each behind a link of its own.

Names begin with `caf<pid>`, so that what a run that was killed has left is known by its dead process and removed by the
next one. The machine itself has an unshaped port on the bridge, for the tracker and for asking whether a server is up.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from os import getpid
from pathlib import Path

import msgspec

from benchmarks.fanout.shaping import MTU_BYTES, Shape

NAME = re.compile(r"caf(\d+)[a-z].*")
NAMESPACES = Path("/run/netns")


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One end: its namespace, its address, and the name of its port on the hub, whose counters are seen from there."""

    namespace: str
    address: str
    port: str

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The command in that namespace; only the network differs."""
        return ["/usr/bin/nsenter", f"--net={NAMESPACES / self.namespace}", *argv]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `machine_address` is ours."""

    hub: str
    machine_address: str
    origin: Place
    nodes: tuple[Place, ...]

    def reshape(self, place: Place, link: Shape) -> None:
        """Another rate, both ways, from now on."""
        for namespace, interface in ((place.namespace, "eth0"), (self.hub, place.port)):
            run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *link.arguments())


@contextlib.contextmanager
def network(nodes: int, *, node_link: Shape, origin_link: Shape, tcp: str) -> Iterator[Network]:
    """Made, and removed however the block ends. `tcp`: the congestion control of all, whatever the machine's own is."""
    remove_leftovers()
    prefix, subnet = f"caf{getpid()}", f"198.19.{getpid() % 250}"
    hub, machine_port = f"{prefix}hub", f"{prefix}m"

    def place(name: str, number: int) -> Place:
        return Place(namespace=f"{prefix}{name}", address=f"{subnet}.{number}", port=name)

    made = Network(
        hub=hub,
        machine_address=f"{subnet}.254",
        origin=place("origin", 253),
        nodes=tuple(place(f"n{number}", number) for number in range(1, nodes + 1)),
    )
    try:
        run("ip", "netns", "add", hub)
        _batch(hub, ["link add bridge type bridge", f"link set bridge mtu {MTU_BYTES} up"])
        for each in (made.origin, *made.nodes):
            _connect(hub, each, origin_link if each == made.origin else node_link, tcp)
        _connect_machine(hub, machine_port, made.machine_address)
        yield made
    finally:
        for name in [each.namespace for each in (*made.nodes, made.origin)] + [hub]:
            run("ip", "netns", "delete", name, check=False)
        run("ip", "link", "delete", machine_port, check=False)


def remove_leftovers() -> None:
    """Namespaces and ports of runs whose process is dead."""
    ports = [path.name for path in Path("/sys/class/net").iterdir()]
    spaces = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.exists() else []
    for names, command in ((spaces, ("ip", "netns", "delete")), (ports, ("ip", "link", "delete"))):
        for name in names:
            if is_leftover(name):
                run(*command, name, check=False)


def is_leftover(name: str, proc: Path = Path("/proc")) -> bool:
    """Whether it has one of our names and nobody lives who would remove it."""
    match = NAME.fullmatch(name)
    return match is not None and not (proc / match[1]).exists()


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Output of a command. Raises RuntimeError with what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _connect(hub: str, place: Place, link: Shape, tcp: str) -> None:
    run("ip", "netns", "add", place.namespace)
    peer = f"link add {place.port} mtu {MTU_BYTES} type veth peer name eth0 mtu {MTU_BYTES} netns {place.namespace}"
    _batch(hub, [peer, f"link set {place.port} master bridge up"])
    _batch(place.namespace, ["link set lo up", f"address add {place.address}/24 dev eth0", "link set eth0 up"])
    route = f"route change {_subnet(place)} dev eth0 src {place.address} congctl {tcp}"
    _batch(place.namespace, [route])
    for namespace, interface in ((place.namespace, "eth0"), (hub, place.port)):
        run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *link.arguments())


def _subnet(place: Place) -> str:
    return f"{place.address.rpartition('.')[0]}.0/24"


def _connect_machine(hub: str, port: str, address: str) -> None:
    run("ip", "link", "add", port, "mtu", str(MTU_BYTES), "type", "veth", "peer", "name", "machine", "netns", hub)
    _batch(hub, [f"link set machine mtu {MTU_BYTES} master bridge up"])
    run("ip", "address", "add", f"{address}/24", "dev", port)
    run("ip", "link", "set", port, "up")


def _batch(namespace: str, lines: Sequence[str]) -> None:
    run("ip", "-n", namespace, "-batch", "-", text="\n".join(lines) + "\n")
