"""What `httpx-sse` makes of a stream: one line of JSON for each event. It leaves reconnecting to its user, who does as its
documentation says: with the last id, after the time that the server asked for.

    python httpx_sse_client.py URL
"""

import json
import os
import sys
import time

import httpx
from httpx_sse import connect_sse

token = {"Authorization": "Bearer " + os.environ["TOKEN"]} if "TOKEN" in os.environ else {}
last_id, retry = "", 1.0
while True:
    try:
        headers = dict(token, **({"Last-Event-ID": last_id} if last_id else {}))
        with httpx.Client(timeout=None) as client, connect_sse(client, "GET", sys.argv[1], headers=headers) as source:
            source.response.raise_for_status()
            print(json.dumps({"open": True}), flush=True)
            for event in source.iter_sse():
                last_id = event.id or last_id
                if event.retry is not None:
                    retry = event.retry / 1000
                # It hands out every event, and blocks of nothing but `retry` too.
                if event.data:
                    print(json.dumps({"id": event.id, "event": event.event, "data": event.data}), flush=True)
    except httpx.TransportError:
        pass
    time.sleep(retry)
