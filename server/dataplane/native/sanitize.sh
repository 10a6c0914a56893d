#!/bin/sh
# Builds with sanitizers (gcc) and runs what there is: C++ tests, tests of the module, and the server's own tests on it.
#
#   sanitize.sh [KIND...]    KIND: address,undefined or thread; both by default. PYTHON: the environment with the tests.
#
# Every process writes what it finds into build/sanitize-KIND/found, those that tests start included. Any file there is a failure.
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
    -DPODIUM_TESTS=ON -DPODIUM_SANITIZE="$kind" >"$build.log" || { cat "$build.log" >&2; return 1; }
  cmake --build "$build"
  case $kind in
    *thread*) runtime=libtsan.so ;;
    *) runtime=libasan.so ;;
  esac
  # what is not instrumented, the interpreter first of all, must find the runtime loaded before everything else
  preload="$("$CXX" -print-file-name=$runtime) $("$CXX" -print-file-name=libstdc++.so)"
  export UBSAN_OPTIONS="print_stacktrace=1:log_path=$found/undefined"
  export TSAN_OPTIONS="suppressions=$PWD/$NATIVE/thread.supp:log_path=$found/thread:second_deadlock_stack=1"
  status=0
  ASAN_OPTIONS="log_path=$found/address:detect_leaks=1:strict_string_checks=1" \
    ctest --test-dir "$build" --output-on-failure || status=1
  # the interpreter frees little of what it has at its end, so leaks are looked for by the C++ tests alone
  ASAN_OPTIONS="log_path=$found/address:detect_leaks=0:allocator_may_return_null=1" \
    LD_PRELOAD=$preload PYTHONPATH=$build PYTHONMALLOC=malloc \
    "$PYTHON" -m pytest -p no:cacheprovider -m 'not soak and not gpu' --timeout 1200 $TESTS || status=1
  for report in "$found"/*; do
    [ -f "$report" ] || continue
    cat "$report" >&2
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
