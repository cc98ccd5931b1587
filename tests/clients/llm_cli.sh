# simonw's llm against $BASE_URL: a prompt, a stream, a conversation, a schema.
set -euo pipefail
mkdir -p "$LLM_USER_PATH"
cat >"$LLM_USER_PATH/extra-openai-models.yaml" <<END
- model_id: baton
  model_name: $MODEL
  api_base: $BASE_URL/v1
  supports_schema: true
END
ask() { llm -m baton -o temperature 0 "$@"; }
plain=$(ask --no-stream "What is 17 + 25?")
[[ $plain == *42* ]]
[[ $(ask "What is 17 + 25?") == "$plain" ]]
[[ -n $(llm -c "What is 3 + 4?") ]]
ask --schema 'digit int' "What is 17 + 25?" | python3 -c 'import json, sys; assert isinstance(json.load(sys.stdin)["digit"], int)'
echo "llm: plain, stream, conversation, schema"
