"""Which requests of the kubelet are sound, what they mean, and what each refusal says."""

from __future__ import annotations

import hashlib
import string
from pathlib import PurePosixPath

import grpc
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent import errors
from cacheagent.api.schema import Volume, VolumeRequest
from cacheagent.kube import names as kube_names
from cacheagent.store.layout import is_volume_id
from csi.errors import MountFailed, NotReady, WrongAnswer
from csi.names import DRIVER
from csi.proto import csi_pb2 as pb
from csi.statuses import LONGEST_SENTENCE, sentence_of, status_of
from csi.target import find_local_volume, find_target, read_target, shorten
from csi.validate import Order, check_answer, check_capabilities, is_right_source, read_order

KUBELET = PurePosixPath("/var/lib/kubelet")
UID = "2b8d0c4e-8f0e-4a51-9a51-1f5a3f6d7c11"
TARGET = f"{KUBELET}/pods/{UID}/volumes/kubernetes.io~csi/w/mount"
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
TREE, OTHER_TREE = DIGEST.replace(":", "-"), OTHER.replace(":", "-")
Mode = pb.VolumeCapability.AccessMode


def request(ephemeral: str = "true", handle: str = "csi-1", **attributes: str) -> pb.NodePublishVolumeRequest:
    """As the kubelet sends it."""
    pod = {"pod.name": "vllm-0", "pod.namespace": "team-a", "pod.uid": UID, "serviceAccount.name": "default"}
    context = {f"csi.storage.k8s.io/{key}": value for key, value in {**pod, "ephemeral": ephemeral}.items()}
    return pb.NodePublishVolumeRequest(
        volume_id=handle,
        target_path=TARGET,
        volume_capability=pb.VolumeCapability(
            mount=pb.VolumeCapability.MountVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)
        ),
        volume_context={**context, **attributes},
    )


def wanted(ephemeral: str = "true", handle: str = "csi-1", **attributes: str) -> VolumeRequest:
    """What the agent would be asked."""
    return read_order(request(ephemeral, handle, **attributes), KUBELET).request


def test_the_driver_has_one_name() -> None:
    """The same here and where the webhook writes it."""
    assert DRIVER == kube_names.DRIVER


def test_an_inline_volume() -> None:
    """Everything that a person may write arrives, and the pod is the kubelet's."""
    asked = wanted(model="llama-3-70b", digest=DIGEST, view="hf", wait="init", pageCache="true")
    bare = VolumeRequest(namespace="team-a", pod="vllm-0", pod_uid=UID)
    assert asked == msgspec.structs.replace(
        bare, model="llama-3-70b", digest=DIGEST, view="hf", wait="init", page_cache=True
    )
    assert wanted(uri="s3://models/llama") == msgspec.structs.replace(bare, uri="s3://models/llama")


@pytest.mark.parametrize(
    ("handle", "attributes", "asked"),
    [
        (DIGEST, {}, ("", "", DIGEST)),
        ("llama", {}, ("llama", "", "")),
        (DIGEST, {"model": "llama"}, ("llama", "", DIGEST)),
        ("pv-of-team-a", {"model": "llama"}, ("llama", "", "")),
        ("pv-of-team-a", {"digest": DIGEST}, ("", "", DIGEST)),
        ("pv-of-team-a", {"uri": "hf://org/name@main"}, ("", "hf://org/name@main", "")),
    ],
)
def test_a_persistent_volume(handle: str, attributes: dict[str, str], asked: tuple[str, str, str]) -> None:
    """The handle says what is wanted, as far as the attributes don't; an inline volume's handle says nothing."""
    found = wanted("false", handle, **attributes)
    assert (found.model, found.uri, found.digest) == asked


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({}, "names no model"),
        ({"model": "a", "uri": "s3://b"}, "both 'model' and 'uri'"),
        ({"model": "../../etc"}, "model '../../etc' can't be one"),
        ({"model": "Llama"}, "model 'Llama' can't be one"),
        ({"model": "a", "digest": "sha256:../x"}, "digest 'sha256:../x' can't be one"),
        ({"model": "a", "digest": DIGEST + "\n"}, "can't be one"),
        ({"uri": "no uri"}, "uri 'no uri' can't be one"),
        ({"uri": "s3://a\nb"}, "can't be one"),
        ({"model": "a", "view": "../hf"}, "view '../hf' can't be had"),
        ({"model": "a", "wait": "gate"}, "wait 'gate' can't be had"),
        ({"model": "a", "pageCache": "yes"}, "pageCache 'yes' can't be had"),
        ({"modle": "a"}, "has 'modle', which means nothing here"),
        ({"model": "a", "csi.storage.k8s.io/pod.namespace": ""}, "did not say for which pod"),
        ({"model": "a", "csi.storage.k8s.io/pod.uid": "another"}, "the target belongs to pod"),
    ],
)
def test_attributes_that_are_refused(attributes: dict[str, str], sentence: str) -> None:
    """Each refusal names the attribute and what it holds; the same request with a model is fine."""
    with pytest.raises(errors.UsageError, match="(?s)" + sentence.replace("(", "\\(")):
        wanted(**attributes)
    assert wanted(model="a").model == "a"


def test_requests_that_lack_something() -> None:
    """An unset message is not taken for a set one."""
    for field in ("volume_id", "target_path", "volume_capability"):
        broken = request(model="a")
        broken.ClearField(field)
        with pytest.raises(errors.UsageError, match=field):
            read_order(broken, KUBELET)
    for field in ("mount", "access_mode"):
        broken = request(model="a")
        broken.volume_capability.ClearField(field)
        with pytest.raises(errors.UsageError, match=r"access (type|mode)"):
            read_order(broken, KUBELET)


@pytest.mark.parametrize("mode", Mode.Mode.values())
def test_access_modes(mode: int) -> None:
    """Readers, and the writer that the kubelet says for every inline volume; other writers are told what to write."""
    capability = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume())
    capability.access_mode.mode = mode  # type: ignore[assignment]
    if mode in {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY}:
        check_capabilities([capability])
    else:
        with pytest.raises(errors.UsageError, match="ReadOnlyMany"):
            check_capabilities([capability])


def test_capabilities_that_are_refused() -> None:
    """Block devices, file systems and mount options that can't be had; those that apply anyway may be named."""
    reader = Mode(mode=Mode.MULTI_NODE_READER_ONLY)
    kind = pb.VolumeCapability.MountVolume
    check_capabilities([pb.VolumeCapability(mount=kind(mount_flags=["ro", "noexec"]), access_mode=reader)])
    for capability, sentence in (
        (pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=reader), "volumeMode"),
        (pb.VolumeCapability(mount=kind(fs_type="ext4"), access_mode=reader), "fsType 'ext4'"),
        (pb.VolumeCapability(mount=kind(mount_flags=["ro", "rw"]), access_mode=reader), "mount option 'rw'"),
    ):
        with pytest.raises(errors.UsageError, match=sentence):
            check_capabilities([capability])


def test_an_inline_volume_is_called_as_the_kubelet_calls_it() -> None:
    """The id that we make is the kubelet's own for inline volumes (its makeVolumeHandle in csi_mounter.go)."""
    target = read_target(TARGET, KUBELET)
    assert target.volume_id == f"csi-{hashlib.sha256(f'{UID}w'.encode()).hexdigest()}"
    assert is_volume_id(target.volume_id)
    assert (target.parent, target.name) == (("pods", UID, "volumes", "kubernetes.io~csi", "w"), "mount")
    assert read_target(TARGET.replace("/w/mount", "/w/other"), KUBELET).volume_id != target.volume_id


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        f"{KUBELET}",
        f"{KUBELET}x{TARGET.removeprefix(str(KUBELET))}",
        TARGET.replace("/w/", "/../"),
        TARGET.replace("/w/", "//"),
        TARGET.replace("/w/", "/./"),
        TARGET + "/",
        TARGET + "/..",
        TARGET.replace("~csi", "~empty-dir"),
        TARGET.replace("pods", "plugins"),
        TARGET.replace(UID, ".."),
        TARGET.replace("/w/", "/w\n/"),
        TARGET.lstrip("/"),
    ],
)
def test_targets_elsewhere_are_refused(path: str) -> None:
    """Only a volume of a pod, in the plain form that the kubelet uses."""
    assert find_target(TARGET, KUBELET) is not None
    with pytest.raises(errors.UsageError, match="is not a CSI volume of a pod below"):
        read_target(path, KUBELET)


@given(
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=253),
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=253),
)
def test_local_volumes_have_ids_of_their_own(one: str, other: str) -> None:
    """Any PersistentVolume's name gives a volume id that can be a file's name, and different ones differ."""
    base = f"{KUBELET}/pods/{UID}/volumes/kubernetes.io~local-volume"
    first, second = (find_local_volume(f"{base}/{name}", KUBELET) for name in (one, other))
    assert first is not None
    assert is_volume_id(first)
    assert first.startswith(f"pv-{UID}-{one[:20]}")
    assert (first == second) == (one == other)


def test_what_is_no_local_volume() -> None:
    """CSI volumes and files below a volume are not."""
    assert find_local_volume(TARGET, KUBELET) is None
    assert find_local_volume(f"{KUBELET}/pods/{UID}/volumes/kubernetes.io~local-volume/a/b", KUBELET) is None
    assert find_local_volume("/somewhere", KUBELET) is None
    assert shorten("short") == "short"


def order(**attributes: str) -> Order:
    return read_order(request(**{"model": "tiny", **attributes}), KUBELET)


def test_answers_that_are_followed() -> None:
    """A published version, or the volume's own directory."""
    own = order().volume_id
    for path in (
        f"models/{TREE}/files",
        f"models/{TREE}/hf",
        f"models/{TREE}",
        f"volumes/{own}",
        f"volumes/{own}/files",
    ):
        answer = Volume(volume_id=own, state="ready", digest=DIGEST, path=path)
        assert check_answer(answer, order()) == tuple(path.split("/"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "models",
        "volumes",
        "/etc",
        "..",
        f"models/{TREE}/../../blobs",
        f"/models/{TREE}/files",
        f"models/{TREE}//files",
        f"models/{TREE}/",
        "models/llama/files",
        f"models/{OTHER_TREE}/files",
        "volumes/another",
        "blobs/" + "ab" * 32,
        f"models/{TREE}/a\0b",
    ],
)
def test_answers_that_are_not_followed(path: str) -> None:
    """Anything else is a defect, or somebody else behind the agent's socket."""
    with pytest.raises(WrongAnswer):
        check_answer(Volume(volume_id="v", state="ready", digest=DIGEST, path=path), order())


def test_another_version_than_the_wanted_is_not_followed() -> None:
    """A volume that names its version gets that one or none."""
    answer = Volume(volume_id="v", state="ready", digest=OTHER, path=f"models/{OTHER_TREE}/files")
    assert check_answer(answer, order())
    with pytest.raises(WrongAnswer):
        check_answer(answer, order(digest=DIGEST))


def test_which_mounts_are_right() -> None:
    """The wanted version and view; any version for a volume that named none; the volume's own directory."""
    files, hf = f"models/{TREE}/files", f"models/{TREE}/hf"
    assert is_right_source(files, order())
    assert is_right_source(files, order(digest=DIGEST))
    assert not is_right_source(files, order(digest=OTHER))
    assert not is_right_source(hf, order())
    assert is_right_source(hf, order(view="hf"))
    assert is_right_source(f"volumes/{order().volume_id}", order(wait="init"))
    for path in ("volumes/another", f"trash/{TREE}", "models", f"models/{TREE}", ""):
        assert not is_right_source(path, order())


def _all_errors(root: type[errors.CacheAgentError]) -> list[type[errors.CacheAgentError]]:
    return [root, *(found for kind in root.__subclasses__() for found in _all_errors(kind))]


def test_no_error_makes_the_kubelet_wait() -> None:
    """ABORTED never happens, and what it takes for half done only where the design says so."""
    uncertain = {grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    for kind in _all_errors(errors.CacheAgentError):
        if kind.__module__ not in {errors.__name__, NotReady.__module__}:
            continue
        status = status_of(kind("what happened"))
        assert status not in uncertain
        assert (status is grpc.StatusCode.UNAVAILABLE) == issubclass(kind, errors.AgentUnavailable)
        assert (status is grpc.StatusCode.RESOURCE_EXHAUSTED) == issubclass(kind, errors.NoRoom)
    assert status_of(NotReady("37 %")) is grpc.StatusCode.FAILED_PRECONDITION
    assert status_of(MountFailed("no")) is status_of(WrongAnswer("no")) is grpc.StatusCode.INTERNAL
    assert status_of(errors.PickleRefused("pickle")) is grpc.StatusCode.PERMISSION_DENIED


def test_sentences_fit_into_an_event() -> None:
    """One line, bounded, with the hint; a dead agent is told of in the pod's words."""
    assert sentence_of(errors.NoRoom("no\nroom", hint="unpin\tsome")) == "no room (unpin some)"
    assert len(sentence_of(errors.NoRoom("x" * 5000))) == LONGEST_SENTENCE
    said = sentence_of(errors.AgentUnavailable("no agent", hint="start one with `cacheagent agent`"))
    assert "does not answer" in said
    assert "start one" not in said
