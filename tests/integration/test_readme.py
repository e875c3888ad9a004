"""Every line of a shell block of README.md and infra/README.md is run as it stands, or is listed with the reason why not.

Commands of `gmem` run in this process, in a folder whose `runs` is the store of the first run, with its small recipe under
the name of the demo's. What a reader puts in the place of a name (a file, an address, a row of their bank) is `YOURS`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.recipe import files
from flows.recipe.files import assignments
from gmem.network import Network
from gmem.settings import NetworkConfig
from infra.processes import free_ports

from .conftest import SMALL

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMMAND = re.compile(r"(gmem|make|prefect|mlflow|export|until|docker|kubectl|sed|sh|\.) ")

MAKE = "make's own targets: CI and whoever cloned the project run them"
SERVERS = "test_server.py runs the block, on a port of its own"
CONTAINERS = "needs a container engine or a cluster; tests/infra checks the files by the tools' own validators"
EXPERIMENTS = "minutes of training; test_experiments.py runs the same with a few steps"
ELSEWHERE = {
    "make demo": MAKE,
    "make test": MAKE,
    "make cluster": MAKE,
    "make trials": MAKE,
    "make results": MAKE,
    ". .venv/bin/activate": "made by make demo",
    "export PREFECT_SERVER_ANALYTICS_ENABLED=false": SERVERS,
    "prefect server start &": SERVERS,
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": SERVERS,
    "until python infra/healthy.py $PREFECT_API_URL/health 2> /dev/null; do sleep 1; done": SERVERS,
    "prefect work-pool create gmem --type process": SERVERS,
    "prefect deploy --all": SERVERS,
    "prefect worker start --pool gmem &": SERVERS,
    """prefect deployment run pipeline/emoji -p overrides='{"train": {"steps": 2000}}'""": SERVERS,
    "gmem explore emoji --network shipped:emoji-network": "tests/flows/page serves the page, on a port of its own",
    "gmem compare-arms emoji emoji-memory --out out": EXPERIMENTS,
    "gmem sweep emoji --network shipped:emoji-network --grid sample.steps=5,10,20 --grid sample.method=euler,heun": EXPERIMENTS,
    "gmem results emoji": EXPERIMENTS,
    "gmem adapt emoji twitter.tar --name twitter --network shipped:emoji-network": "tests/flows/experiments/test_adaptation.py",
    "gmem evaluate NETWORK RECIPE": "tests/flows/stages/evaluate evaluates networks from elsewhere",
}
LONG = "gmem run "
"""Such a line takes minutes: it is planned, with the same arguments."""
YOURS = {
    "prior.steps=800": "prior.steps=20",
    "selection.count=5000": "selection.count=5",
    "1000": "60",
    "flags": "round",
    "private/%": "square/deep/0%",
    "RECIPE": "emoji",
    "NETWORK": "shipped:emoji-network",
    "--network URI": "--network shipped:emoji-network",
    "FILE": "published.pt",
}


def blocks(document: Path) -> list[list[str]]:
    """The commands of each indented block of a document, without their comments; a command may go over several lines."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    found = []
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        lines = re.sub(r"(\\|\|)\n\s*", lambda end: end[1].replace("\\", "") + " ", block).splitlines()
        commands = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
        if "──" not in block:  # a diagram
            assert all(COMMAND.match(command) for command in commands), f"unknown to this test: {commands}"
            found.append([re.sub(r"\s+", " ", command) for command in commands])
    return found


README, INFRA = (blocks(ROOT / name) for name in ("README.md", "infra/README.md"))


def test_every_block_is_found_and_nothing_is_listed_that_is_not_there() -> None:
    lines = {line for block in [*README, *INFRA] for line in block}
    rest = [line for block in README for line in block if not line.startswith(("gmem ", "mlflow "))]
    assert set(rest) <= ELSEWHERE.keys()
    assert ELSEWHERE.keys() <= lines, ELSEWHERE.keys() - lines
    assert sum(line.startswith("gmem ") for line in lines) > 15 and len(INFRA) == 2


def runnable(commands: list[list[str]], first_words: tuple[str, ...]) -> list[list[str]]:
    """Blocks without the lines that are listed, of these commands alone."""
    mine = [[line for line in block if line not in ELSEWHERE and line.startswith(first_words)] for block in commands]
    return [block for block in mine if block]


@pytest.fixture
def folder(first: dict[str, dict[str, Any]], pictures: Path, store: Path, tmp_path: Path) -> Path:
    """Where a reader types: the store, some more pictures, a published network, and the recipes with a small demo."""
    root = tmp_path / "reader"
    shutil.copytree(store, root / "runs")
    shutil.copytree(ROOT / "infra", root / "infra", ignore=shutil.ignore_patterns("__pycache__", ".env"))
    (root / "recipes").mkdir()
    for recipe in files.RECIPES.glob("*.yaml"):
        shutil.copy(recipe, root / "recipes")
    demo = root / "recipes" / "emoji.yaml"
    demo.rename(demo.with_stem("demo"))
    small = assignments([*SMALL, f"data.source={pictures}", "data.max_pixels=100000000"])
    demo.write_text(yaml.safe_dump({"extends": "demo", "name": "emoji"} | small))
    shutil.copytree(pictures / "round" / "deep", root / "more" / "new")
    shutil.copy(pictures / "round" / "alpha.png", root / "my.png")
    network = Network(NetworkConfig(2, 32, 2, latent_channels=12, latent_size=8, snippet_dim=16))
    torch.save({"ema": network.state_dict()}, root / "published.pt")
    torch.save({"mean": torch.zeros(12), "std": torch.ones(12)}, root / "latents_stats.pt")
    return root


@pytest.fixture
def yours(folder: Path, first: dict[str, dict[str, Any]], pictures: Path) -> Callable[[str], str]:
    """A line with a reader's own names in it."""
    artifacts = {kind: Path(uri) for stage in first.values() for kind, uri in stage["artifacts"].items()}
    (checkpoint,) = (folder / "runs" / "training").glob("*/checkpoints/*06")
    own = YOURS | {
        "/my/pictures": str(pictures),
        "/more/pictures": str(folder / "more"),
        "--bank URI": f"--bank bank/{artifacts['bank'].name}",
        "REPORT": f"report/{artifacts['report'].name}",
        "CHECKPOINT": str(checkpoint),
    }

    def fill(line: str) -> str:
        for name, mine in own.items():
            line = line.replace(name, mine)
        return line

    return fill


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", runnable(README, ("gmem ",)), ids=lambda block: " ".join(block[0].split()[:3]))
def test_a_block_of_gmem_runs_as_it_is_typed(
    block: list[str],
    folder: Path,
    yours: Callable[[str], str],
    ask: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(files, "RECIPES", folder / "recipes")
    for line in block:
        line = yours(line)
        words = shlex.split(line.replace(LONG, "gmem plan ", 1) if line.startswith(LONG) else line)
        done = ask(*words[1:])
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.strip(), f"{line} has no result to show"


@pytest.mark.timeout(600)
def test_the_servers_lines_begin_servers(folder: Path, surroundings: dict[str, str]) -> None:
    (mlflow,) = (block for block in README if block[0].startswith("mlflow ui"))
    (port,) = free_ports(1)
    environment = surroundings | {"PATH": f"{BIN}:{os.environ['PATH']}", "MLFLOW_PORT": str(port)}
    process = subprocess.Popen(["sh", "-c", f"exec {mlflow[0]}"], cwd=folder, env=environment, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None, "it ended by itself"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        else:
            raise AssertionError("it does not answer")
    finally:
        os.killpg(process.pid, 15)
        process.wait(120)


def test_the_lines_that_make_secrets_make_them(folder: Path) -> None:
    (line,) = (line for block in INFRA for line in block if line.startswith("sh infra/secrets.sh"))
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, timeout=60)
    secrets = (folder / "infra" / ".env").read_text()
    (pipe,) = (line for block in INFRA for line in block if line.startswith("sed "))
    sed, _, kubectl = pipe.partition(" | ")
    assert kubectl.startswith("kubectl "), CONTAINERS
    token = subprocess.run(["sh", "-c", sed], cwd=folder, check=True, timeout=60, capture_output=True, text=True).stdout
    assert token.startswith("auth_token=") and token.removeprefix("auth_token=") in secrets


def test_the_other_lines_of_infra_need_containers() -> None:
    rest = [line for block in INFRA for line in block if not line.startswith(("sh infra/secrets.sh", "sed "))]
    assert all(line.startswith(("docker compose ", "kubectl ")) for line in rest), CONTAINERS
