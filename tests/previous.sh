#!/usr/bin/env bash
# Builds flotilla of another commit into a folder of its own, for tests of upgrades.
# usage: previous.sh FOLDER [COMMIT]
# Without a commit: the newest release tag before HEAD, or, before the first release, HEAD's first parent.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

commit=${2:-$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || echo HEAD^)}
wanted=$(git rev-parse --verify "$commit^{commit}")
if [[ -x $folder/flotilla && $(cat "$folder/commit" 2>/dev/null) == "$wanted" ]]; then
  exit
fi
echo "building flotilla of $(git log -1 --format='%h (%s)' "$wanted")"
git worktree prune
git worktree add --quiet --force --detach "$folder/source" "$wanted"
trap 'git worktree remove --force "$folder/source"' EXIT
(cd "$folder/source" && CARGO_TARGET_DIR="$folder/target" cargo build --quiet --workspace --bin flotilla)
cp "$folder/target/debug/flotilla" "$folder/flotilla"
echo "$wanted" >"$folder/commit"
