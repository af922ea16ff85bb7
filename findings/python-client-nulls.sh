#!/usr/bin/env bash
# Required fields that the API server writes as null, in PyPI's kubernetes 37.0.2, whose models are pydantic's. Go writes null for a list that is nil and
# for a MicroTime that is zero: `endpoints` of an EndpointSlice without endpoints, `eventTime` of every Event of the older API.
#
# Guess: the models treat both alike, since both fields are required by the same OpenAPI document: both null values are read, or both are refused.
# Seen:  the list is read. The time is refused, and so is the whole answer: one Event of the kubelet, and a list of events.k8s.io/v1 cannot be read,
#        while the same Event of core/v1 can.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir kubernetes==37.0.2

cat >read.py <<'EOF'
import json
from kubernetes import client

event = {"metadata": {"name": "app.1", "namespace": "default"}, "reason": "Pulled", "type": "Normal", "eventTime": None}
slices = {"metadata": {"name": "app-1"}, "addressType": "IPv4", "endpoints": None, "ports": None}
answers = {
    "V1EndpointSliceList": {"metadata": {}, "items": [slices]},
    "CoreV1EventList": {"metadata": {}, "items": [{**event, "involvedObject": {"kind": "Pod", "name": "app"}}]},
    "EventsV1EventList": {"metadata": {}, "items": [{**event, "regarding": {"kind": "Pod", "name": "app"}}]},
}
for model, answer in answers.items():
    try:
        read = client.ApiClient().deserialize(json.dumps(answer), model, "application/json")
        result = f"{len(read.items)} item"
    except ValueError as error:  # pydantic's ValidationError is one
        result = " ".join(str(error).split("[")[0].split())
    print(f"{model:<20} {result}")
EOF

venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep -E '^(kubernetes|pydantic) '
echo "expected: 1 item from each, or an error from the first and the last"
venv/bin/python read.py | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
V1EndpointSliceList  1 item
CoreV1EventList      1 item
EventsV1EventList    1 validation error for EventsV1Event eventTime Input should be a valid datetime
EOF
