# shellcheck shell=bash
# Messages, and the processes of the cluster: how they are started, recognised and ended. Sourced by hack/cluster.

say() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }

die() {
    printf 'hack/cluster: %s\n' "$*" >&2
    exit 1
}

quietly() { "$@" >/dev/null 2>&1; }

# retry SECONDS CMD...: until it succeeds.
retry() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

# await SECONDS COMPLAINT NODE/COMPONENT CMD...: the same, or ends with the complaint and the log to read.
await() {
    local seconds=$1 complaint=$2 log=$3
    shift 3
    retry "$seconds" quietly "$@" || die "$complaint: see $STATE/nodes/${log%/*}/log/${log#*/}.log"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# Field 22 of /proc/PID/stat: with the pid it names one process for as long as the machine runs. The command's name, field 2, may hold
# blanks and brackets, so that fields are counted from the last bracket. A zombie (Z) has none.
start_time() { sed -n 's/.*) [^Z] //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 19; }

# is_alive FILE: does the process still live whose "pid start-time boot-id" was written to FILE?
is_alive() {
    local pid started boot
    read -r pid started boot 2>/dev/null <"$1" || return 1
    [[ $boot == "$(boot_id)" && -n $started && $(start_time "$pid") == "$started" ]]
}

is_dead() { ! is_alive "$1"; }

# spawn N COMPONENT CMD...: starts a long-running process inside node N, in N's cgroup, and writes down its pid and its command.
spawn() {
    local n=$1 component=$2 dir=$STATE/nodes/n$1
    shift 2
    mkdir -p "$dir/pids" "$dir/log" "$dir/commands"
    printf '%s\0' "$@" >"$dir/commands/$component"
    # exec all the way, so that $! is the component itself; setsid does not fork in a background job of a script.
    (
        close_descriptors
        join_cgroup "$n" "$BASHPID"
        ulimit -n 65536 2>/dev/null || true # many pods and watches; the limit here may already be the highest allowed
        cd /
        PATH=$(node_path "$n") exec setsid nsenter --net="$NS/n$n.net" --mount="$NS/n$n.mnt" --uts="$NS/n$n.uts" -- "$@"
    ) </dev/null >>"$dir/log/$component.log" 2>&1 &
    echo "$! $(start_time $!) $(boot_id)" >"$dir/pids/$component"
    disown
}

# A daemon would hold our lock, and whatever the caller has open, for ever. 255 is bash's own.
close_descriptors() {
    local fd
    for fd in /proc/"$BASHPID"/fd/*; do
        fd=${fd##*/}
        if ((fd > 2 && fd < 255)); then exec {fd}>&-; fi
    done
}

# A built runtime's programs come before Debian's.
node_path() { echo "$STATE/nodes/n$1/bin:$STATE/bin:$PATH"; }

# Ends the processes that spawn wrote down for node N, and then what they left in N's cgroup: containers and their shims. Nobody else
# puts a process there. SIGKILL at once: nothing of them is wanted afterwards, and an API server takes a minute to end politely.
end_processes() {
    local n=$1 file
    for file in "$STATE/nodes/n$n/pids"/*; do
        if is_alive "$file"; then kill -KILL "$(cut -d ' ' -f 1 "$file")" 2>/dev/null || true; fi
    done
    retry 20 empty_cgroup "$n" || die "processes of node $n do not end: $(cgroup_pids "$n" | paste -sd ' ')"
}

# Is node N's cgroup empty? If not, ends what is in it.
empty_cgroup() {
    local pids
    pids=$(cgroup_pids "$1")
    [[ -n $pids ]] || return 0
    xargs kill -KILL <<<"$pids" 2>/dev/null || true
    return 1
}

has_cgroup_v2() { [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; }

# Version 2 has one tree, version 1 one for every controller (some of whose names are symbolic links).
cgroup_roots() {
    if has_cgroup_v2; then
        echo /sys/fs/cgroup
    else
        find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d ! -name unified
    fi
}

# Containers get /kf-nN/kubepods/...; the daemons, and the shims they start, /kf-nN/system.
make_cgroup() {
    local root group file
    if has_cgroup_v2; then pass_controllers_on /sys/fs/cgroup; fi
    for root in $(cgroup_roots); do
        for group in "$root/$CGROUP-n$1" "$root/$CGROUP-n$1/system"; do
            mkdir -p "$group"
            # A new cpuset is empty, and an empty one takes no process.
            for file in cpuset.cpus cpuset.mems; do
                if [[ $root == */cpuset* ]]; then cat "$(dirname "$group")/$file" >"$group/$file"; fi
            done
        done
    done
    if has_cgroup_v2; then pass_controllers_on "/sys/fs/cgroup/$CGROUP-n$1"; fi
}

# Version 2 gives a group's children only the controllers that the group names.
pass_controllers_on() { sed -E 's/[a-z_]+/+&/g' "$1/cgroup.controllers" >"$1/cgroup.subtree_control"; }

join_cgroup() {
    local root
    for root in $(cgroup_roots); do echo "$2" >"$root/$CGROUP-n$1/system/cgroup.procs"; done
}

# cgroup_of N: node N's directories. In the "unified" tree of version 1, which no process of ours is put into, runc makes some.
cgroup_of() {
    local root
    for root in $(cgroup_roots) /sys/fs/cgroup/unified; do
        if [[ -d $root/$CGROUP-n$1 ]]; then echo "$root/$CGROUP-n$1"; fi
    done
}

# A container's group may vanish meanwhile.
cgroup_pids() { cgroup_of "$1" | xargs -I@ find @ -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un || true; }

remove_cgroup() { cgroup_of "$1" | xargs -I@ find @ -depth -type d -exec rmdir {} + 2>/dev/null || true; }
