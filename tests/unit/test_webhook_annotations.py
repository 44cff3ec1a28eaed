"""What the annotations on a pod mean, and the sentence for each that means nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.kube import names
from cacheagent.kube.webhook.annotations import Asked, parse_annotations
from cacheagent.kube.webhook.refusal import PodRefused


def parsed(**written: str) -> Asked | None:
    """Keys with `_` for `-`, without the group."""
    return parse_annotations({f"{names.GROUP}/{key.replace('_', '-')}": value for key, value in written.items()})


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ({"model": "llama"}, Asked(models=("llama",))),
        ({"model": " llama , qwen "}, Asked(models=("llama", "qwen"))),
        ({"model": "s3://b/p"}, Asked(models=("s3://b/p",))),
        ({"model": "m", "mount_path": "/models/"}, Asked(models=("m",), base="/models")),
        ({"model": "m", "mount_path": "m=/a"}, Asked(models=("m",), paths={"m": "/a"})),
        ({"model": "m,n", "mount_path": "n=/b/, m=/a"}, Asked(models=("m", "n"), paths={"m": "/a", "n": "/b"})),
        ({"model": "m,n", "mount_path": "m=/a"}, Asked(models=("m", "n"), paths={"m": "/a"})),
        ({"model": "m", "containers": "a, b"}, Asked(models=("m",), containers=("a", "b"))),
        ({"model": "m", "mode": "pv"}, Asked(models=("m",), mode="pv")),
        ({"model": "m", "mode": "pv", "wait": "gate"}, Asked(models=("m",), mode="pv", wait="gate")),
        ({"model": "m", "wait": "init", "view": "hf"}, Asked(models=("m",), wait="init", view="hf")),
        ({"model": "m", "page_cache": "true"}, Asked(models=("m",), page_cache=True)),
        ({"model": "m", "page_cache": "false"}, Asked(models=("m",), page_cache=False)),
        (
            {"model": "m", "wait": "gate", "gate_nodes": "3", "gate_deadline": "2h"},
            Asked(models=("m",), wait="gate", gate_nodes=3, gate_deadline_s=7200),
        ),
        ({"model": "m", "wait": "gate"}, Asked(models=("m",), wait="gate", gate_nodes=1, gate_deadline_s=1800)),
        ({"model": "m", "decision": "{}", "weights_ready": "x"}, Asked(models=("m",))),
    ],
)  # fmt: skip
def test_what_annotations_ask_for(written: dict[str, str], asked: Asked) -> None:
    """Each annotation and each default."""
    assert parsed(**written) == asked


def test_a_pod_without_a_model_asks_for_nothing() -> None:
    """Whatever else it carries."""
    assert parse_annotations({"other.io/model": "x", "cacheagent.io/mode": "nonsense"}) is None


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"model": ""}, "cacheagent.io/model is '': write one name"),
        ({"model": "a,,b"}, "separated by commas"),
        ({"model": "a,a"}, "names 'a' twice"),
        ({"model": "Llama"}, "write a ModelCache's name"),
        ({"model": "-a"}, "write a ModelCache's name"),
        ({"model": "a" * 64}, "write a ModelCache's name"),
        ({"model": ",".join(f"m{n}" for n in range(17))}, "names 17 models, and a pod may have 16"),
        ({"model": "m", "mount_pth": "/x"}, "'cacheagent.io/mount-pth' is not known; did you mean 'mount-path'?"),
        ({"model": "m", "quite": "/x"}, "is not known; see docs/annotations.md"),
        ({"model": "m", "mode": "PV"}, "cacheagent.io/mode is 'PV'; it can be csi or pv"),
        ({"model": "m", "wait": "ready"}, "it can be mount, gate or init"),
        ({"model": "m", "view": ""}, "it can be files or hf"),
        ({"model": "m", "page_cache": "yes"}, "it can be true or false"),
        ({"model": "m", "containers": ""}, "write one name"),
        ({"model": "m", "mount_path": "models"}, "write an absolute path"),
        ({"model": "m", "mount_path": "/a:b"}, "without ':'"),
        ({"model": "m", "mount_path": "/"}, "write a path below /"),
        ({"model": "m", "mount_path": "/a/../b"}, r"without empty, '.' or '..' parts"),
        ({"model": "m", "mount_path": "/a//b"}, r"without empty, '.' or '..' parts"),
        ({"model": "m", "mount_path": "/./a"}, r"without empty, '.' or '..' parts"),
        ({"model": "m", "mount_path": "/proc/1"}, "belongs to the kernel"),
        ({"model": "m", "mount_path": "/dev"}, "belongs to the kernel"),
        ({"model": "m", "mount_path": "other=/a"}, "write one path, or model=/path for each model"),
        ({"model": "m,n", "mount_path": "m=/a,m=/b"}, "write one path, or model=/path for each model"),
        ({"model": "m,n", "mount_path": "/a,/b"}, "write one path, or model=/path for each model"),
        ({"model": "m,n", "view": "hf"}, "works for one model, and cacheagent.io/model names 2"),
        ({"model": "m", "mode": "pv", "wait": "init"}, "pv can't fill a volume later"),
        ({"model": "m", "mode": "pv", "view": "hf"}, "shows the plain files only"),
        ({"model": "m", "mode": "pv", "page_cache": "true"}, "set spec.pageCache"),
        ({"model": "s3://b/p", "mode": "pv"}, "needs a ModelCache by its name"),
        ({"model": "m", "gate_nodes": "2"}, "gate-nodes means something only with cacheagent.io/wait: gate"),
        ({"model": "m", "wait": "init", "gate_deadline": "5m"}, "gate-deadline means something only with"),
        ({"model": "m", "wait": "gate", "gate_nodes": "0"}, "write a number of nodes, 1 or more"),
        ({"model": "m", "wait": "gate", "gate_nodes": "2.5"}, "write a number of nodes, 1 or more"),
        ({"model": "m", "wait": "gate", "gate_nodes": "²"}, "write a number of nodes, 1 or more"),
        ({"model": "m", "wait": "gate", "gate_deadline": "30"}, "write a time such as 30m or 2h"),
        ({"model": "m", "wait": "gate", "gate_deadline": "0s"}, "write a time such as 30m or 2h"),
        ({"model": "m", "wait": "gate", "gate_deadline": "8d"}, "at most 7d"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(written: dict[str, str], sentence: str) -> None:
    """One sentence that names the annotation and says what to write."""
    with pytest.raises(PodRefused) as refused:
        parsed(**written)
    assert sentence in refused.value.message
    assert refused.value.status == 400
    assert not refused.value.may_pass


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        ({"model": "m"}, {"m": "/mnt/models"}),
        ({"model": "m,n"}, {"m": "/mnt/models/m", "n": "/mnt/models/n"}),
        ({"model": "m,n", "mount_path": "/x"}, {"m": "/x/m", "n": "/x/n"}),
        ({"model": "m,n", "mount_path": "m=/x"}, {"m": "/x", "n": "/mnt/models/n"}),
    ],
)
def test_where_models_go(written: dict[str, str], paths: dict[str, str]) -> None:
    """One model at the path itself, several below it by name, each where its own path says."""
    asked = parsed(**written)
    assert asked is not None
    assert {model: asked.mount_path(model, model) for model in asked.models} == paths


_KEYS = st.sampled_from([
    names.MODEL, names.MOUNT_PATH, names.CONTAINERS, names.MODE, names.WAIT, names.VIEW, names.PAGE_CACHE,
    names.GATE_NODES, names.GATE_DEADLINE, "cacheagent.io/x", "a/b",
])  # fmt: skip
_VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["m", "m,n", "s3://b/p", "/a", "m=/a", "csi", "pv", "gate", "init", "hf", "true", "3", "2h"]),
)


@given(st.dictionaries(_KEYS, _VALUES))
def test_any_text_is_understood_or_refused(annotations: dict[str, str]) -> None:
    """Nothing else than a value or a refusal of one sentence ever comes back."""
    try:
        parse_annotations(annotations)
    except PodRefused as refused:
        sentence = refused.message
    else:
        return
    assert sentence
    assert "\n" not in sentence
