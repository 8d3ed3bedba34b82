"""deploy/: what the API server would say of it, and which rights it asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from netagent import settings
from tests.deploy import kustomize

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
KUBERNETES = "1.37"

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)


def objects(overlay: str) -> dict[tuple[str, str], kustomize.Manifest]:
    built = kustomize.build(DEPLOY / "overlays" / overlay)
    found = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in built}
    assert len(found) == len(built)
    return found


def pod(overlay: str) -> dict[str, Any]:
    return objects(overlay)["DaemonSet", "netagent"]["spec"]["template"]["spec"]


def agent(overlay: str) -> dict[str, Any]:
    (container,) = pod(overlay)["containers"]
    return container


def configuration(overlay: str) -> str:
    return objects(overlay)["ConfigMap", "netagent"]["data"]["config.yaml"]


def test_these_are_the_ways_to_deploy_it() -> None:
    assert OVERLAYS == ["alongside-kube-proxy", "iptables", "nftables", "privileged"]


@everywhere
def test_every_object_is_valid_for_kubernetes_1_37(overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="not installed: kubernetes-validate (extra test)")
    for manifest in objects(overlay).values():
        validate.validate(manifest, KUBERNETES, strict=True)


@everywhere
def test_kubectl_builds_the_same(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("not installed: kubectl")
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "overlays" / overlay],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert built == objects(overlay)


def test_the_role_is_what_netagent_asks_for_and_no_more() -> None:
    granted = {
        (group, resource, verb)
        for rule in objects("nftables")["ClusterRole", "netagent"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    followed = (
        ("", "services"),
        ("", "nodes"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.k8s.io", "servicecidrs"),
    )
    assert granted == {
        *((group, resource, verb) for group, resource in followed for verb in ("list", "watch")),
        ("events.k8s.io", "events", "create"),
    }


@everywhere
def test_role_binding_and_pods_mean_the_same_account(overlay: str) -> None:
    binding = objects(overlay)["ClusterRoleBinding", "netagent"]
    account = objects(overlay)["ServiceAccount", pod(overlay)["serviceAccountName"]]["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert ("ClusterRole", binding["roleRef"]["name"]) in objects(overlay)


@pytest.mark.parametrize("overlay", ["nftables", "alongside-kube-proxy"])
def test_mode_nftables_runs_with_one_capability_and_without_the_hosts_files(overlay: str) -> None:
    assert agent(overlay)["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }
    assert pod(overlay)["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert not [volume for volume in pod(overlay)["volumes"] if "hostPath" in volume]
    assert not pod(overlay).keys() & {"hostPID", "hostIPC"}


def test_only_the_overlays_that_say_so_are_privileged() -> None:
    assert {overlay for overlay in OVERLAYS if agent(overlay)["securityContext"]["privileged"]} == {
        "iptables",
        "privileged",
    }
    with_host_files = {overlay for overlay in OVERLAYS if any("hostPath" in v for v in pod(overlay)["volumes"])}
    assert with_host_files == {"iptables"}


@everywhere
def test_the_agent_does_not_need_the_cluster_ip_that_it_programs(overlay: str) -> None:
    variables = {variable["name"]: variable["valueFrom"] for variable in agent(overlay)["env"]}
    for name, key in (("KUBERNETES_SERVICE_HOST", "host"), ("KUBERNETES_SERVICE_PORT", "port")):
        assert variables[name] == {"configMapKeyRef": {"name": "netagent-api-server", "key": key}}
    assert variables["NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert "--node-name=$(NODE_NAME)" in agent(overlay)["args"]
    assert pod(overlay)["hostNetwork"] is True
    assert pod(overlay)["dnsPolicy"] == "Default"


@everywhere
def test_it_runs_on_every_linux_node_and_stays_there(overlay: str) -> None:
    assert pod(overlay)["tolerations"] == [{"operator": "Exists"}]
    assert pod(overlay)["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod(overlay)["priorityClassName"] == "system-node-critical"
    assert "limits" not in agent(overlay)["resources"]
    strategy = objects(overlay)["DaemonSet", "netagent"]["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": "10%"}


@everywhere
def test_the_selector_selects_the_pods_and_never_changes_with_a_version(overlay: str) -> None:
    spec = objects(overlay)["DaemonSet", "netagent"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert "app.kubernetes.io/version" not in spec["selector"]["matchLabels"]


@everywhere
def test_the_configuration_is_one_that_netagent_takes_and_the_probes_ask_where_it_listens(overlay: str) -> None:
    text = configuration(overlay)
    mode = next(argument.partition("=")[2] for argument in agent(overlay)["args"] if argument.startswith("--mode"))
    parsed = settings.parse(text, origin=overlay, mode=mode)
    (port,) = agent(overlay)["ports"]
    assert port["containerPort"] == port["hostPort"] == parsed.settings.healthz_bind_address.port
    probes = [agent(overlay)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
    assert {probe["port"] for probe in probes} == {port["name"]}


def test_beside_kube_proxy_nothing_of_kube_proxy_is_used_twice() -> None:
    text = configuration("alongside-kube-proxy")
    assert not re.search(r"\b(10256|10249)\b", text)
    assert "masqueradeBit: 15" in text
    assert "initContainers" not in pod("alongside-kube-proxy")


def test_the_image_is_the_root_file_system_and_nothing_else() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    last = lines[lines.index("FROM scratch") :]
    assert not [line for line in last if line.startswith(("RUN", "ADD", "SHELL"))]
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /rootfs/ /"]
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", "\n".join(last)))
    assert labels == {"title", "description", "licenses", "version", "revision", "created", "source"}
    assert 'ENTRYPOINT ["/opt/netagent/bin/netagent"]' in last
