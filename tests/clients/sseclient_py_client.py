"""What `sseclient-py` makes of a stream: one line of JSON for each event. It leaves reconnecting to its user.

    python sseclient_py_client.py URL
"""

import json
import os
import sys
import time

import requests
import sseclient

token = {"Authorization": "Bearer " + os.environ["TOKEN"]} if "TOKEN" in os.environ else {}
last_id, retry = "", 1.0
while True:
    try:
        headers = dict(token, Accept="text/event-stream")
        if last_id:
            headers["Last-Event-ID"] = last_id
        response = requests.get(sys.argv[1], headers=headers, stream=True)
        response.raise_for_status()
        print(json.dumps({"open": True}), flush=True)
        for event in sseclient.SSEClient(response).events():
            last_id = event.id or last_id
            if event.retry is not None:
                retry = int(event.retry) / 1000
            if event.data:
                print(json.dumps({"id": event.id, "event": event.event, "data": event.data}), flush=True)
    except requests.RequestException:
        pass
    time.sleep(retry)
