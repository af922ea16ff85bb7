# The table of hack/bench-pull-through. $rounds: lines of "NUMBER SENT READY CRICTL" in microseconds; $logs: lines of logs, with `at`, the node.

def micros: (.[0:19] + "Z" | fromdate) * 1000000 + (.[20:26] | tonumber);
def median: sort | if length == 0 then null else .[(length - 1) / 2 | floor] end;
def ms: if . == null then "" else (. / 100 | round) / 10 end;
def first(f): map(select(f)) | .[0].t;
def last(f): map(select(f)) | .[-1].t;

# A part: its name, when it began and when it ended, in microseconds.
def part(name; from; to): {name: name, from: from, to: to};
def runtime_calls: map(select(.message == "runtime answered")) | map(part("— runtime: \(.method)"; .t - .took_us; .t));

# The lines of one round on the node that was last.
def parts($round):
  map(select(.t >= $round.sent and .t <= $round.ready)) as $all
  | ($all | map(select(.message == "pulls ended")) | .[-1].node) as $node
  | ($all | map(select((.node // $node) == $node and (.message != "runtime answered" or .at == $node)))) as $lines
  | ($lines | first(.message == "watch event")) as $seen
  | ($lines | first(.message == "status write begins")) as $write
  | ($lines | first(.message == "status write answered")) as $written
  | ($lines | first(.message == "call begins" and .method == "CheckImages")) as $check
  | ($lines | last(.message == "call ended" and .method == "CheckImages")) as $checked
  | ($lines | first(.message == "call begins" and .method == "PullImages")) as $pull
  | ($lines | first(.message == "pull request sent")) as $asked
  | ($lines | first(.message == "pull request taken")) as $taken
  | ($lines | last(.message == "pulls ended")) as $pulled
  | ($lines | last(.message == "status write begins")) as $last
  | ($lines | last(.message == "status write answered")) as $done
  | [ part("create: the API server with its webhook, until the watch event"; $round.sent; $seen),
      part("plan: until the first command"; $seen; [$write, $check] | min),
      part("write: status with the operation"; $write; $written),
      part("dial: TCP and TLS"; ($lines | first(.message == "dial begins")); ($lines | first(.message == "TLS handshake done"))),
      part("check: CheckImages, which also tells which puller it is"; ($lines | first(.message == "connected" and .method == "CheckImages")); $checked),
      part("wait for the check after the write"; $written; [$written, $checked] | max),
      part("decide: after write and check, until the call"; [$written, $checked] | max; $pull),
      part("pull: connection and credentials"; $pull; $asked),
      part("pull: until the puller has taken it"; $asked; $taken),
      part("pull: until the outcome"; $taken; $pulled),
      ($lines | map(select(.t >= ($asked // 0))) | runtime_calls[]),
      part("answer: until the last write"; $pulled; $last),
      part("write: status with Ready"; $last; $done),
      part("the client hears of it"; $done; $round.ready),
      part("**create to Ready**"; $round.sent; $round.ready) ]
  # A connection that was still open, for example, has no dial.
  | map(select(.from != null and .to != null) | . + {begin: (.from - $round.sent), took: (.to - .from)});

($logs | map(select(.message != null) | . + {t: (.timestamp | micros)}) | sort_by(.t)) as $lines
| ($rounds | split("\n") | map(select(. != "") | split(" ") | map(tonumber) | {sent: .[1], ready: .[2], crictl: .[3]})) as $rounds
| ($rounds | map(. as $round | $lines | parts($round))) as $all
| ($rounds | map(.crictl) | median) as $crictl
| ($all | add) as $parts
| "| part | begins | takes |", "|---|---|---|",
  ( (reduce $parts[].name as $name ([]; if index([$name]) then . else . + [$name] end))[] as $name
    | ($parts | map(select(.name == $name)))
    | (length / ($all | length) | (. * 10 | round) / 10) as $times
    | "| \($name)\(if $times > 1 then " (\($times) times)" else "" end) | \(map(.begin) | median | ms) | \(map(.took) | median | ms) |" ),
  "| **`crictl pull`** | | \($crictl | ms) |"
