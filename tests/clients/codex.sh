#!/usr/bin/env bash
# Codex against $SCRIPTED_URL: a task of two turns with a tool. Its hosted search is switched off, because there is none.
set -euo pipefail
home=$(mktemp -d "$WORK/codex-home.XXXX") task=$(mktemp -d "$WORK/codex-task.XXXX")
cat >"$home/config.toml" <<TOML
model = "$MODEL"
model_provider = "baton"
web_search = "disabled"
[model_providers.baton]
name = "baton"
base_url = "$SCRIPTED_URL/v1"
wire_api = "responses"
TOML
cd "$task"
said=$(CODEX_HOME=$home timeout 120 codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox \
    "Write hello into hello.txt" </dev/null 2>"$home/log") || { cat "$home/log"; exit 1; }
[ "$(cat hello.txt)" = hello ] && [[ "$said" == *"Hello from the script."* ]] || { cat "$home/log"; exit 1; }
echo "$(codex --version) Responses: a task of two turns with a tool"
