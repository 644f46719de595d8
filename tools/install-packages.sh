#!/usr/bin/env bash
# Installs the Debian packages of tools/apt-packages.txt that are missing; does nothing when none is.
# usage: install-packages.sh [SECTION...]   (default: all sections)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

missing=()
while read -r package command; do
  if [ -n "$command" ] && command -v "$command" >/dev/null; then continue; fi
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done < <(awk -v wanted=" $* " '/^# [a-z]+$/ { section = $2 } !/^#/ && (wanted == "  " || index(wanted, " " section " "))' \
  "$here/apt-packages.txt")
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "install these packages as root: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing: ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
