"""What each of our containers may do, read from the rendered manifests, one property at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cacheagent.kube import names
from cacheagent.kube.webhook.kserve import STORAGE_INITIALIZER
from tests.manifests.chart import NAMESPACE, Manifests, Object, container, mounts, parse, render, rules_of

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def has_token(volume: Object) -> bool:
    return any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))


def has_secret(volume: Object) -> bool:
    return "secret" in volume or any("secret" in source for source in volume.get("projected", {}).get("sources", []))


def test_token_is_in_the_agent_only(any_set: Manifests) -> None:
    """Kubernetes mounts no token by itself, and the one that we project is in one container, where clients look."""
    pod = any_set.node_pod
    assert pod["automountServiceAccountToken"] is False
    assert any_set.get("ServiceAccount", "cacheagent-agent")["automountServiceAccountToken"] is False
    with_token = {
        (item["name"], path)
        for item in containers(pod)
        for path, where in mounts(pod, item["name"]).items()
        if has_token(where["volume"])
    }
    assert with_token == {("agent", TOKEN_PATH)}


def test_token_volume_is_what_a_pod_usually_gets(default: Manifests) -> None:
    """Token, authority and namespace, as client libraries expect them, readable by our group only."""
    volume = mounts(default.node_pod, "agent")[TOKEN_PATH]["volume"]["projected"]
    assert volume["defaultMode"] == 0o440
    paths = {
        item["path"]
        for source in volume["sources"]
        for kind in source.values()
        for item in ([kind] if "path" in kind else kind["items"])
    }
    assert paths == {"token", "ca.crt", "namespace"}


def test_secrets_are_in_the_agent_only(everything: Manifests) -> None:
    """Credentials are mounted into the container that talks to origins and into no other; no environment holds one."""
    pod = everything.node_pod
    with_secret = {
        item["name"]
        for item in containers(pod)
        for where in mounts(pod, item["name"]).values()
        if has_secret(where["volume"])
    }
    assert with_secret == {"agent"}
    for spec in (pod, everything.controller_pod):
        for item in containers(spec):
            assert "envFrom" not in item
            assert not [entry for entry in item.get("env", []) if "secretKeyRef" in entry.get("valueFrom", {})]


def test_credentials_of_the_chart_are_files_that_may_be_missing(everything: Manifests) -> None:
    """A secret that is not there fails the models that need it, not the node."""
    sources = mounts(everything.node_pod, "agent")["/etc/cacheagent/credentials"]["volume"]["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources] == ["hub-token", "minio", "team-a-s3"]
    assert all(source["secret"]["optional"] for source in sources)
    files = {item["path"] for source in sources for item in source["secret"]["items"]}
    assert {"tokens/hub", "aws/team-a/AWS_SECRET_ACCESS_KEY", "aws/minio/AWS_ACCESS_KEY_ID"} <= files


def test_csi_has_nothing_to_steal(any_set: Manifests) -> None:
    """The privileged container has the node's name, a socket, the kubelet's directory and the cache read-only."""
    csi = container(any_set.node_pod, "csi")
    assert [entry["name"] for entry in csi["env"]] == ["NODE_NAME"]
    assert "ports" not in csi
    found = mounts(any_set.node_pod, "csi")
    assert sorted(where["volume"]["name"] for where in found.values()) == ["cache", "kubelet", "run"]
    (cache,) = [where["mount"] for where in found.values() if where["volume"]["name"] == "cache"]
    assert cache["readOnly"] is True
    assert csi["securityContext"]["readOnlyRootFilesystem"] is True


def test_only_csi_is_privileged_and_propagates(any_set: Manifests) -> None:
    """The kubelet lets only privileged containers mount for others; nobody else needs it."""
    privileged, propagating = set(), set()
    for spec in (any_set.node_pod, any_set.controller_pod):
        for item in containers(spec):
            if item["securityContext"].get("privileged"):
                privileged.add(item["name"])
            for mount in item.get("volumeMounts", []):
                if mount.get("mountPropagation") == "Bidirectional":
                    propagating.add((item["name"], mount["name"]))
    assert privileged == {"csi"}
    assert propagating == {("csi", "kubelet")}


def test_kubelet_directory_is_mounted_where_it_is(any_set: Manifests) -> None:
    """The kubelet names paths as it sees them, so the driver must see them at the same place."""
    pod = any_set.node_pod
    (found,) = [where for where in mounts(pod, "csi").values() if where["volume"]["name"] == "kubelet"]
    assert found["mount"]["mountPath"] == found["volume"]["hostPath"]["path"]
    arguments = container(pod, "csi")["args"]
    assert arguments[arguments.index("--kubelet-dir") + 1] == found["mount"]["mountPath"]


def test_cache_has_one_path_everywhere(any_set: Manifests) -> None:
    """Agent, csi and host name the cache's directory alike: mountinfo and local volumes speak of the host's path."""
    pod = any_set.node_pod
    (path,) = {volume["hostPath"]["path"] for volume in pod["volumes"] if volume["name"] == "cache"}
    for item in containers(pod):
        assert [mount["mountPath"] for mount in item["volumeMounts"] if mount["name"] == "cache"] == [path]
    arguments = container(pod, "csi")["args"]
    assert arguments[arguments.index("--root") + 1] == path


@pytest.mark.parametrize(("workload", "name"), [("node", "agent"), ("controller", "controller")])
def test_agent_and_controller_are_harmless(any_set: Manifests, workload: str, name: str) -> None:
    """Not root, no capability, no way to gain one, nothing to write but what is mounted for it."""
    security = container(any_set.pod(f"cacheagent-{workload}"), name)["securityContext"]
    security.pop("seLinuxOptions", None)
    assert security == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_init_container_may_only_give_the_directory_away(any_set: Manifests) -> None:
    """It is root, with the one capability for that, and sees nothing but the directory."""
    found = container(any_set.node_pod, "make-directory")
    security = found["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert [mount["name"] for mount in found["volumeMounts"]] == ["cache"]
    assert "env" not in found


def test_pods_share_nothing_of_the_node(default: Manifests) -> None:
    """No namespaces of the host; its directories are the cache and the kubelet's."""
    for spec in (default.node_pod, default.controller_pod):
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & spec.keys()
        assert spec["enableServiceLinks"] is False
    paths = [volume["hostPath"]["path"] for volume in default.node_pod["volumes"] if "hostPath" in volume]
    assert sorted(paths) == ["/var/lib/cacheagent", "/var/lib/kubelet"]
    assert not [volume for volume in default.controller_pod["volumes"] if "hostPath" in volume]


def test_socket_lives_in_the_pod(default: Manifests) -> None:
    """No tenant can mount an emptyDir of ours; a socket below the cache's directory would be on the host."""
    for name in ("agent", "csi"):
        assert mounts(default.node_pod, name)["/run/cacheagent"]["volume"] == {"name": "run", "emptyDir": {}}


def test_mounted_sources_are_read_only(everything: Manifests) -> None:
    """We read from NFS and from the node's trees, and never write there."""
    found = mounts(everything.node_pod, "agent")
    for path in ("/mnt/nfs/0", "/mnt/nfs/1", "/gpfs/models"):
        assert found[path]["mount"]["readOnly"] is True
    assert found["/mnt/nfs/0"]["volume"]["nfs"] == {"server": "nas.example", "path": "/export/models", "readOnly": True}
    environment = {entry["name"]: entry.get("value") for entry in container(everything.node_pod, "agent")["env"]}
    assert environment["CACHEAGENT_NFS_MOUNTS"] == "nas.example:/export/models=/mnt/nfs/0,10.1.2.3:/b=/mnt/nfs/1"


def rule(resource: str, verbs: list[str]) -> Object:
    return {"apiGroups": ["cacheagent.io"], "resources": [resource], "verbs": verbs}


def test_agents_rights(any_set: Manifests) -> None:
    """It reads ModelCacheNodes and writes their status, which a policy narrows to its own, and it reads with whom it
    exchanges pieces: no Secret, Node or pod."""
    assert [(kind, rule) for kind, rule in rules_of(any_set, "cacheagent-agent")] == [
        ("ClusterRole", rule("modelcachenodes", ["get", "list", "watch"])),
        ("ClusterRole", rule("modelcachenodes/status", ["patch"])),
        ("ClusterRole", rule("modelcachepeers", ["get", "list", "watch"])),
    ]


def test_controllers_rights_are_named(any_set: Manifests) -> None:
    """No wildcard, no escalation; secrets and leases only in its own namespace; what it changes by name is named."""
    names: dict[str, list[Any]] = {}
    for kind, rule in rules_of(any_set, "cacheagent-controller"):
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert not {"bind", "escalate", "impersonate"} & set(rule["verbs"])
        for resource in rule["resources"]:
            if resource in {"secrets", "leases"}:
                assert kind == "Role"
            if resource in {"secrets", "leases", "mutatingwebhookconfigurations"} and rule["verbs"] != ["create"]:
                names[resource] = rule["resourceNames"]
    assert names == {
        "secrets": ["cacheagent-webhook"],
        "leases": ["cacheagent-controller"],
        "mutatingwebhookconfigurations": ["z-cacheagent"],
    }
    (role,) = any_set.all("Role")
    assert role["metadata"]["namespace"] == NAMESPACE


def test_controller_cannot_make_or_delete_what_is_not_its_business(default: Manifests) -> None:
    """Pods, nodes and namespaces are only read and patched; workloads, roles and config maps not even read."""
    verbs: dict[str, set[str]] = {}
    for _, rule in rules_of(default, "cacheagent-controller"):
        for resource in rule["resources"]:
            verbs.setdefault(resource, set()).update(rule["verbs"])
    read = {"get", "list", "watch"}
    assert verbs["pods"] == read | {"patch"}
    assert verbs["nodes"] == read | {"patch"}
    assert verbs["namespaces"] == read
    assert verbs["persistentvolumes"] == verbs["persistentvolumeclaims"] == read | {"create", "delete"}
    assert (
        not {"configmaps", "deployments", "daemonsets", "clusterroles", "serviceaccounts", "pods/exec"} & verbs.keys()
    )


def test_operators_rights(default: Manifests) -> None:
    """People who warm and look can do that, and can neither delete a model nor write what the controller writes."""
    role = default.get("ClusterRole", "cacheagent-operator")
    verbs = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert verbs["modelcaches"] == {"get", "list", "watch", "create", "patch"}
    assert verbs["modelwarmups"] == {"get", "list", "watch", "create", "patch", "delete"}
    assert verbs["deployments"] == {"get", "list"}
    assert verbs["leases"] == {"get"}
    for resource in ("modelcachenodes", "modelcachepeers", "nodes", "pods", "events"):
        assert verbs[resource] == {"get", "list", "watch"}
    assert not [label for label in role["metadata"]["labels"] if "aggregate-to" in label]


def test_operators_rights_are_aggregated_on_request(everything: Manifests) -> None:
    labels = everything.get("ClusterRole", "cacheagent-operator")["metadata"]["labels"]
    assert {label for label, value in labels.items() if value == "true"} == {
        "rbac.authorization.k8s.io/aggregate-to-admin",
        "rbac.authorization.k8s.io/aggregate-to-edit",
    }


def test_agent_is_held_to_its_own_object(any_set: Manifests) -> None:
    """The policy speaks of exactly the agent's account, of every way to write, and denies when it can't tell."""
    policy = any_set.get("ValidatingAdmissionPolicy", "cacheagent-own-node")["spec"]
    assert policy["failurePolicy"] == "Fail"
    assert policy["matchConditions"][0]["expression"] == (
        f'request.userInfo.username == "system:serviceaccount:{NAMESPACE}:cacheagent-agent"'
    )
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["modelcachenodes", "modelcachenodes/status"]
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"}
    assert [item["expression"] for item in policy["validations"]] == [
        'variables.node != "" && variables.node == request.name'
    ]
    binding = any_set.get("ValidatingAdmissionPolicyBinding", "cacheagent-own-node")["spec"]
    assert binding == {"policyName": "cacheagent-own-node", "validationActions": ["Deny"]}
    account = any_set.node_pod["serviceAccountName"]
    assert policy["matchConditions"][0]["expression"].endswith(f':{account}"')


def test_webhook_sees_only_pods_that_ask(any_set: Manifests) -> None:
    """Every other pod is made whatever state we are in; ours and the system's namespaces are left alone."""
    configuration = any_set.get("MutatingWebhookConfiguration", "z-cacheagent")
    webhook, _ = configuration["webhooks"]
    assert [condition["expression"] for condition in webhook["matchConditions"]] == [
        'has(object.metadata.annotations) && "cacheagent.io/model" in object.metadata.annotations'
    ]
    (rule,) = webhook["rules"]
    assert (rule["operations"], rule["resources"], rule["scope"]) == (["CREATE"], ["pods"], "Namespaced")
    (excluded,) = webhook["namespaceSelector"]["matchExpressions"]
    assert excluded["operator"] == "NotIn"
    assert {NAMESPACE, "kube-system"} <= set(excluded["values"])
    assert webhook["failurePolicy"] == "Fail"
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    assert webhook["sideEffects"] == "None"


def test_kserves_pods_are_seen_where_their_namespace_wants_it(any_set: Manifests) -> None:
    """They match before KServe's webhook and after; without us they are made all the same."""
    asked, webhook = any_set.get("MutatingWebhookConfiguration", "z-cacheagent")["webhooks"]
    made_by, asks_not = [condition["expression"] for condition in webhook["matchConditions"]]
    assert '"serving.kserve.io/inferenceservice" in object.metadata.labels' in made_by
    assert f'c.name == "{STORAGE_INITIALIZER}"' in made_by
    assert asks_not == f"!({asked['matchConditions'][0]['expression']})"
    assert webhook["namespaceSelector"].pop("matchLabels") == {names.KSERVE_LABEL: names.KSERVE_ENABLED}
    assert webhook["namespaceSelector"] == asked["namespaceSelector"]
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["clientConfig"]["service"].pop("path") == "/mutate-kserve"
    assert webhook["clientConfig"]["service"].items() <= asked["clientConfig"]["service"].items()
    for field in ("rules", "reinvocationPolicy", "sideEffects", "timeoutSeconds", "matchPolicy"):
        assert webhook[field] == asked[field]


def test_upgrade_does_not_touch_the_certificate_authority(any_set: Manifests) -> None:
    """The controller owns caBundle; a value of ours, even an empty one, would wipe it or be a conflict."""
    for webhook in any_set.get("MutatingWebhookConfiguration", "z-cacheagent")["webhooks"]:
        assert "caBundle" not in webhook["clientConfig"]
    assert not any_set.all("Secret"), "a rendered secret would replace the controller's"


def test_driver_says_what_it_is(default: Manifests) -> None:
    """Inline and persistent, with the pod's identity, never changing the owner of shared files."""
    assert default.get("CSIDriver", "csi.cacheagent.io")["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Ephemeral", "Persistent"],
        "requiresRepublish": False,
        "storageCapacity": False,
        "fsGroupPolicy": "None",
        "seLinuxMount": False,
    }


def test_network_policies(default: Manifests) -> None:
    """The webhook is open to all, since the API server is no pod; metrics to those named; nothing else."""
    metrics = {
        "ports": [{"port": "metrics"}],
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    agent = default.get("NetworkPolicy", "cacheagent-agent")["spec"]
    controller = default.get("NetworkPolicy", "cacheagent-controller")["spec"]
    assert (agent["ingress"], agent["policyTypes"]) == ([metrics], ["Ingress"])
    assert (controller["ingress"], controller["policyTypes"]) == (
        [{"ports": [{"port": "webhook"}]}, metrics],
        ["Ingress"],
    )
    for policy, workload in ((agent, "DaemonSet"), (controller, "Deployment")):
        (labels,) = [item["spec"]["template"]["metadata"]["labels"] for item in default.all(workload)]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_metrics_for_nobody() -> None:
    """An empty list of readers closes the port instead of opening it to everybody."""
    closed = parse(render({"networkPolicy": {"metricsFrom": []}}))
    assert closed.get("NetworkPolicy", "cacheagent-agent")["spec"]["ingress"] == []
    assert closed.get("NetworkPolicy", "cacheagent-controller")["spec"]["ingress"] == [{"ports": [{"port": "webhook"}]}]


def test_peers_are_reached_by_agents_alone() -> None:
    """The peer port is open to pods of this release's DaemonSet in its own namespace, whoever reads metrics, and closed
    when nothing is exchanged."""
    selector = {f"app.kubernetes.io/{key}": value for key, value in _AGENT.items()}
    peers = {"ports": [{"port": "peers"}], "from": [{"podSelector": {"matchLabels": selector}}]}
    everybody: list[Object] = [{"podSelector": {}}]
    for readers in (everybody, everybody[1:]):
        values = {"peers": {"enabled": True, "port": 7500}, "networkPolicy": {"metricsFrom": readers}}
        opened = parse(render(values))
        ingress = opened.get("NetworkPolicy", "cacheagent-agent")["spec"]["ingress"]
        assert ingress == [peers, *({"ports": [{"port": "metrics"}], "from": readers} for _ in readers)]
        (labels,) = [item["spec"]["template"]["metadata"]["labels"] for item in opened.all("DaemonSet")]
        assert selector.items() <= labels.items()
        agent = container(opened.node_pod, "agent")
        assert {"name": "peers", "containerPort": 7500} in agent["ports"]
        assert agent["args"][-2:] == ["--peer-host", "$(POD_IP)"]
        (host,) = [entry for entry in agent["env"] if entry["name"] == "POD_IP"]
        assert host["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    closed = parse(render({"peers": {"enabled": False}}))
    assert "peers" not in json.dumps(closed.get("NetworkPolicy", "cacheagent-agent"))
    assert "--peer-host" not in container(closed.node_pod, "agent")["args"]
    assert [port["name"] for port in container(closed.node_pod, "agent")["ports"]] == ["metrics"]


_AGENT = {"name": "cacheagent", "component": "agent", "instance": "cacheagent"}


def test_controller_fits_into_a_restricted_namespace(everything: Manifests) -> None:
    """By the rules of PodSecurity `restricted`: the webhook needs no exception."""
    pod = everything.controller_pod
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert all((volume.keys() - {"name"}) <= allowed for volume in pod["volumes"])
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for item in containers(pod):
        security = item["securityContext"]
        assert (security["runAsNonRoot"], security["allowPrivilegeEscalation"]) == (True, False)
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_nothing_is_a_hook_and_nothing_reads_the_cluster(any_set: Manifests) -> None:
    """So helm, kubectl apply and GitOps tools all arrive at the same objects, and an uninstall runs nothing."""
    for item in any_set.objects:
        assert "helm.sh/hook" not in json.dumps(item["metadata"].get("annotations", {}))
