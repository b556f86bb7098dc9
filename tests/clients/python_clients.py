"""What one of Python's packages makes of a stream, after any interruption: one line of JSON for each event.

    python python_clients.py PACKAGE URL

With TOKEN in the environment it sends that.
"""

import asyncio
import json
import os
import sys

package, url = sys.argv[1:]
token = os.environ.get("TOKEN")
headers = {"Authorization": f"Bearer {token}"} if token else {}


def say(line):
    print(json.dumps(line), flush=True)


def show(id, event, data):
    say({"id": id or "", "event": event or "message", "data": data})


def launchdarkly_eventsource():
    from ld_eventsource import SSEClient
    from ld_eventsource.actions import Event, Start
    from ld_eventsource.config import ConnectStrategy, ErrorStrategy

    client = SSEClient(
        connect=ConnectStrategy.http(url, headers=headers), error_strategy=ErrorStrategy.always_continue()
    )
    for action in client.all:
        if isinstance(action, Start):
            say({"open": True})
        elif isinstance(action, Event):
            show(action.last_event_id, action.event, action.data)


async def aiohttp_sse_client():
    import aiohttp
    from aiohttp_sse_client2.client import EventSource

    opened = lambda: say({"open": True})
    last_id = ""
    while True:
        # It reconnects after the proper end of a stream, but not after a broken connection.
        resumed = {"Last-Event-ID": last_id} if last_id else {}
        try:
            source = EventSource(url, headers={**headers, **resumed}, on_open=opened, max_connect_retry=1000)
            async with source:
                async for event in source:
                    last_id = event.last_event_id or last_id
                    show(event.last_event_id, event.type, event.data)
        except (aiohttp.ClientError, ConnectionError):
            await asyncio.sleep(1)


if package == "launchdarkly-eventsource":
    launchdarkly_eventsource()
else:
    asyncio.run(aiohttp_sse_client())
