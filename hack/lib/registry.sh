# shellcheck shell=bash
# The registries on node 1: a plain one, one behind a password, and one that fails as told; and how images get in and out. Sourced by
# hack/cluster.

FAULT_CONTROL=127.0.0.1:5004

start_registries() {
    local password
    password=$(openssl rand -hex 12)
    (
        umask 077
        echo "$password" >"$STATE/registry-password"
        # Through stdin and a file: arguments are readable by everybody.
        echo "$password" | htpasswd -niB demo >"$STATE/htpasswd"
        printf '{"auths": {"10.77.0.1:5001": {"auth": "%s"}}}\n' "$(printf 'demo:%s' "$password" | base64 -w 0)" >"$STATE/registry-auth.json"
    )
    start_registry plain 5000 ''
    start_registry private 5001 "auth: {htpasswd: {realm: private.test, path: $STATE/htpasswd}}"
    spawn 1 registry-faulty faulty serve 10.77.0.1:5003 10.77.0.1:5000 $FAULT_CONTROL
}

# Images are pushed right after this: a registry that was only just started does not listen yet.
wait_for_registries() {
    local port
    for port in 5000 5001 5003; do
        retry 30 quietly in_network 1 bash -c "exec 3<>/dev/tcp/10.77.0.1/$port" ||
            die "the registry on port $port does not start: see $STATE/nodes/n1/log/registry-*.log"
    done
}

# fault [KIND...]: the plain registry's images under another name, with what goes wrong there; without arguments only told.
set_fault() { in_network 1 "$STATE/bin/faulty" set $FAULT_CONTROL "$@"; }

# The registry writes its access log to stdout and everything else to stderr; a shell inside tells them apart.
start_registry() {
    local name=$1 port=$2 auth=$3 config=$STATE/registry-$1.yml
    cat >"$config" <<CONFIG
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: $STATE/nodes/n1/registry-$name}
  delete: {enabled: true}
http: {addr: "10.77.0.1:$port"}
$auth
CONFIG
    # shellcheck disable=SC2016
    spawn 1 "registry-$name" bash -c 'exec docker-registry serve "$1" >>"$2"' - "$config" "$(access_log "$name")"
}

access_log() { echo "$STATE/nodes/n1/log/registry-$1.access.log"; }

registry_log() {
    need_node 1
    [[ $1 == plain || $1 == private ]] || die "registry-log takes plain or private, not '$1'"
    access_log "$1"
}

# registry_of NAME: the address behind an image's name, or failure when it is in neither registry.
registry_of() {
    local host
    case $1 in
    "$PLAIN"/*) echo 10.77.0.1:5000 && return ;;
    "$PRIVATE"/*) echo 10.77.0.1:5001 && return ;;
    esac
    for host in "${PUBLIC[@]}"; do
        if [[ $1 == "$host"/* ]]; then echo 10.77.0.1:5000 && return; fi
    done
    return 1
}

in_registry() { in_network 1 skopeo --insecure-policy "$@"; }

push_image() {
    (($# == 2)) || die "push takes a skopeo source and a name, e.g. oci-archive:puller.tar $PLAIN/kubefledged/puller:dev"
    local address
    address=$(registry_of "$2") || die "'$2' is in neither registry; its name must begin with $PLAIN/ or $PRIVATE/"
    in_registry copy --quiet --dest-tls-verify=false --dest-authfile="$STATE/registry-auth.json" "$1" "docker://$address/${2#*/}" ||
        die "pushing $1 as $2 failed (above)"
}

# The digest of the manifest that a registry has under NAME, or of nothing.
pushed_digest() {
    in_registry inspect --raw --tls-verify=false --authfile="$STATE/registry-auth.json" "docker://$(registry_of "$1")/${1#*/}" 2>/dev/null |
        sha256sum | cut -d ' ' -f 1
}

pull_on_node() {
    local creds=()
    if [[ $2 == "$PRIVATE"/* ]]; then creds=(--creds "demo:$(<"$STATE/registry-password")"); fi
    in_node "$1" crictl pull "${creds[@]}" "$2"
}
