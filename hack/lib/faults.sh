# shellcheck shell=bash
# What goes wrong in real life, on request and for a bounded time. Sourced by hack/cluster.

# restart N COMPONENT [SECONDS]: kills it, lets it be dead for so long, and starts it again with the command that it had. Without the
# lock: tests kill things of a cluster that somebody else may be waiting to change.
cmd_restart() {
    local n=${1:-} component=${2:-} seconds=${3:-0} dir=$STATE/nodes/n${1:-} pid command
    [[ $seconds =~ ^[0-9]{1,3}$ ]] || die "restart takes a number of seconds, not '$seconds'"
    pid=$(cmd_pid "$n" "$component")
    mapfile -d '' command <"$dir/commands/$component"
    kill -KILL "$pid"
    retry 10 is_dead "$dir/pids/$component" || die "$component of node $n does not end"
    sleep "$seconds"
    spawn "$n" "$component" "${command[@]}"
}

# kubelet N [LINE...]: restarts it with these lines in its configuration.
cmd_kubelet() {
    need_node "${1:-}"
    write_kubelet_config "$@"
    cmd_restart "$1" kubelet
}

# fault [KIND...]: the plain registry's images under another name, with what goes wrong there; without arguments only told.
cmd_fault() {
    need_node 1
    in_network 1 "$STATE/bin/faulty" set "$FAULT_CONTROL" "$@"
}

# cut N SECONDS: the node's end of its link stays up and keeps its routes; nothing passes.
cmd_cut() {
    need_node "${1:-}"
    [[ ${2:-} =~ ^[0-9]{1,3}$ && $2 -gt 0 ]] || die "cut takes a number of seconds from 1 to 999, not '${2:-}'"
    # shellcheck disable=SC2064
    trap "$(printf '%q ' cmd_heal "$1")" EXIT
    in_switch ip link set "s$1" down
    sleep "$2"
}

cmd_heal() {
    need_node "${1:-}"
    in_switch ip link set "s$1" up
}

# fill N PERCENT: a file makes the node's disk for images so full; 0 deletes it.
cmd_fill() {
    local n=${1:-} percent=${2:-} directory size used bytes
    need_node "$n"
    [[ $percent =~ ^(100|[0-9]{1,2})$ ]] || die "fill takes a percentage, not '$percent'"
    [[ -n $(<"$STATE/disk") ]] || die "the nodes share the machine's disk; give them their own with: hack/cluster down; hack/cluster up --disk 2G"
    directory=$(image_directory "$n")
    in_node "$n" rm -f "$directory/filler"
    ((percent)) || return 0
    read -r size used < <(in_node "$n" df --output=size,used -B 1 "$directory" | tail -n 1)
    bytes=$((size * percent / 100 - used))
    ((bytes > 0)) || die "the disk of node $n is $((used * 100 / size)) % full without our help"
    in_node "$n" fallocate -l "$bytes" "$directory/filler"
}

# etcd forgets its past: a watch that starts in it gets 410, as after a long time without a connection.
cmd_compact() {
    local revision
    need_node 1
    revision=$(etcd_post maintenance/status '{}' | jq -er .header.revision) || die "etcd does not answer"
    etcd_post kv/compaction "{\"revision\": $revision, \"physical\": true}" | jq -e .header >/dev/null || die "etcd does not compact"
    say "etcd has forgotten what was before revision $revision"
}

# Through etcd's JSON gateway.
etcd_post() { kubectl --server=http://127.0.0.1:2379 create --raw "/v3/$1" -f - <<<"$2"; }
