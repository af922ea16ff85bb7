# shellcheck shell=bash
# The container runtimes that a node can have: which one it has, how it is configured and started. Sourced by hack/cluster.
#
#   containerd    Debian's, 1.6
#   containerd2   2.2, built from hack/tools/containerd
#   containerd24  2.4, built from hack/tools/containerd24
#   crio          CRI-O 1.34, built from hack/tools/crio

# built_runtimes LIST: those that Debian does not have.
built_runtimes() { tr ',' '\n' <<<"$1" | grep -vx containerd | sort -u || true; }

# Written down with where they were built: nodes that join later get the same.
keep_runtimes() {
    local name
    echo "$1" >"$STATE/runtimes"
    for name in $(built_runtimes "$1"); do ln -sfn "$(bin_of "$name")" "$STATE/$name-bin"; done
}

# The runtime of node N, from the list that the cluster was started with: the first for node 1, and so on, then from the beginning.
runtime_of() {
    local list
    IFS=, read -ra list <"$STATE/runtimes"
    echo "${list[$((($1 - 1) % ${#list[@]}))]}"
}

# The name of the runtime's process, log and pid file: containerd or crio.
component_of() { runtime_of "$1" | tr -d 0-9; }

socket_of() { component_of "$1" | sed 's|.*|/run/&/&.sock|'; }

# Where the runtime keeps images, in the node.
image_directory() { component_of "$1" | sed 's|^crio$|containers|; s|^|/var/lib/|'; }

# A built runtime's programs are first in the node's PATH.
write_runtime_config() {
    local n=$1 etc=$STATE/nodes/n$1/root/etc runtime
    runtime=$(runtime_of "$n")
    ln -sfn "$STATE/$runtime-bin" "$STATE/nodes/n$n/bin"
    case $runtime in
    containerd) configure containerd.toml PAUSE="$PAUSE_IMAGE" >"$etc/containerd/config.toml" ;;
    containerd2*) configure containerd2.toml PAUSE="$PAUSE_IMAGE" >"$etc/containerd/config.toml" ;;
    crio) configure crio.toml PAUSE="$PAUSE_IMAGE" BIN="$STATE/crio-bin" >"$etc/containers/crio.conf" ;;
    esac
    cp "$HACK"/etc/{policy.json,registries.conf} "$etc/containers" # CRI-O's
    write_containerd_registries "$etc/containerd/certs.d"
}

# Plain HTTP under the registry's own name: credentials are sent only to the host that they are for. The cluster may be without
# internet: there the public names mean the plain registry.
write_containerd_registries() {
    local name host
    for name in $PLAIN $PRIVATE down.test:5002 faulty.test:5003 docker.io ghcr.io quay.io; do
        host=$name
        if [[ $name != *.test:* ]]; then host=$PLAIN; fi
        mkdir -p "$1/$name"
        configure hosts.toml HOST="$host" >"$1/$name/hosts.toml"
    done
}

start_runtime() {
    case $(component_of "$1") in
    crio) spawn "$1" crio crio --config /etc/containers/crio.conf --config-dir '' ;;
    containerd) spawn "$1" containerd containerd ;;
    esac
}
