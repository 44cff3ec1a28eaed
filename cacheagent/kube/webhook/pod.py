"""Reading a pod as it came: raw JSON, of which we know a little and keep everything. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cacheagent.kube.webhook.refusal import PodRefused

Pod = dict[str, Any]
Path = tuple[str, ...]
"""The steps of a JSON pointer."""


class Slot(NamedTuple):
    """One container where it stands in the pod. `init`: an init container; `sidecar`: one that keeps running."""

    path: Path
    name: str
    container: dict[str, Any]
    init: bool
    sidecar: bool

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """Its volume mounts."""
        return _objects(self.container, "volumeMounts")

    @property
    def devices(self) -> list[dict[str, Any]]:
        """Its block devices, which take a path too."""
        return _objects(self.container, "volumeDevices")

    @property
    def env(self) -> list[dict[str, Any]]:
        """The variables that are set one by one."""
        return _objects(self.container, "env")

    @property
    def env_names(self) -> set[str]:
        """Their names."""
        return {str(variable.get("name")) for variable in self.env}


def annotations_of(pod: Pod) -> dict[str, str]:
    """Its annotations. Raises PodRefused for what can't be some."""
    found = object_in(object_in(pod, "metadata"), "annotations")
    for key, value in found.items():
        if not isinstance(value, str):
            raise PodRefused(f"the annotation {key[:100]!r} has no text as its value")
    return found


def spec_of(pod: Pod) -> dict[str, Any]:
    """What the pod shall be."""
    return object_in(pod, "spec")


def volumes_of(pod: Pod) -> list[dict[str, Any]]:
    """Its volumes."""
    return _objects(spec_of(pod), "volumes")


def slots_of(pod: Pod) -> Iterator[Slot]:
    """Init containers, then containers, in their order."""
    for field in ("initContainers", "containers"):
        init = field == "initContainers"
        for index, container in enumerate(_objects(spec_of(pod), field)):
            sidecar = init and container.get("restartPolicy") == "Always"
            yield Slot(("spec", field, str(index)), str(container.get("name", "")), container, init, sidecar)


def object_in(holder: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A field that is an object; absent and null count as empty. Raises PodRefused."""
    value = holder.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PodRefused(f"{field} of the pod is not an object")
    return value


def _objects(holder: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    value = holder.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise PodRefused(f"{field} of the pod is not a list of objects")
    return value
