#!/usr/bin/env bash
# Builds the fuzz targets with coverage feedback and runs them one after the other, each for MINUTES of
# processor time, however busy the machine is; an input counts as hanging after two minutes of real time.
#
#   tests/fuzz/run.sh MINUTES [TARGET...]
#
# libFuzzer needs edge counters from the compiler. `cargo fuzz` asks for them too; here stable Rust
# does, by the same flags, so that no other toolchain and no plugin has to be installed. What a run finds
# stays beside the corpus: new inputs in `found/TARGET`, crashes in `artifacts/TARGET`.
set -euo pipefail
minutes=${1:?how many minutes each}
shift
[ "$minutes" -gt 0 ] || { echo "MINUTES has to be above 0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
triple=$(rustc -vV | sed -n 's/^host: //p')
target=${FUZZ_TARGET_DIR:-$here/target}
[ -f Cargo.lock ] || cp ../../Cargo.lock Cargo.lock

flags="--cfg fuzzing -C debug-assertions -C overflow-checks -C codegen-units=1"
flags+=" -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4"
flags+=" -C llvm-args=-sanitizer-coverage-inline-8bit-counters"
flags+=" -C llvm-args=-sanitizer-coverage-pc-table"
flags+=" -C llvm-args=-sanitizer-coverage-trace-compares"
# A target triple keeps the flags away from build scripts and macros.
CARGO_TARGET_DIR=$target RUSTFLAGS=$flags cargo build --release --bins --target "$triple"

if [ $# -eq 0 ]; then
    mapfile -t names < <(ls fuzz_targets | sed 's/\.rs$//')
else
    names=("$@")
fi
failed=0
TIMEFORMAT='%U %S'
for name in "${names[@]}"; do
    mkdir -p "found/$name" "artifacts/$name"
    spent=0
    while [ "$spent" -lt $((minutes * 60)) ]; do
        left=$((minutes * 60 - spent))
        { used=$({ time "$target/$triple/release/$name" "found/$name" "corpus/$name" \
            -artifact_prefix="artifacts/$name/" -max_total_time=$((left < 300 ? left : 300)) \
            -timeout=120 -rss_limit_mb=2048 -max_len=16384 -use_value_profile=0 \
            -print_final_stats=1 -verbosity=1 >&3 2>&1; } 2>&1) || { failed=1; break; }; } 3>&1
        read -r user system <<< "$used"
        spent=$((spent + ${user%.*} + ${system%.*} + 1))
    done
    crashes=$(find "artifacts/$name" -name 'crash-*' -o -name 'oom-*' -o -name 'timeout-*' | wc -l)
    echo "== $name: $spent s of processor time, $crashes crashes on record"
done
exit $failed
