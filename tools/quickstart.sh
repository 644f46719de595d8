#!/usr/bin/env bash
# Dependencies, build, and text from the bundled model: once with all experts in memory, once with a budget that makes
# them stream from disk. Both must print the same text.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/install-packages.sh build tests
[ -f build/build.ninja ] || meson setup build
ninja -C build tools/stoker

stoker=build/tools/stoker
model=tests/models/ember-37m-q4_k_m.gguf
prompt='The borrow checker'
answer() { "$stoker" run -m "$model" -p "$prompt" --raw -n 64 --temp 0 "$@"; }

echo
echo "== $prompt ...   (all experts in memory)"
in_memory=$(answer --ram 64M)
printf '%s\n\n' "$in_memory"

echo "== $prompt ...   (2 MiB for experts, the others stream from disk)"
streamed=$(answer --ram 2M)
printf '%s\n\n' "$streamed"

if [ "$in_memory" != "$streamed" ]; then
  echo "The two texts differ: this is a bug." >&2
  exit 1
fi
echo "The two texts are the same."
echo "Next: $stoker run -m YOUR-MODEL.gguf --ram 100G -p \"Why is the sky blue?\"     $stoker --help"
