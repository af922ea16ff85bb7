#!/usr/bin/env bash
# "0 3 */2 * 1" in PyPI's croniter 7.0.0 and cronsim 2.8 and npm's croner 11.0.1, which tools use to show when a CronJob will run.
#
# Guess: all three do as cron does (crontab(5) of Debian): the two fields for days are joined with "and" if one of them begins with a star,
#        so the schedule means Mondays with an odd date.
# Seen:  only cronsim does so. For croniter and croner "*/2" is no star: the schedule means every odd date and also every Monday.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --no-cache-dir croniter==7.0.0 cronsim==2.8
npm install --silent --no-audit --no-fund --cache "$work/cache" croner@11.0.1

cat >python.py <<'EOF'
from datetime import datetime, timezone
from itertools import islice
from croniter import croniter
from cronsim import CronSim

start = datetime(2026, 11, 1, tzinfo=timezone.utc)
for text in ("0 3 * * 1", "0 3 */2 * 1"):
    for name, runs in (("cronsim", CronSim(text, start)), ("croniter", croniter(text, start, ret_type=datetime))):
        print(f"{name:<9} {text:<12}", *(run.strftime("%a-%d") for run in islice(runs, 5)))
EOF
cat >node.mjs <<'EOF'
import { Cron } from 'croner';

for (const text of ['0 3 * * 1', '0 3 */2 * 1']) {
  const runs = new Cron(text, { timezone: 'UTC' }).nextRuns(5, new Date('2026-11-01T00:00:00Z'));
  console.log('croner   ', text.padEnd(12), ...runs.map(run => run.toUTCString().slice(0, 7).replace(', ', '-')));
}
EOF

venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep cron
npm ls --depth 0 | grep '── '
echo "expected: Mon-09 first for the second schedule, from each"
{ venv/bin/python python.py; node node.mjs; } | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
cronsim   0 3 * * 1    Mon-02 Mon-09 Mon-16 Mon-23 Mon-30
croniter  0 3 * * 1    Mon-02 Mon-09 Mon-16 Mon-23 Mon-30
cronsim   0 3 */2 * 1  Mon-09 Mon-23 Mon-07 Mon-21 Mon-11
croniter  0 3 */2 * 1  Sun-01 Mon-02 Tue-03 Thu-05 Sat-07
croner    0 3 * * 1    Mon-02 Mon-09 Mon-16 Mon-23 Mon-30
croner    0 3 */2 * 1  Sun-01 Mon-02 Tue-03 Thu-05 Sat-07
EOF
