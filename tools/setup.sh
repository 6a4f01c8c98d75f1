#!/usr/bin/env bash
# Installs what Octet is built with, from Debian's packages. Does nothing where all of it is there.
set -euo pipefail
packages=(g++ cmake ninja-build pkg-config ccache clang-format
  libeigen3-dev libyaml-cpp-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libcli11-dev libxxhash-dev libpcre2-dev
  libsimde-dev catch2 libopenmpi-dev openmpi-bin iproute2)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: these packages are missing and this user is neither root nor has sudo: ${missing[*]}" >&2
    echo "       ask an administrator for: apt-get install ${missing[*]}" >&2
    exit 2
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
