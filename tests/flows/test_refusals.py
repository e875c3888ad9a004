"""Three kinds of what goes wrong, told apart wherever an error crosses from one process to another."""

from __future__ import annotations

import pickle

import pytest

from flows import cli
from flows.cluster.errors import ClusterError, explained
from flows.refusals import REFUSALS
from gmem.errors import InputError
from gmem.settings import SamplerConfig
from gmem.tensor_files import Mismatch
from storage.errors import Damaged, LeaseHeld, LeaseLost, Refused, StoreError, StoreRefused, StoreUnreachable

REFUSED = (Refused, InputError, StoreRefused, Damaged, LeaseHeld, LeaseLost)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_ends_with_two_and_its_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(kind("mend the recipe"), monkeypatch) == 2
    assert capsys.readouterr().err.split() == ["gmem:", "mend", "the", "recipe"]


@pytest.mark.parametrize("kind", [StoreUnreachable, ClusterError])
def test_what_may_be_over_in_a_while_ends_with_one_and_its_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(kind("no answer"), monkeypatch) == 1
    assert capsys.readouterr().err.split() == ["gmem:", "no", "answer"]


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("step"), IndexError("7"), TypeError("none")])
def test_anything_else_is_told_as_a_defect(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(error, monkeypatch) == 1
    assert "a defect of gmem, not of what you asked for" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*REFUSED, StoreUnreachable])
def test_a_worker_s_error_keeps_its_kind_whatever_it_was_raised_for(kind: type[Exception]) -> None:
    inner = kind("mend it")
    inner.__cause__ = KeyError("a library's own")
    outer = RuntimeError("a task failed")
    outer.__cause__ = inner
    told = explained(outer)
    assert str(told) == "mend it"
    assert isinstance(told, StoreUnreachable if kind is StoreUnreachable else Refused)


def test_a_worker_s_defect_is_no_refusal() -> None:
    told = explained(ValueError("shapes differ"))
    assert isinstance(told, ClusterError)
    assert str(told) == "a job failed: ValueError: shapes differ"


def test_an_unreachable_store_is_no_refusal_and_both_are_the_store_s() -> None:
    assert not issubclass(StoreUnreachable, (*REFUSALS, ValueError))
    assert issubclass(StoreUnreachable, StoreError)
    assert issubclass(StoreRefused, StoreError)


@pytest.mark.parametrize("kind", [*REFUSED, StoreUnreachable])
def test_they_travel_between_processes(kind: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(kind("mend it")))
    assert type(again) is kind
    assert str(again) == "mend it"


def test_settings_and_files_are_refused_by_the_science_too() -> None:
    with pytest.raises(InputError, match=r"sample\.steps"):
        SamplerConfig(steps=0)
    assert issubclass(Mismatch, InputError)


def _exit_code(error: Exception, monkeypatch: pytest.MonkeyPatch) -> object:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "ENVIRONMENT", {})
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code
