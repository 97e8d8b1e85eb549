#!/usr/bin/env bash
# test_cuda.sh NVCC - configures for a toolkit whose folder of stubs comes first, as one of a system
# has it: cuBLASLt must be the library that is there to run, since its folder is the run path.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
nvcc=$(realpath "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The same toolkit by links. nvcc takes its own place for the toolkit's, so it is a copy.
toolkit=$scratch/toolkit
mkdir -p "$toolkit"/{bin,lib64}
for entry in "${nvcc%/bin/nvcc}"/*; do
    [[ -e $toolkit/${entry##*/} ]] || ln -s "$entry" "$toolkit/"
done
ln -s "${nvcc%/nvcc}"/* "$toolkit/bin/"
rm "$toolkit/bin/nvcc"
cp "$nvcc" "$toolkit/bin/"
ln -s "${nvcc%/bin/nvcc}"/lib64/* "$toolkit/lib64/"
if [[ ! -e $toolkit/lib64/stubs ]]; then
    mkdir "$toolkit/lib64/stubs"
    echo | cc -shared -x c - -o "$toolkit/lib64/stubs/libcublasLt.so"
fi

cmake -S "$root" -B "$scratch/build" -G Ninja -DLORRY_GPU_TESTS=ON -DLORRY_CUDA=ON \
    -DCMAKE_CUDA_COMPILER="$toolkit/bin/nvcc" >"$scratch/log" 2>&1 || {
    cat "$scratch/log"
    exit 1
}
found=$(sed -n 's/^LORRY_CUBLASLT:FILEPATH=//p' "$scratch/build/CMakeCache.txt")
echo "cuBLASLt: $found"
[[ $found == *cublasLt* && $found != */stubs/* ]]
