# shellcheck shell=bash
# One node: its namespaces, its network, its kubelet and kube-proxy. Sourced by hack/cluster.
#
#   10.77.0.N      node N, on a bridge in a namespace of its own ("switch"); nothing is attached to the machine's network
#   10.244.N.0/24  pods of node N
#   10.96.0.0/16   Services

# Bound over by private directories in every node, so that all paths are the default ones and a hostPath is the node's own.
PRIVATE_DIRECTORIES=(run var/lib/containerd var/lib/containers var/lib/kubelet var/lib/cni var/tmp etc/cni/net.d etc/containerd etc/containers
    var/log/pods var/log/containers)
MADE=$STATES.directories # what the host lacks of them and got from us, for all clusters

node_numbers() { (ls "$STATE/nodes" 2>/dev/null || true) | tr -d n | sort -n; }

need_node() {
    [[ ${1:-} =~ ^[0-9]+$ ]] || die "which node? give a number: $(node_numbers | paste -sd ' ')"
    [[ -d $STATE/nodes/n$1 ]] || die "node $1 is not up; start it with: hack/cluster up $(($1 > 2 ? $1 : 2))"
}

in_switch() { nsenter --net="$NS/switch.net" -- "$@"; }

# in_network N CMD...: node N's network, the host's files.
in_network() {
    local n=$1
    shift
    nsenter --net="$NS/n$n.net" -- "$@"
}

# Not `ip netns exec`: that remounts /sys without the cgroups, and the kubelet dies with "failed to find cgroup mounts".
in_node() {
    local n=$1
    shift
    PATH=$(node_path "$n") CONTAINER_RUNTIME_ENDPOINT=unix://$(socket_of "$n") \
        nsenter --net="$NS/n$n.net" --mount="$NS/n$n.mnt" --uts="$NS/n$n.uts" -- "$@"
}

# configure FILE NAME=VALUE...: a file of hack/etc, with the value wherever it has @NAME@.
configure() {
    local text pair
    text=$(<"$HACK/etc/$1")
    shift
    for pair; do text=${text//"@${pair%%=*}@"/"${pair#*=}"}; done
    echo "$text"
}

make_switch() {
    local limit=/proc/sys/fs/inotify/max_user_instances
    modprobe -qa overlay veth bridge br_netfilter 2>/dev/null || true # built in, or there is no module to load
    # A node takes a dozen instances; the usual limit is 128 for all of root's processes together.
    (($(<$limit) >= 1024)) || echo 1024 >$limit || say "$limit cannot be raised: many nodes will run out of it"
    touch "$NS/switch.net"
    unshare --net="$NS/switch.net" true
    in_switch ip link set lo up
    in_switch ip link add br0 type bridge
    in_switch ip link set br0 up
}

make_node() {
    local n=$1 dir=$STATE/nodes/n$1
    mkdir -p "$dir/pids" "$dir/log" "$dir/etc"
    make_cgroup "$n"
    touch "$NS/n$n".{net,mnt,uts}
    unshare --net="$NS/n$n.net" --mount="$NS/n$n.mnt" --uts="$NS/n$n.uts" true
    make_network "$n"
    make_mounts "$n"
    write_runtime_config "$n"
    configure pods.conflist N="$n" >"$dir/root/etc/cni/net.d/10-pods.conflist"
}

make_network() {
    local n=$1 m
    in_switch ip link add "s$n" type veth peer name eth0 netns "$NS/n$n.net"
    in_switch ip link set "s$n" master br0 up
    in_network "$n" ip link set lo up
    # Another node may have had this address a moment ago: the others learn the new link address at once.
    in_network "$n" sh -c 'echo 1 >/proc/sys/net/ipv4/conf/all/arp_notify'
    in_network "$n" ip addr add "10.77.0.$n/24" dev eth0
    in_network "$n" ip link set eth0 up
    for ((m = 1; m <= MAX_NODES; m++)); do
        ((m == n)) || in_network "$n" ip route add "10.244.$m.0/24" via "10.77.0.$m"
    done
    # A Service's address is looked up in the routes before kube-proxy's rules rewrite it. There is no default route on purpose: what
    # leads nowhere then fails at once, not after a time-out.
    in_network "$n" ip route add 10.96.0.0/16 dev eth0
    in_network "$n" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    # Without it a pod that reaches itself or its neighbour through a Service gets answers from the wrong address.
    in_network "$n" sh -c 'echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables' 2>/dev/null ||
        say "no bridge-nf-call-iptables: Services between pods of one node may fail"
}

make_mounts() {
    local n=$1 dir=$STATE/nodes/n$1 path
    for path in "${PRIVATE_DIRECTORIES[@]}"; do
        mkdir -p "$dir/root/$path"
        make_host_directory "/$path"
    done
    # Empty: a name that does not exist fails at once, not after the time-outs of an unreachable server.
    : >"$dir/etc/resolv.conf"
    configure hosts N="$n" >"$dir/etc/hosts"
    # shellcheck disable=SC2016
    in_node "$n" bash -euc '
        dir=$1 name=$2 images=$3 disk=$4
        shift 4
        hostname "$name"
        for path; do mount --bind "$dir/root/$path" "/$path"; done
        if [[ -n $disk ]]; then mount -t tmpfs -o "size=$disk,mode=711" images "$images"; fi
        # Some systems make resolv.conf a symbolic link into /run, which is empty by now.
        resolv=$(readlink -m /etc/resolv.conf)
        mkdir -p "${resolv%/*}"
        [[ -e $resolv ]] || touch "$resolv"
        mount --bind "$dir/etc/resolv.conf" "$resolv"
        mount --bind "$dir/etc/hosts" /etc/hosts
        mkdir -p /run/lock
        mount --make-rshared / # containers get their volumes by propagation
    ' - "$dir" "n$n" "$(image_directory "$n")" "$(<"$STATE/disk")" "${PRIVATE_DIRECTORIES[@]}"
}

# Mount points must exist on the host too. Those that it lacks are written down, for `down` to remove.
make_host_directory() { LC_ALL=C mkdir -pv "$1" | sed "s/.*'\(.*\)'/\1/" >>"$MADE"; }

# Not while another cluster is up: its nodes would lose their mounts.
remove_host_directories() {
    if [[ ! -f $MADE ]] || quietly ls -d "$STATES"*/nodes; then return; fi
    tac "$MADE" | xargs -r rmdir 2>/dev/null || true # somebody may use one by now
    rm -f "$MADE"
}

start_kubelet() {
    local n=$1 etc=$STATE/nodes/n$1/etc
    # As --register-with-taints; it has no effect on a Node that exists.
    write_kubelet_config "$n" ${TAINT:+"registerWithTaints: [{key: ${TAINT%:*}, effect: ${TAINT##*:}}]"}
    write_kubeconfig "$etc/kubelet.kubeconfig" "node-n$n"
    write_kubeconfig "$etc/kube-proxy.kubeconfig" kube-proxy
    configure kube-proxy.yaml ETC="$etc" NODE="n$n" >"$etc/kube-proxy.yaml"
    await 20 "the container runtime of node $n does not start" "n$n/$(component_of "$n")" in_node "$n" test -S "$(socket_of "$n")"
    # As in the machine images of every provider.
    retry 20 in_node "$n" crictl pull "$PAUSE_IMAGE" >/dev/null || die "node $n cannot pull $PAUSE_IMAGE"
    spawn "$n" kubelet kubelet --config="$etc/kubelet.yaml" --kubeconfig="$etc/kubelet.kubeconfig" --node-ip="10.77.0.$n" --hostname-override="n$n"
    spawn "$n" kube-proxy kube-proxy --config="$etc/kube-proxy.yaml"
}

# write_kubelet_config N [LINE...]: a line replaces ours of the same key.
write_kubelet_config() {
    local n=$1 file=$STATE/nodes/n$1/etc/kubelet.yaml line
    shift
    configure kubelet.yaml SOCKET="$(socket_of "$n")" STATE="$STATE" CGROUP="$CGROUP-n$n" >"$file"
    for line; do
        sed -i "/^${line%%:*}:/d" "$file"
        echo "$line" >>"$file"
    done
}

wait_for_node() {
    local n=$1
    await 30 "node n$n does not register" "n$n/kubelet" kubectl get node "n$n"
    await 0 "node n$n does not become ready" "n$n/kubelet" kubectl wait --for=condition=Ready "node/n$n" --timeout=60s
    touch "$STATE/nodes/n$n/complete"
    say "node n$n is ready"
}

# In any state. The handle of a namespace is a mount; after a reboot it is an empty file.
clear_node() {
    local n=$1 handle
    end_processes "$n"
    for handle in "$NS/n$n".{net,mnt,uts}; do
        quietly umount --lazy "$handle" || true
        rm -f "$handle"
    done
    remove_cgroup "$n"
    # The node's overlays end with its mount namespace, which the kernel does a moment after the last process.
    retry 10 rm -rf --one-file-system "$STATE/nodes/n$n" || die "cannot delete $STATE/nodes/n$n"
}
