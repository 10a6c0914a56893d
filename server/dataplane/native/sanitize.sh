#!/bin/sh
# Builds with sanitizers (gcc) and runs the C++ tests, the fuzzers' corpus, the tests of the module, and the server's own on it.
#
#   sanitize.sh [KIND...]    KIND: address,undefined or thread; both by default. PYTHON: the environment with the tests.
#
# Every process writes what it finds into build/sanitize-KIND/found, those that tests start included. A report there is a failure;
# one of a race only where our code is part of it: ONNX Runtime, gRPC and the interpreter are not instrumented, so much of what
# orders their accesses is not seen. Our code is, and so are the interpreter's own lock and every other mutex.
set -eu
cd "$(dirname "$0")/../../.."
. server/dataplane/native/tools.sh
CXX=${CXX:-g++}
TESTS="tests/server $(find tests -name 'test_native_*.py' ! -name test_native_module.py | tr '\n' ' ')"

sanitize() {
  kind=$1
  build=$PWD/build/sanitize-$(echo "$kind" | tr , -)
  found=$build/found
  rm -rf "$found"
  mkdir -p "$found"
  cmake -S "$NATIVE" -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="$CXX" -DPython_EXECUTABLE="$TOOLS/bin/python" \
    -DPODIUM_TESTS=ON -DPODIUM_FUZZ=ON -DPODIUM_SANITIZE="$kind" >"$build.log" || { cat "$build.log" >&2; return 1; }
  cmake --build "$build"
  case $kind in
    *thread*) runtime=libtsan.so ;;
    *) runtime=libasan.so ;;
  esac
  # what is not instrumented, the interpreter first of all, must find the runtime loaded before everything else
  preload="$("$CXX" -print-file-name=$runtime) $("$CXX" -print-file-name=libstdc++.so)"
  export UBSAN_OPTIONS="print_stacktrace=1:log_path=$found/undefined"
  export TSAN_OPTIONS="suppressions=$PWD/$NATIVE/thread.supp:log_path=$found/thread:second_deadlock_stack=1:exitcode=0"
  status=0
  ASAN_OPTIONS="log_path=$found/address:detect_leaks=1:strict_string_checks=1" \
    ctest --test-dir "$build" --no-tests=error --output-on-failure || status=1
  for fuzzer in "$build"/fuzz/fuzz_*; do
    [ -f "$fuzzer" ] || continue
    name=$(basename "$fuzzer")
    ASAN_OPTIONS="log_path=$found/address" "$fuzzer" "$NATIVE/fuzz/corpus/${name#fuzz_}" || status=1
  done
  # the interpreter frees little of what it has at its end, so leaks are looked for by the C++ tests alone; what a runtime says
  # when it ends the process must not be lost in pytest's capture
  ASAN_OPTIONS="log_path=$found/address:detect_leaks=0:allocator_may_return_null=1" \
    LD_PRELOAD=$preload PYTHONPATH=$build PYTHONMALLOC=malloc \
    "$PYTHON" -m pytest --capture=sys -p no:cacheprovider -m 'not soak and not gpu' -k 'not python' --timeout 1200 $TESTS || status=1
  for report in "$found"/*; do
    [ -f "$report" ] || continue
    case $report in
      */thread.*) awk 'BEGIN { RS = "==================\n"; ORS = RS } /podium/' "$report" >"$report.ours" ;;
      *) cp "$report" "$report.ours" ;;
    esac
    [ -s "$report.ours" ] || continue
    cat "$report.ours" >&2
    status=1
  done
  echo "$kind: $([ $status -eq 0 ] && echo nothing found || echo FAILED)"
  return $status
}

failed=0
for kind in ${*:-address,undefined thread}; do
  sanitize "$kind" || failed=1
done
exit $failed
