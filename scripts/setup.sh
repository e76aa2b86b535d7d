# Sourced by demo.sh and test.sh: goes to the repository root and makes .venv ready.
# Usage: . setup.sh REQUIREMENTS_FILE

fail() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || fail "the repository folder cannot be entered"

NEEDED_GB=9 # torch with its CUDA libraries, unpacked, and what pip needs meanwhile

python_at_least_3_10() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

make_venv() {
    local python free_kb
    for python in python3 python3.12 python3.11 python3.10 python; do
        python_at_least_3_10 "$python" && break
        python=""
    done
    [ -n "$python" ] || fail "no Python 3.10 or newer on the PATH: install one (python3)"
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
    wanted=$(cat requirements.txt "$1" Diffusion-LM/pyproject.toml pyproject.toml | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "installing $1 (torch is large: this takes a few minutes once)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" ||
        fail "the packages of $1 could not be installed; the lines above say why"
    echo "$wanted" >"$stamp"
}

python_at_least_3_10 .venv/bin/python || make_venv
install_requirements "$1"
PATH="$PWD/.venv/bin:$PATH"
