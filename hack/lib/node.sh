# shellcheck shell=bash
# One node: its namespaces, its network, its kubelet and kube-proxy. Sourced by hack/cluster.
#
#   10.77.0.N      node N, on a bridge in a namespace of its own ("switch"); nothing is attached to the machine's network
#   10.244.N.0/24  pods of node N
#   10.96.0.0/16   Services

# Bound over by private directories in every node, so that all paths are the default ones and a hostPath is the node's own.
PRIVATE_DIRECTORIES=(run var/lib/containerd var/lib/containers var/lib/kubelet var/lib/cni var/tmp etc/cni/net.d etc/containerd etc/containers
    var/log/pods var/log/containers)

node_numbers() {
    local dir
    for dir in "$STATE"/nodes/n*; do
        if [[ -d $dir ]]; then echo "${dir##*/n}"; fi
    done | sort -n
}

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
    PATH=$(node_path "$n") CONTAINER_RUNTIME_ENDPOINT=unix://$(runtime_socket "$n") \
        nsenter --net="$NS/n$n.net" --mount="$NS/n$n.mnt" --uts="$NS/n$n.uts" -- "$@"
}

make_switch() {
    modprobe -qa overlay veth bridge br_netfilter 2>/dev/null || true # built in, or there is no module to load
    allow_inotify
    touch "$NS/switch.net"
    unshare --net="$NS/switch.net" true
    in_switch ip link set lo up
    in_switch ip link add br0 type bridge
    in_switch ip link set br0 up
}

# A node takes a dozen instances; the usual limit is 128 for all of root's processes together.
allow_inotify() {
    local limit=/proc/sys/fs/inotify/max_user_instances
    (($(<$limit) >= 1024)) || echo 1024 >$limit || say "$limit cannot be raised: many nodes will run out of it"
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
    write_cni_config "$n"
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
    in_network "$n" sh -c 'echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables' 2>/dev/null || say "no bridge-nf-call-iptables: Services between pods of one node may fail"
}

make_mounts() {
    local n=$1 dir=$STATE/nodes/n$1 path
    for path in "${PRIVATE_DIRECTORIES[@]}"; do
        mkdir -p "$dir/root/$path"
        make_directory "/$path"
    done
    # Empty: a name that does not exist fails at once, not after the time-outs of an unreachable server.
    : >"$dir/etc/resolv.conf"
    cat >"$dir/etc/hosts" <<HOSTS
127.0.0.1 localhost
10.77.0.$n n$n
10.77.0.1 ${PLAIN%:*} ${PRIVATE%:*} ${DOWN%:*} ${FAULTY%:*}
HOSTS
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

# Mount points must exist on the host too. Those we made are written down, for `down` to remove.
make_directory() {
    [[ -d $1 ]] && return
    make_directory "$(dirname "$1")"
    mkdir "$1"
    echo "$1" >>"$STATE/made-directories"
}

# A mount point of another cluster's nodes would take their mount with it: that cluster inherits the list.
remove_made_directories() {
    local other
    [[ -f $STATE/made-directories ]] || return 0
    for other in "$STATES"*; do
        if [[ $other != "$STATE" && -d $other/nodes ]]; then
            cat "$STATE/made-directories" >>"$other/made-directories"
            return
        fi
    done
    tac "$STATE/made-directories" | while read -r path; do
        rmdir "$path" 2>/dev/null || true # somebody uses it by now
    done
}

write_cni_config() {
    cat >"$STATE/nodes/n$1/root/etc/cni/net.d/10-pods.conflist" <<CONFIG
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.$1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONFIG
}

start_kubelet() {
    local n=$1 dir=$STATE/nodes/n$1
    # As --register-with-taints; it has no effect on a Node that exists.
    write_kubelet_config "$n" ${TAINT:+"registerWithTaints: [{key: ${TAINT%:*}, effect: ${TAINT##*:}}]"}
    write_kube_proxy_config "$n"
    wait_for_runtime "$n"
    # As in the machine images of every provider.
    retry 20 in_node "$n" crictl pull "$PAUSE_IMAGE" >/dev/null || die "node $n cannot pull $PAUSE_IMAGE"
    spawn "$n" kubelet kubelet --config="$dir/etc/kubelet.yaml" --kubeconfig="$dir/etc/kubelet.kubeconfig" \
        --node-ip="10.77.0.$n" --hostname-override="n$n"
    spawn "$n" kube-proxy kube-proxy --config="$dir/etc/kube-proxy.yaml"
}

# write_kubelet_config N [LINE...]: a line replaces ours of the same key.
#
# Pods are below cgroupRoot: two kubelets that share /kubepods would each end the other's pods as orphans, and `down` ends what is in a
# node's cgroup. Image garbage collection is off: the disk is shared with the whole machine, and what a node has pulled must not depend
# on how full it is.
write_kubelet_config() {
    local n=$1 etc=$STATE/nodes/n$1/etc line
    write_kubeconfig "$etc/kubelet.kubeconfig" "node-n$n"
    cat >"$etc/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$(runtime_socket "$n")
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $STATE/pki/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP-n$n
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
resolvConf: ""
evictionHard: {memory.available: "50Mi"}
imageGCHighThresholdPercent: 100
featureGates: {ImageVolume: true}
volumePluginDir: /var/lib/kubelet/volume-plugins
CONFIG
    shift
    for line; do
        sed -i "/^${line%%:*}:/d" "$etc/kubelet.yaml"
        echo "$line" >>"$etc/kubelet.yaml"
    done
}

# The conntrack sysctls cannot be written in a namespace; zero leaves them alone.
write_kube_proxy_config() {
    local n=$1 etc=$STATE/nodes/n$1/etc
    write_kubeconfig "$etc/kube-proxy.kubeconfig" kube-proxy
    cat >"$etc/kube-proxy.yaml" <<CONFIG
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $etc/kube-proxy.kubeconfig}
hostnameOverride: n$n
mode: iptables
clusterCIDR: 10.244.0.0/16
nodePortAddresses: [primary]
iptables: {localhostNodePorts: false}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
CONFIG
}

wait_for_node() {
    local n=$1 dir=$STATE/nodes/n$1
    retry 30 quietly kubectl get node "n$n" || die "node n$n does not register: see $dir/log/kubelet.log"
    quietly kubectl wait --for=condition=Ready "node/n$n" --timeout=60s || die "node n$n does not become ready: see $dir/log/kubelet.log"
    touch "$dir/complete"
    say "node n$n is ready"
}

quietly() { "$@" >/dev/null 2>&1; }

clear_node() {
    local n=$1 kind
    end_processes "$n"
    for kind in net mnt uts; do drop_namespace "$NS/n$n.$kind"; done
    remove_cgroup "/$CGROUP-n$n"
    # The node's overlays end with its mount namespace, which the kernel does a moment after the last process.
    retry 10 rm -rf --one-file-system "$STATE/nodes/n$n" || die "cannot delete $STATE/nodes/n$n"
}

# The handle of a namespace is a mount; after a reboot it is an empty file.
drop_namespace() {
    [[ -e $1 ]] || return 0
    if mountpoint -q "$1"; then umount "$1" || umount --lazy "$1"; fi
    rm -f "$1"
}
