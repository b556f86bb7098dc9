"""What `sseclient-py` makes of a stream: one line of JSON for each event. It leaves reconnecting to its user.

    python sseclient_py_client.py URL
"""

import json
import sys
import time

import requests
import sseclient
import urllib3


class Arrived:
    """A response's bytes as they arrive. Iterating over the response itself would wait for the next 128 of them."""

    def __init__(self, response):
        self.response = response

    def __iter__(self):
        return iter(lambda: self.response.raw.read1(65536), b"")

    def close(self):
        self.response.close()


last_id, retry = "", 1.0
while True:
    try:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        response = requests.get(sys.argv[1], headers=headers, stream=True)
        response.raise_for_status()
        print(json.dumps({"open": True}), flush=True)
        for event in sseclient.SSEClient(Arrived(response)).events():
            last_id = event.id or last_id
            if event.retry is not None:
                retry = int(event.retry) / 1000
            print(json.dumps({"id": event.id, "event": event.event, "data": event.data}), flush=True)
    except (requests.RequestException, urllib3.exceptions.HTTPError):
        pass
    time.sleep(retry)
