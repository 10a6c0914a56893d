# Read by the scripts beside it, from the root: CMake, Ninja and nanobind, as pinned, in an environment of their own under build.
PYTHON=${PYTHON:-python3}
NATIVE=server/dataplane/native
TOOLS=$PWD/build/tools
if [ ! -f "$TOOLS/.installed" ]; then
  "$PYTHON" -m venv "$TOOLS"
  "$TOOLS/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt cmake ninja nanobind
  touch "$TOOLS/.installed"
fi
PATH=$TOOLS/bin:$PATH
