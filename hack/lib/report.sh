# shellcheck shell=bash
# Sections of documents that commands write. Sourced by hack/bench-* and hack/test-versions.

# section NAME [DOCUMENT] <TEXT: replaces what stands between <!-- NAME --> and <!-- /NAME -->.
section() {
    local text document=${2:-docs/performance.md}
    text=$(mktemp)
    cat >"$text"
    grep -qx "<!-- $1 -->" "$document" || printf '\n<!-- %s -->\n<!-- /%s -->\n' "$1" "$1" >>"$document"
    awk -v name="$1" -v text="$text" '
        $0 == "<!-- /" name " -->" { while ((getline line < text) > 0) print line; skip = 0 }
        !skip
        $0 == "<!-- " name " -->" { skip = 1 }' "$document" >"$document.new"
    mv "$document.new" "$document"
    rm -f "$text"
}

# What the figures were measured on.
machine() {
    echo "$(nproc) processors ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)), $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), load $(cut -d ' ' -f 1 /proc/loadavg) at the end, $(date -u +%F)"
}

# median NUMBER...
median() { printf '%s\n' "$@" | sort -n | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'; }

# seconds MILLISECONDS
seconds() { awk "BEGIN {printf \"%.1f s\", $1 / 1000}"; }
