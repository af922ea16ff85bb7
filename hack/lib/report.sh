# shellcheck shell=bash
# Sections of docs/performance.md that commands write. Sourced by hack/bench-*.

PERFORMANCE=docs/performance.md

# section NAME <TEXT: replaces what stands between <!-- NAME --> and <!-- /NAME -->.
section() {
    local text
    text=$(mktemp)
    cat >"$text"
    grep -qx "<!-- $1 -->" "$PERFORMANCE" || printf '\n<!-- %s -->\n<!-- /%s -->\n' "$1" "$1" >>"$PERFORMANCE"
    awk -v name="$1" -v text="$text" '
        $0 == "<!-- /" name " -->" { while ((getline line < text) > 0) print line; skip = 0 }
        !skip
        $0 == "<!-- " name " -->" { skip = 1 }' "$PERFORMANCE" >"$PERFORMANCE.new"
    mv "$PERFORMANCE.new" "$PERFORMANCE"
    rm -f "$text"
}

# What the figures were measured on.
machine() {
    echo "$(nproc) processors ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)), $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), load $(cut -d ' ' -f 1 /proc/loadavg) at the end, $(date -u +%F)"
}
