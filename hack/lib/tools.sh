# shellcheck shell=bash
# What the machine must have, and the programs built for the cluster. Sourced by hack/cluster.

KUBERNETES=1.37 # unless `up --kubernetes` names another; hack/tools/kubernetes-* pin them
# shellcheck disable=SC2034 # hack/cluster reads it
PACKAGES=(apache2-utils busybox-static conntrack containerd containernetworking-plugins docker-registry ethtool iproute2 iptables jq
    openssl runc skopeo socat)
# shellcheck disable=SC2034 # runtime.sh reads it
CRIO_PACKAGES=(conmon make)

check_root() { ((EUID == 0)) || die "namespaces and mounts need root; run: sudo -E hack/cluster ..."; }

check_machine() {
    local pid
    case $(uname -m) in
    x86_64) ;;
    aarch64) say "arm64: not tried by us" ;;
    *) die "$(uname -m) is neither x86_64 nor aarch64; use another machine" ;;
    esac
    [[ -f /etc/debian_version ]] || die "this needs Debian or Ubuntu for its packages; on another system run it in a Debian 12 virtual machine"
    check_go
    command -v cargo >/dev/null || die "cargo is missing; run: make setup"
    for pid in $(host_processes kubelet) $(host_processes containerd); do
        die "$(cat "/proc/$pid/comm") (pid $pid) already runs on this machine and would be disturbed; stop it with: systemctl stop docker containerd kubelet"
    done
    if has_cgroup_v2; then say "cgroup v2: not tried by us"; fi
}

# helm's module asks for a newer Go than the others; asking in its directory lets Go fetch that toolchain, where that is allowed.
check_go() {
    command -v go >/dev/null || die "Go is missing; run: make setup"
    local minor
    minor=$(go env GOVERSION | sed -nE 's/^go1\.([0-9]+).*/\1/p')
    ((${minor:-0} >= 24)) || die "$(go env GOVERSION) is older than Go 1.24; run: make setup"
    (cd "$HACK/tools/cli" && go version >/dev/null) || die "this Go cannot build hack/tools/cli; let it fetch the toolchain with: go env -w GOTOOLCHAIN=auto"
}

# Those in the host's own mounts; the nodes' are in others.
host_processes() {
    local comm pid
    for comm in /proc/[0-9]*/comm; do
        pid=${comm#/proc/} pid=${pid%/comm}
        if [[ $(cat "$comm" 2>/dev/null) == "$1" && $(readlink "/proc/$pid/ns/mnt") == "$(readlink /proc/self/ns/mnt)" ]]; then echo "$pid"; fi
    done
}

# install_packages PACKAGE...: those that are missing.
install_packages() {
    local missing=() package
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing Debian packages: ${missing[*]}"
    apt_get update
    install_quietly "${missing[@]}"
}

apt_get() {
    local log
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "apt-get $1 failed (above); mend it, then run hack/cluster up again"
    }
    rm -f "$log"
}

# Debian starts a service when its package is installed. policy-rc.d forbids that, and `disable` that the next boot starts it.
install_quietly() {
    local policy=/usr/sbin/policy-rc.d made='' service
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=yes
    fi
    (apt_get install -y --no-install-recommends "$@") || {
        [[ -z $made ]] || rm -f "$policy"
        exit 1
    }
    [[ -z $made ]] || rm -f "$policy"
    [[ -d /run/systemd/system ]] || return 0
    for service in containerd docker-registry; do
        if [[ " $* " == *" $service "* ]]; then systemctl disable --quiet "$service" || true; fi
    done
}

TOOLS=(etcd cli crictl pause faulty)

# Everything that decides what is built: the committed go.mod and go.sum, our own sources, and how they are compiled.
# build_key FUNCTION MODULE...
build_key() {
    local function=$1
    shift
    {
        uname -m
        declare -f "$function" build
        (cd "$HACK/tools" && find "$@" -type f | LC_ALL=C sort | xargs cat)
    } | sha256sum | cut -c 1-12
}

# The tools and one version of Kubernetes.
build_tools() {
    BIN=$CACHE/$(build_key build_all "${TOOLS[@]}")/bin
    build_cached "$BIN" build_all
    build_cached "$(kubernetes_bin)" build_kubernetes
}

build_all() {
    say "building the tools: some 2 minutes on 2 cores the first time"
    build etcd "$1/etcd" '' go.etcd.io/etcd/server/v3
    build cli "$1" "-X helm.sh/helm/v3/internal/version.version=$(module_version cli helm.sh/helm/v3)" tool
    build crictl "$1/crictl" '' .
    build pause "$1/pause" '' .
    build faulty "$1/faulty" '' .
}

build_kubernetes() {
    say "building Kubernetes $(kubernetes_version): some 7 minutes on 2 cores the first time"
    build "kubernetes-$KUBERNETES" "$1" "$(kubernetes_version_flags)" tool
}

kubernetes_bin() { echo "$CACHE/kubernetes-$KUBERNETES-$(build_key build_kubernetes "kubernetes-$KUBERNETES")/bin"; }

kubernetes_version() { module_version "kubernetes-$KUBERNETES" k8s.io/kubernetes; }

# check_kubernetes VERSION: such as 1.34.
check_kubernetes() {
    local versions
    versions=$(cd "$HACK/tools" && printf '%s\n' kubernetes-* | sed 's/^kubernetes-//' | paste -sd ' ')
    [[ " $versions " == *" $1 "* ]] || die "--kubernetes takes one of $versions, not '$1'"
}

# build_cached BIN FUNCTION: FUNCTION fills a directory, which becomes BIN when it is done, so that an interrupted build leaves nothing
# half done. Several builds of one key can run at once, of clusters that share a cache and not a /var/lib: all but the first wait and
# take what it made. The lock belongs to the key, so that builds of other tools go on.
build_cached() {
    local target=${1%/bin} lock
    [[ ! -d $1 ]] || return 0
    mkdir -p "$CACHE"
    exec {lock}>"$target.lock"
    flock --nonblock "$lock" || {
        say "another build of ${target##*/} is running: waiting for its result"
        flock "$lock"
    }
    if [[ ! -d $1 ]]; then build_locked "$target" "$2"; else say "the other build made $1"; fi
    exec {lock}>&-
}

# build_locked TARGET FUNCTION: what is half built under this key was interrupted, because whoever holds the lock is alone.
build_locked() {
    local half
    rm -rf "$CACHE/building.${1##*/}".*
    half=$(mktemp -d "$CACHE/building.${1##*/}.XXXXXX")
    mkdir "$half/bin"
    "$2" "$half/bin"
    rm -rf "$1"
    mv "$half" "$1"
    say "built $1/bin"
}

# build MODULE OUTPUT LDFLAGS PACKAGE...; -buildvcs=false, or the pause image would get another digest with every commit.
build() {
    local module=$1 output=$2 ldflags=$3
    shift 3
    say "building $module"
    (
        cd "$HACK/tools/$module"
        CGO_ENABLED=0 GOWORK=off GOFLAGS="$(go env GOFLAGS) -mod=readonly -buildvcs=false" go build -trimpath -tags "${TAGS:-}" -ldflags "-s -w $ldflags" -o "$output" "$@"
    ) || die "building hack/tools/$module failed (above); the Go modules must be reachable: see 'go env GOPROXY'"
}

module_version() { sed -nE "s|^(require)?\s*$2 (v[^ ]+).*|\2|p" "$HACK/tools/$1/go.mod"; }

# Without these the kubelet reports v0.0.0 as its node's version.
kubernetes_version_flags() {
    local p=k8s.io/component-base/version version minor
    version=$(kubernetes_version)
    minor=${version#v1.}
    echo "-X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean"
}
