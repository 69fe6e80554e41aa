#!/bin/sh
# Write constraints.txt: the versions that pip resolves today for the package with all extras, in a fresh environment.
# PyTorch keeps its version unless TORCH names another, because its newest may have no CPU build where this runs.
set -eu
cd "$(dirname "$0")/.."

torch=${TORCH:-$(sed -n 's/^torch==//p' constraints.txt)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --upgrade setuptools pybind11
"$work/venv/bin/pip" install --quiet --no-build-isolation "torch==$torch" -e '.[dev]'

# Comments stay; a local version such as +cpu goes, so that the pin holds for every build of that version.
{
    sed -n '/^#/p; /^$/q' constraints.txt
    echo
    "$work/venv/bin/pip" freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+[a-z0-9.]*$//' | LC_ALL=C sort -f
} >"$work/constraints.txt"
cp "$work/constraints.txt" constraints.txt
