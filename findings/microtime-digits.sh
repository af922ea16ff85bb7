#!/usr/bin/env bash
# The time of a Lease (metav1.MicroTime) in k8s.io/apimachinery v0.37.2, and what PyPI's kubernetes 37.0.2 writes into a Lease.
#
# Guess: MicroTime reads every RFC 3339 time, as metav1.Time does, and only differs in what it writes.
# Seen:  MicroTime reads a time only if it has exactly six digits after the point. Without a fraction, with three digits (JavaScript's
#        toISOString) and with nine (a clock of nanoseconds) it fails, and with it the decoding of the whole object. The Python client
#        leaves the fraction away if it is zero, so it writes a renewTime of a whole second that Kubernetes cannot read.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOMODCACHE="$work/mod" GOFLAGS="-mod=mod -modcacherw -trimpath"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir kubernetes==37.0.2

cat >lease.py <<'EOF'
from datetime import datetime, timezone
from kubernetes import client

for microsecond in (0, 5):
    spec = client.V1LeaseSpec(renew_time=datetime(2026, 11, 29, 10, 0, 0, microsecond, timezone.utc))
    print(client.ApiClient().sanitize_for_serialization(spec)["renewTime"])
EOF
cat >go.mod <<'EOF'
module finding
go 1.26.0
require k8s.io/apimachinery v0.37.2
EOF
cat >main.go <<'EOF'
package main

import (
	"encoding/json"
	"fmt"
	"os"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func result(err error) string {
	if err != nil {
		return "refused"
	}
	return "read"
}

func main() {
	for _, text := range os.Args[1:] {
		var time meta.Time
		var micro meta.MicroTime
		fmt.Printf("%-32s  Time: %-7s  MicroTime: %s\n", text,
			result(json.Unmarshal([]byte(`"`+text+`"`), &time)), result(json.Unmarshal([]byte(`"`+text+`"`), &micro)))
	}
}
EOF

go build -o finding .
go list -m k8s.io/apimachinery
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^kubernetes '
echo "expected: both types read every time; the last two are written by the Python client"
at=2026-11-29T10:00:00
mapfile -t written < <(venv/bin/python lease.py)
./finding "${at}Z" "$at.123Z" "$at.123456Z" "$at.123456789Z" "${written[@]}" | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
2026-11-29T10:00:00Z              Time: read     MicroTime: refused
2026-11-29T10:00:00.123Z          Time: read     MicroTime: refused
2026-11-29T10:00:00.123456Z       Time: read     MicroTime: read
2026-11-29T10:00:00.123456789Z    Time: read     MicroTime: refused
2026-11-29T10:00:00+00:00         Time: read     MicroTime: refused
2026-11-29T10:00:00.000005+00:00  Time: read     MicroTime: read
EOF
