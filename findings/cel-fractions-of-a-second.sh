#!/usr/bin/env bash
# Fractions of a second in CEL, the language of Kubernetes' validation rules and admission policies: Go's cel-go v0.32.0, which the API server has too,
# beside two implementations with which such rules are tried elsewhere, PyPI's cel-python 0.5.0 and npm's @bufbuild/cel 0.6.1.
#
# Guess: all three say the same. CEL's durations and timestamps are those of protobuf, and so is their text.
# Seen:  cel-python leaves the fraction out of the text, so that times that differ have one text. @bufbuild/cel counts the milliseconds of a duration within
#        the second, while the other two count them all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOMODCACHE="$work/mod" GOFLAGS="-mod=mod -modcacherw -trimpath"
cd "$work"
cat >rules.json <<'EOF'
[
  "string(duration('1.5s'))",
  "string(timestamp('2026-03-01T00:00:00.5Z'))",
  "string(duration('1.25s')) == string(duration('1.75s'))",
  "duration('1.5s').getMilliseconds()",
  "duration('1.5s') == duration('1500ms')"
]
EOF

python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir cel-python==0.5.0
cat >rules.py <<'EOF'
import json
import celpy

environment = celpy.Environment()
for rule in json.load(open("rules.json")):
    result = environment.program(environment.compile(rule)).evaluate({})
    print(f"cel-python    {rule:<55} {str(result).lower() if isinstance(result, celpy.celtypes.BoolType) else result}")
EOF

npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --cache "$work/npm" @bufbuild/cel@0.6.1
cat >rules.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { run } from "@bufbuild/cel";

for (const rule of JSON.parse(readFileSync("rules.json"))) {
  console.log(`@bufbuild/cel ${rule.padEnd(55)} ${run(rule)}`);
}
EOF

cat >go.mod <<'EOF'
module finding
go 1.26.0
require cel.dev/cel-go v0.32.0
EOF
cat >main.go <<'EOF'
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"cel.dev/cel-go/cel"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	rules := []string{}
	if err := json.Unmarshal(must(os.ReadFile("rules.json")), &rules); err != nil {
		panic(err)
	}
	environment := must(cel.NewEnv())
	for _, rule := range rules {
		compiled, issues := environment.Compile(rule)
		if issues.Err() != nil {
			panic(issues.Err())
		}
		result, _, err := must(environment.Program(compiled)).Eval(map[string]any{})
		fmt.Printf("cel-go        %-55s %v\n", rule, must(result, err).Value())
	}
}
EOF
go build -o rules .

go list -m cel.dev/cel-go
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep cel-python
npm ls --depth 0 | grep @bufbuild/cel
echo "expected: the same from all three"
{ ./rules; venv/bin/python rules.py; node rules.mjs; } | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
cel-go        string(duration('1.5s'))                                1.5s
cel-go        string(timestamp('2026-03-01T00:00:00.5Z'))             2026-03-01T00:00:00.5Z
cel-go        string(duration('1.25s')) == string(duration('1.75s'))  false
cel-go        duration('1.5s').getMilliseconds()                      1500
cel-go        duration('1.5s') == duration('1500ms')                  true
cel-python    string(duration('1.5s'))                                1s
cel-python    string(timestamp('2026-03-01T00:00:00.5Z'))             2026-03-01T00:00:00Z
cel-python    string(duration('1.25s')) == string(duration('1.75s'))  true
cel-python    duration('1.5s').getMilliseconds()                      1500
cel-python    duration('1.5s') == duration('1500ms')                  true
@bufbuild/cel string(duration('1.5s'))                                1.500s
@bufbuild/cel string(timestamp('2026-03-01T00:00:00.5Z'))             2026-03-01T00:00:00.500Z
@bufbuild/cel string(duration('1.25s')) == string(duration('1.75s'))  false
@bufbuild/cel duration('1.5s').getMilliseconds()                      500
@bufbuild/cel duration('1.5s') == duration('1500ms')                  true
EOF
