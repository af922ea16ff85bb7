# shellcheck shell=bash
# Limits of the nodes' network links, in the nodes' own networks, which are deleted with the cluster. Sourced by hack/bench-*.

# in_net NODE CMD...: a command in a node's network, without its files.
in_net() {
    local state=/var/lib/kubefledged-cluster${CLUSTER_NAME:+-$CLUSTER_NAME} n=$1
    shift
    nsenter --net="$state/ns/n$n.net" "$@"
}

# limit_registry RATE: what the registry on port 5000 of node 1 sends to other nodes, and nothing else of node 1.
limit_registry() {
    unlimit 1
    in_net 1 tc qdisc add dev eth0 root handle 1: htb default 10
    in_net 1 tc class add dev eth0 parent 1: classid 1:10 htb rate 10gbit quantum 60000
    in_net 1 tc class add dev eth0 parent 1: classid 1:50 htb rate "$1" burst 256k cburst 256k quantum 60000
    in_net 1 tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip sport 5000 0xffff flowid 1:50
}

# limit_node NODE RATE: all that a node sends.
limit_node() {
    unlimit "$1"
    in_net "$1" tc qdisc add dev eth0 root tbf rate "$2" burst 256k latency 100ms
}

unlimit() {
    local n
    for n; do in_net "$n" tc qdisc del dev eth0 root 2>/dev/null || true; done
}
