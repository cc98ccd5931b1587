# lm-evaluation-harness, local-completions on a local JSON task at concurrency 1 and 64: the scores must be the same.
set -euo pipefail
here=$(pwd)
mkdir -p "$WORK" && cd "$WORK"
python - <<'END'
import json, random
dice = random.Random(7)
with open("sums.jsonl", "w") as out:
    for _ in range(64):
        a, b = dice.randint(10, 99), dice.randint(10, 99)
        right = dice.random() < 0.5
        print(json.dumps({"question": f"What is {a} + {b}?", "answer": str(a + b),
                          "choices": [str(a + b), str(a + b + 10)], "gold": 0}), file=out)
END
cat >sums_generate.yaml <<END
task: sums_generate
dataset_path: json
dataset_kwargs: {data_files: {test: $WORK/sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "<|user|>{{question}}<|end|><|assistant|>"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 120, temperature: 0}
filter_list:
  - name: last
    filter:
      - {function: regex, regex_pattern: "(\\\\d+)", group_select: -1}
      - {function: take_first}
metric_list: [{metric: exact_match}]
END
cat >sums_choose.yaml <<END
task: sums_choose
dataset_path: json
dataset_kwargs: {data_files: {test: $WORK/sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} The answer is"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}]
END
for at_once in 1 64; do
    lm_eval run --model local-completions --tasks sums_generate,sums_choose --include_path "$WORK" --output_path "out-$at_once" \
        --model_args "model=$MODEL,base_url=$BASE_URL/v1/completions,num_concurrent=$at_once,max_retries=1,tokenizer_backend=huggingface,tokenizer=$CLIENTS_MODEL,tokenized_requests=False"
done
python - <<'END'
import glob, json
def scores(at_once):
    (path,) = sorted(glob.glob(f"out-{at_once}/**/results_*.json", recursive=True))[-1:]
    results = json.load(open(path))["results"]
    return {task: {k: v for k, v in found.items() if "stderr" not in k} for task, found in results.items()}
one, many = scores(1), scores(64)
assert one == many, (one, many)
print("lm-eval, concurrency 1 = 64:", json.dumps(one))
END
