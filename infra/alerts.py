"""What Prefect's server looks after by itself: two automations on it (PREFECT_API_URL).

python -m infra.alerts slack-webhook/gmem      # any notification block, made in Prefect's UI under Blocks

One tells a person when a deployment's run has failed. The other ends runs that nobody runs any more: a process that was
killed says nothing, and its flow runs, stages above all, would stay `Running` for ever. Every flow run sends a heartbeat
each three minutes (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). Without a block only the second is made.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.automations import Automation, EventTrigger, Posture, SendNotification
from prefect.blocks.core import Block
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import PrefectHTTPStatusError

from storage.errors import Refused

NAME = "gmem: a run has failed"
SUBJECT = "{{ flow.name }} has failed: {{ flow_run.name }}"
BODY = """{{ flow_run.state.name }}: {{ flow_run.state.message }}
{{ flow_run|ui_url }}
What is committed stays; the same run goes on from there."""
ZOMBIES = "gmem: a run without a sign of life"
SILENCE = timedelta(minutes=10)
"""Three heartbeats and a minute: a busy process, or a server that restarts, may miss one."""
HEARTBEAT = "prefect.flow-run.heartbeat"
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


def watch(block: str) -> Automation:
    """Creates the automation that tells a person, or points the one that is there at another block, `<type>/<name>`.

    Refused where there is no such block. Runs that no deployment started are left out: their caller sees the error.
    """
    try:
        found: Any = Block.load(block)
    except ValueError as error:
        raise Refused(f"there is no block {block}: make one in Prefect's UI, or see 'prefect block ls'") from error
    return _created(
        Automation(
            name=NAME,
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
                match=RUNS,
                match_related={"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[SendNotification(block_document_id=found._block_document_id, subject=SUBJECT, body=BODY)],
        )
    )


def end_silent_runs(silence: timedelta = SILENCE) -> Automation:
    """Creates the automation that marks runs `Crashed` from which nothing was heard for so long."""
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    said = f"nothing was heard of it for {silence.total_seconds() / 60:.0f} minutes: its process is gone. Run it again"
    return _created(
        Automation(
            name=ZOMBIES,
            trigger=EventTrigger(
                after={HEARTBEAT},
                expect={HEARTBEAT, *ended},
                match=RUNS,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=silence,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=said)],
        )
    )


def _created(wanted: Automation) -> Automation:
    """The automation on the server, in the place of an earlier one of its name."""
    with get_client(sync_client=True) as client:
        for earlier in client.read_automations_by_name(wanted.name):
            client.delete_automation(earlier.id)
    created = wanted.create()
    assert isinstance(created, Automation), "outside an event loop it is made when the call returns"
    return created


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("block", nargs="?", help="the notification block, as TYPE/NAME; none: nobody is told")
    block = parser.parse_args().block
    try:
        made = [watch(block)] if block else []
        made.append(end_silent_runs())
    except (ValueError, PrefectHTTPStatusError) as error:
        parser.error(str(error))
    for automation in made:
        print(f"created the automation '{automation.name}'")


if __name__ == "__main__":
    main()
