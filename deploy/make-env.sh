#!/bin/sh
# Makes or refreshes ./.venv from the lock file; `make env` calls it.
#
# Needs Python 3.11 or newer and the package index, nothing else: uv does the work where it is
# found, pip otherwise.  When lock and project file are as they were, it touches nothing, and
# nothing of the network.
set -eu
cd "$(dirname "$0")/.."
LOCK=requirements-dev.lock
STAMP=.venv/.darkstream-stamp

say() { printf '%s\n' "$*" >&2; }

# What the environment was made from: here, by this lock, for this project file.
want_lock="$(pwd) $(cksum <"$LOCK")"
want_project="$(cksum <pyproject.toml)"
have_lock='' have_project=''
if [ -f "$STAMP" ]; then
    { read -r have_lock && read -r have_project; } <"$STAMP" || true
fi
if [ "$want_lock" = "$have_lock" ] && [ "$want_project" = "$have_project" ] &&
    .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
can_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

uv=''
if command -v uv >/dev/null 2>&1; then uv=uv; fi

# The newest Python that can make an environment; the first that is new enough is kept for the message.
python='' without_venv=''
for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
    new_enough "$candidate" || continue
    if [ -n "$uv" ] || can_venv "$candidate"; then
        python=$candidate
        break
    fi
    without_venv=${without_venv:-$candidate}
done
if [ -z "$python" ]; then
    if [ -n "$without_venv" ]; then
        say "error[env]: $without_venv has no venv module; apt install python3-venv (or install uv), then call make again"
    else
        say "error[env]: no Python 3.11 or newer found; install one, or name it: make env PYTHON=/path/to/python3"
    fi
    exit 2
fi

make_venv() {
    if new_enough .venv/bin/python && [ "$have_lock" != '' ] && [ "${have_lock%% *}" = "$(pwd)" ]; then
        return
    fi
    if [ -e .venv ] && [ ! -e .venv/pyvenv.cfg ]; then
        say "error[env]: ./.venv is there and is no Python environment; move it away"
        exit 2
    fi
    say "making ./.venv with $("$python" --version)"
    rm -rf .venv
    if [ -n "$uv" ]; then
        uv venv --quiet --no-python-downloads --python "$(command -v "$python")" .venv
    else
        "$python" -m venv .venv
    fi
}

install_lock() {
    [ "$want_lock" = "$have_lock" ] && return
    say "installing what $LOCK pins"
    if [ -n "$uv" ]; then
        uv pip sync --quiet --python .venv/bin/python --require-hashes "$LOCK"
    else
        # The lock is the whole closure.  Without --no-deps pip looks for "coverage[toml]" (pytest-cov
        # asks for it) apart from the pinned "coverage", finds a newer one, and misses its hash.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes -r "$LOCK"
    fi
}

install_project() {
    if [ -n "$uv" ]; then
        uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --no-deps --no-build-isolation --no-index -e .
    fi
}

# set -e does not reach into a condition, hence the chain.
install_all() { make_venv && install_lock && install_project; }

if [ -n "$uv" ] && ! install_all; then
    # uv and pip read different settings (index, certificates): what one cannot reach, the other may.
    can_venv "$python" || exit 1
    say "uv could not; trying pip"
    uv='' have_lock=''
fi
[ -n "$uv" ] || install_all
printf '%s\n%s\n' "$want_lock" "$want_project" >"$STAMP"
