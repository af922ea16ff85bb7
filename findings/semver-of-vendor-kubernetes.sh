#!/usr/bin/env bash
# Version constraints and the Kubernetes versions of vendors: npm's semver 7.8.6, and PyPI's semantic-version 2.10.0, which has two readers of
# constraints, one of its own (SimpleSpec) and one "for the npm scheme" (NpmSpec).
#
# Guess: Helm's way to include the versions of vendors, ">=1.30.0-0", works everywhere; NpmSpec says what npm says.
# Seen:  for npm a pre-release is only compared with a bound of the same three numbers, so no version of GKE matches ">=1.30.0-0".
#        SimpleSpec lets them in with and without "-0". NpmSpec agrees with npm there, but says that 1.38.0-alpha.1 is "<1.38.0", and npm says no.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir semantic-version==2.10.0
npm install --silent --no-audit --no-fund --cache "$work/cache" semver@7.8.6

cat >pairs <<'EOF'
1.37.2 >=1.30.0-0
1.37.2+k3s1 >=1.30.0-0
1.37.2-gke.1 >=1.30.0
1.37.2-gke.1 >=1.30.0-0
1.37.2-gke.1 >=1.37.2-0
1.38.0-alpha.1 <1.38.0
EOF
cat >npm.js <<'EOF'
const semver = require('semver');
for (const line of require('fs').readFileSync('pairs', 'utf8').trim().split('\n')) {
  console.log(semver.satisfies(...line.split(' ')));
}
EOF
cat >compare.py <<'EOF'
import subprocess
from semantic_version import NpmSpec, SimpleSpec, Version

npm = subprocess.check_output(["node", "npm.js"], text=True).split()
for line, of_npm in zip(open("pairs"), npm, strict=True):
    version, constraint = line.split()
    simple, like_npm = (str(spec(constraint).match(Version(version))).lower() for spec in (SimpleSpec, NpmSpec))
    print(f"{version:<14} {constraint:<11} npm {of_npm:<5}  NpmSpec {like_npm:<5}  SimpleSpec {simple}")
EOF

venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep semantic
npm ls --depth 0 | grep '── '
echo "expected: true everywhere but in the third line; the same from npm and NpmSpec"
venv/bin/python compare.py | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
1.37.2         >=1.30.0-0  npm true   NpmSpec true   SimpleSpec true
1.37.2+k3s1    >=1.30.0-0  npm true   NpmSpec true   SimpleSpec true
1.37.2-gke.1   >=1.30.0    npm false  NpmSpec false  SimpleSpec true
1.37.2-gke.1   >=1.30.0-0  npm false  NpmSpec false  SimpleSpec true
1.37.2-gke.1   >=1.37.2-0  npm true   NpmSpec true   SimpleSpec true
1.38.0-alpha.1 <1.38.0     npm false  NpmSpec true   SimpleSpec false
EOF
