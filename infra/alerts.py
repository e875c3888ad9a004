"""Tells a person when a deployment's run has failed: an automation on Prefect's server (PREFECT_API_URL).

python -m infra.alerts slack-webhook/gmem      # any notification block, made in Prefect's UI under Blocks
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.automations import Automation, EventTrigger, Posture, SendNotification
from prefect.blocks.core import Block
from prefect.exceptions import PrefectHTTPStatusError

NAME = "gmem: a run has failed"
SUBJECT = "{{ flow.name }} has failed: {{ flow_run.name }}"
BODY = """{{ flow_run.state.name }}: {{ flow_run.state.message }}
{{ flow_run|ui_url }}
What is committed stays; the same run goes on from there."""


def watch(block: str) -> Automation:
    """Creates the automation, or points the one that is there at another block, `<type>/<name>`.

    ValueError where there is no such block. Runs that no deployment started are left out: their caller sees the error.
    """
    try:
        found: Any = Block.load(block)
    except ValueError as error:
        raise ValueError(f"there is no block {block}: make one in Prefect's UI, or see 'prefect block ls'") from error
    wanted = Automation(
        name=NAME,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=found._block_document_id, subject=SUBJECT, body=BODY)],
    )
    with get_client(sync_client=True) as client:
        for earlier in client.read_automations_by_name(NAME):
            client.delete_automation(earlier.id)
    created = wanted.create()
    assert isinstance(created, Automation), "outside an event loop it is made when the call returns"
    return created


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("block", help="the notification block, as TYPE/NAME")
    try:
        watch(parser.parse_args().block)
    except (ValueError, PrefectHTTPStatusError) as error:
        parser.error(str(error))
    print(f"created the automation '{NAME}'")


if __name__ == "__main__":
    main()
