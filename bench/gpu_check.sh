#!/usr/bin/env bash
# What one runs on a machine with a GPU. Needs no network: Python with torch (CUDA), numpy, pytest, hypothesis and mpmath,
# and for a build from source nvcc, scikit-build-core, pybind11, cmake and ninja.
#
#   bench/gpu_check.sh build          compile and install this source tree (or the wheel of --wheel)
#   bench/gpu_check.sh test           kernels, streams, graph capture and the op table on the device
#   bench/gpu_check.sh sanitize       the kernels under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
#   bench/gpu_check.sh bench FAMILY   composites, then kernels, timed; tables go to bench/results/
#   bench/gpu_check.sh all            all of these, every family
#
# Options, after the stage: --wheel FILE installs this wheel instead of building; --python FILE is the interpreter
# (default: python); --quick times few rounds. A stage takes a few minutes and ends with its exit status.
set -euo pipefail

python=python wheel='' quick=()

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

fail() {
  echo "gpu_check: $*" >&2
  exit 1
}

need_device() {
  "$python" - <<'PY' || fail "no usable device; see above"
import sys, torch
from subspan import _native
if not torch.cuda.is_available():
    sys.exit("torch finds no CUDA device")
if _native.cuda_problem():
    sys.exit(_native.cuda_problem())
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA of torch {torch.version.cuda}, "
      f"CUDA of the kernels {_native.cuda().cuda_version}")
PY
}

build() {
  # --force-reinstall: the version number may be that of what is installed.
  local options=(--no-deps --no-index --force-reinstall)
  if [[ -n $wheel ]]; then
    "$python" -m pip install "${options[@]}" "$wheel"
  else
    "$python" -m pip install "${options[@]}" --no-build-isolation --config-settings=cmake.define.SUBSPAN_CUDA=ON .
  fi
  # From elsewhere, so that the installed package answers and not a folder of this tree.
  (cd / && "$python" -m subspan.info)
  need_device
}

run_tests() {
  need_device
  "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_gpu_angles.py \
    tests/test_every_op_values.py::test_cupy_gives_cupy
  echo "gpu_check: the op table once more, through the kernels"
  SUBSPAN_CUDA_KERNELS=1 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py -k test_op_
}

sanitize() {
  need_device
  command -v compute-sanitizer >/dev/null || fail "compute-sanitizer is not on PATH; it is part of the CUDA toolkit"
  # The memory that torch caches would hide an access past the end of an array.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local tool
  for tool in memcheck racecheck synccheck initcheck; do
    echo "gpu_check: $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 86 --target-processes all \
      "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_gpu_angles.py \
      -k "test_kernel_values or test_largest_size or test_layouts or test_bad_item"
  done
}

# NVIDIA H100 80GB HBM3 with torch 2.11.0 becomes nvidia-h100-80gb-hbm3-torch-2.11.0; the driver is in the table's header.
machine_name() {
  "$python" -c '
import re, subspan, torch
name = f"{torch.cuda.get_device_name()}-torch-{torch.__version__}-subspan-{subspan.__version__}"
print(re.sub(r"[^a-z0-9.]+", "-", name.lower()))'
}

families() {
  "$python" -c '
import sys
sys.path.insert(0, "bench")
from cases import FAMILIES
print(*(family for family in FAMILIES if family != "core"))'  # core is the micro-kernel of the CPU
}

bench() {
  local family=$1 kernels name file
  need_device
  name=$(machine_name)
  mkdir -p bench/results
  for kernels in 0 1; do
    file=bench/results/$family-$name-$([[ $kernels == 1 ]] && echo kernels || echo composites)
    SUBSPAN_CUDA_KERNELS=$kernels "$python" bench/run.py --device cuda --family "$family" --json "$file.json" \
      "${quick[@]}" | tee "$file.md"
  done
  echo "gpu_check: wrote bench/results/$family-$name-{composites,kernels}.{json,md}"
}

stage=${1:-}
[[ $# -gt 0 ]] && shift
family=''
if [[ $stage == bench ]]; then
  family=${1:-}
  [[ -n $family && $family != --* ]] || usage
  shift
fi
while [[ $# -gt 0 ]]; do
  case $1 in
    --wheel)
      [[ -f ${2:-} ]] || fail "--wheel: expected a file, got '${2:-}'"
      wheel=$(realpath "$2")
      shift 2
      ;;
    --python)
      python=${2:-}
      shift 2 || usage
      ;;
    --quick)
      quick=(--quick)
      shift
      ;;
    *) usage ;;
  esac
done
found=$(command -v "$python") || fail "--python: expected an interpreter, got '$python'"
python=$(realpath --no-symlinks "$found")  # the link of a virtual environment is what makes it one

cd "$(dirname "$(realpath "$0")")/.."
case $stage in
  build) build ;;
  test) run_tests ;;
  sanitize) sanitize ;;
  bench)
    [[ $family == all ]] && family=$(families)
    for one in $family; do bench "$one"; done
    ;;
  all)
    build
    run_tests
    sanitize
    for one in $(families); do bench "$one"; done
    ;;
  *) usage ;;
esac
