#!/usr/bin/env bash
# What a release uploads: an sdist and a wheel in dist/ (or the folder given), the wheel once more from the sdist with the same
# files, and what twine says of both.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
dist=$(realpath -m "${1:-dist}")
rm -rf "$dist" build
quietly() { "$@" >"$place/log" 2>&1 || { cat "$place/log"; exit 1; }; }
quietly python -m build --no-isolation --sdist --outdir "$dist"
quietly python -m build --no-isolation --wheel --outdir "$dist"
mkdir "$place/source"
tar -xzf "$dist"/*.tar.gz -C "$place/source" --strip-components 1
quietly python -m build --no-isolation --wheel --outdir "$place/again" "$place/source"
twine check --strict "$dist"/*
python tests/shipped.py "$dist" "$place/again"
