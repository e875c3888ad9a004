"""What the files of infra/ say of each other and of our code: images, versions, ports, names of variables."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PORTS = {
    "s3": 8333,
    "prefect-db": 5432,
    "mlflow-db": 5432,
    "prefect": 4200,
    "mlflow": 5000,
    "ray-head": {6379, 8265},
    "gmem-head-svc": 8265,
}
OTHERS = {  # read by programs that are no Python packages of ours
    "PGPASSWORD": "libpq",
    "POSTGRES_USER": "the image postgres",
    "POSTGRES_DB": "the image postgres",
    "POSTGRES_PASSWORD": "the image postgres",
    "PGDATA": "the image postgres",
    "NVIDIA_VISIBLE_DEVICES": "NVIDIA's container toolkit",
    "NVIDIA_DRIVER_CAPABILITIES": "NVIDIA's container toolkit",
    "PATH": "everybody",
    "VIRTUAL_ENV": "uv",
    "PYTHONUNBUFFERED": "Python",
}


def image_environment() -> dict[str, str]:
    block = re.search(r"^ENV (.*?)\n\n", (INFRA / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE)
    assert block
    return dict(pair.split("=", 1) for pair in block[1].replace("\\\n", " ").split())


def locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


@cache
def texts(package: str, *below: str) -> str:
    """All Python source of a package, or of some of its modules, without importing it."""
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    files = [file for name in below or ("",) for file in (root.glob(f"{name}/**/*.py") if name else root.glob("*.py"))]
    return "\n".join(file.read_text(errors="ignore") for file in files)


@cache
def prefect_settings() -> set[str]:
    """Every variable that Prefect reads, from its settings' prefixes and fields."""
    root = Path(str(find_spec("prefect").submodule_search_locations[0])) / "settings" / "models"  # type: ignore[union-attr,index]
    names = set()
    for file in root.rglob("*.py"):
        text = file.read_text()
        prefixes = re.findall(r"build_settings_config\(\s*\(([^)]*)\)", text)
        fields = re.findall(r"^    (\w+): ", text, re.MULTILINE)
        parts = [re.findall(r'"(\w+)"', prefix) for prefix in prefixes]
        names |= {"_".join(["prefect", *part, field]).upper() for part in parts for field in fields}
        names |= {alias.upper() for alias in re.findall(r'"(prefect_\w+)"', text)}
    return names


def is_read(name: str) -> bool:
    """Whether our code or the server that gets this variable knows it."""
    ours = "\n".join(path.read_text() for room in ("flows", "storage", "infra") for path in (ROOT / room).rglob("*.py"))
    if name in OTHERS or f'"{name}"' in ours or name == "GMEM_HOME":
        return True
    if name.startswith("PREFECT_"):
        return name in prefect_settings()
    if name.startswith("MLFLOW_"):
        return f'"{name}"' in texts("mlflow")
    if name.startswith("RAY_"):
        return name in texts("ray", "_private", "_common")
    if name.startswith("AWS_"):
        return f"'{name}'" in texts("botocore")
    return name in texts("git")


def test_every_variable_is_read_by_somebody(
    services: dict[str, Any], containers: list[Any], manifests: dict[str, Any]
) -> None:
    given = {name for service in services.values() for name in service.get("environment") or {}}
    given |= {entry["name"] for container in containers for entry in container.spec.get("env", [])}
    given |= {name for key, m in manifests.items() if key.startswith("ConfigMap/") for name in m["data"]}
    given |= image_environment().keys()
    assert len(given) > 35
    assert [name for name in sorted(given) if not is_read(name)] == []
    assert not is_read("PREFECT_SERVER_DATABASE_HOSTNAME") and not is_read("MLFLOW_SERVER_ALLOWED_HOST")


def test_telemetry_is_off_in_the_image() -> None:
    environment = image_environment()
    written = "\n".join((ROOT / name).read_text() for name in ("flows/cli.py", "flows/cluster/connection.py"))
    for name in (
        "DO_NOT_TRACK",
        "MLFLOW_DISABLE_TELEMETRY",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "RAY_USAGE_STATS_ENABLED",
    ):
        assert f'"{name}": "{environment[name]}"' in written, name


def test_images_are_one_build_and_pinned(services: dict[str, Any], containers: list[Any]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    images = {service["image"] for service in services.values()} | {c.spec["image"] for c in containers}
    ours = {image for image in images if image.startswith("gmem:")}
    assert ours == {f"gmem:{version[1]}-cpu", f"gmem:{version[1]}-cuda"}
    others = {image.rpartition(":")[0]: image.rpartition(":")[2] for image in images - ours}
    assert others.keys() == {"postgres", "chrislusf/seaweedfs"} and len(others) == len(images - ours)
    assert all(re.match(r"\d+\.\d+", tag) for tag in others.values())
    for tag in ours:
        assert tag in (INFRA / "Dockerfile").read_text()
    built = {s["image"]: s["build"]["args"]["DEVICE"] for s in services.values() if "build" in s}
    assert {image.rpartition("-")[2] for image in built} == set(built.values()) == {"cpu", "cuda"}


def test_gpus_and_the_image_for_them_go_together(services: dict[str, Any], containers: list[Any]) -> None:
    for container in containers:
        gpus = "nvidia.com/gpu" in container.spec["resources"]["limits"]
        assert gpus == container.spec["image"].endswith("-cuda") == ("nodeSelector" in container.pod), container.where
    for name, service in services.items():
        gpus = "devices" in service["deploy"]["resources"].get("reservations", {})
        assert gpus == service["image"].endswith("-cuda") == ("gpu" in service.get("profiles", [])), name


def test_versions_are_those_of_the_lock(manifests: dict[str, Any]) -> None:
    assert manifests["RayCluster/gmem"]["spec"]["rayVersion"] == locked("ray")
    assert yaml.safe_load((ROOT / "prefect.yaml").read_text())["prefect-version"] == locked("prefect")
    python = re.search(r"^ARG PYTHON_IMAGE=python:3\.(\d+)\.\d+-", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert python and int(python[1]) in (11, 12)
    for path in (INFRA / "compose.yaml", INFRA / "mlflow-auth.ini", INFRA / "kubernetes" / "mlflow.yaml"):
        # without its name SQLAlchemy 2.1 takes another driver
        assert set(re.findall(r"postgresql\S*://", path.read_text())) == {"postgresql+psycopg2://"}, path
    assert locked("psycopg2-binary") and locked("flask-wtf") and locked("asyncpg") and locked("setuptools")


def test_ports_agree_wherever_they_are_named(
    services: dict[str, Any], containers: list[Any], manifests: dict[str, Any]
) -> None:
    for path in [INFRA / "compose.yaml", INFRA / "mlflow-auth.ini", *(INFRA / "kubernetes").glob("*.yaml")]:
        for host, port in re.findall(r"(?<![\w.-])(" + "|".join(PORTS) + r"):(\d{4})", path.read_text()):
            allowed = PORTS[host] if isinstance(PORTS[host], set) else {PORTS[host]}
            assert int(port) in allowed, f"{path.name}: {host}:{port}"
    for name, service in services.items():
        allowed = PORTS.get(name, set()) if isinstance(PORTS.get(name, set()), set) else {PORTS[name]}
        assert {port["target"] for port in service.get("ports", [])} <= allowed, name
        assert all(str(port["target"]) == port["published"] for port in service.get("ports", [])), name
    listened = {
        port["name"]: port["containerPort"]
        for c in containers
        for port in c.spec.get("ports", [])
        if port["name"] != "http"
    }
    assert listened == {"postgres": 5432, "health": 8080, "gcs": 6379, "dashboard": 8265, "agent": 52365}
    for key, manifest in manifests.items():
        if key.startswith("Service/"):
            name = key.removeprefix("Service/")
            [pod] = [c for c in containers if c.where.split("/")[1].split(".")[0] == name]
            served = manifest["spec"]["ports"][0]["port"]
            assert served == PORTS[name] == pod.spec["ports"][0]["containerPort"]


def test_health_checks_ask_the_port_that_is_listened_on(services: dict[str, Any]) -> None:
    asked = {
        name: re.search(r"http://127\.0\.0\.1:(\d+)/", " ".join(service["healthcheck"].get("test", [])))
        for name, service in services.items()
    }
    told = {name: " ".join(service.get("command") or []) for name, service in services.items()}
    for name, found in asked.items():
        if found and name != "prefect-worker":
            assert re.search(rf"port[= ]{found[1]}\b", told[name]), name
    assert asked["prefect-worker"] and asked["prefect-worker"][1] == "8080"  # Prefect's own default
    assert "start-worker.sh" in told["prefect-worker"]


def test_the_worker_deploys_what_prefect_yaml_says_before_it_works() -> None:
    script = (INFRA / "start-worker.sh").read_text()
    assert (
        script.index("work-pool create gmem") < script.index("deploy --all") < script.index("worker start --pool gmem")
    )
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert project["definitions"]["pool"]["name"] == "gmem"
    assert "${GMEM_HOME:-$PWD}" in str(project["build"]) and image_environment()["GMEM_HOME"] == "/opt/gmem"


def test_a_training_has_time_for_its_last_checkpoint(services: dict[str, Any], containers: list[Any]) -> None:
    found = re.search(
        r"^GRACE_SECONDS = ([\d.]+)", (ROOT / "flows" / "cluster" / "resources.py").read_text(), re.MULTILINE
    )
    assert found
    for name in ("ray-head", "ray-worker", "ray-worker-gpu"):
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", services[name]["stop_grace_period"]).groups()  # type: ignore[union-attr]
        assert 60 * int(minutes or 0) + int(seconds or 0) > float(found[1]), name
    for container in containers:
        if container.spec["name"].startswith("ray-"):
            assert container.pod["terminationGracePeriodSeconds"] > float(found[1]), container.where


def test_the_readme_names_what_is_there() -> None:
    readme = (INFRA / "README.md").read_text()
    for name in re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE):
        for part in re.findall(r"[\w./-]+\.\w+$|[\w-]+/$|^Dockerfile$", name):
            assert (INFRA / part).exists(), part
    for variable in re.findall(r"`((?:RAY_WORKER|GMEM_)\w+)`", readme):
        assert f"${{{variable}:-" in (INFRA / "compose.yaml").read_text(), variable
