#!/usr/bin/env bash
# OpenMetrics text, written by PyPI's prometheus-client 0.26.0, read by the Prometheus text parser of Go (github.com/prometheus/common v0.70.1, expfmt),
# which many exporters' tests and metric adapters use.
#
# Guess: the formats are so alike that the parser reads it all, or refuses OpenMetrics because it ends with "# EOF".
# Seen:  it reads it without an error, histograms with their type, but the counter becomes UNTYPED: OpenMetrics declares the type of "pulls" and
#        calls the sample "pulls_total".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOMODCACHE="$work/mod" GOFLAGS="-mod=mod -modcacherw -trimpath"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir prometheus-client==0.26.0
cat >write.py <<'EOF'
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.openmetrics.exposition import generate_latest

disable_created_metrics()
registry = CollectorRegistry()
Counter("pulls", "Pulls.", registry=registry).inc(3)
Gauge("waiting", "Pulls that wait.", registry=registry).set(1)
Histogram("pull_seconds", "Duration.", registry=registry, buckets=[1, 5]).observe(2)
print(generate_latest(registry).decode(), end="")
EOF
cat >go.mod <<'EOF'
module finding
go 1.26.0
require github.com/prometheus/common v0.70.1
EOF
cat >main.go <<'EOF'
package main

import (
	"fmt"
	"os"
	"sort"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func main() {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(os.Stdin)
	lines := []string{}
	for name, family := range families {
		lines = append(lines, name+" "+family.GetType().String())
	}
	sort.Strings(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
	fmt.Println("error:", err)
}
EOF

go build -o finding .
go list -m github.com/prometheus/common
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep prometheus
venv/bin/python write.py | tee written
echo "expected: pulls (or pulls_total) COUNTER, or an error"
./finding <written | tee seen
grep -qx '# TYPE pulls counter' written
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
pull_seconds HISTOGRAM
pulls_total UNTYPED
waiting GAUGE
error: <nil>
EOF
