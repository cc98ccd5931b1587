#!/usr/bin/env bash
# aiperf against $BASE_URL: a short benchmark over each route that generates. All tokens that it asks for must come.
set -euo pipefail
mkdir -p "$WORK" && cd "$WORK"
for kind in chat completions responses messages; do
    rm -rf out
    # It reads the usage of Responses from `response.completed` alone, and answers that are cut end in `incomplete`.
    counted=--use-server-token-count
    [ $kind = responses ] && counted=
    aiperf profile --model "$MODEL" --url "$BASE_URL" --endpoint-type $kind --streaming --tokenizer "$CLIENTS_MODEL" \
        --request-count 16 --concurrency 4 --synthetic-input-tokens-mean 32 --output-tokens-mean 16 \
        --extra-inputs ignore_eos:true $counted --artifact-dir out --ui none
    python - $counted <<'END'
import json, sys
found = json.load(open("out/profile_export_aiperf.json"))
assert found["request_count"]["avg"] == 16 and not found["error_summary"], found
length = found["output_sequence_length"]
assert length["min"] == length["max"] == 16 or not sys.argv[1:], length
assert json.load(open("out/server_metrics_export.json"))["metrics"]["baton_generated_tokens"]
END
done
echo "aiperf $(aiperf --version): 16 queries at concurrency 4 over chat, completions, Responses and Messages, and /metrics"
