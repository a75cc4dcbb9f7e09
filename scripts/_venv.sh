# Sourced by the other scripts: gives them a virtual environment with weightgen in it.
#
#   WEIGHTGEN_VENV         where the environment is; default .venv in the checkout
#   PYTHON                 interpreter to make it with; default the first one of 3.11 or later that works
#   WEIGHTGEN_TORCH_INDEX  package index to take torch from, for example that of the CPU or a CUDA build

# Name of a Python >= 3.11 that can make virtual environments.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later with the venv module among: ${PYTHON:-python3.11 ... python3, python}" >&2
  echo "remedy: install one (on Debian and Ubuntu also the package python3-venv), or set PYTHON=/path/to/python" >&2
  return 2
}

# What the installation depends on, as one line: if it changes, install again.
install_stamp() {
  python - "$PWD" "${WEIGHTGEN_TORCH_INDEX:-}" <<'PYTHON_CODE'
import hashlib, pathlib, sys

digest = hashlib.sha256(repr((sys.argv[1:], sys.version)).encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON_CODE
}

# use_venv [dev]: make or reuse the environment, install what changed, activate it. Call it in the checkout's root.
use_venv() {
  local extra=${1:-} venv=${WEIGHTGEN_VENV:-$PWD/.venv} python stamp
  if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    python=$(find_python) || return
    echo "making a virtual environment in $venv" >&2
    "$python" -m venv --clear "$venv" || return
  fi
  # shellcheck disable=SC1091
  source "$venv/bin/activate" || return

  stamp=$(install_stamp) || return
  if [[ "$(cat "$venv/.installed-${extra:-base}" 2>/dev/null)" == "$stamp" ]]; then
    return
  fi
  local pip=(python -m pip install --quiet --disable-pip-version-check -c constraints.txt)
  # torch comes first and alone, so that its index decides the build and nothing later brings a second one
  echo "installing torch (large, once)" >&2
  "${pip[@]}" ${WEIGHTGEN_TORCH_INDEX:+--index-url "$WEIGHTGEN_TORCH_INDEX"} torch || return
  echo "installing weightgen${extra:+[$extra]}" >&2
  "${pip[@]}" -e ".${extra:+[$extra]}" || return
  echo "$stamp" >"$venv/.installed-base"
  echo "$stamp" >"$venv/.installed-${extra:-base}"
}
