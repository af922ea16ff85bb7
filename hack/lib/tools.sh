# shellcheck shell=bash
# What the machine must have, and the programs built for the cluster. Sourced by hack/cluster.

# shellcheck disable=SC2034 # hack/cluster reads these
KUBERNETES=1.37 # unless `up --kubernetes` names another; hack/tools/kubernetes-* pin them
PACKAGES=(apache2-utils busybox-static conmon conntrack containerd containernetworking-plugins docker-registry ethtool iproute2 iptables jq
    make openssl runc skopeo socat)

check_machine() {
    local dir name
    [[ $(uname -m) =~ ^(x86_64|aarch64)$ ]] || die "$(uname -m) is neither x86_64 nor aarch64; use another machine"
    [[ -f /etc/debian_version ]] || die "this needs Debian or Ubuntu for its packages; on another system run it in a Debian 12 virtual machine"
    for dir in /proc/[0-9]*; do
        name=$(cat "$dir/comm" 2>/dev/null) || continue
        [[ $name == kubelet || $name == containerd ]] || continue
        [[ $dir/ns/mnt -ef /proc/self/ns/mnt ]] || continue # a node's
        die "$name (pid ${dir#/proc/}) already runs on this machine and would be disturbed; stop it with: systemctl stop docker containerd kubelet"
    done
    # Helm's module asks for a newer Go than others. Go fetches that toolchain, where it is allowed to.
    (cd "$HACK/tools/cli" && GOWORK=off quietly go list -m) || die "Go is missing, or too old for hack/tools/cli and fetches no newer one; run: make setup"
}

# install_packages PACKAGE...: those that are missing.
install_packages() {
    local missing=() package
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing Debian packages: ${missing[*]}"
    (apt_install "${missing[@]}") >/dev/null || die "apt-get failed (above); mend it, then run hack/cluster up again"
}

# Debian starts a service when its package is installed. policy-rc.d forbids that, and `disable` that the next boot starts it.
apt_install() {
    local policy=/usr/sbin/policy-rc.d service
    if [[ ! -e $policy ]]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" || return 1
    [[ -d /run/systemd/system ]] || return 0
    for service in containerd docker-registry; do
        if [[ " $* " == *" $service "* ]]; then systemctl disable --quiet "$service" || true; fi
    done
}

# === What is built, from the modules in hack/tools. build_NAME DIRECTORY fills a directory with programs.

# bin_of NAME: the directory of its programs. Its key is everything that decides what is built: the committed go.mod and go.sum, our own
# sources, and how they are compiled.
bin_of() {
    case $1 in
    all) echo "$CACHE/$(build_key build_all etcd cli crictl pause faulty)/bin" ;;
    kubernetes) echo "$CACHE/kubernetes-$KUBERNETES-$(build_key build_kubernetes "kubernetes-$KUBERNETES")/bin" ;;
    containerd2) echo "$CACHE/containerd2-$(build_key build_containerd2 containerd)/bin" ;;
    *) echo "$CACHE/$1-$(build_key "build_$1" "$1")/bin" ;;
    esac
}

# build_key FUNCTION MODULE...
build_key() {
    local function=$1
    shift
    {
        uname -m
        declare -f "$function" build in_module
        (cd "$HACK/tools" && find "$@" -type f | LC_ALL=C sort | xargs cat)
    } | sha256sum | cut -c 1-12
}

build_all() {
    say "building the tools: half a minute on 2 cores after Kubernetes, and 2 minutes without it"
    build etcd "$1/etcd" '' go.etcd.io/etcd/server/v3
    build cli "$1" "-X helm.sh/helm/v3/internal/version.version=$(module_version cli helm.sh/helm/v3)" tool
    build crictl "$1/crictl" '' .
    build pause "$1/pause" '' .
    build faulty "$1/faulty" '' .
}

build_images() { build images "$1/images" '' .; }

build_kubernetes() {
    say "building Kubernetes $(kubernetes_version): some 7 minutes on 2 cores the first time"
    build "kubernetes-$KUBERNETES" "$1" "$(kubernetes_version_flags)" tool
}

kubernetes_version() { module_version "kubernetes-$KUBERNETES" k8s.io/kubernetes; }

# Without these the kubelet reports v0.0.0 as its node's version.
kubernetes_version_flags() {
    local p=k8s.io/component-base/version
    echo "-X $p.gitVersion=$(kubernetes_version) -X $p.gitMajor=1 -X $p.gitMinor=${KUBERNETES#1.} -X $p.gitTreeState=clean"
}

build_containerd2() {
    say "building containerd 2: some 2 minutes on 2 cores"
    TAGS=no_btrfs,no_devmapper,no_zfs,no_aufs \
        build containerd "$1" "-X github.com/containerd/containerd/v2/version.Version=$(module_version containerd github.com/containerd/containerd/v2)" tool
}

build_containerd24() {
    say "building containerd 2.4: some 2 minutes on 2 cores"
    TAGS=no_btrfs,no_devmapper,no_zfs,no_aufs \
        build containerd24 "$1" "-X github.com/containerd/containerd/v2/version.Version=$(module_version containerd24 github.com/containerd/containerd/v2)" tool
}

# In a copy of its module, with the module's own go.sum: hack/tools/crio/go.mod says why. Without seccomp and AppArmor, whose libraries
# it would need; `pinns` is a program in C that keeps a pod's namespaces.
build_crio() {
    local source tmp
    say "building crio: some 2 minutes on 2 cores"
    source=$(cd "$HACK/tools/crio" && go mod download -json "github.com/cri-o/cri-o@$(module_version crio github.com/cri-o/cri-o)" | jq -er .Dir) ||
        die "the module of CRI-O cannot be had: see 'go env GOPROXY'"
    tmp=$(mktemp -d)
    cp -r "$source" "$tmp/source"
    chmod -R u+w "$tmp/source"
    (
        cd "$tmp/source" &&
            CGO_ENABLED=1 GOWORK=off GOFLAGS="-mod=readonly -buildvcs=false" go build -trimpath -ldflags '-s -w' -o "$1/" -tags \
    containers_image_ostree_stub,containers_image_openpgp,exclude_graphdriver_btrfs,btrfs_noversion,exclude_graphdriver_devicemapper,exclude_graphdriver_zfs \
                ./cmd/crio &&
            make -s -C pinns && cp bin/pinns "$1/"
    ) || die "building CRI-O failed (above)"
    rm -rf "$tmp"
    cp "$HACK/tools/crio/runc" "$1/runc"
}

# build MODULE OUTPUT LDFLAGS PACKAGE...
build() {
    local module=$1 output=$2 ldflags=$3 log
    shift 3
    log=$(mktemp)
    in_module "$module" go build -v -trimpath -tags "${TAGS:-}" -ldflags "-s -w $ldflags" -o "$output" "$@" 2>"$log" &
    watch_build $! "$module" "$log" "$(in_module "$module" go list -deps -tags "${TAGS:-}" "$@" 2>/dev/null | wc -l)" || {
        compiled "$log" -v >&2
        die "building hack/tools/$module failed (above); the Go modules must be reachable: see 'go env GOPROXY'"
    }
    rm -f "$log"
}

# in_module MODULE CMD...; -buildvcs=false, or the pause image would get another digest with every commit. The compiler takes a tenth
# less CPU time if it collects garbage only above 1.2 GB.
in_module() (
    trap - INT # a background job ignores Ctrl-C otherwise
    cd "$HACK/tools/$1" || exit
    shift
    GOGC=off GOMEMLIMIT=1200MiB CGO_ENABLED=0 GOWORK=off GOFLAGS="$(go env GOFLAGS) -mod=readonly -buildvcs=false" "$@"
)

# watch_build PID MODULE LOG PACKAGES: says every half minute how far it is, and succeeds if the build does.
watch_build() {
    local start=$SECONDS
    say "building $2: at most $4 packages"
    while quietly kill -0 "$1"; do
        sleep 1
        (((SECONDS - start) % 30)) || say "building $2: $(compiled "$3" | wc -l) of at most $4 packages, then the programs are linked"
    done
    wait "$1"
}

# compiled LOG [-v]: the packages that `go build -v` has named; with -v all other lines.
compiled() { grep "${@:2}" '^[^ #:]*$' "$1" || true; }

module_version() { sed -nE "s|^(require)?\s*$2 (v[^ ]+).*|\2|p" "$HACK/tools/$1/go.mod"; }

# build_missing NAME...: what the cache lacks, one after the other. One build keeps all processors busy, and those after it find the
# packages compiled that they share with it.
build_missing() {
    local name bin
    for name; do
        bin=$(bin_of "$name")
        # As a job, so that its first failure ends it.
        (
            trap - INT # a job ignores Ctrl-C otherwise
            build_cached "$bin" "build_$name"
        ) &
        wait $! || die "building $name failed (above)"
    done
}

# build_cached BIN FUNCTION: FUNCTION fills a directory, which becomes BIN when it is done, so that an interrupted build leaves nothing
# half done. Several builds of one key can run at once, of clusters that share a cache and not a /var/lib: all but the first wait and
# take what it made. The lock belongs to the key, so that builds of other tools go on.
build_cached() {
    local target=${1%/bin} lock half start=$SECONDS
    [[ ! -d $1 ]] || return 0
    mkdir -p "$CACHE"
    exec {lock}>"$target.lock"
    flock --nonblock "$lock" || {
        say "another build of ${target##*/} is running: waiting for its result"
        flock "$lock"
    }
    if [[ -d $1 ]]; then
        say "the other build made $1"
    else
        # What is half built under this key was interrupted, because whoever holds the lock is alone.
        rm -rf "$CACHE/building.${target##*/}".*
        half=$(mktemp -d "$CACHE/building.${target##*/}.XXXXXX")
        mkdir "$half/bin"
        "$2" "$half/bin"
        rm -rf "$target"
        mv "$half" "$target"
        say "built ${target##*/} in $((SECONDS - start)) s"
    fi
    exec {lock}>&-
}
