#!/bin/sh
# Runs every fuzzer for FUZZ_S seconds with address and undefined-behaviour sanitizers, from what is in fuzz/corpus, for
# fuzz_NAME in the folder NAME. Inputs that reach code which nothing there reaches are added to it; what breaks a fuzzer is in
# build/fuzz/crashes. Needs clang with its compiler-rt.
#
#   fuzz.sh [FUZZER...]      FUZZ_S (default 60), CXX (default clang++, or the newest clang++-N)
set -eu
cd "$(dirname "$0")/../../.."
CXX=${CXX:-$(command -v clang++ || ls -1 /usr/bin/clang++-[0-9]* 2>/dev/null | sort -V | tail -n 1)}
if [ -z "$CXX" ]; then
  echo "Fuzzing needs clang with compiler-rt; on Debian: apt-get install clang libclang-rt-dev" >&2
  exit 1
fi
. server/dataplane/native/tools.sh
BUILD=build/fuzz
cmake -S "$NATIVE" -B "$BUILD" -G Ninja -DCMAKE_CXX_COMPILER="$CXX" -DPODIUM_MODULE=OFF -DPODIUM_FUZZ=ON \
  -DPODIUM_SANITIZE=address,undefined >"$BUILD.log" || { cat "$BUILD.log" >&2; exit 1; }
cmake --build "$BUILD"
mkdir -p "$BUILD/crashes"
ran=0
for fuzzer in "$BUILD"/fuzz/fuzz_*; do
  name=$(basename "$fuzzer")
  [ -f "$fuzzer" ] && [ -x "$fuzzer" ] || continue
  case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
  corpus=$NATIVE/fuzz/corpus/${name#fuzz_}
  tried=$BUILD/corpus/$name
  mkdir -p "$corpus" "$tried"
  echo "$name: ${FUZZ_S:-60} s"
  # a message may be large, a metadata list long: lengths are for the fuzzer to find out, memory and time are bounded here
  "$fuzzer" -max_total_time="${FUZZ_S:-60}" -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$BUILD/crashes/$name-" "$tried" "$corpus"
  # of what it tried, what takes a branch that is new; how often a branch is taken would make the corpus large
  "$fuzzer" -merge=1 -use_counters=0 -artifact_prefix="$BUILD/crashes/$name-" "$corpus" "$tried"
  ran=$((ran + 1))
done
[ "$ran" -gt 0 ] || { echo "There is no fuzzer of that name." >&2; exit 1; }
