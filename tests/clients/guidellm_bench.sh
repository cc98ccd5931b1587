#!/usr/bin/env bash
# guidellm against $BASE_URL: a short benchmark over each of its text formats. All tokens that it asks for must come.
set -euo pipefail
mkdir -p "$WORK" && cd "$WORK"
for format in /v1/chat/completions /v1/completions /v1/responses; do
    rm -f found.json
    HF_HUB_OFFLINE=1 guidellm run --disable-progress --output kind=json,path=found.json \
        --backend "kind=openai_http,target=$BASE_URL,model=$MODEL,request_format=$format" \
        --tokenizer "kind=hf_auto,model=$CLIENTS_MODEL" --data kind=synthetic_text,prompt_tokens=32,output_tokens=16 \
        --profile kind=concurrent,streams=4 --constraint kind=max_requests,count=16
    python - <<'END'
import json
(benchmark,) = json.load(open("found.json"))["benchmarks"]
requests = benchmark["requests"]
assert (len(requests["successful"]), requests["errored"], requests["incomplete"]) == (16, [], []), requests
assert {one["output_metrics"]["total_tokens"] for one in requests["successful"]} == {16}
END
done
echo "$(guidellm --version): 16 queries at concurrency 4 over chat, completions and Responses"
