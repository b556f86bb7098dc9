"""What a plain `requests` sees of a stream, by `iter_lines` and by `iter_content`: one line of JSON for each `data` line.

    python requests_client.py lines|content URL
"""

import json
import sys

import requests

response = requests.get(sys.argv[2], stream=True, timeout=60)
response.raise_for_status()
if sys.argv[1] == "lines":
    lines = response.iter_lines()
else:
    lines = (line for piece in response.iter_content(chunk_size=None) for line in piece.splitlines())
for line in lines:
    if line.startswith(b"data: "):
        print(json.dumps(line.decode().removeprefix("data: ")), flush=True)
