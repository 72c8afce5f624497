#!/usr/bin/env bash
# Installs what `make test` needs on Debian and is not there yet: packages, Python SDKs, JavaScript SDKs.
# Does nothing that is done already. Needs root for Debian packages only.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A packages=(
  [chromium]=chromium
  [etcd]=etcd-server
  [ip]=iproute2
  [nft]=nftables
  [mkfs.ext4]=e2fsprogs
  [cmake]=cmake
  [losetup]=mount
  [tcpdump]=tcpdump
  [cc]=gcc
  [go]=golang-go
)
missing=()
for command in "${!packages[@]}"; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null || missing+=("${packages[$command]}")
done
if ((${#missing[@]})); then
  echo "installing ${missing[*]}"
  # A server that a package would start is not wanted: the tests start their own.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

venv=tests/interop/.venv
requirements=tests/interop/python/requirements.txt
if ! cmp -s "$requirements" "$venv/installed.txt"; then
  echo "installing the Python SDKs"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$venv/installed.txt"
fi

js=tests/interop/js
if ! cmp -s "$js/package-lock.json" "$js/node_modules/.installed"; then
  echo "installing the JavaScript SDKs"
  (cd "$js" && npm ci --silent)
  cp "$js/package-lock.json" "$js/node_modules/.installed"
fi
