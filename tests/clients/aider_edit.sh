#!/usr/bin/env bash
# aider against $AGENTS_URL: one edit of a tiny repository in each of two formats, and the commit of it.
set -euo pipefail
mkdir -p "$WORK"
for format in whole diff; do
    repository=$(mktemp -d "$WORK/repository.XXXX")
    cd "$repository"
    git init -q . && git config user.name one && git config user.email one@example.org
    echo "Hello there." >hello.txt && git add hello.txt && git commit -qm "Greet"
    HOME=$repository timeout 120 aider --model "openai/$MODEL" --openai-api-base "$AGENTS_URL/v1" --openai-api-key none \
        --edit-format $format --yes-always --no-pretty --no-show-model-warnings --no-check-update --analytics-disable \
        --no-show-release-notes --no-gitignore --message "Say goodbye instead." hello.txt </dev/null
    [ "$(cat hello.txt)" = "Goodbye now." ] || exit 1
    [ "$(git log --format=%s -1)" = "Hello from the script." ] || exit 1
done
echo "$(aider --version) chat, streamed: an edit of a repository in the formats whole and diff, and its commit"
