"""Authentication, health, limits, users and secrets of everything that infra/ starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|auth_token")
ONCE = {"buckets"}  # ends by itself
MEANT = re.compile(r"\$\{[A-Z_]+:\?run sh infra/secrets\.sh > infra/\.env\}")


def variables(container: Any) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container.spec.get("env", [])}


def test_every_service_is_watched_limited_and_stripped_of_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() >= {"cpus", "memory", "pids"}, name
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged") and service.get("network_mode") is None, name
        if name not in ONCE:
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["restart"] == "unless-stopped", name
        if not service["image"].startswith("gmem:"):
            assert service["user"].split(":")[0] not in ("0", "root"), name


def test_ports_open_to_this_machine_only(services: dict[str, Any]) -> None:
    opened = {name: [port["host_ip"] for port in service.get("ports", [])] for name, service in services.items()}
    assert {name for name, where in opened.items() if where} == {"s3", "prefect", "mlflow", "ray-head"}
    assert {address for where in opened.values() for address in where} == {"127.0.0.1"}


def test_what_lasts_is_in_named_volumes(services: dict[str, Any], source: dict[str, Any]) -> None:
    mounted = {mount["source"] for service in services.values() for mount in service.get("volumes", [])}
    assert {mount["type"] for service in services.values() for mount in service.get("volumes", [])} == {"volume"}
    assert mounted == set(source["volumes"]) >= {"s3", "prefect-db", "mlflow-db"}


def test_every_container_of_a_pod_is_watched_limited_and_stripped_of_rights(containers: list[Any]) -> None:
    assert len(containers) == 9
    for container in containers:
        spec, where = container.spec, container.where
        assert spec["resources"]["limits"].keys() >= {"cpu", "memory"} <= spec["resources"]["requests"].keys(), where
        assert spec["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, where
        of_pod = container.pod["securityContext"]
        assert of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0, where
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}, where
        if spec["name"] != "submitter":  # ends by itself
            assert "livenessProbe" in spec and spec.keys() & {"readinessProbe", "startupProbe"}, where


def test_no_pod_gets_the_names_of_services_as_settings(containers: list[Any]) -> None:
    """A Service named prefect or mlflow would set PREFECT_PORT or MLFLOW_PORT, which the servers read."""
    for container in containers:
        if container.spec["image"].startswith("gmem:"):
            assert container.pod["enableServiceLinks"] is False, container.where


def test_compose_takes_secrets_by_reference(source: dict[str, Any], secrets: Path) -> None:
    written = [(k, v) for s in source["services"].values() for k, v in (s.get("environment") or {}).items()]
    secret = [(key, value) for key, value in written if SECRET.search(key) or key == "PGPASSWORD"]
    assert len(secret) > 20 and all(MEANT.fullmatch(value) for _, value in secret), secret
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", (INFRA / "compose.yaml").read_text()))
    given = dict(line.split("=", 1) for line in secrets.read_text().splitlines())
    assert asked == given.keys() and all(given.values())
    long = [value for key, value in given.items() if key != "MLFLOW_TRACKING_USERNAME"]
    assert len(set(long)) == len(long) and min(map(len, long)) >= 48


def test_secrets_are_new_each_time(secrets: Path) -> None:
    again = subprocess.run(["sh", INFRA / "secrets.sh"], check=True, capture_output=True, text=True).stdout
    assert set(again.splitlines()) & set(secrets.read_text().splitlines()) == {"MLFLOW_TRACKING_USERNAME=gmem"}


def test_pods_take_secrets_by_reference(manifests: dict[str, Any], containers: list[Any], secrets: Path) -> None:
    there = {"gmem": set(re.findall(r"^(\w+)=", secrets.read_text(), re.MULTILINE)), "gmem-ray": {"auth_token"}}
    for container in containers:
        for name, entry in variables(container).items():
            if SECRET.search(name):
                key = entry["valueFrom"]["secretKeyRef"]
                assert "value" not in entry and key["key"] in there[key["name"]], f"{container.where} {name}"
    assert not [name for name in manifests if name.startswith("Secret/")]
    open_settings = [m["data"] for name, m in manifests.items() if name.startswith("ConfigMap/")]
    assert not [key for data in open_settings for key in data if SECRET.search(key)]


def test_no_file_holds_a_password_in_an_address() -> None:
    for path in INFRA.rglob("*"):
        if path.is_file() and path.suffix in {".yaml", ".ini", ".sh", ".md", ""}:
            assert not re.search(r"://[^/\s@]*:[^/\s@]+@", path.read_text()), path


def test_secrets_stay_out_of_git_and_of_the_image() -> None:
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "infra/.env"], check=False, cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: no git checkout
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*" and rules.index("infra/.env") > rules.index("!infra")
    copied = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert all((ROOT / name).exists() for name in copied)
    assert not {"runs", "tests", ".git", ".venv", ".env"} & set(copied)


def test_every_server_asks_who_is_there(
    services: dict[str, Any], containers: list[Any], manifests: dict[str, Any]
) -> None:
    environment = {name: service.get("environment") or {} for name, service in services.items()}
    assert (
        environment["prefect"]["PREFECT_SERVER_API_AUTH_STRING"]
        == environment["prefect-worker"]["PREFECT_API_AUTH_STRING"]
    )
    assert environment["mlflow"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == environment["ray-worker"]["MLFLOW_TRACKING_PASSWORD"]
    assert "basic-auth" in services["mlflow"]["command"]
    for name in ("ray-head", "ray-worker", "ray-worker-gpu", "prefect-worker"):
        assert environment[name]["RAY_AUTH_MODE"] == "token" and environment[name]["RAY_AUTH_TOKEN"], name
    of_pods = {container.spec["name"]: container for container in containers}
    assert "PREFECT_SERVER_API_AUTH_STRING" in variables(of_pods["prefect"])
    assert "basic-auth" in of_pods["mlflow"].spec["command"]
    assert manifests["ConfigMap/gmem-job"]["data"]["RAY_AUTH_MODE"] == "token"
    for name in ("ray-head", "ray-worker", "prefect-worker", "submitter"):
        assert "RAY_AUTH_TOKEN" in variables(of_pods[name]), name
    cluster = manifests["RayCluster/gmem"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "gmem-ray"}
    assert manifests["NetworkPolicy/only-among-themselves"]["spec"]["podSelector"] == {}


def test_the_image_runs_as_a_user_who_cannot_change_the_code() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert not [line for line in lines if line.startswith(("COPY", "ADD")) and "--chown" in line]
    uid = yaml.safe_load_all((INFRA / "kubernetes" / "prefect.yaml").read_text())
    assert {
        d["spec"]["template"]["spec"]["securityContext"]["runAsUser"] for d in uid if d["kind"] == "Deployment"
    } == {10001}
