"""What an API server does, as far as we rely on it. The fake and the real one run the same tests.

A joining module has a fixture `api`. Names are new in each test: the real server is shared.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from cacheagent.kube.api import (
    LEASES,
    MODEL_CACHE_NODES,
    MODEL_CACHES,
    NODES,
    PODS,
    KubeApi,
    KubeConflict,
    KubeExpired,
    KubeNotFound,
    KubeRefused,
    Object,
    Resource,
    WatchEvent,
)

SOURCE = {"uri": "s3://models/llama"}
LIMIT_S = 90.0


def new_name(kind: str = "m") -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def model(name: str, **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"source": SOURCE, **spec}}


def lease(name: str, holder: str) -> Object:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"holderIdentity": holder}}


async def take(watch: AsyncGenerator[WatchEvent, None], count: int) -> list[WatchEvent]:
    """The next events that are no bookmarks."""
    found: list[WatchEvent] = []
    async with asyncio.timeout(LIMIT_S), aclosing(watch) as events:
        async for event in events:
            if event.type != "BOOKMARK":
                found.append(event)
            if len(found) == count:
                break
    return found


async def present(api: KubeApi, resource: Resource) -> str:
    """The version that a watch from now begins with."""
    return (await api.list(resource)).resource_version


class KubeBehaviour:
    """Joined by a subclass with a fixture `api`."""

    @pytest.mark.asyncio
    async def test_create_and_get(self, api: KubeApi) -> None:
        """A new object has an identity, a version and a generation, and no status of its maker's."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name) | {"status": {"progress": "99 %"}})
        metadata = made["metadata"]
        assert metadata["uid"]
        assert metadata["creationTimestamp"].endswith("Z")
        assert metadata["generation"] == 1
        assert int(metadata["resourceVersion"]) > 0
        assert "status" not in made
        assert (made["apiVersion"], made["kind"]) == ("cacheagent.io/v1alpha1", "ModelCache")
        assert await api.get(MODEL_CACHES, name) == made

    @pytest.mark.asyncio
    async def test_create_twice(self, api: KubeApi) -> None:
        """The second is a conflict and changes nothing."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name))
        with pytest.raises(KubeConflict) as refused:
            await api.create(MODEL_CACHES, model(name, pin=True))
        assert refused.value.status == 409
        assert await api.get(MODEL_CACHES, name) == made

    @pytest.mark.asyncio
    async def test_what_is_not_there(self, api: KubeApi) -> None:
        """Reading and changing it say so; deleting it is fine."""
        for call in (
            api.get(MODEL_CACHES, "nobody"),
            api.patch(MODEL_CACHES, "nobody", {"spec": {"pin": True}}),
            api.patch(MODEL_CACHES, "nobody", {"status": {"progress": "1 %"}}, subresource="status"),
            api.apply(MODEL_CACHES, {"metadata": {"name": "nobody"}, "status": {}}, manager="m", subresource="status"),
        ):
            with pytest.raises(KubeNotFound) as refused:
                await call
            assert refused.value.status == 404
        await api.delete(MODEL_CACHES, "nobody")

    @pytest.mark.asyncio
    async def test_a_name_made_by_the_server(self, api: KubeApi) -> None:
        """`generateName` gives two objects two names."""
        body = model("")
        body["metadata"] = {"generateName": "warm-"}
        one, two = [(await api.create(MODEL_CACHES, body))["metadata"]["name"] for _ in range(2)]
        assert one != two
        assert one.startswith("warm-")

    @pytest.mark.asyncio
    async def test_dry_run(self, api: KubeApi) -> None:
        """It answers as if, and nothing is there afterwards."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name), dry_run=True)
        assert made["metadata"]["uid"]
        with pytest.raises(KubeNotFound):
            await api.get(MODEL_CACHES, name)

    @pytest.mark.asyncio
    async def test_replace_needs_the_version_that_it_replaces(self, api: KubeApi) -> None:
        """With the present one it is done, with an old one it is a conflict, without any it is refused."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name))
        changed = await api.replace(MODEL_CACHES, made | {"spec": {"source": SOURCE, "pin": True}})
        assert changed["spec"]["pin"] is True
        with pytest.raises(KubeConflict):
            await api.replace(MODEL_CACHES, made)
        unconditional = model(name)
        with pytest.raises(KubeRefused):
            await api.replace(MODEL_CACHES, unconditional)
        assert await api.get(MODEL_CACHES, name) == changed

    @pytest.mark.asyncio
    async def test_generation_counts_specs(self, api: KubeApi) -> None:
        """A changed spec counts; a label, a status and a patch that changes nothing do not."""
        name = new_name()
        await api.create(MODEL_CACHES, model(name))
        changed = await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}})
        assert changed["metadata"]["generation"] == 2
        labelled = await api.patch(MODEL_CACHES, name, {"metadata": {"labels": {"a": "b"}}})
        assert labelled["metadata"]["generation"] == 2
        told = await api.patch(MODEL_CACHES, name, {"status": {"progress": "1 %"}}, subresource="status")
        assert told["metadata"]["generation"] == 2
        same = await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}})
        assert same["metadata"]["resourceVersion"] == told["metadata"]["resourceVersion"]

    @pytest.mark.asyncio
    async def test_status_has_a_door_of_its_own(self, api: KubeApi) -> None:
        """What comes through the other door is ignored, either way."""
        name = new_name()
        await api.create(MODEL_CACHES, model(name))
        one = await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}, "status": {"progress": "1 %"}})
        assert one["spec"]["pin"] is True
        assert "status" not in one
        two = await api.patch(
            MODEL_CACHES, name, {"spec": {"pin": False}, "status": {"progress": "2 %"}}, subresource="status"
        )
        assert two["spec"]["pin"] is True
        assert two["status"]["progress"] == "2 %"
        whole = two | {"status": {"progress": "3 %"}, "spec": {"source": SOURCE}}
        three = await api.replace(MODEL_CACHES, whole, subresource="status")
        assert three["spec"]["pin"] is True
        assert three["status"]["progress"] == "3 %"

    @pytest.mark.asyncio
    async def test_leases_have_no_status(self, api: KubeApi) -> None:
        """Nor does a replacement pass that names no version: two leaders would pass each other."""
        name = new_name("lease")
        made = await api.create(LEASES, lease(name, "a"))
        assert "generation" not in made["metadata"]
        with pytest.raises(KubeNotFound):
            await api.patch(LEASES, name, {"status": {}}, namespace="default", subresource="status")
        with pytest.raises(KubeRefused):
            await api.replace(LEASES, lease(name, "b"))
        taken = await api.replace(LEASES, made | {"spec": {"holderIdentity": "b"}})
        with pytest.raises(KubeConflict):
            await api.replace(LEASES, made | {"spec": {"holderIdentity": "c"}})
        assert (await api.get(LEASES, name, namespace="default")) == taken

    @pytest.mark.asyncio
    async def test_merge_patch(self, api: KubeApi) -> None:
        """Maps merge, null removes, lists replace; a version in it is a condition."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name, nodeSelector={"a": "1", "b": "2"}, pin=True))
        patch = {"spec": {"nodeSelector": {"a": None, "c": "3"}, "pin": None}}
        changed = await api.patch(MODEL_CACHES, name, patch)
        assert changed["spec"] == {"source": SOURCE, "nodeSelector": {"b": "2", "c": "3"}}
        with pytest.raises(KubeConflict):
            await api.patch(
                MODEL_CACHES,
                name,
                {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"pin": True}},
            )

    @pytest.mark.asyncio
    async def test_json_patch(self, api: KubeApi) -> None:
        """Its operations happen in order; if one cannot, none does."""
        name = new_name()
        await api.create(MODEL_CACHES, model(name, nodeSelector={"a/b": "1"}))
        changed = await api.patch(
            MODEL_CACHES,
            name,
            [
                {"op": "test", "path": "/spec/nodeSelector/a~1b", "value": "1"},
                {"op": "remove", "path": "/spec/nodeSelector/a~1b"},
                {"op": "add", "path": "/spec/nodeSelector/c", "value": "2"},
                {"op": "add", "path": "/metadata/finalizers", "value": ["cacheagent.io/x"]},
                {"op": "add", "path": "/metadata/finalizers/-", "value": "cacheagent.io/y"},
            ],
        )
        assert changed["spec"]["nodeSelector"] == {"c": "2"}
        assert changed["metadata"]["finalizers"] == ["cacheagent.io/x", "cacheagent.io/y"]
        for wrong in (
            {"op": "test", "path": "/spec/nodeSelector/c", "value": "other"},
            {"op": "remove", "path": "/spec/nodeSelector/gone"},
        ):
            with pytest.raises(KubeRefused):
                await api.patch(MODEL_CACHES, name, [{"op": "add", "path": "/spec/pin", "value": True}, wrong])
        assert await api.get(MODEL_CACHES, name) == changed
        await api.patch(MODEL_CACHES, name, [{"op": "remove", "path": "/metadata/finalizers"}])

    @pytest.mark.asyncio
    async def test_apply_makes_and_changes(self, api: KubeApi) -> None:
        """What an apply leaves out goes if it was its own, and only then; the same again changes nothing."""
        name = new_name()
        one = await api.apply(MODEL_CACHES, model(name, nodeSelector={"a": "1", "b": "2"}, priority=5), manager="us")
        assert one["metadata"]["generation"] == 1
        await api.patch(MODEL_CACHES, name, {"spec": {"nodeSelector": {"theirs": "3"}}})
        two = await api.apply(MODEL_CACHES, model(name, nodeSelector={"a": "1"}), manager="us")
        assert two["spec"] == {"source": SOURCE, "nodeSelector": {"a": "1", "theirs": "3"}}
        three = await api.apply(MODEL_CACHES, model(name, nodeSelector={"a": "1"}), manager="us")
        assert three["metadata"]["resourceVersion"] == two["metadata"]["resourceVersion"]

    @pytest.mark.asyncio
    async def test_apply_by_two(self, api: KubeApi) -> None:
        """Each takes back only what is nobody else's; force takes a field over."""
        name = new_name()
        await api.apply(MODEL_CACHES, model(name, priority=1, pin=True), manager="one")
        taken = await api.apply(
            MODEL_CACHES, {"metadata": {"name": name}, "spec": {"source": SOURCE, "priority": 2}}, manager="two"
        )
        assert taken["spec"]["priority"] == 2
        left = await api.apply(MODEL_CACHES, model(name), manager="one")
        assert left["spec"] == {"source": SOURCE, "priority": 2}

    @pytest.mark.asyncio
    async def test_apply_of_a_status(self, api: KubeApi) -> None:
        """Lists are replaced whole, and the spec that somebody else owns is not touched."""
        name = new_name("node")
        entry = {"name": "llama", "source": SOURCE}
        await api.apply(
            MODEL_CACHE_NODES, {"metadata": {"name": name}, "spec": {"models": [entry]}}, manager="controller"
        )
        for models in (
            [{"name": "a", "phase": "ready"}, {"name": "b", "phase": "failed"}],
            [{"name": "b", "phase": "ready"}],
        ):
            body = {"metadata": {"name": name}, "status": {"models": models, "agentVersion": "1"}}
            told = await api.apply(MODEL_CACHE_NODES, body, manager="agent", subresource="status")
            assert told["status"]["models"] == models
        less = await api.apply(
            MODEL_CACHE_NODES,
            {"metadata": {"name": name}, "status": {"agentVersion": "1"}},
            manager="agent",
            subresource="status",
        )
        assert less["status"] == {"agentVersion": "1"}
        assert less["spec"]["models"] == [entry]
        assert less["metadata"]["generation"] == 1

    @pytest.mark.asyncio
    async def test_apply_that_wants_no_object_back(self, api: KubeApi) -> None:
        """What is written is written; the answer has no more than its metadata."""
        name = new_name("node")
        await api.create(MODEL_CACHE_NODES, {"metadata": {"name": name}})
        body = {"metadata": {"name": name}, "status": {"agentVersion": "1"}}
        told = await api.apply(MODEL_CACHE_NODES, body, manager="agent", subresource="status", answer="metadata")
        assert told.keys() == {"apiVersion", "kind", "metadata"}
        there = await api.get(MODEL_CACHE_NODES, name)
        assert there["status"] == {"agentVersion": "1"}
        assert there["metadata"]["resourceVersion"] == told["metadata"]["resourceVersion"]

    @pytest.mark.asyncio
    async def test_apply_of_labels_on_a_node(self, api: KubeApi) -> None:
        """As the controller labels nodes: only its own labels come and go, and other managers' stay."""
        name = new_name("node")
        await api.create(NODES, {"metadata": {"name": name, "labels": {"pool": "h100"}}})
        for ours in ({"model.cacheagent.io/a": "1", "model.cacheagent.io/b": "2"}, {"model.cacheagent.io/b": "3"}, {}):
            body = {"metadata": {"name": name, "labels": ours}}
            node = await api.apply(NODES, body, manager="controller")
            assert node["metadata"]["labels"] == {"pool": "h100", **ours}
        await api.delete(NODES, name)

    @pytest.mark.asyncio
    async def test_apply_of_finalizers(self, api: KubeApi) -> None:
        """They are a set: each manager has its own."""
        name = new_name()
        for manager in ("one", "two"):
            body = model(name)
            body["metadata"]["finalizers"] = [f"cacheagent.io/{manager}"]
            await api.apply(MODEL_CACHES, body, manager=manager)
        both = await api.get(MODEL_CACHES, name)
        assert sorted(both["metadata"]["finalizers"]) == ["cacheagent.io/one", "cacheagent.io/two"]
        applied = await api.apply(MODEL_CACHES, model(name), manager="one")
        assert applied["metadata"]["finalizers"] == ["cacheagent.io/two"]
        await api.apply(MODEL_CACHES, model(name), manager="two")

    @pytest.mark.asyncio
    async def test_lists_and_selectors(self, api: KubeApi) -> None:
        """By name, by labels in every form; each item says what it is; an unknown field is refused."""
        mark = new_name("mark")
        names = [new_name() for _ in range(3)]
        for index, name in enumerate(names):
            body = model(name)
            body["metadata"]["labels"] = {"mark": mark, "index": str(index)} | ({"odd": "yes"} if index == 1 else {})
            made = await api.create(MODEL_CACHES, body)

        async def found(*, fields: str = "", labels: str = "") -> list[str]:
            answer = await api.list(MODEL_CACHES, fields=fields, labels=labels)
            assert all(
                (item["apiVersion"], item["kind"]) == ("cacheagent.io/v1alpha1", "ModelCache") for item in answer.items
            )
            assert int(answer.resource_version) >= int(made["metadata"]["resourceVersion"])
            return sorted(item["metadata"]["name"] for item in answer.items if item["metadata"]["name"] in names)

        assert await found() == sorted(names)
        assert await found(fields=f"metadata.name={names[0]}") == [names[0]]
        assert await found(labels=f"mark={mark}") == sorted(names)
        assert await found(labels=f"mark={mark},index!=0") == sorted(names[1:])
        assert await found(labels=f"mark={mark},index in (0, 2)") == sorted([names[0], names[2]])
        assert await found(labels=f"mark={mark},index notin (0,2)") == [names[1]]
        assert await found(labels=f"mark={mark},odd") == [names[1]]
        assert await found(labels=f"mark=={mark},!odd") == sorted([names[0], names[2]])
        assert await found(labels="mark=other") == []
        with pytest.raises(KubeRefused):
            await found(fields="spec.pin=true")
        with pytest.raises(KubeRefused):
            await found(labels="a b c")

    @pytest.mark.asyncio
    async def test_pods_of_a_node(self, api: KubeApi) -> None:
        """They are found by the node's name, in one namespace or in all."""
        node, name = new_name("node"), new_name("pod")
        for suffix, spec in (("here", {"nodeName": node}), ("nowhere", {})):
            body = {
                "metadata": {"name": f"{name}-{suffix}"},
                "spec": {"containers": [{"name": "c", "image": "i"}], **spec},
            }
            pod = await api.create(PODS, body, namespace="default")
            assert pod["status"]["phase"] == "Pending"
        for namespace in ("default", ""):
            listed = await api.list(PODS, namespace=namespace, fields=f"spec.nodeName={node}")
            assert [pod["metadata"]["name"] for pod in listed.items] == [f"{name}-here"]

    @pytest.mark.asyncio
    async def test_a_watch_tells_everything_in_order(self, api: KubeApi) -> None:
        """From the version of a list on; a write that changes nothing is no event."""
        name = new_name()
        version = await present(api, MODEL_CACHES)
        await api.create(MODEL_CACHES, model(name))
        await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}})
        await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}})
        await api.patch(MODEL_CACHES, name, {"status": {"progress": "1 %"}}, subresource="status")
        await api.delete(MODEL_CACHES, name)
        events = await take(api.watch(MODEL_CACHES, version, fields=f"metadata.name={name}"), 4)
        assert [event.type for event in events] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
        assert "pin" not in events[0].object["spec"]
        assert events[1].object["spec"]["pin"] is True
        assert events[2].object["status"]["progress"] == events[3].object["status"]["progress"] == "1 %"
        versions = [int(event.object["metadata"]["resourceVersion"]) for event in events]
        assert versions == sorted(set(versions))
        rest = await take(api.watch(MODEL_CACHES, str(versions[1]), fields=f"metadata.name={name}"), 2)
        assert [event.type for event in rest] == ["MODIFIED", "DELETED"]

    @pytest.mark.asyncio
    async def test_a_watch_that_runs_hears_of_what_happens(self, api: KubeApi) -> None:
        """Within a moment, and only of what it asked for."""
        name = new_name()
        version = await present(api, MODEL_CACHES)
        listening = asyncio.create_task(take(api.watch(MODEL_CACHES, version, fields=f"metadata.name={name}"), 2))
        await asyncio.sleep(0.1)  # most of the time the watch runs by now; if not, it is the test above
        await api.create(MODEL_CACHES, model(new_name()))
        await api.create(MODEL_CACHES, model(name))
        await api.delete(MODEL_CACHES, name)
        events = await listening
        assert [(event.type, event.object["metadata"]["name"]) for event in events] == [
            ("ADDED", name),
            ("DELETED", name),
        ]

    @pytest.mark.asyncio
    async def test_a_watch_with_a_selector(self, api: KubeApi) -> None:
        """An object that comes to match is new for it, and one that no longer does is gone."""
        name, mark = new_name(), new_name("mark")
        version = await present(api, MODEL_CACHES)
        await api.create(MODEL_CACHES, model(name))
        await api.patch(MODEL_CACHES, name, {"metadata": {"labels": {"mark": mark}}})
        await api.patch(MODEL_CACHES, name, {"spec": {"pin": True}})
        await api.patch(MODEL_CACHES, name, {"metadata": {"labels": {"mark": None}}})
        events = await take(api.watch(MODEL_CACHES, version, labels=f"mark={mark}"), 3)
        assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
        assert events[2].object["metadata"]["labels"] == {"mark": mark}

    @pytest.mark.asyncio
    async def test_a_watch_from_what_is_forgotten(self, api: KubeApi) -> None:
        """The history has an end; whoever stands beyond it lists again."""
        with pytest.raises(KubeExpired) as refused:
            await take(api.watch(MODEL_CACHES, "1"), 1)
        assert refused.value.status == 410

    @pytest.mark.asyncio
    async def test_finalizers_hold_an_object(self, api: KubeApi) -> None:
        """Deleted it stays, marked, until the last finalizer is taken off."""
        name = new_name()
        body = model(name)
        body["metadata"]["finalizers"] = ["cacheagent.io/x"]
        version = await present(api, MODEL_CACHES)
        await api.create(MODEL_CACHES, body)
        await api.delete(MODEL_CACHES, name)
        await api.delete(MODEL_CACHES, name)
        held = await api.get(MODEL_CACHES, name)
        assert held["metadata"]["deletionTimestamp"]
        assert held["metadata"]["generation"] == 2
        await api.patch(MODEL_CACHES, name, {"metadata": {"finalizers": None}})
        with pytest.raises(KubeNotFound):
            await api.get(MODEL_CACHES, name)
        events = await take(api.watch(MODEL_CACHES, version, fields=f"metadata.name={name}"), 3)
        assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]

    @pytest.mark.asyncio
    async def test_delete_of_that_very_object(self, api: KubeApi) -> None:
        """A successor of the same name is spared."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name))
        with pytest.raises(KubeConflict):
            await api.delete(MODEL_CACHES, name, uid=str(uuid.uuid4()))
        await api.delete(MODEL_CACHES, name, uid=made["metadata"]["uid"])
        with pytest.raises(KubeNotFound):
            await api.get(MODEL_CACHES, name)

    @pytest.mark.asyncio
    async def test_a_write_to_that_very_object(self, api: KubeApi) -> None:
        """With another's uid a replacement is a conflict, and a patch is refused."""
        name = new_name()
        made = await api.create(MODEL_CACHES, model(name))
        other = {"uid": str(uuid.uuid4())}
        with pytest.raises(KubeConflict):
            await api.replace(MODEL_CACHES, made | {"metadata": made["metadata"] | other})
        with pytest.raises(KubeRefused):
            await api.patch(MODEL_CACHES, name, {"metadata": other, "spec": {"pin": True}})
        assert await api.get(MODEL_CACHES, name) == made
