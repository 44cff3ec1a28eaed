"""The machine network: a bridge on this machine, and one end of a link to each node in it."""

from __future__ import annotations

from tests.e2e.cluster.process import run
from tests.e2e.cluster.slot import Slot


def make_bridge(slot: Slot) -> None:
    """A bridge with the machine's own address; the API server refuses to advertise a loopback one."""
    run("ip", "link", "add", slot.bridge, "type", "bridge")
    run("ip", "address", "add", f"{slot.address}/24", "dev", slot.bridge)
    run("ip", "link", "set", slot.bridge, "up")


def remove_bridge(slot: Slot) -> None:
    """One that isn't there is fine."""
    run("ip", "link", "delete", slot.bridge, check=False)


def connect(slot: Slot, number: int, holder_pid: int) -> None:
    """Put a link between the bridge and the network namespace of a node, and tell this machine where its pods are."""
    link, address = slot.link(number), slot.node_address(number)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(holder_pid))
    run("ip", "link", "set", link, "master", slot.bridge, "up")
    inside = [
        "link set lo up",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {slot.address}",
    ]
    run("nsenter", "--target", str(holder_pid), "--net", "ip", "-batch", "-", text="\n".join(inside) + "\n")
    run("ip", "route", "replace", slot.pod_subnet(number), "via", address)


def disconnect(slot: Slot, number: int) -> None:
    """Take a node's link and the route to its pods away; what isn't there is fine."""
    run("ip", "route", "delete", slot.pod_subnet(number), check=False)
    run("ip", "link", "delete", slot.link(number), check=False)


def introduce(slot: Slot, number: int, holder_pid: int, others: list[int]) -> None:
    """Tell a node where the pods of the other nodes are: straight over the bridge, this machine forwards nothing."""
    routes = [f"route replace {slot.pod_subnet(other)} via {slot.node_address(other)}" for other in others]
    if routes:
        run("nsenter", "--target", str(holder_pid), "--net", "ip", "-batch", "-", text="\n".join(routes) + "\n")
