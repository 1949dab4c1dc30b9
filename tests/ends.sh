#!/usr/bin/env bash
# One end of the ranges in pyproject.toml, `lowest` or `newest`: resolve it for every Python we name, install it for this one,
# import every module, and run tests that touch each large dependency. With --resolve nothing is installed.
# The lock is in neither's way: `newest` is what a user gets today, `lowest` what the bounds promise to work.
set -euo pipefail
cd "$(dirname "$0")/.."
end=${1:?expected lowest or newest}
uv=$(command -v uv)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset VIRTUAL_ENV
case $end in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "expected lowest or newest, got $end" >&2; exit 2 ;;
esac
for python in 3.11 3.12 3.13; do
  # A bound older than a Python has no wheel for it: so that nobody has to compile, resolution goes up to the first that has one.
  # Two come without wheels; both are pure Python.
  "$uv" pip compile --quiet --resolution "$resolution" --python-version "$python" --no-header --no-annotate \
    --extra explore --extra s3 --extra wandb --only-binary :all: --no-binary antlr4-python3-runtime --no-binary grad-cam \
    pyproject.toml --output-file "$place/$python.txt"
  echo "$end, Python $python: $(wc -l < "$place/$python.txt") packages resolve"
done
[ "${2:-}" = --resolve ] && exit 0
chosen="$place/$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt"
[ -f "$chosen" ] || { echo "expected Python 3.11, 3.12 or 3.13, got $(python --version)" >&2; exit 2; }
"$uv" venv --quiet --python "$(command -v python)" "$place/env"
"$uv" pip install --quiet --python "$place/env" -r "$chosen"
"$uv" pip install --quiet --python "$place/env" --constraint "$chosen" \
  beartype hypothesis "moto[server]" psutil pytest pytest-timeout tensorstore xarray
"$uv" pip install --quiet --python "$place/env" --no-deps .
mkdir "$place/elsewhere"
cp -r tests pyproject.toml configs dvc.yaml .dvc .dvcignore "$place/elsewhere/"
cd "$place/elsewhere"
"$place/env/bin/python" -I tests/imports.py
# Warnings are errors on the locked versions; at an end a dependency may warn of its own others.
"$place/env/bin/python" -m pytest -q -o filterwarnings=default -m "not slow and not tree and not assets" \
  tests/store/test_access.py tests/store/test_layout.py tests/store/test_hdf5.py tests/pipeline/test_config.py \
  tests/stages/test_extract_layers.py tests/stages/test_train_translator.py tests/stages/test_decoding.py \
  tests/stages/test_metrics.py tests/stages/test_saliency_likelihood.py tests/stages/test_prepare_folder.py
