#!/usr/bin/env bash
# LiteLLM's proxy in front of $SCRIPTED_URL, asked by `litellm_proxy_client.py`.
set -euo pipefail
mkdir -p "$WORK"
cat >"$WORK/config.yaml" <<YAML
model_list:
  - model_name: ours
    litellm_params: {model: "hosted_vllm/$MODEL", api_base: "$SCRIPTED_URL/v1", api_key: none}
litellm_settings: {num_retries: 0, telemetry: false}
general_settings: {master_key: sk-proxy}
YAML
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PROXY_URL=http://127.0.0.1:$port LITELLM_LOCAL_MODEL_COST_MAP=true
litellm --config "$WORK/config.yaml" --host 127.0.0.1 --port "$port" >"$WORK/log" 2>&1 &
proxy=$!
trap 'kill $proxy; wait' EXIT
for _ in $(seq 200); do
    python -c 'import os, urllib.request; urllib.request.urlopen(os.environ["PROXY_URL"] + "/health/liveliness")' 2>/dev/null && break
    kill -0 $proxy || { cat "$WORK/log"; exit 1; }
    sleep 0.5
done
python litellm_proxy_client.py || { tail -60 "$WORK/log"; exit 1; }
