# shellcheck shell=bash
# The test images, written as OCI layouts with tar and sha256sum: the same bytes, hence the same digests, on every run. Sourced by
# hack/cluster.

DEMO_IMAGES=("$PLAIN/demo/web:1.0" "$PLAIN/demo/api:1.0" "$PLAIN/demo/worker:1.0" "$PLAIN/demo/cache:1.0" "$PLAIN/demo/extra:1.0"
    "$PRIVATE/demo/secret:1.0")
DEMO_ARTIFACTS=("$PLAIN/demo/model:1.0" "$PLAIN/demo/prompt:1.0")

push_test_images() {
    local name
    provide_image "$PAUSE_IMAGE" fill_pause
    for name in "${DEMO_IMAGES[@]}" $(sample_images); do provide_image "$name" fill_demo; done
    for name in "${DEMO_ARTIFACTS[@]}"; do provide_image "$name" fill_artifact; done
    say "the test images are in the registries"
}

# The public images of the sample ImageCache, under their own names. Their content is ours.
sample_images() { sed -n 's/^ *- \([a-z.]*\/[^ ]*:[^ ]*\)$/\1/p' "$HACK/../deploy/kubefledged-imagecache.yaml"; }

push_bench_images() {
    local i
    for ((i = 1; i <= 24; i++)); do provide_image "$PLAIN/bench/app$i:1.0" fill_bench 4; done
    provide_image "$PLAIN/bench/big:1.0" fill_bench 300
}

# Images of three layers, in the plain registry and in the one with a password.
push_peers_images() {
    provide_image "$PLAIN/peers/large:1.0" fill_layers 50
    provide_image "$PLAIN/peers/medium:1.0" fill_layers 10
    provide_image "$PRIVATE/peers/secret:1.0" fill_layers 10
}

# provide_image NAME FILL...: builds the image unless the cache has it, pushes it unless the registry has it.
provide_image() {
    local name=$1 layout digest
    shift
    layout=$CACHE/images/$(images_key)/$(tr '/:' '__' <<<"$name")
    if [[ ! -d $layout ]]; then
        forget_old_images
        rm -rf "$layout.new"
        mkdir -p "$layout.new/blobs/sha256"
        "$@" "$layout.new" "$name" # appends its layers
        write_image "$layout.new"
        mv "$layout.new" "$layout"
    fi
    digest=$(jq -r '.manifests[0].digest' "$layout/index.json")
    [[ sha256:$(pushed_digest "$name") == "$digest" ]] || push_image "oci:$layout" "$name"
}

images_key() {
    if [[ -z ${IMAGES_KEY:-} ]]; then
        IMAGES_KEY=$(cat "$HACK/lib/images.sh" "$STATE/bin/pause" "$(command -v busybox)" | sha256sum | cut -c 1-12)
    fi
    echo "$IMAGES_KEY"
}

# Layouts of another key are never used again, and the large one has 300 MB.
forget_old_images() {
    local images
    images=$CACHE/images/$(images_key)
    mkdir -p "$images"
    find "$CACHE/images" -mindepth 1 -maxdepth 1 ! -path "$images" -exec rm -rf {} +
}

# fill_* [MEGABYTES] LAYOUT NAME: puts together the layers of an image and says what it runs.

fill_pause() {
    local root=$1/root
    mkdir -p "$root"
    cp "$STATE/bin/pause" "$root/pause"
    add_layer "$1" "$root"
    set_config "$1" '{"Entrypoint": ["/pause"]}'
}

# busybox in a layer that all share, and a page of its own; serves it on port 8080. The shell is process 1, which gets no signal that
# it does not trap, and a pod would take 30 s to end.
fill_demo() {
    local root=$1/root
    add_busybox "$1"
    mkdir -p "$root/www" "$root/tmp"
    echo "$2" >"$root/www/index.html"
    noise "$2" 200 >"$root/www/data"
    add_layer "$1" "$root"
    # shellcheck disable=SC2016
    set_config "$1" '{"Env": ["PATH=/bin"], "ExposedPorts": {"8080/tcp": {}},
        "Cmd": ["/bin/sh", "-c", "trap \"exit 0\" TERM INT; httpd -p 8080 -h /www; while :; do sleep 3600 & wait $!; done"]}'
}

# One layer of incompressible data, and a program so that a pod can run it.
fill_bench() {
    local megabytes=$1 root=$2/root
    mkdir -p "$root"
    cp "$STATE/bin/pause" "$root/pause"
    noise "$3" $((megabytes * 1024)) >"$root/data"
    add_layer "$2" "$root"
    set_config "$2" '{"Entrypoint": ["/pause"]}'
}

# Three layers of incompressible data, MEGABYTES each, and a program in the last one.
fill_layers() {
    local megabytes=$1 root=$2/root layer
    for layer in 1 2 3; do
        mkdir -p "$root"
        ((layer < 3)) || cp "$STATE/bin/pause" "$root/pause"
        noise "$3 $layer" $((megabytes * 1024)) >"$root/data$layer"
        add_layer "$2" "$root"
    done
    set_config "$2" '{"Entrypoint": ["/pause"]}'
}

# An OCI artifact: one file as it is, and the empty configuration.
fill_artifact() {
    noise "$2" 200 >"$1/layer"
    add_blob "$1" "$1/layer" application/octet-stream |
        jq -c '.annotations = {"org.opencontainers.image.title": "data"}' >"$1/layers"
    printf '{}' >"$1/config"
    echo application/vnd.kubefledged.test >"$1/artifact-type"
}

add_busybox() {
    local root=$1/root applet
    mkdir -p "$root/bin"
    cp "$(command -v busybox)" "$root/bin/busybox"
    # Not wget or nslookup: in Debian's static busybox they crash where there is no libc beside it.
    for applet in sh cat echo env false hostname httpd id ls nc ps sleep test true; do ln -s busybox "$root/bin/$applet"; done
    add_layer "$1" "$root"
}

# noise SEED KIBIBYTES: incompressible, and always the same for a seed.
noise() {
    local key
    key=$(sha256sum <<<"$1" | cut -d ' ' -f 1)
    head -c "$2K" /dev/zero | openssl enc -aes-256-ctr -K "$key" -iv 00000000000000000000000000000000
}

# add_layer LAYOUT DIRECTORY: DIRECTORY's files become the next layer.
add_layer() {
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX -C "$2" -cf "$1/layer" .
    sha256sum "$1/layer" | jq -R '"sha256:" + .[0:64]' >>"$1/diff-ids"
    gzip -n -1 "$1/layer"
    add_blob "$1" "$1/layer.gz" application/vnd.oci.image.layer.v1.tar+gzip >>"$1/layers"
    rm -rf "$2"
}

# add_blob LAYOUT FILE TYPE: moves FILE into the layout and prints its descriptor.
add_blob() {
    local digest size
    digest=$(sha256sum "$2" | cut -d ' ' -f 1)
    size=$(stat -c %s "$2")
    mv "$2" "$1/blobs/sha256/$digest"
    printf '{"mediaType": "%s", "digest": "sha256:%s", "size": %d}\n' "$3" "$digest" "$size"
}

set_config() {
    jq -n --argjson config "$2" --slurpfile diffs "$1/diff-ids" --arg arch "$(dpkg --print-architecture)" \
        '{created: "1970-01-01T00:00:00Z", architecture: $arch, os: "linux", config: $config, rootfs: {type: "layers", diff_ids: $diffs}}' >"$1/config"
}

write_image() {
    local config manifest artifact='' type=application/vnd.oci.image.config.v1+json
    if [[ -f $1/artifact-type ]]; then artifact=$(<"$1/artifact-type") type=application/vnd.oci.empty.v1+json; fi
    config=$(add_blob "$1" "$1/config" "$type")
    jq -n --argjson config "$config" --slurpfile layers "$1/layers" --arg artifact "$artifact" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: $layers}
            + if $artifact == "" then {} else {artifactType: $artifact} end' >"$1/manifest"
    manifest=$(add_blob "$1" "$1/manifest" application/vnd.oci.image.manifest.v1+json)
    jq -n --argjson manifest "$manifest" '{schemaVersion: 2, manifests: [$manifest]}' >"$1/index.json"
    echo '{"imageLayoutVersion": "1.0.0"}' >"$1/oci-layout"
    rm -f "$1/diff-ids" "$1/layers" "$1/artifact-type"
}
