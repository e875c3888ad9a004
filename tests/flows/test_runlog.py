"""What a command told, and did not show, is in a file afterwards."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli, runlog
from flows.console import tell
from flows.engine.progress import Terminal
from flows.runlog import files, recorded
from storage.errors import Refused


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # Prefect's, once another test has imported it
    return tmp_path / "gmem" / "logs"


def test_a_command_that_only_answers_leaves_no_file(state: Path) -> None:
    with recorded(["plan", "emoji"]) as log:
        logging.getLogger("storage.files").info("nothing that matters")
    assert not log.begun and not state.exists() and files() == []


def test_lines_warnings_and_tracebacks_are_kept(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorded(["run", "emoji", "--store", "s3://me:secret@host/bucket"]):
        tell("begun")
        with Terminal("train", every=0) as progress:
            progress.total(2)
            progress.advance(2, loss=0.5)
        logging.getLogger("storage.tracking").warning("MLflow does not answer")
        logging.getLogger("somebody.else").error("failed", exc_info=ValueError("deep inside"))
    (file,) = files()
    assert file.parent == state and "-run-emoji-" in file.name
    text = file.read_text()
    assert text.startswith("gmem run emoji --store s3://host/bucket\nin ")
    for line in ("INFO    begun", "2/2", "WARNING MLflow does not answer", "ValueError: deep inside"):
        assert line in text
    told = capsys.readouterr().err
    assert "MLflow does not answer" in told and "deep inside" not in told
    assert text.count("MLflow does not answer") == text.count("INFO    begun") == 1
    assert not any(isinstance(handler, runlog.RunLog) for handler in logging.getLogger().handlers)


def test_a_sentence_on_the_screen_and_its_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise Refused("name a picture")

    monkeypatch.setattr(cli, "app", refuse)
    monkeypatch.setattr(cli, "ENVIRONMENT", {})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "gmem: name a picture\n"
    assert 'raise Refused("name a picture")' in files()[0].read_text()


def test_lines_of_the_screen_are_in_no_other_log() -> None:
    """A worker's would have each twice: from the screen, and from Prefect's handler of everything."""
    taken = io.StringIO()
    handler = logging.StreamHandler(taken)
    logging.getLogger().addHandler(handler)
    try:
        tell("begun")
    finally:
        logging.getLogger().removeHandler(handler)
    assert taken.getvalue() == ""


def test_old_files_make_room(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "KEPT", 3)
    state.mkdir(parents=True)
    for number in range(5):
        (state / f"20000101-00000{number}-run-1.log").touch()
    with recorded(["run"]):
        tell("begun")
    assert [file.name[:15] for file in files()][1:] == ["20000101-000004", "20000101-000003"]


def test_without_a_place_for_it_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with recorded(["run"]) as log:
        tell("begun")
    assert log.path.parent == tmp_path and "begun" in log.path.read_text()


def test_prefect_leaves_the_log_be(state: Path) -> None:
    """It configures logging when it is imported."""
    program = (
        "import logging; from flows.runlog import recorded\n"
        "with recorded(['run']):\n"
        "    from prefect import flow\n"
        "    logging.getLogger('prefect.flow_runs').info('Beginning flow run')\n"
        "    logging.getLogger('storage').warning('slow')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (file,) = files()
    assert "Beginning flow run" in file.read_text() and "slow" in file.read_text()
    assert done.stderr.splitlines()[-1] == "slow" and "Beginning" not in done.stderr


def test_the_command_lists_and_shows_them(state: Path) -> None:
    def ask(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, ["logs", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    for command in ("run", "sample"):
        with recorded([command, "emoji"]):
            tell(f"{command} begun")
    assert "gmem run emoji" in ask() and str(state) in ask()
    assert "sample begun" in ask("sample-emoji") and "run begun" in ask("run-emoji")
    assert "begun" in ask("last")
    listed = json.loads(ask("--json").splitlines()[-1])
    assert listed["folder"] == str(state) and {row["command"] for row in listed["logs"]} == {
        "gmem run emoji", "gmem sample emoji",
    }  # fmt: skip
    assert "run begun" in json.loads(ask("run-emoji", "--json").splitlines()[-1])["text"]
    refused = CliRunner().invoke(cli.app, ["logs", "nothing-like-it"])
    assert isinstance(refused.exception, Refused) and "lists those there are" in str(refused.exception)
