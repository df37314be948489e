#!/usr/bin/env bash
# The official sizes: fills the table of docs/results.md.  It takes a machine with a GPU that can
# reach the model hub; the weights are 11 GB.
#
#     bash bench/official.sh
#     MODELS="gpt2 gpt2-medium" bash bench/official.sh
#     FLAGS="--max-examples 64 --epochs 1 --batch-size 4" bash bench/official.sh     a trial
#
# Each model trains the post's six lengths with three seeds and three rates: 54 prompts on one
# reading of SST-2, three epochs, 10,800 steps.  The hold-out chooses the epoch and the prompt, dev
# is scored once, and so is sst2/test.tsv, if you put SST-2's labelled test split there.
#
# How long it should take on an H100, by counting and not by running: a step launches some 21,000
# kernels for twelve layers, 5 microseconds each: gpt2 20 minutes, medium 40, large 60, xl 80; in
# all some 3.5 hours.
#
# Stopped at any time, it goes on by the same command: a model whose record is in docs/records/ is
# done, and a run that began resumes at its last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra models <<< "${MODELS:-gpt2 gpt2-medium gpt2-large gpt2-xl}"
records=${RECORDS:-docs/records}
mkdir -p "$records"
python bench/results.py "$records" --runs "${RUNS:-runs}" --flags "${FLAGS:-}" \
    --only "${models[@]/#/official-}"

# A trial leaves the pages as they are.
if [ -z "${FLAGS:-}" ]; then
    python bench/tables.py
fi
