# shellcheck shell=bash
# The container runtimes that a node can have: how they are built, configured and started. Sourced by hack/cluster.
#
#   containerd    Debian's, 1.6
#   containerd2   2.2, built from hack/tools/containerd
#   containerd24  2.4, built from hack/tools/containerd24
#   crio          CRI-O 1.34, built from hack/tools/crio

RUNTIMES=(containerd containerd2 containerd24 crio)
# shellcheck disable=SC2034 # hack/cluster reads it
DEFAULT_RUNTIMES=containerd24,containerd # the newest, and the oldest that kubefledged supports
REGISTRIES=("$PLAIN" "$PRIVATE" "$DOWN" "$FAULTY")

# check_runtimes LIST: names separated by commas.
check_runtimes() {
    local name
    for name in ${1//,/ }; do
        [[ " ${RUNTIMES[*]} " == *" $name "* ]] || die "--runtime takes ${RUNTIMES[*]}, or several of them separated by commas, not '$name'"
    done
}

# Written down with where they were built: nodes that join later get the same.
keep_runtimes() {
    local name
    echo "$1" >"$STATE/runtimes"
    for name in ${1//,/ }; do ln -sfn "$(runtime_bin "$name")" "$STATE/$name-bin"; done
}

# The runtime of node N, from the list that the cluster was started with: the first for node 1, and so on, then from the beginning.
runtime_of() {
    local list
    IFS=, read -ra list <"$STATE/runtimes"
    echo "${list[$((($1 - 1) % ${#list[@]}))]}"
}

# The name of the runtime's process, log and pid file.
runtime_component() {
    case $(runtime_of "$1") in
    crio) echo crio ;;
    *) echo containerd ;;
    esac
}

runtime_socket() {
    case $(runtime_of "$1") in
    crio) echo /run/crio/crio.sock ;;
    *) echo /run/containerd/containerd.sock ;;
    esac
}

# Where the runtime keeps images, in the node.
image_directory() {
    case $(runtime_of "$1") in
    crio) echo /var/lib/containers ;;
    *) echo /var/lib/containerd ;;
    esac
}

# build_runtimes LIST: what the list needs beside Debian's packages.
build_runtimes() {
    local name
    for name in ${1//,/ }; do
        case $name in
        containerd2) build_cached "$(runtime_bin containerd2)" build_containerd2 ;;
        containerd24) build_cached "$(runtime_bin containerd24)" build_containerd24 ;;
        crio)
            install_packages "${CRIO_PACKAGES[@]}"
            build_cached "$(runtime_bin crio)" build_crio
            ;;
        esac
    done
}

runtime_bin() {
    case $1 in
    containerd) echo "$BIN" ;;
    containerd2) echo "$CACHE/containerd2-$(build_key build_containerd2 containerd)/bin" ;;
    containerd24) echo "$CACHE/containerd24-$(build_key build_containerd24 containerd24)/bin" ;;
    crio) echo "$CACHE/crio-$(build_key build_crio crio)/bin" ;;
    esac
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
            CGO_ENABLED=1 GOWORK=off GOFLAGS="-mod=readonly -buildvcs=false" go build -trimpath -ldflags '-s -w' -o "$1/" \
                -tags containers_image_ostree_stub,containers_image_openpgp,exclude_graphdriver_btrfs,btrfs_noversion,exclude_graphdriver_devicemapper,exclude_graphdriver_zfs \
                ./cmd/crio &&
            make -s -C pinns && cp bin/pinns "$1/"
    ) || die "building CRI-O failed (above)"
    rm -rf "$tmp"
    cp "$HACK/tools/crio/runc" "$1/runc"
}

write_runtime_config() {
    local n=$1 runtime
    runtime=$(runtime_of "$n")
    ln -sfn "$STATE/$runtime-bin" "$STATE/nodes/n$n/bin" # first in the node's PATH
    "write_${runtime}_config" "$STATE/nodes/n$n/root/etc"
}

# restrict_oom_score_adj: without CAP_SYS_RESOURCE, as in many virtual machines, runc may not lower a score and dies with "can't get
# final child's PID from pipe: EOF". The "opt" plugin is off because it would make /opt/containerd on the host.
write_containerd_config() {
    cat >"$1/containerd/config.toml" <<CONFIG
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
CONFIG
    write_containerd_registries "$1"
}

write_containerd24_config() { write_containerd2_config "$1"; }

write_containerd2_config() {
    cat >"$1/containerd/config.toml" <<CONFIG
version = 3
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "$PAUSE_IMAGE"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
CONFIG
    write_containerd_registries "$1"
}

# Plain HTTP under the registry's own name: credentials are sent only to the host that they are for.
write_containerd_registries() {
    local registry
    for registry in "${REGISTRIES[@]}"; do write_containerd_registry "$1" "$registry" "$registry"; done
    for registry in "${PUBLIC[@]}"; do write_containerd_registry "$1" "$registry" "$PLAIN"; done
}

# write_containerd_registry ETC NAME HOST: images of registry NAME come from HOST.
write_containerd_registry() {
    mkdir -p "$1/containerd/certs.d/$2"
    cat >"$1/containerd/certs.d/$2/hosts.toml" <<HOSTS
server = "http://$3"
[host."http://$3"]
  capabilities = ["pull", "resolve"]
HOSTS
}

# All that it would otherwise keep outside of the node's own directories is named here.
write_crio_config() {
    local etc=$1 bin=$STATE/crio-bin registry
    cat >"$etc/containers/crio.conf" <<CONFIG
[crio]
  root = "/var/lib/containers/storage"
  runroot = "/run/containers/storage"
  storage_driver = "overlay"
  log_dir = "/var/log/pods"
  version_file = "/run/crio/version"
  version_file_persist = ""
  clean_shutdown_file = "/run/crio/clean.shutdown"
[crio.api]
  listen = "/run/crio/crio.sock"
[crio.runtime]
  default_runtime = "runc"
  cgroup_manager = "cgroupfs"
  conmon_cgroup = "pod"
  pinns_path = "$bin/pinns"
  hooks_dir = []
  enable_pod_events = false
  [crio.runtime.runtimes.runc]
    runtime_path = "$bin/runc"
    runtime_root = "/run/runc"
    monitor_path = "/usr/bin/conmon"
[crio.image]
  pause_image = "$PAUSE_IMAGE"
  pause_command = "/pause"
[crio.network]
  network_dir = "/etc/cni/net.d"
  plugin_dirs = ["/usr/lib/cni"]
[crio.nri]
  enable_nri = false
CONFIG
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$etc/containers/policy.json"
    # The location is the name itself: with another host's name CRI-O would not send it any credentials.
    for registry in "${REGISTRIES[@]}"; do
        printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$registry"
    done >"$etc/containers/registries.conf"
    for registry in "${PUBLIC[@]}"; do
        printf '[[registry]]\nprefix = "%s"\nlocation = "%s"\ninsecure = true\n' "$registry" "$PLAIN"
    done >>"$etc/containers/registries.conf"
}

start_runtime() {
    case $(runtime_of "$1") in
    crio) spawn "$1" crio crio --config /etc/containers/crio.conf --config-dir '' ;;
    *) spawn "$1" containerd containerd ;;
    esac
}

wait_for_runtime() {
    local n=$1 dir=$STATE/nodes/n$1
    retry 20 in_node "$n" test -S "$(runtime_socket "$n")" || die "the container runtime of node $n does not start: see $dir/log/$(runtime_component "$n").log"
}
