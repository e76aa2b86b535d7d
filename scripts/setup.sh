#!/usr/bin/env bash
# Makes .venv ready, with what a requirements file lists, and goes to the repository root.
# Usage: scripts/setup.sh REQUIREMENTS_FILE, or in another script: . setup.sh REQUIREMENTS_FILE "$@"

fail() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

for argument in "$@"; do
    if [ "$argument" = --help ]; then # the comment at the top of the script
        sed -n '2,/^[^#]/s/^# //p' "$0"
        exit
    fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.." || fail "the repository folder cannot be entered"

NEEDED_GB=9 # torch with its CUDA libraries, unpacked, and what pip needs meanwhile

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    local python free_kb
    for python in python3 python3.13 python3.12 python3.11 python; do
        is_new_enough "$python" && break
        python=""
    done
    [ -n "$python" ] ||
        fail "no Python 3.11 or newer on the PATH (python3 is $(python3 --version 2>/dev/null || echo missing)): install one"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)"
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    [ "$free_kb" -ge $((NEEDED_GB * 1024 * 1024)) ] ||
        fail "$((free_kb / 1024 / 1024)) GB free on the disk of $PWD, $NEEDED_GB GB are needed"
    echo "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || fail "the virtual environment .venv could not be made"
}

install_requirements() {
    local wanted stamp
    stamp=".venv/installed-$1"
    wanted=$(cat requirements.txt "$1" pyproject.toml | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "installing $1 (torch is large: this takes a few minutes once)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" ||
        fail "the packages of $1 could not be installed; the lines above say why"
    echo "$wanted" >"$stamp"
}

[ -f "${1-}" ] || fail "${1-nothing} is no requirements file: give requirements.txt or requirements-test.txt"
is_new_enough .venv/bin/python || make_venv
install_requirements "$1"
PATH="$PWD/.venv/bin:$PATH"
