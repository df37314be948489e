#!/usr/bin/env bash
# All that there is to find out about this project on a GPU, in six minutes.
#
#     bash bench/gpu.sh                          on CUDA
#     DEVICE=cpu SCALE=small bash bench/gpu.sh   on a CPU, to see that the script itself runs
#     PARTS="learns float64" bash bench/gpu.sh   some parts only
#
# The parts come in the order of their worth, and each says its line as it ends, so that a run which
# is cut short has told the most.  None takes longer than its limit, nor all of them longer than
# BUDGET seconds.  A part that fails stops no other; the exit code is 1 if one has failed.
#
# OUT (a new folder by default) gets: log, all that the parts said; results, what is printed here;
# and the figures of bench/benchmark.py as JSON.  Runs go to a temporary folder, which is removed.
#
# A bare machine may lack packages.  Wheels in bench/wheels/ (git ignores it) are unpacked into the
# temporary folder and found there; nothing is installed.  To fill it, where there is a network,
# with what python3 -c "import psutil, tabulate, tiktoken" and so on do not find on the machine
# (--no-deps: torch is there, and is large, so each one is named):
#
#     pip download --no-deps --only-binary :all: --python-version 312 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
#       --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d bench/wheels \
#       psutil tabulate tiktoken regex filelock safetensors tqdm huggingface_hub numpy \
#       transformers tokenizers peft accelerate pyyaml packaging pytest pluggy iniconfig hypothesis
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
scale=${SCALE:-full}
budget=${BUDGET:-360}
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
export PYTHONUNBUFFERED=1

# A line for people, and for the file of results.
tell() {
  echo "$*" | tee -a "$out/results"
}

# A word of the parts' names and their limits in seconds.
parts="learns:60 float64:30 equal:45 resumes:45 stalls:45 benchmark:150 launches:30 packs:45
  epoch:100 nccl:45 tests:60"
flags=(--device "$device" --work "$work" --out "$out")
if [ "$scale" = small ]; then
  flags+=(--small)
fi

if compgen -G "$here/wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --upgrade \
    --target "$work/site" "$here"/wheels/*.whl >>"$out/log" 2>&1 ||
    tell "bench/wheels could not be unpacked; see $out/log"
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi

# One part: its findings as they come, and a last line with how it ended.
run_part() {
  local name=$1 limit=$2 before=$SECONDS code said
  said="$work/$name.said"
  timeout --kill-after=5 "$limit" "$python" "$here/gpu.py" "$name" "${flags[@]}" 2>&1 |
    tee "$said" | grep --line-buffered '^- ' | sed -u "s/^- /   $name: /" | tee -a "$out/results"
  code=${PIPESTATUS[0]}
  { echo "==== $name"; cat "$said"; } >>"$out/log"
  local found last
  found=$(sed -n 's/^= //p' "$said" | tail -n 1)
  last=$(grep -v '^ *$' "$said" | tail -n 1)
  if [ "$code" = 0 ] && [ -n "$found" ]; then
    tell "ok      $name ($((SECONDS - before)) s): $found"
    return 0
  fi
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then
    last="ran past its $limit s; its last word: $last"
  fi
  tell "FAILED  $name ($((SECONDS - before)) s): $last"
  return 1
}

failed=""
skipped=""
done=0
for entry in $parts; do
  name=${entry%%:*}
  if [ -n "${PARTS:-}" ] && [[ " $PARTS " != *" $name "* ]]; then
    continue
  fi
  left=$((budget - SECONDS))
  limit=${LIMIT:-${entry##*:}}
  # A part of which too little time is left would only be cut.
  if [ "$left" -lt 5 ]; then
    skipped+=" $name"
    tell "left    $name: no time is left of $budget s"
    continue
  fi
  run_part "$name" "$(( limit < left ? limit : left ))" || failed+=" $name"
  done=$((done + 1))
done

words="$done parts in $SECONDS s on $device"
tell "$words; failed:${failed:- none}; left out:${skipped:- none}; see $out/log"
[ -z "$failed$skipped" ] && [ "$done" -gt 0 ]
