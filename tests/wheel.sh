#!/usr/bin/env bash
# Build the wheel, install it alone into an environment without the source tree, and run the tests from elsewhere.
# A package that is missing from pyproject's list imports in an editable install and is not in the wheel: this finds it.
set -euo pipefail
uv=$(realpath "$1")
source=$(pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset VIRTUAL_ENV
python -m build --wheel --no-isolation --outdir "$place/dist" "$source" >"$place/build.log" 2>&1 || { cat "$place/build.log"; exit 1; }
"$uv" venv --quiet --python "$(command -v python)" "$place/env"
"$uv" pip install --quiet --python "$place/env" --require-hashes -r requirements.lock
"$uv" pip install --quiet --python "$place/env" --no-deps "$place"/dist/*.whl
mkdir "$place/elsewhere"
cp -r tests pyproject.toml configs dvc.yaml docs .dvc .dvcignore "$place/elsewhere/"
cd "$place/elsewhere"
export OMP_NUM_THREADS=1
# shellcheck disable=SC2086  # several options
PATH="$place/env/bin:$PATH" "$place/env/bin/python" -m pytest -q ${PARALLEL:-} -m "not slow and not tree"
