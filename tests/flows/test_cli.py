"""How a command ends when something goes wrong."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli
from flows.cluster.errors import ClusterError
from storage.errors import Refused


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Refused("name a picture"), 2, "gmem: name a picture"),
        (FileNotFoundError("no such file: a.png"), 2, "gmem: no such file: a.png"),
        (ClusterError("the cluster is away"), 1, "gmem: the cluster is away"),
        (
            RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server."),
            1,
            "gmem: Prefect's temporary server did not start in time; run again when",
        ),
        (KeyError("snippet"), 1, "gmem: a defect of gmem, not of what you asked for (KeyError: 'snippet')"),
    ],
)
def test_an_error_is_one_sentence_and_a_defect_is_called_one(
    error: Exception, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "ENVIRONMENT", {})  # what it sets would stay for the tests after this
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err.strip()
    assert ended.value.code == code and told.startswith(sentence) and len(told.splitlines()) == 1
    if isinstance(error, KeyError):
        assert "raise error" in Path(told.rpartition(" ")[2]).read_text()


def test_version_and_completion() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).stdout.strip() == version("gmem-pipeline")
    complete = {"_GMEM_COMPLETE": "complete_bash", "COMP_WORDS": "gmem bank wi", "COMP_CWORD": "2"}
    assert CliRunner().invoke(cli.app, prog_name="gmem", env=complete).stdout.split() == ["withdraw"]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_source_that_is_not_there_is_refused_before_anything_starts(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def started(*_: object) -> None:
        pytest.fail("servers were started")

    monkeypatch.setattr("flows.warmup.begin", started)
    source = f"data.source={tmp_path}/pictures"
    done = CliRunner().invoke(cli.app, [command, "emoji", "--set", source, "--store", str(tmp_path / "runs")])
    assert isinstance(done.exception, Refused)
    assert str(done.exception).endswith("No such file or directory); correct data.source")


@pytest.mark.parametrize(
    ("given", "direct"),
    [(None, "127.0.0.1,localhost"), ("intranet,localhost", "intranet,localhost,127.0.0.1"), ("*", "*")],
)
def test_a_proxy_is_for_the_outside(given: str | None, direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cli.PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli, "ENVIRONMENT", {})
    cli.main()
    assert "NO_PROXY" not in os.environ, "without a proxy nothing is said"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, given or "")
    cli.main()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == direct
