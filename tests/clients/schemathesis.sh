#!/usr/bin/env bash
# /openapi.json is true: schemathesis asks every route for what it says, and for what it says is refused.
#
#   ./schemathesis.sh [scripted|built-in|front]...     EXAMPLES=200 of each operation by itself
#
# Installs schemathesis from PyPI into $CLIENTS_HOME/schemathesis (~/.cache/baton-clients), starts each server in turn:
# one over the scripted engine of tests/server with the limits as they are by default, and the built-in model with a key,
# chat template with tools, and small limits, so that there is an answer to everything in minutes; `front`, when it is
# asked for, is the second with its engine elsewhere, on Ray Serve. All phases and checks,
# positive and negative data, NUL in texts. schemathesis.toml says what is configured and why, and
# schemathesis_checks.py adds a check: data that fits the schema is refused only where the request itself shows why.
# Cases that it calls skipped vary the Authorization header, which with a key is always ours: test_access.py has those.
set -uo pipefail
cd "$(dirname "$0")"
home=${CLIENTS_HOME:-$HOME/.cache/baton-clients}
mkdir -p "$home"
if [ ! -e "$home/schemathesis/installed" ]; then
    python3 -m venv "$home/schemathesis" && "$home/schemathesis/bin/pip" install -q "schemathesis>=4" &&
        touch "$home/schemathesis/installed" || exit 1
fi
[ $# -gt 0 ] || set -- scripted built-in
export SCHEMATHESIS_KEY=a-key-for-schemathesis

scripted() { exec env PYTHONPATH="..${PYTHONPATH:+:$PYTHONPATH}" python ../server/served.py -1 0 '{}' "$(mktemp -d)"; }
built-in() {
    python make_model.py "$home/model" && exec baton serve "$home/model" --port 0 --api-key "$SCHEMATHESIS_KEY" \
        --max-model-len 128 --max-n 2 --max-prompts 3 --max-choices 4 --max-stop-strings 2 --max-logprobs 3 \
        --batch-dir "$(mktemp -d)" --max-files 100000 --max-batches 100000 "$@"
}
front() { built-in --replicas 1 --replica-cpus 1; }

status=0
for server in "$@"; do
    log=$home/schemathesis-$server.log
    "$server" >"$log.server" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null' EXIT
    url=
    for _ in $(seq 1000); do
        url=$(grep -o 'http://127.0.0.1:[0-9]*' "$log.server" | head -1)
        [ -n "$url" ] && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.3
    done
    [ -n "$url" ] || { cat "$log.server"; exit 1; }
    auth=()
    [ "$server" = scripted ] || auth=(-H "Authorization: Bearer $SCHEMATHESIS_KEY")
    SCHEMATHESIS_HOOKS=schemathesis_checks PYTHONPATH=. "$home/schemathesis/bin/st" --config-file schemathesis.toml \
        run "$url/openapi.json" ${auth[@]+"${auth[@]}"} --mode all --max-examples "${EXAMPLES:-200}" \
        --phases examples,coverage,fuzzing,stateful --generation-allow-x00 true --request-timeout 60 \
        --generation-database none --continue-on-failure --no-color ${SCHEMATHESIS_OPTIONS:-} >"$log" 2>&1
    found=$?
    [ $found -eq 0 ] || { status=1; sed -n '/= FAILURES =/,$p' "$log" | head -60; }
    grep -q Traceback "$log.server" && { status=1; grep -A60 Traceback "$log.server" | head -60; }
    echo "$server: exit status $found; $(grep -A1 '^Test cases:' "$log" | tail -1 | xargs); $log"
    kill $pid && wait $pid
done
exit $status
