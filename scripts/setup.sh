#!/bin/sh
# Makes .venv with seqtrain and its pinned dependencies; returns at once when that is already so.
#
#   sh scripts/setup.sh          what seqtrain needs
#   sh scripts/setup.sh dev      and what its tests need
#
# PYTHON=/path/to/python3 chooses the interpreter.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
root=$(pwd -P)
extra=${1-}

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# The first interpreter that is new enough and can make a virtual environment. A name that is on
# the PATH may still not run (pyenv's shims), so each one is asked.
find_python() {
    found=''
    set -- python3 python3.13 python3.12 python3.11 python3.14 python
    [ -z "${PYTHON-}" ] || set -- "$PYTHON"
    for candidate in "$@"; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
            continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            found="$found $candidate is $version,"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            found="$found $candidate ($version) lacks venv or ensurepip,"
        else
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or later with venv and ensurepip;${found:- no Python was found,}" \
        "so install one (Debian and Ubuntu: apt-get install python3 python3-venv)" \
        "or name one with PYTHON=/path/to/python3."
}

alive() {
    .venv/bin/python -c 'import pip' 2>/dev/null
}

# A venv with other pins, or one that was moved with its folder, has another stamp.
stamp="$(cat pyproject.toml constraints.txt | cksum) $root"
stamp_file=.venv/installed${extra:+-$extra}
if alive && [ ! -e .venv/unfinished ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
if ! alive || [ -e .venv/unfinished ]; then
    python=$(find_python)
    printf 'setup: making .venv with %s\n' "$python" >&2
    "$python" -m venv --clear .venv || fail "$python could not make $root/.venv."
fi

# Left behind by an interrupted install, which may have unpacked half a package: start clean then.
: >.venv/unfinished
printf 'setup: installing the pinned dependencies (minutes the first time)\n' >&2
quiet=''
[ -t 2 ] || quiet=-qq
# The build's own dependencies are pinned by the environment: -c does not reach them. The path is
# relative, for pip splits these values at spaces.
PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    .venv/bin/python -m pip install $quiet -e ".${extra:+[$extra]}" >&2 ||
    fail "pip could not install the dependencies (its message is above). Run this again to go on."
printf '%s\n' "$stamp" >.venv/installed
printf '%s\n' "$stamp" >"$stamp_file"
rm .venv/unfinished
