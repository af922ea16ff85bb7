# shellcheck shell=bash
# The registries on node 1: a plain one, one behind a password, and one that fails as told; and how images get in and out. The test
# images are made by hack/tools/images, the faults by hack/tools/faulty. Sourced by hack/cluster.

PLAIN_ADDRESS=10.77.0.1:5000
PRIVATE_ADDRESS=10.77.0.1:5001
FAULTY_ADDRESS=10.77.0.1:5003
FAULT_CONTROL=127.0.0.1:5004

start_registries() {
    local password
    password=$(openssl rand -hex 12)
    # Through files and stdin: arguments are readable by everybody.
    echo "$password" >"$STATE/registry-password"
    htpasswd -niB demo <"$STATE/registry-password" >"$STATE/htpasswd"
    printf '{"auths": {"%s": {"auth": "%s"}}}\n' $PRIVATE_ADDRESS "$(printf 'demo:%s' "$password" | base64 -w 0)" >"$STATE/registry-auth.json"
    start_registry plain $PLAIN_ADDRESS ''
    start_registry private $PRIVATE_ADDRESS "auth: {htpasswd: {realm: private.test, path: $STATE/htpasswd}}"
    spawn 1 registry-faulty faulty serve $FAULTY_ADDRESS $PLAIN_ADDRESS $FAULT_CONTROL
}

# The registry writes its access log to stdout and everything else to stderr; a shell inside tells them apart.
start_registry() {
    local name=$1 config=$STATE/registry-$1.yml
    configure registry.yaml ROOT="$STATE/nodes/n1/registry-$name" ADDRESS="$2" AUTH="$3" >"$config"
    # shellcheck disable=SC2016
    spawn 1 "registry-$name" bash -c 'exec docker-registry serve "$1" >>"$2"' - "$config" "$STATE/nodes/n1/log/registry-$name.access.log"
}

# Images are pushed right after this: a registry that was only just started does not listen yet.
wait_for_registries() {
    local address
    for address in $PLAIN_ADDRESS $PRIVATE_ADDRESS $FAULTY_ADDRESS; do
        await 30 "the registry at $address does not start" "n1/registry-*" in_network 1 bash -c "exec 3<>/dev/tcp/${address/://}"
    done
}

# push_images [SET]: the test images that the registries lack.
push_images() {
    in_network 1 "$STATE/bin/images" -plain $PLAIN_ADDRESS -private $PRIVATE_ADDRESS -password "$STATE/registry-password" \
        -pause "$STATE/bin/pause" -samples "$HACK/../deploy/kubefledged-imagecache.yaml" "$@" || die "the test images cannot be pushed (above)"
    say "the test images are in the registries"
}

# registry_of NAME: the address behind an image's name, or failure when it is in neither registry.
registry_of() {
    case ${1%%/*} in
    "$PRIVATE") echo $PRIVATE_ADDRESS ;;
    "$PLAIN" | docker.io | ghcr.io | quay.io) echo $PLAIN_ADDRESS ;;
    *) return 1 ;;
    esac
}

cmd_push() {
    local address
    need_node 1
    (($# == 2)) || die "push takes a skopeo source and a name, e.g. oci-archive:puller.tar $PLAIN/kubefledged/puller:dev"
    address=$(registry_of "$2") || die "'$2' is in neither registry; its name must begin with $PLAIN/ or $PRIVATE/"
    in_network 1 skopeo --insecure-policy copy --quiet --dest-tls-verify=false --dest-authfile="$STATE/registry-auth.json" "$1" \
        "docker://$address/${2#*/}" || die "pushing $1 as $2 failed (above)"
}

cmd_load() {
    local n name creds
    need_node 1
    for name; do
        registry_of "$name" >/dev/null || die "'$name' is in neither registry; give names under $PLAIN or $PRIVATE"
        creds=()
        if [[ $name == "$PRIVATE"/* ]]; then creds=(--creds "demo:$(<"$STATE/registry-password")"); fi
        for n in $(node_numbers); do in_node "$n" crictl pull "${creds[@]}" "$name"; done
    done
}

cmd_images() {
    need_node 1
    lock
    push_images "$@"
}

cmd_registry_log() {
    local name=${1:-plain}
    need_node 1
    [[ $name == plain || $name == private ]] || die "registry-log takes plain or private, not '$name'"
    echo "$STATE/nodes/n1/log/registry-$name.access.log"
}

cmd_registry_password() { need_node 1 && cat "$STATE/registry-password"; }
